"""A Label Studio and a backend of the fault tests' own, one for each module, and a project."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from faulty_proxy import FaultyProxy
from filelock import FileLock
from installation import Installation, OwnBackend, new_address, run_cellai
from laboratory import Laboratory, fault_environment, new_laboratory
from own_label_studio import FirstStart, LabelStudioOnSQLite, OwnLabelStudio


@pytest.fixture(scope="session")
def small_sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 synthetic cells, all labelled."""
    path = tmp_path_factory.mktemp("small") / "small.seg"
    answer = run_cellai("sample", path, "--cells", 150, "--labelled", 1)
    assert answer.returncode == 0, answer.stderr
    return path


@pytest.fixture(scope="session")
def first_start(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> FirstStart:
    """Made by the first process of a run that asks for it, from its installation if it has one."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "first-start"
    folder, api_key_file = shared / "label-studio", shared / "api-key"
    with FileLock(f"{shared}.lock"):
        if not api_key_file.exists():
            shutil.rmtree(shared, ignore_errors=True)  # of a process that failed in between
            shared.mkdir()
            api_key_file.write_text(_prepare(request, folder))
    return FirstStart(folder, api_key_file.read_text())


def _prepare(request: pytest.FixtureRequest, folder: Path) -> str:
    """Put what a first start leaves into the folder; returns the token of its account."""
    if request.config.getoption("markexpr") != "faults":
        demo: Installation = request.getfixturevalue("demo")
        demo.copy_label_studio(folder)
        return demo.connection_file.api_key
    server = LabelStudioOnSQLite.new(folder.parent)
    try:
        server.start()
    finally:
        server.stop()
    return server.api_key


@pytest.fixture(scope="module")
def label_studio(
    first_start: FirstStart, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LabelStudioOnSQLite]:
    server = LabelStudioOnSQLite.copy_of(first_start, tmp_path_factory.mktemp("own"))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def fault_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the point and the process of the next kill."""
    return tmp_path_factory.mktemp("fault") / "next"


@pytest.fixture(scope="module")
def own_backend(
    label_studio: OwnLabelStudio, weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> OwnBackend:
    return OwnBackend(
        label_studio_url=label_studio.url,
        api_key=label_studio.api_key,
        files_dir=label_studio.files_dir,
        data_dir=tmp_path_factory.mktemp("backend"),
        weights=weights,
        address=new_address(),
    )


@pytest.fixture(scope="module")
def laboratory(
    label_studio: OwnLabelStudio, own_backend: OwnBackend, small_sample: Path, fault_file: Path
) -> Iterator[Laboratory]:
    with (
        own_backend.running(log=None, **fault_environment(fault_file)),
        new_laboratory(label_studio, own_backend, small_sample) as laboratory,
    ):
        yield laboratory


@pytest.fixture
def new_backend(own_backend: OwnBackend, tmp_path: Path) -> OwnBackend:
    """One with an empty data directory, to be started by the test."""
    return replace(own_backend, data_dir=tmp_path / "new", address=new_address())


@pytest.fixture(scope="module")
def proxy(label_studio: OwnLabelStudio) -> Iterator[FaultyProxy]:
    proxy = FaultyProxy(label_studio.url)
    yield proxy
    proxy.close()

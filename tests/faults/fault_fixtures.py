"""A Label Studio and a backend of the fault tests' own, one for each module, and a project."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from faulty_proxy import FaultyProxy
from installation import Installation, OwnBackend, new_address, run_cellai
from laboratory import Laboratory, fault_environment, new_laboratory
from own_label_studio import LabelStudioOnSQLite


@pytest.fixture(scope="session")
def small_sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 synthetic cells, all labelled."""
    path = tmp_path_factory.mktemp("small") / "small.seg"
    answer = run_cellai("sample", path, "--cells", 150, "--labelled", 1)
    assert answer.returncode == 0, answer.stderr
    return path


@pytest.fixture(scope="module")
def label_studio(
    demo: Installation, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LabelStudioOnSQLite]:
    server = LabelStudioOnSQLite(tmp_path_factory.mktemp("own"), demo)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def fault_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the point and the process of the next kill."""
    return tmp_path_factory.mktemp("fault") / "next"


@pytest.fixture(scope="module")
def own_backend(
    demo: Installation,
    label_studio: LabelStudioOnSQLite,
    weights: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> OwnBackend:
    return OwnBackend(
        demo,
        tmp_path_factory.mktemp("backend"),
        weights,
        new_address(),
        label_studio_url=label_studio.url,
        other_files_dir=label_studio.files_dir,
    )


@pytest.fixture(scope="module")
def laboratory(
    label_studio: LabelStudioOnSQLite, own_backend: OwnBackend, small_sample: Path, fault_file: Path
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
def proxy(label_studio: LabelStudioOnSQLite) -> Iterator[FaultyProxy]:
    proxy = FaultyProxy(label_studio.url)
    yield proxy
    proxy.close()

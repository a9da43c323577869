"""A Label Studio and a backend of the fault tests' own, one for each module."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from installation import Installation, OwnBackend, free_port, run_cellai
from own_label_studio import OwnLabelStudio

from converters.project import BackendAddress


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
) -> Iterator[OwnLabelStudio]:
    server = OwnLabelStudio(tmp_path_factory.mktemp("own"), demo)
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
    label_studio: OwnLabelStudio,
    weights: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> OwnBackend:
    address = BackendAddress(f"http://127.0.0.1:{free_port()}", "tester", "a secret")
    folder = tmp_path_factory.mktemp("backend")
    return OwnBackend(
        demo,
        folder,
        weights,
        address,
        label_studio_url=label_studio.url,
        other_files_dir=label_studio.files_dir,
    )

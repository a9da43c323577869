"""Fixtures: one real Label Studio with backend for the session, real files, real weights."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import h5py
import pytest
from installation import (
    SHARED,
    Installation,
    OwnBackend,
    free_port,
    run_cellai,
    shared_file,
    start_installation,
)

from converters.project import BackendAddress


@pytest.fixture(scope="session")
def weights() -> Path:
    """ImageNet weights of the trunk."""
    return shared_file("vgg16_features.safetensors")


@pytest.fixture(scope="session")
def sample_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 synthetic cells, all labelled."""
    path = tmp_path_factory.mktemp("sample") / "sample.seg"
    answer = run_cellai("sample", path, "--cells", 300, "--labelled", 1)
    assert answer.returncode == 0, answer.stderr
    return path


@pytest.fixture(scope="session")
def sample_labels(sample_file: Path) -> list[str]:
    """The true class of every cell of the sample, by index."""
    with h5py.File(sample_file) as file:
        return [label.decode() for label in file["label/ground_truth"][:]]


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory, sample_file: Path) -> Iterator[Installation]:
    """The sample without its labels in a running installation."""
    arguments: list[object] = [sample_file, "--no-labels"]
    weights = SHARED / "vgg16_features.safetensors"
    if weights.exists():
        arguments += ["--weights", weights]
    installation = start_installation(tmp_path_factory.mktemp("demo"), *arguments)
    yield installation
    with contextlib.suppress(ProcessLookupError):
        installation.stop()


@pytest.fixture
def backend(demo: Installation, weights: Path, tmp_path: Path) -> OwnBackend:
    address = BackendAddress(f"http://127.0.0.1:{free_port()}", "tester", "a secret")
    return OwnBackend(demo, tmp_path / "backend", weights, address)

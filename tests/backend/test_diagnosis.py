"""What the backend finds wrong with its data directory."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydantic import SecretStr

from backend.diagnosis import storage_problem
from backend.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(label_studio_api_key=SecretStr("token"), data_dir=tmp_path)


@contextmanager
def longest_file(n_bytes: int) -> Iterator[None]:
    """This process can write no longer file, as where a quota is used up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_folder_that_takes_no_bytes(settings: Settings) -> None:
    assert storage_problem(settings) == ""
    with longest_file(1):
        problem = storage_problem(settings)
    assert problem == f"The data directory {settings.data_dir} cannot be written: File too large."
    assert list(settings.data_dir.iterdir()) == []


def test_folder_that_is_gone(settings: Settings) -> None:
    settings.data_dir.rmdir()
    assert "cannot be written: No such file or directory." in storage_problem(settings)

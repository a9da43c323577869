"""What the backend finds wrong with its data directory."""

from pathlib import Path

import pytest
from file_limit import longest_file
from pydantic import SecretStr

from backend.diagnosis import storage_problem
from backend.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(label_studio_api_key=SecretStr("token"), data_dir=tmp_path)


def test_folder_that_takes_no_bytes(settings: Settings) -> None:
    assert storage_problem(settings) == ""
    with longest_file(1):
        problem = storage_problem(settings)
    assert problem == "The data directory cannot be written: File too large."
    assert list(settings.data_dir.iterdir()) == []


def test_folder_that_is_gone(settings: Settings) -> None:
    settings.data_dir.rmdir()
    assert "cannot be written: No such file or directory." in storage_problem(settings)

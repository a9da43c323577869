"""The documents show the settings as they are in the code."""

from pathlib import Path

import pytest

from backend.settings import PREFIX, Settings, read_settings
from backend.settings_reference import ROOT, documents, env_lines, settings


def test_documents_are_current() -> None:
    found = documents()
    assert {path.name for path in found} >= {"settings.md", ".env.example", "docker-compose.yml"}
    for path, text in found.items():
        assert path.read_text() == text, f"{path.name} is stale: run python -m backend.settings"


def test_readme_shows_the_table() -> None:
    assert ROOT / "README.md" in documents()


def test_every_setting_has_a_sentence() -> None:
    listed = list(settings())
    assert [setting.variable for setting in listed] == [
        f"{PREFIX}{name.upper()}" for name in Settings.model_fields
    ]
    assert [setting.variable for setting in listed if len(setting.description) < 8] == []


def test_example_file_can_be_used_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uncommenting all lines changes nothing: they hold the defaults."""
    monkeypatch.setenv("CELLAI_LABEL_STUDIO_API_KEY", "x")
    before = read_settings()
    for line in env_lines().splitlines():
        if line.startswith(f"#{PREFIX}"):
            name, _, value = line.removeprefix("#").partition("=")
            monkeypatch.setenv(name, value)
    assert read_settings() == before


def test_changed_documents_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docs").mkdir()
    for name in ("docs/settings.md", "README.md", ".env.example", "docker-compose.yml"):
        (tmp_path / name).write_text((ROOT / name).read_text().replace("CELLAI_PORT", "CELLAI_P"))
    monkeypatch.setattr("backend.settings_reference.ROOT", tmp_path)
    assert any(path.read_text() != text for path, text in documents().items())

"""Settings: checked at the edge, wrong ones named, projects may override some."""

import pytest

from backend.errors import ParametersError
from backend.settings import ProjectParameters, read_settings
from converters.errors import ConfigurationError


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "token")


def test_environment_overrides_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELLAI_PORT", "9999")
    settings = read_settings()
    assert settings.port == 9999
    assert "token" not in repr(settings)


def test_all_wrong_settings_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELLAI_PROT", "1")
    monkeypatch.setenv("CELLAI_THREADS", "none")
    with pytest.raises(ConfigurationError) as refused:
        read_settings()
    assert "did you mean CELLAI_PORT?" in str(refused.value)
    assert "threads" in str(refused.value)


def test_project_overrides_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELLAI_EPOCHS", "7")
    settings = read_settings()
    assert settings.parameters("").epochs == 7
    own = settings.parameters('{"epochs": 9, "mode": "phase"}')
    assert (own.epochs, own.mode) == (9, "phase")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("{", "not JSON"),
        ('{"mod": 1}', "mod"),
        ('{"mc_passes": 1}', "mc_passes"),
        ("[]", "wrong"),
        ("[" * 100_000, "too deep"),
        ('{"epochs": ' + "9" * 5000 + "}", "too long"),
    ],
    ids=["cut off", "unknown key", "out of range", "a list", "deep", "many digits"],
)
def test_wrong_project_parameters_are_explained(text: str, word: str) -> None:
    with pytest.raises(ParametersError, match=word):
        ProjectParameters.parse(text)


@pytest.mark.parametrize("name", ["CELLAI_BUCKET_URL", "CELLAI_PUBLIC_URL"])
def test_addresses_are_checked(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    field = name.removeprefix("CELLAI_").lower()
    monkeypatch.setenv(name, "https://s3.example.org/cells/")
    assert getattr(read_settings(), field) == "https://s3.example.org/cells"
    for wrong in ("s3://cells", "cells.example.org", "https://", "https://a:b@c", "https://c/?d"):
        monkeypatch.setenv(name, wrong)
        with pytest.raises(ConfigurationError, match="no address such as"):
            read_settings()

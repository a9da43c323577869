"""docker-compose.yml as the tests read it."""

import re
from collections.abc import Mapping
from typing import Any

import yaml
from installation import ROOT

COMPOSE = ROOT / "docker-compose.yml"
REQUIRED = re.compile(r"\$\{([A-Z_]+):\?[^}]+\}")
OPTIONAL = re.compile(r"\$\{([A-Z_]+):-([^}]*)\}")


def read_compose() -> dict[str, Any]:
    """The whole file."""
    content: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return content


def given(service: Mapping[str, Any]) -> dict[str, str]:
    """Variables that the file itself sets; those without a value come from .env."""
    return {name: v for name, v in service["environment"].items() if v is not None}


def filled_in(value: str, secrets: Mapping[str, str] | None = None) -> str:
    """The value as Compose sees it once .env is filled in, with `secret` where none is named."""
    named = secrets or {}
    required = REQUIRED.sub(lambda asked: named.get(asked[1], "secret"), value)
    return OPTIONAL.sub(r"\2", required)

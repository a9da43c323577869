"""The settings as documents show them: a table in Markdown, `.env.example`, docker-compose.yml.

One source, `backend.settings`; the blocks between the markers are written by
`python -m backend.settings`, and a test keeps them current.
"""

import re
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from backend.settings import PREFIX, Settings

ROOT = Path(__file__).resolve().parent.parent
# What docker-compose.yml and its .env file name otherwise, or what the image fixes.
FIXED_IN_COMPOSE = {
    "label_studio_url",
    "label_studio_api_key",
    "data_dir",
    "files_dir",
    "weights",
    "host",
    "port",
    "basic_auth_user",
    "basic_auth_password",
}
NAMES: dict[Any, str] = {
    str: "text",
    SecretStr: "secret text",
    Path: "path",
    int: "whole number",
    float: "number",
}
LIMITS = {"ge": "from", "gt": "above", "le": "to", "lt": "below"}


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting as documents show it."""

    variable: str
    kind: str
    default: str
    description: str
    is_fixed_in_compose: bool


def settings() -> Iterator[Setting]:
    """All settings in the order of their definition."""
    for name, field in Settings.model_fields.items():
        yield Setting(
            variable=f"{PREFIX}{name.upper()}",
            kind=_kind(field),
            default=_default(field),
            description=field.description or "",
            is_fixed_in_compose=name in FIXED_IN_COMPOSE,
        )


def markdown_table() -> str:
    """The table for README.md and docs."""
    rows = [
        f"| `{s.variable}` | {s.kind} | {f'`{s.default}`' if s.default else ''} | {s.description} |"
        for s in settings()
    ]
    return "\n".join(["| Variable | Value | Default | What it is |", "|---|---|---|---|", *rows])


def env_lines() -> str:
    """Commented-out lines for `.env.example`."""
    return "\n".join(
        f"# {s.description} ({s.kind})\n#{s.variable}={s.default}"
        for s in settings()
        if not s.is_fixed_in_compose
    )


def compose_lines() -> str:
    """Variables that docker-compose.yml hands on from `.env`, if they are set there."""
    return "\n".join(f"      {s.variable}:" for s in settings() if not s.is_fixed_in_compose)


def documents() -> dict[Path, str]:
    """Every file with a block of settings, and its current text."""
    blocks = [
        (ROOT / "docs" / "settings.md", "<!-- settings -->", "<!-- /settings -->", markdown_table),
        (ROOT / "README.md", "<!-- settings -->", "<!-- /settings -->", markdown_table),
        (ROOT / ".env.example", "# <settings>", "# </settings>", env_lines),
        (ROOT / "docker-compose.yml", "# <settings>", "# </settings>", compose_lines),
    ]
    return {
        path: _with_block(path.read_text(), start, end, render())
        for path, start, end, render in blocks
        if start in path.read_text()
    }


def write_documents() -> None:
    """Bring all blocks up to date."""
    for path, text in documents().items():
        path.write_text(text)


def _with_block(text: str, start: str, end: str, block: str) -> str:
    """The text with everything between the lines of the markers replaced."""
    pattern = re.compile(f"({re.escape(start)}\n).*?( *{re.escape(end)})", re.DOTALL)
    return pattern.sub(lambda match: f"{match[1]}{block}\n{match[2]}", text)


def _default(field: FieldInfo) -> str:
    default = field.default
    if default is PydanticUndefined or default is None:
        return ""
    if isinstance(default, SecretStr):
        return default.get_secret_value()
    return str(default)


def _kind(field: FieldInfo) -> str:
    """Type and range in words."""
    kind, is_optional = _required_type(field.annotation)
    if get_origin(kind) is Literal:
        return ", ".join(get_args(kind))
    found = [
        f"{word} {getattr(rule, short):g}"
        for rule in field.metadata
        for short, word in LIMITS.items()
        if getattr(rule, short, None) is not None
    ]
    words = " ".join([NAMES[kind], *found])
    if field.is_required():
        return f"{words}, required"
    return f"{words}, may be empty" if is_optional else words


def _required_type(annotation: Any) -> tuple[Any, bool]:
    """The type without `None`, and whether None was allowed."""
    if get_origin(annotation) in {Union, types.UnionType}:
        (kind,) = (part for part in get_args(annotation) if part is not type(None))
        return kind, True
    return annotation, False

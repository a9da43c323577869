"""docs/commands.md and `--help` are what the commands say of themselves."""

from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from converters.cli import app
from converters.command_reference import TARGET, render_reference


def command_lines(command: Any, *words: str) -> Iterator[tuple[str, ...]]:
    """The words that call a command and each of those below it."""
    yield words
    for name, below in getattr(command, "commands", {}).items():
        yield from command_lines(below, *words, name)


def test_reference_is_current() -> None:
    hint = "docs/commands.md is stale: run python -m converters.command_reference"
    assert TARGET.read_text() == render_reference(), hint


def test_every_command_is_described() -> None:
    commands = getattr(get_command(app), "commands")  # noqa: B009  # typer hides click's type
    assert {"up", "import", "export", "doctor", "train", "models"} <= set(commands)
    text = render_reference()
    headings = {line.strip("# `") for line in text.splitlines() if line.startswith("#")}
    assert {f"cellai {name}" for name in commands} <= headings
    for name in ("list", "promote", "rollback", "prune"):
        assert f"cellai models {name}" in headings


@pytest.mark.parametrize("words", [*command_lines(get_command(app))], ids=" ".join)
def test_help_is_shown(words: tuple[str, ...]) -> None:
    """Rich reads square brackets in a help text as markup: one of `[/…]` ends in a traceback."""
    shown = CliRunner().invoke(app, [*words, "--help"])
    assert shown.exit_code == 0, shown.exception
    assert "Usage:" in shown.output


def test_version_is_shown() -> None:
    shown = CliRunner().invoke(app, ["--version"])
    assert (shown.exit_code, shown.output) == (0, f"{version('cellai')}\n")

"""docs/commands.md is what the commands say of themselves."""

from typer.main import get_command

from converters.cli import app
from converters.command_reference import TARGET, render_reference


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

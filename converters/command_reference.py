"""docs/commands.md: the `--help` texts of all commands, written by this module.

`python -m converters.command_reference` brings the file up to date; a test keeps it so.
"""

from pathlib import Path

import typer
from typer.cli import get_docs_for_click
from typer.main import get_command

from converters.cli import app

TARGET = Path(__file__).resolve().parent.parent / "docs" / "commands.md"


def render_reference() -> str:
    """All commands with their options, in Markdown."""
    command = get_command(app)
    context = typer.Context(command, info_name="cellai")
    text = get_docs_for_click(obj=command, ctx=context, name="cellai")
    note = "Written by `python -m converters.command_reference` from the commands themselves."
    title, _, rest = text.partition("\n")
    return f"{title}\n\n{note}\n{rest}".rstrip() + "\n"


if __name__ == "__main__":
    TARGET.write_text(render_reference())

"""The `cellai` command within the test's own process, for what needs no real server."""

from typer.testing import CliRunner, Result

from converters.cli import app
from converters.errors import CellAIError


def cellai(*arguments: object) -> Result:
    """What the command did with these arguments."""
    return CliRunner().invoke(app, [*map(str, arguments)])


def refusal(result: Result) -> CellAIError:
    """The sentence that the command ends with; anything else fails the test with its traceback."""
    if isinstance(result.exception, CellAIError):
        return result.exception
    raise AssertionError(result.output) from result.exception

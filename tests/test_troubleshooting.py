"""docs/troubleshooting.md lists every sentence with which an error is raised, and no other.

What varies in a sentence is written as `…`. Hints follow the sentence wherever it is printed, so
the page repeats them as they are in the code.
"""

import ast
import builtins
import re
from collections.abc import Iterator
from pathlib import Path

from backend import errors as backend_errors
from converters import errors as converters_errors

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "troubleshooting.md"
SENTENCE = re.compile(r"^\* ``(.+?)``", re.MULTILINE)


def own_errors() -> set[str]:
    """Names of CellAIError and all its subclasses."""
    root = converters_errors.CellAIError
    return {
        name
        for module in (converters_errors, backend_errors)
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, root)
    }


def text_of(node: ast.expr) -> str:
    """A string as it is printed, `…` for what varies; '' for an expression that is no string."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(
            str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values
        )
    return ""


def raised() -> Iterator[tuple[str, str]]:
    """Every fixed sentence of an error with the place where it is made."""
    names = own_errors() - set(dir(builtins))
    for path in [*(ROOT / "converters").glob("*.py"), *(ROOT / "backend").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or ast.unparse(node.func) not in names:
                continue
            if node.args and (sentence := text_of(node.args[0]).strip()):
                yield sentence, f"{path.name}:{node.lineno}"


def test_every_sentence_has_an_entry() -> None:
    listed = set(SENTENCE.findall(PAGE.read_text()))
    missing = {sentence: place for sentence, place in raised() if sentence not in listed}
    assert missing == {}


def test_every_entry_is_a_sentence_of_the_code() -> None:
    known = {sentence for sentence, _ in raised()}
    listed = SENTENCE.findall(PAGE.read_text())
    assert len(known) > 80
    assert [sentence for sentence in listed if sentence not in known] == []
    assert len(listed) == len(set(listed))

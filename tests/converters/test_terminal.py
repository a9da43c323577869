import io

import pytest
from rich.console import Console

from converters.terminal import plain


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("rbc", "rbc"),
        ("Ω µm [rad]", "Ω µm [rad]"),
        ("[/red]", "[/red]"),
        ("\\[/red]", "\\[/red]"),
        ("x\\y", "x\\y"),
        ("[link=http://a.example]here[/link]", "[link=http://a.example]here[/link]"),
        ("\x1b[31mred\x1b]0;title\x07", "\ufffd[31mred\ufffd]0;title\ufffd"),
        ("half \udcff", "half \ufffd"),
        ("\u202egnp.exe", "\ufffdgnp.exe"),
    ],
)
def test_text_is_shown_as_it_stands(text: str, shown: str) -> None:
    written = io.StringIO()
    Console(file=written, width=200, force_terminal=True, color_system=None).print(
        plain(text), highlight=False
    )
    assert written.getvalue() == f"{shown}\n"

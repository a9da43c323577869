"""Text that came with a file, as it may be printed.

Names in a file can hold anything: commands of the terminal, markup of `rich`, halves of characters.
"""

from rich.markup import escape


def plain(text: str) -> str:
    """The text for `rich` to print as it stands, everything that is no visible character as �."""
    return escape("".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text))

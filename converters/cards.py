"""The card file of a cell, which the labelling page loads: what it says before a model wrote it.

The filled card, with Grad-CAM and probabilities, is rendered by `backend.cards`.
"""

import html
import os
import uuid
from pathlib import Path


def render_placeholder(reason: str) -> str:
    """Card that says why there is nothing from a model.

    Args:
        reason: one sentence for the annotator, plain text.
    """
    return (
        '<div style="padding:16px;border:1px dashed rgba(128,128,128,.7);border-radius:8px">'
        '<div style="font-weight:700">No opinion of the model</div>'
        f"<div>{html.escape(reason)}</div></div>\n"
    )


def write_card(path: Path, card: str) -> None:
    """Replace a card file in one step, so that a reader sees the old card or the new one.

    Raises:
        OSError: the file cannot be written; the old card stays.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_text(card, encoding="utf-8")
        os.replace(temporary, path)  # noqa: PTH105 - Path.replace hides that this is atomic
    except OSError:
        temporary.unlink(missing_ok=True)
        raise

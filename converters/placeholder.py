"""The card file of a cell, which the labelling page loads: what it says before a model wrote it.

The filled card, with Grad-CAM and probabilities, is rendered by `backend.cards`.
"""

import html
import uuid
from pathlib import Path


def render_placeholder(reason: str, *, model_version: str = "") -> str:
    """Card that says why there is nothing from a model.

    Args:
        reason: one or two sentences for the annotator, plain text.
        model_version: version that ordered the queue, '' before the first.
    """
    version = f"<div>Queue ordered by {html.escape(model_version)}</div>" if model_version else ""
    return (
        '<div style="padding:16px;border:1px dashed rgba(128,128,128,.7);border-radius:8px">'
        '<div style="font-weight:700">No prediction</div>'
        f"<div>{html.escape(reason)}</div>{version}</div>\n"
    )


def write_card(path: Path, card: str) -> None:
    """Replace a card file in one step, so that a reader sees the old card or the new one.

    Not forced to disk as `converters.durable` does: thousands are written at a time, and a card
    that a power cut loses is written again with the next version.

    Raises:
        OSError: the file cannot be written; the old card stays.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_text(card, encoding="utf-8")
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise

"""The card of a cell on the labelling page: where the model looked, what it thinks, how sure it is.

In: what one model version found for one cell. Out: HTML that Label Studio's HyperText tag keeps.
Label Studio 1.23.2 drops scripts, event handlers and the `src` of an <img> with a data URI, and
keeps <style> and style attributes, so the picture is a CSS background. All sizes are relative, all
greys translucent: the card fits light and dark pages. `converters.placeholder` writes it.
"""

import base64
import html
import io
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from backend.networks import INPUT_PX

_PICTURE_PX: Final = 144

# Longer lists would push the uncertainty off a 768 px high screen.
_MOST_BARS: Final = 8

# Source: viridis (van der Walt and Smith 2015, matplotlib), nine of its 256 colours.
_VIRIDIS_HEX: Final = (
    "440154 472d7b 3b528b 2c728e 21918c 28ae80 5ec962 addc30 fde725".split()  # noqa: SIM905
)
_VIRIDIS_STOPS: Final = np.array([list(bytes.fromhex(stop)) for stop in _VIRIDIS_HEX])
_VIRIDIS: Final = np.stack(
    [
        np.interp(np.linspace(0, 8, 256), np.arange(9), _VIRIDIS_STOPS[:, channel])
        for channel in range(3)
    ],
    axis=1,
).astype(np.float32)

_STYLE: Final = (
    "<style>"
    ".cc{font-size:14px;line-height:20px}"
    ".cc-cam{width:min(100%,max(140px,100vh - 378px - 22px*var(--rows)));aspect-ratio:1;"
    "margin:0 auto;border:1px solid rgba(128,128,128,.5);box-sizing:border-box}"
    ".cc-key{display:flex;gap:8px;justify-content:center;font-size:13px;opacity:.8}"
    ".cc-map{width:80px;height:10px;margin:5px 0;"
    f"background:linear-gradient(90deg,#{',#'.join(_VIRIDIS_HEX)})}}"
    ".cc-bars{display:grid;grid-template-columns:auto 1fr auto;gap:2px 8px;align-items:center;"
    "margin:8px 0}"
    ".cc-bars>*{white-space:nowrap;overflow:hidden;text-overflow:ellipsis;max-width:150px}"
    ".cc-bars>i{max-width:none;height:14px;background:rgba(128,128,128,.22);border-radius:3px}"
    ".cc-bars>i>i{display:block;height:100%;background:#767676}"
    ".cc-bars>i.cc-top>i{background:#0072b2}"
    ".cc-top{font-weight:700}"
    ".cc-n{text-align:right;font-variant-numeric:tabular-nums}"
    ".cc-by{font-size:13px;opacity:.8}"
    "</style>"
)


def render_card(
    *,
    cell: npt.NDArray[np.uint8],
    heat: npt.NDArray[np.float32],
    classes: Sequence[str],
    probabilities: npt.NDArray[np.float32],
    uncertainty: float,
    model_version: str,
    n_labels: int,
) -> str:
    """HTML card of one cell: Grad-CAM over the cell, class probabilities, uncertainty, version.

    Args:
        cell: picture as people see it (rendered phase, or RGB), shape (H, W, 3), uint8.
        heat: Grad-CAM of the predicted class, shape (h, w), float32 in [0, 1].
        classes: what the annotator reads for each class, K names, plain text.
        probabilities: shape (K,), float32 in [0, 1], sum 1.
        uncertainty: in [0, 1], 1 = all classes equally likely or the passes disagree.
        model_version: version that computed all of it, plain text.
        n_labels: labels that version was trained on.

    Raises:
        ValueError: the number of classes and probabilities differ.
    """
    picture = base64.b64encode(_encode_jpeg(overlay_heat(cell, heat))).decode("ascii")
    bars = list(_render_bars(classes, probabilities))
    return (
        f'{_STYLE}<div class="cc" style="--rows:{len(bars)}">'
        '<div class="cc-cam" role="img" aria-label="Grad-CAM" style="'
        f'background:url(data:image/jpeg;base64,{picture}) center/contain no-repeat"></div>'
        '<div class="cc-key">Where the model looked: little'
        '<div class="cc-map"></div>much</div>'
        f'<div class="cc-bars">{"".join(bars)}</div>'
        f"<div><b>{describe_uncertainty(uncertainty)}</b> (uncertainty {uncertainty:.2f})</div>"
        f'<div class="cc-by">Model {html.escape(model_version)}, trained on '
        f"{n_labels} label{'' if n_labels == 1 else 's'}</div></div>\n"
    )


def describe_uncertainty(uncertainty: float) -> str:
    """Words for a normalised uncertainty in [0, 1]."""
    if uncertainty < 0.15:
        return "The model is sure"
    if uncertainty < 0.4:
        return "The model is fairly sure"
    if uncertainty < 0.7:
        return "The model is unsure"
    return "The model is guessing"


def overlay_heat(
    cell: npt.NDArray[np.uint8], heat: npt.NDArray[np.float32]
) -> npt.NDArray[np.uint8]:
    """Lay a heat map over the cell, the cell in grey so that colour means heat alone.

    Args:
        cell: shape (H, W, 3), uint8.
        heat: shape (h, w), float32 in [0, 1], any h and w, of the square that the trunk saw: the
            cell in its middle, with its border repeated around it where it is smaller.

    Returns:
        Shape (H, W, 3), uint8, enlarged until its longer side has 144 px, both upscaled smoothly;
        the colour is the stronger, the greater the heat.
    """
    height, width, _ = cell.shape
    larger = max(1.0, _PICTURE_PX / max(height, width))
    size = round(width * larger), round(height * larger)
    grey = Image.fromarray(cell).convert("L").resize(size, Image.Resampling.BICUBIC)
    seen = max(height, width, INPUT_PX)
    smooth = np.clip(_middle(heat, height / seen, width / seen, size), 0.0, 1.0)
    colour = _VIRIDIS[np.rint(smooth * 255).astype(np.uint8)]
    strength = (0.1 + 0.55 * smooth)[..., None]
    under = np.asarray(grey, np.float32)[..., None]
    blended: npt.NDArray[np.float32] = under + strength * (colour - under)
    return np.rint(blended).astype(np.uint8)


def _middle(
    heat: npt.NDArray[np.float32], height: float, width: float, size: tuple[int, int]
) -> npt.NDArray[np.float32]:
    """The middle part of a map, of these shares of its sides, at a size (width, height) in px."""
    whole = Image.fromarray(np.ascontiguousarray(heat))
    left, top = whole.width * (1 - width) / 2, whole.height * (1 - height) / 2
    box = (left, top, whole.width - left, whole.height - top)
    return np.asarray(whole.resize(size, Image.Resampling.BICUBIC, box=box), np.float32)


def _encode_jpeg(picture: npt.NDArray[np.uint8]) -> bytes:
    """JPEG with full colour resolution: smoother heat than WebP, in half its time (measured)."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=82, subsampling=0)
    return buffer.getvalue()


def _render_bars(classes: Sequence[str], probabilities: npt.NDArray[np.float32]) -> Iterator[str]:
    """One row for each class in class order; of many classes, the likeliest and the rest as one."""
    rows = list(zip(classes, probabilities.tolist(), strict=True))
    likeliest = sorted(range(len(rows)), key=lambda idx: -rows[idx][1])
    shown = likeliest if len(rows) <= _MOST_BARS else likeliest[: _MOST_BARS - 1]
    for idx in sorted(shown):
        yield _render_bar(*rows[idx], is_predicted=idx == likeliest[0])
    if len(shown) < len(rows):
        rest = sum(rows[idx][1] for idx in likeliest[len(shown) :])
        yield _render_bar(f"{len(rows) - len(shown)} others", rest, is_predicted=False)


def _render_bar(title: str, probability: float, *, is_predicted: bool) -> str:
    top = " cc-top" if is_predicted else ""
    mark = "▸ " if is_predicted else ""
    name = html.escape(title)
    return (
        f'<span class="cc-name{top}" title="{name}">{mark}{name}</span>'
        f'<i class="cc-bar{top}"><i style="width:{100 * probability:.1f}%"></i></i>'
        f'<span class="cc-n{top}">{100 * probability:.0f} %</span>'
    )

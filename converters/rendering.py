"""Crops as pictures: for people with the lab's colours, for the model with its full range.

All limits are physical constants, the same for every cell, and named in `RENDERING`, which is
recorded with each task.
"""

import colorsys

import numpy as np

from converters.crops import Crop
from converters.images import FloatArray, UInt8Array

PHASE_LIMITS_RAD = (-4.0, 14.0)
MODEL_PHASE_LIMITS_RAD = (-2.0, 6.0)
AMPLITUDE_STOPS = (-25.0, 45.0, 255.0)
AMPLITUDE_GREYS = (0.0, 128.0, 255.0)
RENDERING = (
    "qpi-1 phase -4..14 rad, amplitude -25..45..255 as 0..128..255, "
    "model R phase -2..6 rad G amplitude B mask"
)

_LUT_SIZE = 2**16


def _phase_lut() -> UInt8Array:
    """The lab's phase colours, RGB, shape (65536, 3) over `PHASE_LIMITS_RAD`.

    Source:
        The colour map of the laboratory that records CellFace files, told as the stops below:
        air bubbles at -4 rad, background at 0, cells from 2 to 14. Linear in RGB between them.
    """
    stops = [(-4.0, (0.65, 0.93, 1.00)), (0.0, (1.00, 0.97, 0.96))]
    for p in np.linspace(0, 1, 20):
        colour = colorsys.hsv_to_rgb((280 - 90 * p) / 360, min(0.5 + p, 1), (1 - p) ** 2)
        stops.append((2 + 12 * p, colour))
    at = np.linspace(*PHASE_LIMITS_RAD, _LUT_SIZE)
    rad = [stop[0] for stop in stops]
    planes = [np.interp(at, rad, [stop[1][channel] for stop in stops]) for channel in range(3)]
    colours: UInt8Array = np.rint(255 * np.clip(np.stack(planes, axis=1), 0, 1)).astype(np.uint8)
    return colours


_PHASE_LUT = _phase_lut()


def render_phase(phase: FloatArray) -> UInt8Array:
    """Phase in the lab's colours; missing values look like background (0 rad).

    Args:
        phase: (S, S) in rad, clipped to -4..14.

    Returns:
        (S, S, 3) uint8 RGB.
    """
    steps = _scaled(phase, *PHASE_LIMITS_RAD, top=_LUT_SIZE - 1).astype(np.uint16)
    colours: UInt8Array = np.take(_PHASE_LUT, steps, axis=0)
    return colours


def render_amplitude(amplitude: FloatArray) -> UInt8Array:
    """Amplitude as grey; missing values look like background (0).

    Background-subtracted amplitudes lie within -25..45 and get half of the greys, 1.8 a unit; the
    original's range of -15..255 gives them 0.9. The other half holds values up to 255, found in
    files whose background was not subtracted, which a limit of 45 would turn white.

    Args:
        amplitude: (S, S).

    Returns:
        (S, S) uint8.
    """
    (low, knee, high), (black, middle, white) = AMPLITUDE_STOPS, AMPLITUDE_GREYS
    values = _finite(amplitude)
    subtracted = (values - np.float32(low)) * np.float32((middle - black) / (knee - low))
    raw = (values - np.float32(knee)) * np.float32((white - middle) / (high - knee))
    greys = np.minimum(subtracted, raw + np.float32(middle))
    rounded: UInt8Array = np.clip(greys + np.float32(0.5), 0, 255).astype(np.uint8)
    return rounded


def model_input(crop: Crop) -> UInt8Array:
    """What the model sees: the camera picture, or phase, amplitude and mask as R, G and B.

    Phase is linear over -2..6 rad, which holds all cells with 0.03 rad a step, where the lab's
    colour map has 0.07 rad and mixes three channels. A missing amplitude is background; a missing
    mask is 255 everywhere.

    Returns:
        (S, S, 3) uint8.
    """
    if crop.phase is None and crop.image is not None:
        return crop.image
    size = _size(crop)
    phase = crop.phase if crop.phase is not None else np.zeros((size, size), np.float32)
    amplitude = crop.amplitude if crop.amplitude is not None else np.zeros((size, size), np.float32)
    mask = crop.mask if crop.mask is not None else np.ones((size, size), np.bool_)
    stack = np.empty((size, size, 3), np.uint8)
    stack[..., 0] = _scaled(phase, *MODEL_PHASE_LIMITS_RAD, top=255).astype(np.uint8)
    stack[..., 1] = render_amplitude(amplitude)
    stack[..., 2] = mask.astype(np.uint8) * 255
    return stack


def _size(crop: Crop) -> int:
    present = (crop.phase, crop.amplitude, crop.mask)
    return next(len(channel) for channel in present if channel is not None)


def _scaled(values: FloatArray, low: float, high: float, *, top: int) -> FloatArray:
    """Values over the limits as numbers in [0, top], whose integer part is the nearest step."""
    step = (high - low) / top
    scaled = (_finite(values) - np.float32(low)) * np.float32(1 / step) + np.float32(0.5)
    return np.clip(scaled, 0, top)


def _finite(values: FloatArray) -> FloatArray:
    """The values with 0, which is background, where they are missing."""
    has_nan = np.isnan(values.min())
    return np.where(np.isnan(values), np.float32(0), values) if has_nan else values

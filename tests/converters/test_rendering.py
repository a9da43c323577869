import colorsys
import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from converters.crops import Crop
from converters.png import encode_png
from converters.rendering import model_input, render_amplitude, render_phase


def crop(**channels: NDArray[Any] | None) -> Crop:
    values = {"phase": None, "amplitude": None, "image": None, "mask": None} | channels
    return Crop("id", "s", "d", 0, "g", (0, 0, 4, 4), 1, (), None, **values)


def as_colour(fractions: tuple[float, float, float]) -> list[int]:
    return [round(255 * fraction) for fraction in fractions]


@pytest.mark.parametrize(
    ("rad", "colour"),
    [
        (-4.0, as_colour((0.65, 0.93, 1.00))),
        (-9.0, as_colour((0.65, 0.93, 1.00))),
        (0.0, as_colour((1.00, 0.97, 0.96))),
        (-2.0, as_colour((0.825, 0.95, 0.98))),
        (2.0, as_colour(colorsys.hsv_to_rgb(280 / 360, 0.5, 1.0))),
        # stop 9 of 0..19: p = 9/19
        (
            2 + 12 * 9 / 19,
            as_colour(colorsys.hsv_to_rgb((280 - 90 * 9 / 19) / 360, 0.5 + 9 / 19, (10 / 19) ** 2)),
        ),
        (14.0, [0, 0, 0]),
        (99.0, [0, 0, 0]),
        (np.inf, [0, 0, 0]),
    ],
)
def test_phase_has_the_colours_of_the_lab(rad: float, colour: list[int]) -> None:
    rendered = render_phase(np.full((2, 2), rad, np.float32))
    assert rendered.dtype == np.uint8
    np.testing.assert_allclose(rendered[0, 0], colour, atol=1)


def test_missing_phase_looks_like_background() -> None:
    pixels = render_phase(np.array([[np.nan, 0.0]], np.float32))
    np.testing.assert_array_equal(pixels[0, 0], pixels[0, 1])


def test_the_same_phase_looks_the_same_in_every_crop() -> None:
    dim, bright = np.zeros((2, 2), np.float32), np.full((2, 2), 9, np.float32)
    dim[0, 0] = bright[0, 0] = 1.5
    np.testing.assert_array_equal(render_phase(dim)[0, 0], render_phase(bright)[0, 0])


def test_amplitude_grows_and_keeps_apart_what_is_subtracted_and_what_is_not() -> None:
    values = np.linspace(-30, 260, 581, dtype=np.float32)[np.newaxis]
    greys = render_amplitude(values)[0].astype(int)
    assert greys[0] == 0
    assert greys[-1] == 255
    assert (np.diff(greys) >= 0).all()
    within = greys[(values[0] >= -25) & (values[0] <= 45)]
    assert len(set(within.tolist())) > 115
    assert len(set(greys.tolist()) - set(within.tolist())) > 115
    assert render_amplitude(np.array([[np.nan]], np.float32)) == render_amplitude(
        np.array([[0.0]], np.float32)
    )


def test_model_input_stacks_phase_amplitude_and_mask() -> None:
    phase = np.array([[-2, 6], [2, np.nan]], np.float32)
    mask = np.array([[True, False], [False, True]])
    stack = model_input(crop(phase=phase, amplitude=np.zeros((2, 2), np.float32), mask=mask))
    assert stack.shape == (2, 2, 3)
    assert stack[0, 0, 0] == 0
    assert stack[0, 1, 0] == 255
    assert stack[1, 0, 0] == 128
    np.testing.assert_array_equal(stack[..., 1], stack[0, 0, 1])
    np.testing.assert_array_equal(stack[..., 2], mask * 255)


def test_model_input_without_mask_or_amplitude() -> None:
    stack = model_input(crop(phase=np.zeros((3, 3), np.float32)))
    assert (stack[..., 2] == 255).all()
    only_amplitude = model_input(crop(amplitude=np.full((3, 3), 45, np.float32)))
    assert (only_amplitude[..., 1] == 128).all()


def test_model_input_of_a_camera_picture_is_the_picture() -> None:
    image = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    np.testing.assert_array_equal(model_input(crop(image=image)), image)


def test_encoded_renderings_open_as_pictures() -> None:
    phase = np.linspace(-4, 14, 96 * 96, dtype=np.float32).reshape(96, 96)
    with Image.open(io.BytesIO(encode_png(render_phase(phase)))) as picture:
        np.testing.assert_array_equal(np.asarray(picture), render_phase(phase))

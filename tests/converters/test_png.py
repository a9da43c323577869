import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from PIL import Image

from converters.png import encode_png

SHAPES = st.one_of(
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.tuples(st.integers(1, 12), st.integers(1, 12), st.just(3)),
)


@settings(max_examples=50, deadline=None)
@given(SHAPES.flatmap(lambda shape: hnp.arrays(np.uint8, shape)))
def test_pillow_reads_back_what_was_encoded(pixels: NDArray[Any]) -> None:
    with Image.open(io.BytesIO(encode_png(pixels))) as picture:
        assert picture.mode == ("RGB" if pixels.ndim == 3 else "L")
        np.testing.assert_array_equal(np.asarray(picture), pixels)


def test_a_file_is_no_larger_than_pillows_fast_one() -> None:
    rng = np.random.default_rng(0)
    pixels = np.clip(rng.normal(120, 4, (96, 96, 3)), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    assert len(encode_png(pixels)) < 1.2 * len(buffer.getvalue())


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((4, 4)), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4), np.uint8)],
)
def test_other_shapes_and_types_are_refused(pixels: NDArray[Any]) -> None:
    with pytest.raises(ValueError, match="PNG needs"):
        encode_png(pixels)

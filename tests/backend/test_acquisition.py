"""The order of the queue: strict, in range, known rankings, classes in turn."""

from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from backend import acquisition
from backend.acquisition import (
    PRIORITY_STEP,
    cold_start_priorities,
    priorities_along,
    queue_priorities,
    representative_order,
)
from backend.errors import DivergedError
from backend.settings import Acquisition
from backend.uncertainty import (
    margin_uncertainty,
    mutual_information,
    predictive_entropy,
    score_from_priority,
)


def draw(n_crops: int, *, n_classes: int = 4, passes: int = 6, seed: int = 0) -> NDArray[Any]:
    """Random Monte-Carlo probabilities (T, N, K)."""
    rng = np.random.default_rng(seed)
    return rng.dirichlet([0.5] * n_classes, (passes, n_crops)).astype(np.float32)


@pytest.mark.parametrize("strategy", get_args(Acquisition))
@pytest.mark.parametrize("n_crops", [1, 2, 300])
def test_priorities_are_different_and_in_range(strategy: str, n_crops: int) -> None:
    rng = np.random.default_rng(0)
    priorities = queue_priorities(
        rng.normal(size=(n_crops, 8)).astype(np.float32),
        draw(n_crops),
        np.array([0, 1, 2, 3, 0]),
        strategy=strategy,
        seed=0,
    )
    assert ((priorities > 0) & (priorities <= 1)).all()
    gaps = np.diff(np.sort(priorities))
    assert (gaps > PRIORITY_STEP / 2).all()


@settings(deadline=None)  # the first call imports scipy
@given(st.lists(st.floats(0, 1), min_size=1, max_size=60), st.randoms())
def test_priorities_follow_any_order(uncertainty: list[float], random: object) -> None:
    order = np.random.default_rng(abs(hash(str(random))) % 2**32).permutation(len(uncertainty))
    priorities = priorities_along(order, np.array(uncertainty))
    assert (np.diff(priorities[order]) < 0).all()
    assert ((priorities > 0) & (priorities <= 1)).all()
    scores = score_from_priority(priorities)
    assert (np.argsort(scores, kind="stable") == order).all()


def test_plain_uncertainty_is_kept_where_the_order_allows() -> None:
    uncertainty = np.array([0.9, 0.1, 0.5])
    priorities = priorities_along(np.array([0, 2, 1]), uncertainty)
    np.testing.assert_allclose(priorities, uncertainty, atol=1e-5)


@pytest.mark.parametrize("strategy", ["cellai", "entropy", "bald"])
def test_numbers_that_are_none_give_no_order(strategy: str) -> None:
    probabilities = np.full((3, 4, 2), 0.5, np.float32)
    probabilities[:, 2] = np.nan
    features, labels = np.ones((4, 6), np.float32), np.array([0, 1])
    with pytest.raises(DivergedError, match="1 cells have no finite uncertainty"):
        queue_priorities(features, probabilities, labels, strategy=strategy, seed=0)


def test_of_equally_uncertain_crops_the_rare_class_comes_first() -> None:
    features = np.eye(4, dtype=np.float32)
    probabilities = np.array([[0.6, 0.4, 0], [0.6, 0.4, 0], [0, 0.4, 0.6], [1, 0, 0]], np.float32)
    labels = np.repeat([0, 1], [50, 30])
    uncertainty = margin_uncertainty(probabilities)
    order = representative_order(features, probabilities, uncertainty, labels)
    assert order[0] == 2
    assert order[-1] == 3


def test_a_copy_of_a_chosen_crop_waits() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(12, 30)).astype(np.float32)
    features[1] = features[0]
    probabilities = np.tile(np.array([0.5, 0.5], np.float32), (12, 1))
    uncertainty = np.array([1.0, 0.999, *np.linspace(0.9, 0.8, 10)])
    order = representative_order(features, probabilities, uncertainty, np.array([0, 1]))
    assert order[0] == 0
    assert order[-1] == 1


def test_of_equally_uncertain_crops_those_that_stand_for_most_doubt_come_first() -> None:
    """Of five groups the largest is certain but for one crop, so that it stands for little."""
    features, cluster = clustered_features()
    probabilities = np.tile(np.array([0.6, 0.4], np.float32), (380, 1))
    probabilities[1:200] = [1, 0]
    uncertainty = margin_uncertainty(probabilities)
    order = representative_order(features, probabilities, uncertainty, np.array([0, 1]))
    assert cluster[order[:5]].tolist() == [1, 2, 3, 4, 0]
    assert set(order[-199:]) == set(range(1, 200))


def test_queue_choices_are_the_best_by_a_plain_greedy_search() -> None:
    features = np.random.default_rng(1).normal(size=(200, 6)).astype(np.float32)
    mean = draw(200).mean(axis=0)
    uncertainty, labels = margin_uncertainty(mean), np.array([0, 0, 0, 1, 2, 2])
    order = representative_order(features, mean, uncertainty, labels)
    standardised = (features - features.mean(axis=0)) / features.std(axis=0)
    unit = standardised / np.linalg.norm(standardised, axis=1, keepdims=True)
    similarity = (unit @ unit.T).clip(0)
    balance = mean @ np.array([4.0, 2, 3, 1]) ** -0.25
    chosen: list[int] = []
    covered = np.zeros(200)
    for _ in range(30):
        gains = np.maximum(similarity - covered, 0) @ uncertainty
        values = uncertainty * balance * gains
        values[chosen] = -1
        chosen.append(int(np.argmax(values)))
        covered = np.maximum(covered, similarity[chosen[-1]])
    assert order[:30].tolist() == chosen


def test_queue_of_more_crops_than_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acquisition, "DOUBTFUL_CROPS", 50)
    monkeypatch.setattr(acquisition, "CANDIDATES", 100)
    features, cluster = clustered_features()
    probabilities = np.tile(np.array([0.6, 0.4], np.float32), (380, 1))
    uncertainty = np.random.default_rng(0).uniform(0.8, 1, 380)
    order = representative_order(features, probabilities, uncertainty, np.array([0, 1]))
    assert sorted(order) == list(range(380))
    assert cluster[order[:3]].tolist() == [0, 1, 2]
    assert (np.diff(uncertainty[order[100:]]) <= 0).all()


def test_every_crop_is_ordered_once() -> None:
    mc_probabilities = draw(900)
    mean = mc_probabilities.mean(axis=0)
    features = np.random.default_rng(0).normal(size=(900, 8)).astype(np.float32)
    order = representative_order(features, mean, margin_uncertainty(mean), np.array([0, 1]))
    assert sorted(order) == list(range(900))


def test_queue_is_ordered_as_if_it_were_a_pool_of_its_own() -> None:
    features = np.random.default_rng(0).normal(size=(900, 8)).astype(np.float32)
    rows = np.flatnonzero(np.arange(900) % 3)
    probabilities, labels = draw(len(rows)), np.array([0, 1, 1])
    found = queue_priorities(features, probabilities, labels, strategy="cellai", seed=0, rows=rows)
    alone = queue_priorities(features[rows], probabilities, labels, strategy="cellai", seed=0)
    np.testing.assert_array_equal(found, alone)


def clustered_features() -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """Five groups of 200 to 10 crops, and which each crop is of."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(5, 16)) * 20
    cluster = np.repeat(np.arange(5), [200, 100, 50, 20, 10])
    return (centres[cluster] + rng.normal(size=(380, 16))).astype(np.float32), cluster


def test_cold_start_takes_one_crop_of_each_group_the_largest_first() -> None:
    features, cluster = clustered_features()
    order = np.argsort(-cold_start_priorities(features, labelled_features=features[:0]))
    assert cluster[order[:5]].tolist() == [0, 1, 2, 3, 4]


def test_cold_start_leaves_out_what_labels_stand_for() -> None:
    features, cluster = clustered_features()
    is_labelled = np.isin(np.arange(380), [0, 250])
    order = np.argsort(
        -cold_start_priorities(features[~is_labelled], labelled_features=features[is_labelled])
    )
    assert cluster[~is_labelled][order[:3]].tolist() == [2, 3, 4]


def test_cold_start_choices_are_the_best_by_a_plain_greedy_search() -> None:
    features = np.random.default_rng(1).normal(size=(200, 6)).astype(np.float32)
    order = np.argsort(-cold_start_priorities(features, labelled_features=features[:0]))
    standardised = (features - features.mean(axis=0)) / features.std(axis=0)
    unit = standardised / np.linalg.norm(standardised, axis=1, keepdims=True)
    similarity = unit @ unit.T
    chosen: list[int] = []
    for _ in range(30):
        sums = [np.max(similarity[[*chosen, row]], axis=0).clip(0).sum() for row in range(200)]
        chosen.append(int(np.argmax(sums)))
    assert order[:30].tolist() == chosen


def test_cold_start_of_more_crops_than_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acquisition, "REFERENCE_CROPS", 100)
    features, cluster = clustered_features()
    priorities = cold_start_priorities(features, labelled_features=features[:0])
    assert len(np.unique(priorities)) == 380
    assert set(cluster[np.argsort(-priorities)[:8]]) == set(range(5))


@pytest.mark.parametrize("n_crops", [0, 1, 2, 3, 25])
def test_cold_start_of_few_crops(n_crops: int) -> None:
    features = np.random.default_rng(0).normal(size=(n_crops, 8)).astype(np.float32)
    priorities = cold_start_priorities(features, labelled_features=features[:0])
    assert len(np.unique(priorities)) == n_crops
    assert ((priorities > 0) & (priorities <= 1)).all()


def test_cold_start_of_features_that_are_not_finite() -> None:
    features = np.ones((5, 8), np.float32)
    features[2, 3] = np.inf
    for pool, labelled in ((features, features[:0]), (features[:2], features[2:])):
        with pytest.raises(DivergedError, match="1 cells have no finite features"):
            cold_start_priorities(pool, labelled_features=labelled)


def test_uncertainties_of_known_cases() -> None:
    """Certain, ambiguous in every pass, and contradicted between passes."""
    certain, ambiguous = [1.0, 0.0], [0.5, 0.5]
    passes = np.array([[certain, ambiguous, [1.0, 0.0]], [certain, ambiguous, [0.0, 1.0]]])
    np.testing.assert_allclose(predictive_entropy(passes), [0, 1, 1], atol=1e-6)
    np.testing.assert_allclose(mutual_information(passes), [0, 0, 1], atol=1e-6)
    np.testing.assert_allclose(margin_uncertainty(passes.mean(axis=0)), [0, 1, 1], atol=1e-6)


@pytest.mark.parametrize("strategy", get_args(Acquisition))
def test_same_pool_and_seed_give_the_same_order(strategy: str) -> None:
    features = np.random.default_rng(0).normal(size=(500, 16)).astype(np.float32)
    one, other = (
        queue_priorities(features, draw(500), np.array([0, 1]), strategy=strategy, seed=3)
        for _ in range(2)
    )
    np.testing.assert_array_equal(one, other)

"""Heads are trained fresh, the same way each time, for any number of classes and labels."""

import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional

from backend.errors import DivergedError, SingleClassError
from backend.head import Head, fresh_head
from backend.training import (
    LABELLED_STEPS,
    FloatArray,
    TrainingSettings,
    feature_scaling,
    fit,
    gradients,
    stratified_folds,
)

SETTINGS = TrainingSettings(mc_passes=8)


def blobs(counts: list[int], *, seed: int = 0) -> tuple[NDArray[Any], NDArray[Any], list[str]]:
    """Well separated classes in 20 dimensions, and groups of five crops."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    centres = rng.normal(size=(len(counts), 20)) * 3
    features = (centres[labels] + rng.normal(size=(len(labels), 20))).astype(np.float32)
    return features, labels, [str(row // 5) for row in range(len(labels))]


def classes_of(features: NDArray[Any], head: Head) -> NDArray[Any]:
    """The likeliest class of each crop, (N,)."""
    return head.logits(torch.from_numpy(features)).argmax(dim=1).numpy()


@pytest.mark.parametrize(
    ("counts", "least_accuracy"),
    [([1, 1], 0.9), ([1, 30], 0.3), ([40, 40], 0.9), ([100, 20, 10, 5], 0.9), ([3] * 12, 0.4)],
)
def test_any_number_of_classes_and_labels(counts: list[int], least_accuracy: float) -> None:
    features, labels, groups = blobs(counts)
    fitted = fit(features, labels, groups, n_classes=len(counts) + 1, settings=SETTINGS)
    assert fitted.head.n_classes == len(counts) + 1
    assert (classes_of(features, fitted.head) == labels).mean() >= least_accuracy
    assert fitted.metrics["n_labels"] == len(labels)


def test_same_labels_and_seed_give_the_same_head_in_any_order() -> None:
    features, labels, groups = blobs([30, 20, 10])
    unlabelled, _, _ = blobs([30, 20, 10], seed=1)
    first = fit(
        features,
        labels,
        groups,
        n_classes=3,
        settings=SETTINGS,
        unlabelled_features=unlabelled,
    )
    order = np.random.default_rng(1).permutation(len(labels))
    second = fit(
        features[order],
        labels[order],
        [groups[row] for row in order],
        n_classes=3,
        settings=SETTINGS,
        unlabelled_features=unlabelled,
    )
    for name, tensor in first.head.to_tensors().items():
        assert torch.equal(tensor, second.head.to_tensors()[name]), name
    assert first.metrics == second.metrics


def test_hold_out_gives_metrics_once_there_are_enough_labels() -> None:
    features, labels, groups = blobs([40, 40])
    metrics: dict[str, Any] = dict(
        fit(features, labels, groups, n_classes=2, settings=SETTINGS).metrics
    )
    assert metrics["n_holdout"] > 0
    assert metrics["macro_f1"] > 0.9
    assert 0 <= metrics["ece"] <= 1
    few = fit(features[38:42], labels[38:42], groups[38:42], n_classes=2, settings=SETTINGS)
    assert few.metrics["n_holdout"] == 0
    assert "macro_f1" not in few.metrics


def test_few_held_out_labels_move_the_temperature_little() -> None:
    """All of them are right, so the head may be surer still: tens say so less than hundreds."""
    temperatures = []
    for count in (13, 200):
        features, labels, groups = blobs([count, count])
        fitted = fit(features, labels, groups, n_classes=2, settings=SETTINGS)
        temperatures.append(float(fitted.head.temperature))
    few, many = temperatures
    assert 0.25 < many < few <= 1


@pytest.mark.parametrize(
    ("counts", "group_sizes"),
    [
        ([40, 20, 1], [1] * 61),  # one label of a class must stay in the training part
        ([300, 150, 50, 1], [1] * 501),
        ([60, 30, 10], [10] * 10),  # as must a class whose labels are all in one group
        ([120, 80], [90, 25, 25, 20, 20, 20]),  # a large frame beside small ones
    ],
)
def test_hold_out_is_about_a_fifth(counts: list[int], group_sizes: list[int]) -> None:
    features, labels, _ = blobs(counts)
    groups = np.repeat(np.arange(len(group_sizes)), group_sizes).astype(str)
    if counts == [120, 80]:  # both classes in every frame
        groups = np.random.default_rng(0).permutation(groups)
    fitted = fit(features, labels, list(groups), n_classes=len(counts), settings=SETTINGS)
    n_holdout = fitted.metrics["n_holdout"]
    assert isinstance(n_holdout, int)
    assert 0.08 <= n_holdout / len(labels) <= 0.3


def test_folds_never_split_a_group() -> None:
    _, labels, groups = blobs([50, 30, 20])
    folds = stratified_folds(labels, groups, n_folds=5, seed=0)
    by_group: dict[str, set[int]] = {}
    for group, fold in zip(groups, folds, strict=True):
        by_group.setdefault(group, set()).add(int(fold))
    assert all(len(members) == 1 for members in by_group.values())


def test_one_class_is_too_few() -> None:
    features, _, groups = blobs([10, 0])
    with pytest.raises(SingleClassError):
        fit(features, np.zeros(10, np.int64), groups[:10], n_classes=2, settings=SETTINGS)


def test_features_that_are_not_finite_are_an_error() -> None:
    features, labels, groups = blobs([10, 10])
    features[3, 4] = np.nan
    with pytest.raises(DivergedError):
        fit(features, labels, groups, n_classes=2, settings=SETTINGS)


def test_gradients_equal_those_of_the_loss() -> None:
    rng = np.random.default_rng(0)
    head = fresh_head(torch.zeros(20), torch.ones(20), n_classes=3, rng=rng)
    for tensor in head.to_tensors().values():
        tensor.data = tensor.double() + 0.1 * torch.rand(tensor.shape, dtype=torch.float64)
    inputs = torch.from_numpy(rng.normal(size=(16, 20)))
    classes = torch.from_numpy(rng.integers(0, 3, 16))
    kept = [torch.from_numpy(rng.integers(0, 2, (16, n))) for n in head.hidden_weight.shape]
    trained = [head.hidden_weight, head.class_weight, head.hidden_bias, head.class_bias]
    for tensor in trained:
        tensor.requires_grad_()
    hidden = torch.relu(2 * inputs * kept[0] @ head.hidden_weight + head.hidden_bias)
    scores = 2 * hidden * kept[1] @ head.class_weight + head.class_bias
    expected = torch.autograd.grad(functional.cross_entropy(scores, classes), trained)

    truth = functional.one_hot(classes, 3)
    with torch.no_grad():
        found = gradients(head, 2 * inputs, truth, (kept[0], kept[1]))
    for own, other in zip(found, expected, strict=True):
        assert other.abs().max() > 1e-3
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-12)


def test_turned_crops_are_learned_from_too() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(2), 20)
    upright, turned = rng.standard_normal((2, 40, 30)).astype(np.float32)
    upright[:, 0] += 4 * labels
    turned[:, 1] += 4 * labels
    groups = [str(row) for row in range(40)]
    settings = TrainingSettings(epochs=400)
    both = np.concatenate([upright, turned])

    def accuracy_on_turned(turned_features: FloatArray | None) -> float:
        fitted = fit(
            upright,
            labels,
            groups,
            n_classes=2,
            settings=settings,
            pool_features=both,
            turned_features=turned_features,
        )
        return float((classes_of(turned, fitted.head) == labels).mean())

    assert accuracy_on_turned(turned) > 0.85
    assert accuracy_on_turned(None) < 0.75


def test_crops_without_a_label_are_learned_from_too() -> None:
    """What the labelled crops show tells the class of others, which also show something else."""
    rng = np.random.default_rng(0)
    truth = np.arange(160) % 2
    features = rng.standard_normal((160, 8)).astype(np.float32)
    labelled, unlabelled, asked = np.arange(10), np.arange(10, 110), np.arange(110, 160)
    features[:110, :4] += 4 * truth[:110, None] - 2
    features[10:, 4:] += 4 * truth[10:, None] - 2
    features[labelled, 4:] = 0

    def accuracy(unlabelled_features: FloatArray | None) -> float:
        head = fit(
            features[labelled],
            truth[labelled],
            [str(row) for row in labelled],
            n_classes=2,
            settings=TrainingSettings(epochs=1000, mc_passes=8),
            pool_features=features,
            unlabelled_features=unlabelled_features,
        ).head
        return float((classes_of(features[asked], head) == truth[asked]).mean())

    assert accuracy(features[unlabelled]) > 0.7
    assert accuracy(None) < 0.6


def test_the_last_crops_without_a_label_do_not_fill_the_batches() -> None:
    features, labels, groups = blobs([100, 100])
    plain, beside_one = (
        fit(features, labels, groups, n_classes=2, settings=SETTINGS, unlabelled_features=others)
        for others in (None, features[:1])
    )
    for name, tensor in plain.head.to_tensors().items():
        assert torch.equal(tensor, beside_one.head.to_tensors()[name]), name
    assert plain.metrics == beside_one.metrics


def test_a_head_is_not_asked_before_it_has_learned() -> None:
    features, labels, groups = blobs([30, 30])
    plain, beside_others = (
        fit(
            features,
            labels,
            groups,
            n_classes=2,
            settings=TrainingSettings(epochs=LABELLED_STEPS, least_steps=0, mc_passes=8),
            unlabelled_features=others,
        )
        for others in (None, features)
    )
    for name, tensor in plain.head.to_tensors().items():
        assert torch.equal(tensor, beside_others.head.to_tensors()[name]), name


def test_features_are_scaled_in_little_memory_as_if_at_once() -> None:
    known = np.random.default_rng(0).normal(300, 7, (50_000, 40)).astype(np.float32)
    known[:, 3] = 5
    tracemalloc.start()
    mean, scale = feature_scaling(known)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < known.nbytes / 2
    spread = known.std(axis=0, dtype=np.float64)
    expected = np.where(spread > 1, 1 / np.maximum(spread, 1e-6), 0)
    np.testing.assert_allclose(mean.numpy(), known.mean(axis=0, dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(scale.numpy(), expected, rtol=1e-6)

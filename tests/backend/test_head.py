"""Dropout masks: shared by all crops, and adding up groups changes nothing."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from backend.head import (
    DROPOUT,
    N_GROUPS,
    DropoutMasks,
    Head,
    MaskedHead,
    draw_masks,
    fresh_head,
    mc_probabilities,
)
from benchmarks.independent_masks import independent_mc_probabilities

N_CROPS, N_FEATURES, N_CLASSES = 7, 40, 4


@pytest.fixture
def head() -> Head:
    rng = np.random.default_rng(1)
    head = fresh_head(torch.zeros(N_FEATURES), torch.ones(N_FEATURES), n_classes=N_CLASSES, rng=rng)
    return head.with_temperature(1.5)


@pytest.fixture
def features() -> NDArray[Any]:
    return np.random.default_rng(2).normal(size=(N_CROPS, N_FEATURES)).astype(np.float32)


def kept_inputs(masks: DropoutMasks) -> Tensor:
    """What of each feature the passes keep, (T, D) bool."""
    kept = torch.empty(len(masks.groups), len(masks.order), dtype=torch.bool)
    kept[:, masks.order] = masks.groups[:, torch.arange(len(masks.order)) % N_GROUPS]
    return kept


@pytest.mark.parametrize("n_features", [40, 64, 200])
def test_passes_equal_the_masked_dense_computation(n_features: int) -> None:
    rng = np.random.default_rng(1)
    mean, scale = torch.full((n_features,), 0.5), torch.full((n_features,), 2.0)
    head = fresh_head(mean, scale, n_classes=N_CLASSES, rng=rng).with_temperature(1.5)
    crops = torch.from_numpy(rng.normal(size=(N_CROPS, n_features)).astype(np.float32))
    standardised = head.standardise(crops)
    masks = draw_masks(*head.hidden_weight.shape, passes=5, seed=3)
    scores = MaskedHead.of(head, masks).logits(standardised)
    assert scores.shape == (5, N_CLASSES, N_CROPS)
    for inputs, hidden, of_pass in zip(kept_inputs(masks), masks.hidden, scores, strict=True):
        kept = standardised * inputs / (1 - DROPOUT)
        dense = torch.relu(kept @ head.hidden_weight + head.hidden_bias) * hidden / (1 - DROPOUT)
        expected = (dense @ head.class_weight + head.class_bias) / head.temperature
        torch.testing.assert_close(of_pass.T, expected)


def test_masks_are_shared_by_all_crops(head: Head, features: NDArray[Any]) -> None:
    together = mc_probabilities(head, features, passes=6, seed=4)
    alone = mc_probabilities(head, features[2:3], passes=6, seed=4)
    np.testing.assert_allclose(together[:, 2:3], alone, rtol=1e-5)
    np.testing.assert_allclose(together.sum(axis=2), 1, rtol=1e-5)
    assert together.std(axis=0).max() > 0.01


def test_every_feature_is_kept_in_half_of_the_passes() -> None:
    masks = draw_masks(1000, 1000, passes=20, seed=0)
    inputs = kept_inputs(masks)
    assert (inputs.sum(dim=0) == 10).all()
    assert (inputs[0::2] != inputs[1::2]).all()
    shares = inputs.float().mean(dim=1)
    assert shares.sub(1 - DROPOUT).abs().max() < 0.01  # groups of 15 and of 16
    assert masks.hidden.float().mean() == pytest.approx(1 - DROPOUT, abs=0.02)
    assert len({tuple(row) for row in inputs.tolist()}) == 20


def test_many_passes_agree_with_independent_masks_of_each_crop() -> None:
    rng = np.random.default_rng(1)
    head = fresh_head(torch.zeros(640), torch.ones(640), n_classes=N_CLASSES, rng=rng)
    crops = rng.normal(size=(50, 640)).astype(np.float32)
    ours = mc_probabilities(head, crops, passes=2000, seed=0)
    independent = independent_mc_probabilities(head, crops, passes=2000, seed=0)
    error = independent.std(axis=0) / 2000**0.5  # of the mean
    assert (np.abs(ours.mean(axis=0) - independent.mean(axis=0)) < 8 * error).all()
    spread = ours.std(axis=0) / independent.std(axis=0)
    assert spread.mean() == pytest.approx(1, abs=0.02)
    assert spread.min() > 0.8
    assert spread.max() < 1.2


def test_round_trip_through_tensors(head: Head, features: NDArray[Any]) -> None:
    copy = Head.from_tensors(head.to_tensors())
    inputs = torch.from_numpy(features)
    assert torch.equal(copy.logits(inputs), head.logits(inputs))

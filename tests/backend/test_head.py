"""Dropout masks: shared by all crops, and removing rows and columns changes nothing."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from backend.head import DROPOUT, Head, MaskedHead, draw_masks, fresh_head, mc_probabilities

N_CROPS, N_FEATURES, N_CLASSES = 7, 40, 4


@pytest.fixture
def head() -> Head:
    rng = np.random.default_rng(1)
    head = fresh_head(torch.zeros(N_FEATURES), torch.ones(N_FEATURES), n_classes=N_CLASSES, rng=rng)
    return head.with_temperature(1.5)


@pytest.fixture
def features() -> NDArray[Any]:
    return np.random.default_rng(2).normal(size=(N_CROPS, N_FEATURES)).astype(np.float32)


def test_removed_rows_equal_the_masked_dense_computation(
    head: Head, features: NDArray[Any]
) -> None:
    standardised = head.standardise(torch.from_numpy(features))
    for mask in draw_masks(N_FEATURES, head.hidden_weight.shape[1], passes=5, seed=3):
        inputs, hidden = torch.zeros(N_FEATURES), torch.zeros(head.hidden_weight.shape[1])
        inputs[mask.inputs] = 1 / (1 - DROPOUT)
        hidden[mask.hidden] = 1 / (1 - DROPOUT)
        dense = torch.relu((standardised * inputs) @ head.hidden_weight + head.hidden_bias)
        expected = ((dense * hidden) @ head.class_weight + head.class_bias) / head.temperature
        masked = MaskedHead.of(head, mask, torch.float32)
        torch.testing.assert_close(masked.logits(standardised), expected)


def test_masks_are_shared_by_all_crops(head: Head, features: NDArray[Any]) -> None:
    together = mc_probabilities(head, features, passes=6, seed=4)
    alone = mc_probabilities(head, features[2:3], passes=6, seed=4)
    np.testing.assert_allclose(together[:, 2:3], alone, rtol=1e-5)
    np.testing.assert_allclose(together.sum(axis=2), 1, rtol=1e-5)
    assert together.std(axis=0).max() > 0.01


def test_about_half_of_the_units_are_kept() -> None:
    masks = draw_masks(1000, 1000, passes=20, seed=0)
    kept = np.mean([len(mask.inputs) / 1000 for mask in masks])
    assert kept == pytest.approx(1 - DROPOUT, abs=0.02)


def test_round_trip_through_tensors(head: Head, features: NDArray[Any]) -> None:
    copy = Head.from_tensors(head.to_tensors())
    inputs = torch.from_numpy(features)
    assert torch.equal(copy.logits(inputs), head.logits(inputs))


def test_products_have_few_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """For each shape that it has not met oneDNN compiles a product, and keeps it."""
    rng = np.random.default_rng(1)
    head = fresh_head(torch.zeros(2560), torch.ones(2560), n_classes=N_CLASSES, rng=rng)
    shapes = set()

    def logits(masked: MaskedHead, standardised: torch.Tensor) -> torch.Tensor:
        shapes.add((*masked.hidden_weight.shape, len(standardised)))
        return plain(masked, standardised)

    plain = MaskedHead.logits
    monkeypatch.setattr(MaskedHead, "logits", logits)
    for n_crops in range(1, 700, 23):
        crops = rng.normal(size=(n_crops, 2560)).astype(np.float32)
        assert mc_probabilities(head, crops, passes=20, seed=0).shape == (20, n_crops, N_CLASSES)
    assert len(shapes) <= 50  # of 20 masks and 31 numbers of crops

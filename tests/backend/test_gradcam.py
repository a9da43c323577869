"""Grad-CAM from cached activations equals a public library's on the same model."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from seeded_networks import NETWORKS, seeded_trunk
from torch import Tensor, nn
from torchcam.methods import GradCAM

from backend.features import Trunk
from backend.gradcam import gradcam
from backend.head import Head, fresh_head
from backend.pooling import pooled, summands

N_CLASSES = 3


class Assembled(nn.Module):
    """Trunk, pooling and head as one ordinary network, which the library can hook.

    The layer that it hooks is what the pooling sums over all places.
    """

    def __init__(self, trunk: Trunk, head: Head, *, has_mask: bool) -> None:
        super().__init__()
        self.has_mask = has_mask
        self.trunk = trunk._layers
        self.weighted = nn.Identity()
        self.head = head

    def forward(self, maps: Tensor) -> Tensor:
        *shallow, deepest = self.trunk(maps).values()
        parts = [part for maps in shallow for part in pooled(maps, has_mask=self.has_mask)]
        weighted = self.weighted(torch.cat(summands(deepest, has_mask=self.has_mask), dim=1))
        first, second = weighted.sum(dim=(2, 3)).chunk(2, dim=1)
        if self.has_mask:
            second = (second + 1e-6).sqrt()
        return self.head.logits(torch.cat([*parts, first, second], dim=1))


@pytest.mark.parametrize("mode", ["phase", "rgb"])
@pytest.mark.parametrize("network", NETWORKS)
def test_equals_the_library(network: str, mode: str) -> None:
    trunk = seeded_trunk(network)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), np.uint8)
    inputs = trunk._prepare(pixels, mode)
    features, activations = trunk.pool_maps(inputs, mode)
    head = fresh_head(
        torch.zeros(trunk.feature_dim),
        torch.ones(trunk.feature_dim),
        n_classes=N_CLASSES,
        rng=np.random.default_rng(0),
    )
    class_idx = np.array([0, 2])
    ours = gradcam(
        head,
        trunk.readout,
        features=features.numpy(),
        activations=activations.numpy(),
        class_idx=class_idx,
        has_mask=np.array([mode != "rgb"] * 2),
    )

    assert ours.max() == pytest.approx(1, abs=1e-3)
    model = Assembled(trunk, head, has_mask=mode != "rgb")
    for row, chosen in enumerate(class_idx):
        with GradCAM(model, target_layer="weighted") as library:
            scores = model(inputs[row : row + 1].clone().requires_grad_())
            # The same model: what it sums is what the product pools.
            expected = head.logits(features[row : row + 1])
            torch.testing.assert_close(scores, expected, atol=1e-3, rtol=1e-3)
            (theirs,) = library(int(chosen), scores)
        np.testing.assert_allclose(ours[row], theirs[0].detach().numpy(), atol=1e-4)


def test_shows_what_each_place_adds_to_the_score() -> None:
    """The score falls most where the hottest place fades, and as the map says elsewhere."""
    trunk = seeded_trunk("vgg16")
    n_maps, size_px, _ = trunk.activation_shape
    rng = np.random.default_rng(0)
    activations = rng.random((1, n_maps, size_px, size_px), np.float32)
    head = fresh_head(
        torch.zeros(trunk.feature_dim), torch.ones(trunk.feature_dim), n_classes=N_CLASSES, rng=rng
    )
    features = rng.standard_normal((1, trunk.feature_dim)).astype(np.float32)

    def score(maps: NDArray[np.float32]) -> float:
        seen = features.copy()
        deepest = pooled(torch.from_numpy(maps), has_mask=False)
        seen[:, -2 * n_maps :] = torch.cat(deepest, dim=1).numpy()
        return float(head.logits(torch.from_numpy(seen))[0, 1])

    features[:, -2 * n_maps :] = torch.cat(
        pooled(torch.from_numpy(activations), has_mask=False), dim=1
    ).numpy()
    (heat,) = gradcam(
        head,
        trunk.readout,
        features=features,
        activations=activations,
        class_idx=np.array([1]),
        has_mask=np.array([False]),
    )
    fall = np.zeros((size_px, size_px))
    for row, column in np.ndindex(fall.shape):
        faded = activations.copy()
        faded[..., row, column] *= 0.9
        fall[row, column] = score(activations) - score(faded)
    assert np.corrcoef(heat.ravel(), np.maximum(fall, 0).ravel())[0, 1] > 0.99

"""Grad-CAM from cached activations equals a public library's on the same model."""

import numpy as np
import pytest
import torch
from seeded_networks import NETWORKS, seeded_trunk
from torch import Tensor, nn
from torchcam.methods import GradCAM

from backend.features import Trunk
from backend.gradcam import gradcam
from backend.head import Head, fresh_head
from backend.pooling import pooled

N_CLASSES = 3


class Assembled(nn.Module):
    """Trunk, pooling and head as one ordinary network, which the library can hook."""

    def __init__(self, trunk: Trunk, head: Head, *, has_mask: bool) -> None:
        super().__init__()
        self.has_mask = has_mask
        self.trunk = trunk._layers
        self.deepest = nn.Identity()
        self.head = head

    def forward(self, maps: Tensor) -> Tensor:
        tapped = list(self.trunk(maps).values())
        tapped[-1] = self.deepest(tapped[-1])
        parts = [part for maps in tapped for part in pooled(maps, has_mask=self.has_mask)]
        return self.head.logits(torch.cat(parts, dim=1))


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
    )

    assert ours.max() == pytest.approx(1, abs=1e-3)
    model = Assembled(trunk, head, has_mask=mode != "rgb")
    for row, chosen in enumerate(class_idx):
        with GradCAM(model, target_layer="deepest") as library:
            scores = model(inputs[row : row + 1].clone().requires_grad_())
            (theirs,) = library(int(chosen), scores)
        np.testing.assert_allclose(ours[row], theirs[0].detach().numpy(), atol=1e-4)

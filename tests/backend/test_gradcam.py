"""Grad-CAM from cached activations equals a public library's on the same model."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchcam.methods import GradCAM
from torchvision.models.vgg import cfgs, make_layers

from backend.features import TAPS, Trunk, pooled_mean_and_spread
from backend.gradcam import gradcam
from backend.head import Head, fresh_head

N_CLASSES = 3


class Assembled(nn.Module):
    """Trunk, pooling and head as one ordinary network, which the library can hook."""

    def __init__(self, layers: nn.Sequential, head: Head) -> None:
        super().__init__()
        self.layers = layers
        self.head = head

    def forward(self, maps: Tensor) -> Tensor:
        pooled: list[Tensor] = []
        for index, layer in enumerate(self.layers):
            maps = layer(maps)
            if index in TAPS:
                pooled.extend(pooled_mean_and_spread(maps))
        return self.head.logits(torch.cat(pooled, dim=1))


@pytest.fixture(scope="module")
def layers() -> nn.Sequential:
    torch.manual_seed(0)
    layers: nn.Sequential = make_layers(cfgs["D"], batch_norm=False)[: TAPS[-1] + 1]
    for layer in layers:
        if isinstance(layer, nn.ReLU):
            layer.inplace = False  # the library hooks what an in-place layer would overwrite
    layers.eval()
    return layers


def test_equals_the_library(layers: nn.Sequential) -> None:
    trunk = Trunk(
        layers, device=torch.device("cpu"), precision=torch.float32, weights_digest="seeded"
    )
    pixels = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), np.uint8)
    inputs = trunk._prepare(pixels, "phase")
    features, activations = trunk.pool_maps(inputs)
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
    model = Assembled(layers, head)
    for row, chosen in enumerate(class_idx):
        with GradCAM(model, target_layer=f"layers.{TAPS[-1]}") as library:
            scores = model(inputs[row : row + 1].clone().requires_grad_())
            (theirs,) = library(int(chosen), scores)
        np.testing.assert_allclose(ours[row], theirs[0].detach().numpy(), atol=1e-4)

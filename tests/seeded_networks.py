"""Networks with made-up weights, the same for the same seed."""

import pytest
import torch
from torch import Tensor

from backend.features import Trunk
from backend.networks import Network, build_network

NETWORKS = ("vgg16", "vgg16_bn", "resnet18", "resnet50", "efficientnet_b0", "convnext_tiny")

needs_mkl = pytest.mark.skipif(
    not torch.backends.mkl.is_available(),  # type: ignore[no-untyped-call]
    reason="Winograd's method runs only with Intel's MKL",
)


def seeded_tensors(network: Network, seed: int = 0) -> dict[str, Tensor]:
    """Weights that keep the size of what flows through (He) and statistics that can be."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in network.tensor_shapes().items():
        noise = torch.randn(shape, generator=generator)
        if len(shape) > 1:
            fan_in = noise[0].numel()
            tensors[name] = noise * (2 / fan_in) ** 0.5
        elif name.endswith(("running_var", "weight")):
            tensors[name] = 1 + 0.1 * noise.clamp(-3, 3)
        else:
            tensors[name] = 0.1 * noise
    return tensors


def seeded_trunk(
    name: str = "vgg16",
    seed: int = 0,
    *,
    device: str = "cpu",
    precision: torch.dtype = torch.float32,
) -> Trunk:
    """A trunk of the made-up weights."""
    network = build_network(name)
    tensors = seeded_tensors(network, seed)
    return Trunk(network, tensors, device=torch.device(device), precision=precision)

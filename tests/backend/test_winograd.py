"""Winograd's method against the convolution that it stands for."""

import pytest
import torch
from seeded_networks import needs_mkl
from torch import Tensor, nn
from torch.nn import functional

from backend.networks import build_network
from backend.winograd import WinogradConv2d, is_suitable, quicken


def convolution(n_in: int, n_out: int, *, bias: bool = True) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(n_in, n_out, 3, padding=1, bias=bias).requires_grad_(requires_grad=False)


def maps(n: int, channels: int, height: int, width: int) -> Tensor:
    drawn = torch.randn(n, channels, height, width, generator=torch.Generator().manual_seed(1))
    return drawn.relu().contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [(6, 6), (12, 24), (1, 1), (7, 20), (56, 5)])
@pytest.mark.parametrize("n", [0, 1, 19])
def test_gives_what_the_convolution_gives(n: int, size: tuple[int, int], bias: bool) -> None:
    layer, pictures = convolution(130, 9, bias=bias), maps(n, 130, *size)
    exact = functional.conv2d(
        pictures.double(),
        layer.weight.double(),
        None if layer.bias is None else layer.bias.double(),
        padding=1,
    )
    found = WinogradConv2d(layer)(pictures)
    assert found.shape == exact.shape
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=2e-4)


@pytest.mark.parametrize("side", [6, 24])
def test_a_crop_is_the_same_alone_and_among_others(side: int) -> None:
    # 129 crops of 6 x 6 leave one tile over from the 128 that go at once
    layer, pictures = WinogradConv2d(convolution(128, 64)), maps(129, 128, side, side)
    together = layer(pictures)
    for n in (*range(1, 10), 33):
        assert torch.equal(layer(pictures[-n:]), together[-n:])


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 1},
        {"kernel_size": 3, "padding": 0},
        {"kernel_size": 3, "padding": 1, "stride": 2},
        {"kernel_size": 3, "padding": 1, "dilation": 2},
        {"kernel_size": 3, "padding": 1, "groups": 128},
        {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
        {"kernel_size": 3, "padding": "same"},
    ],
)
def test_other_convolutions_are_left_alone(options: dict[str, object]) -> None:
    assert not is_suitable(nn.Conv2d(128, 128, **options))  # type: ignore[arg-type]


@needs_mkl
def test_vgg16_runs_its_wide_layers_that_way() -> None:
    layers = build_network("vgg16").layers
    assert quicken(layers)
    kinds = [type(layer) for layer in layers.modules()]
    assert kinds.count(WinogradConv2d) == 8
    assert kinds.count(nn.Conv2d) == 3
    assert not quicken(layers)

"""3 x 3 convolutions with a fifth of their multiplications, as matrix products of tiles.

Where a processor has no matrix unit, multiplications are what the trunk's time goes into.

Source:
    Winograd 1980, "Arithmetic Complexity of Computations"; Lavin & Gray 2016, "Fast Algorithms for
    Convolutional Neural Networks", arXiv:1509.09308, section 4: F(6 x 6, 3 x 3).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

RECIPE = "winograd 6 by rows and columns"  # rename when the order of its sums changes
_KERNEL = 3
_OUTPUT = 6  # side of the part of a map that one tile gives: divides the sides of VGG16's maps
_TILE = _OUTPUT + _KERNEL - 1
_POINTS = (0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5)  # where polynomials are multiplied; and infinity
_AT_ONE = 1 * _TILE + 1  # what stands at the point (1, 1) is added to all of the output
# With fewer channels, moving the tiles takes as long as the multiplications that it saves, and with
# more tiles at once they leave the processor's caches (measured, docs/model.md, *Trunk*).
_LEAST_CHANNELS = 128
_TILES_AT_ONCE = 128
# MKL rounds the products of fewer rows differently: seen of one with AVX-512, and of up to three
# with AVX2, where four to 39 agree.
_FEWEST_TILES = 8


class WinogradConv2d(nn.Module):
    """The same as a convolution of 3 x 3 with padding of 1, but for rounding.

    What a crop gives does not depend on the others of its batch.

    Args:
        convolution: as `is_suitable` wants it, float32; its weights are taken over.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self._bias = convolution.bias
        kernels = convolution.weight.permute(2, 3, 1, 0).contiguous()  # (3, 3, C, K)
        values = _both_ways(_values_at_points(_KERNEL).float(), kernels)
        self._kernels = values.view(_TILE**2, *kernels.shape[2:])
        self._to_values = torch.linalg.inv(_values_at_points(_TILE)).T.float()
        self._to_output = _values_at_points(_OUTPUT).T.float()

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (n, K, h, w) of maps (n, C, h, w); float32, channels last."""
        n, _, height, width = maps.shape
        rows, columns = -(-height // _OUTPUT), -(-width // _OUTPUT)
        below, right = rows * _OUTPUT - height + 1, columns * _OUTPUT - width + 1
        padded = functional.pad(maps.permute(0, 2, 3, 1), (0, 0, 1, right, 1, below))
        tiles = padded.unfold(1, _TILE, _OUTPUT).unfold(2, _TILE, _OUTPUT)
        found = maps.new_empty(n, rows, _OUTPUT, columns, _OUTPUT, self._kernels.shape[2])
        at_once = max(1, _TILES_AT_ONCE // (rows * columns))
        for start in range(0, n, at_once):
            found[start : start + at_once] = self._convolved(tiles[start : start + at_once])
        joined = found.flatten(3, 4).flatten(1, 2)
        return joined[:, :height, :width].permute(0, 3, 1, 2)

    def _convolved(self, tiles: Tensor) -> Tensor:
        """Of tiles (n, rows, columns, C, 8, 8): (n, rows, 6, columns, 6, K)."""
        n, rows, columns, channels = tiles.shape[:4]
        places = tiles.permute(4, 5, 0, 1, 2, 3).contiguous()
        values = _both_ways(self._to_values, places).view(_TILE**2, -1, channels)
        n_tiles = values.shape[1]
        if n_tiles < _FEWEST_TILES:
            values = functional.pad(values, (0, 0, 0, _FEWEST_TILES - n_tiles))
        products = torch.bmm(values, self._kernels)[:, :n_tiles]
        if self._bias is not None:
            products[_AT_ONE] += self._bias
        output = _both_ways(self._to_output, products)
        return output.view(_OUTPUT, _OUTPUT, n, rows, columns, -1).permute(2, 3, 0, 4, 1, 5)


def quicken(layers: nn.Module) -> bool:
    """Replace the convolutions of a network that `WinogradConv2d` does faster.

    Args:
        layers: float32, on the processor.

    Returns:
        Whether there are any.
    """
    suitable = {
        name: layer
        for name, layer in layers.named_modules()
        if isinstance(layer, nn.Conv2d) and is_suitable(layer)
    }
    for name, layer in suitable.items():
        layers.set_submodule(name, WinogradConv2d(layer))
    return bool(suitable)


def is_suitable(layer: nn.Conv2d) -> bool:
    """Whether `WinogradConv2d` does it, and faster: 3 x 3, all shifts of one pixel, many channels.

    Only with Intel's MKL, whose products have the same rows however many there are, but for a few.
    """
    return (
        torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
        and layer.kernel_size == (_KERNEL, _KERNEL)
        and layer.stride == layer.dilation == layer.padding == (1, 1)
        and layer.padding_mode == "zeros"
        and layer.groups == 1
        and layer.in_channels >= _LEAST_CHANNELS
    )


def _values_at_points(n_coefficients: int) -> Tensor:
    """Powers of the points, float64 (8, n_coefficients): times coefficients, the values there."""
    powers = torch.tensor(_POINTS, dtype=torch.float64)[:, None] ** torch.arange(n_coefficients)
    infinity = torch.zeros(1, n_coefficients, dtype=torch.float64)
    infinity[0, -1] = 1
    return torch.cat([powers, infinity])


def _both_ways(matrix: Tensor, tiles: Tensor) -> Tensor:
    """What a matrix makes of the rows and then of the columns of tiles.

    One after the other: as one matrix for all places it would be four times the multiplications.

    Args:
        matrix: (r, t).
        tiles: (t, t, ...) or (t * t, ...).

    Returns:
        (r, r, p) for p numbers that stand at each place of the tiles.
    """
    n_after, n_before = matrix.shape
    of_rows = (matrix @ tiles.reshape(n_before, -1)).view(n_after, n_before, -1)
    return torch.bmm(matrix.expand(n_after, -1, -1), of_rows)

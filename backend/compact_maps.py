"""Maps of the taps as they are kept for Grad-CAM: few bytes, and nearly all that the head reads.

Whole, VGG16's taps have 480 kB for each crop. Numbers of 8 bits, no more places than the middle
tap has, and zeros (five in six, behind rectifiers) as one bit make 40 kB of them. How the heat
compares with that of whole maps: docs/model.md.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

Int8Array = NDArray[np.int8]
HalfArray = NDArray[np.float16]
Shapes = tuple[tuple[int, int, int], ...]

_LARGEST = 127  # of eight bits with a sign
_LARGEST_HALF = 65504  # of float16


@dataclass(frozen=True, slots=True, eq=False)
class CompactMaps:
    """Maps of N crops.

    Attributes:
        shapes: (C, h, w) of each tap.
        values: int8 (N, V), tap after tap, each as (h, w, C).
        scales: float16 (N, S), tap after tap one for each of its C maps; the maps are the values
            times these.
    """

    shapes: Shapes
    values: Int8Array
    scales: HalfArray

    @classmethod
    def empty(cls, n_crops: int, shapes: Shapes) -> "CompactMaps":
        """Maps that are all zero."""
        n_values = sum(channels * height * width for channels, height, width in shapes)
        n_scales = sum(channels for channels, _, _ in shapes)
        values = np.zeros((n_crops, n_values), np.int8)
        return cls(shapes, values, np.zeros((n_crops, n_scales), np.float16))

    @classmethod
    def of(cls, taps: Sequence[Tensor]) -> "CompactMaps":
        """What is kept of whole maps.

        Args:
            taps: (n, C, h, w) each, shallowest first; larger maps than those of the middle tap are
                averaged down to its size.
        """
        shapes = kept_shapes([tuple(maps.shape[1:]) for maps in taps])
        kept = [_compact(maps, side_px) for maps, (_, side_px, _) in zip(taps, shapes, strict=True)]
        return cls(
            shapes=shapes,
            values=torch.cat([values for values, _ in kept], dim=1).cpu().numpy(),
            scales=torch.cat([scales for _, scales in kept], dim=1).cpu().numpy(),
        )

    def rows(self, chosen: slice | NDArray[np.intp] | NDArray[np.bool_]) -> "CompactMaps":
        """The maps of some of the crops."""
        return CompactMaps(self.shapes, self.values[chosen], self.scales[chosen])

    def put(self, rows: slice | int, others: "CompactMaps") -> None:
        """Replace some crops by others of the same shapes."""
        self.values[rows] = others.values
        self.scales[rows] = others.scales

    def restored(self) -> Iterator[Tensor]:
        """The maps of each tap, float32 (N, h * w, C)."""
        value_at = scale_at = 0
        for channels, height, width in self.shapes:
            n_values = height * width * channels
            values = self.values[:, value_at : value_at + n_values]
            scales = self.scales[:, scale_at : scale_at + channels]
            value_at, scale_at = value_at + n_values, scale_at + channels
            maps = torch.from_numpy(values).float().view(-1, height * width, channels)
            yield maps.mul_(torch.from_numpy(scales).float()[:, None])

    def to_bytes(self, row: int) -> bytes:
        """One crop: its scales, one bit for each value that is not zero, and those values."""
        values = self.values[row]
        is_there = values != 0
        return b"".join(
            part.tobytes()
            for part in (self.scales[row], np.packbits(is_there), np.compress(is_there, values))
        )

    def fill_from_bytes(self, row: int, stored: bytes) -> None:
        """Replace one crop by what `to_bytes` gave.

        Raises:
            ValueError: these are not the bytes of maps of these shapes.
        """
        n_values, n_scales = self.values.shape[1], self.scales.shape[1]
        bits_at = 2 * n_scales
        values_at = bits_at + -(-n_values // 8)
        bits = np.frombuffer(stored, np.uint8, values_at - bits_at, offset=bits_at)
        is_there = np.unpackbits(bits, count=n_values).view(np.bool_)
        kept = np.frombuffer(stored, np.int8, offset=values_at)
        if len(kept) != np.count_nonzero(is_there):
            raise ValueError
        self.scales[row] = np.frombuffer(stored, np.float16, n_scales)
        np.place(self.values[row], is_there, kept)


def kept_shapes(map_shapes: Sequence[tuple[int, ...]]) -> Shapes:
    """Shapes (C, h, w) of what is kept of maps of these shapes, shallowest first."""
    side_px = map_shapes[len(map_shapes) // 2][-1]
    return tuple(
        (channels, min(height, side_px), min(width, side_px))
        for channels, height, width in map_shapes
    )


def _compact(maps: Tensor, side_px: int) -> tuple[Tensor, Tensor]:
    """Values (n, h * w * C) and scales (n, C) of one tap, (n, C, h, w)."""
    fits = maps.shape[-1] == side_px
    small = maps if fits else functional.adaptive_avg_pool2d(maps, side_px)
    by_place = small.permute(0, 2, 3, 1).flatten(1, 2)
    scales = (by_place.abs().amax(dim=1).float() / _LARGEST).clamp(max=_LARGEST_HALF).half()
    inverse = torch.where(scales > 0, 1 / scales.float(), 0)
    rounded = (by_place * inverse[:, None]).round_().clamp_(-_LARGEST, _LARGEST)
    return rounded.to(torch.int8).flatten(1), scales

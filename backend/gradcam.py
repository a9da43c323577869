"""Grad-CAM from cached maps: only the head and the pooling are differentiated.

The trunk is frozen and its taps are cached, so no picture and no pass through the trunk is needed.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from backend import pooling
from backend.compact_maps import CompactMaps
from backend.head import Head

FloatArray = NDArray[np.float32]
TypicalCrop = tuple[Tensor, ...]  # of each tap, see `pooling.typical_places`
_EPSILON = 1e-8


def typical_crops(maps: CompactMaps, has_mask: NDArray[np.bool_]) -> dict[bool, TypicalCrop]:
    """The mean, place by place, of crops without and with a mask; zeros where there are none.

    Args:
        maps: of N crops.
        has_mask: (N,) whether a channel of the trunk's input outlined the cell, see `pooling`.
    """
    return {
        masked: tuple(
            pooling.typical_places(tap, has_mask=masked)
            if len(tap)
            else torch.zeros(1 + masked, *tap.shape[1:])
            for tap in maps.rows(has_mask == masked).restored()
        )
        for masked in (False, True)
    }


def gradcam(
    head: Head,
    *,
    features: FloatArray,
    maps: CompactMaps,
    class_idx: NDArray[np.int64],
    has_mask: NDArray[np.bool_],
    typical: Mapping[bool, TypicalCrop],
) -> FloatArray:
    """Where each crop speaks for a class, more than a typical crop does.

    The layer that is looked at is the last one before the sums over all places: the maps of all
    taps, weighted as the pooling weights them, less those of a typical crop, and brought to one
    size. There the gradient is the same at every place, so that the weight of a map, its mean,
    loses nothing: the heat is what each place adds to the score, by all that the head reads. At the
    deepest convolution the mean is zero for the second number of each map, which half of what the
    head knows is made of; and its places are a sixth of the crop wide, wider than a platelet.
    Without a typical crop to compare with, a class that is known by what is missing, as a platelet
    is, has no heat of its own: noise lights up.

    Args:
        head: trained head.
        features: (N, D).
        maps: of the same crops.
        class_idx: (N,) class of which the heat is asked.
        has_mask: (N,) whether a channel of the trunk's input outlined the cell, see `pooling`.
        typical: what crops with and without a mask are compared with.

    Returns:
        (N, h, h) float32 in [0, 1], largest value 1 where any place speaks for the class, and 0 at
        the half that says least; h of the largest maps.

    Source:
        Selvaraju et al. 2017, "Grad-CAM", eq. 1 and 2, arXiv:1610.02391; before a sum over all
        places it is the class activation map of Zhou et al. 2016, arXiv:1512.04150. Against a
        reference: Shrikumar et al. 2017, "Learning important features through propagating
        activation differences", arXiv:1704.02685.
    """
    inputs = torch.from_numpy(features).requires_grad_()
    scores = head.logits(inputs).gather(1, torch.from_numpy(class_idx)[:, None])
    (gradient,) = torch.autograd.grad(scores.sum(), inputs)
    added = torch.empty(len(features), *maps.shapes[0][1:])
    for masked in np.unique(has_mask):
        rows = np.flatnonzero(has_mask == masked)
        added[rows] = _added_by_place(
            maps.rows(rows),
            gradient[rows],
            typical=typical[bool(masked)],
            has_mask=bool(masked),
        )
    heat = torch.relu(added)
    heat = torch.relu(heat - heat.flatten(1).median(dim=1).values[:, None, None])
    return (heat / (heat.amax(dim=(1, 2), keepdim=True) + _EPSILON)).numpy()


def _added_by_place(
    maps: CompactMaps, weights: Tensor, *, typical: TypicalCrop, has_mask: bool
) -> Tensor:
    """What each place adds to the features weighted with `weights`, (n, D); (n, h, h)."""
    size = maps.shapes[0][1:]
    added = torch.zeros(len(weights), *size)
    start = 0
    for tap, of_tap in zip(maps.restored(), typical, strict=True):
        channels = tap.shape[2]
        own = weights[:, start : start + 2 * channels].reshape(-1, 2, channels)
        start += 2 * channels
        coarse = pooling.added_by_place(tap, own, typical=of_tap, has_mask=has_mask)
        # Spread over the smaller places, it stays the same in all (nearly, where a place is not a
        # whole number of them, as in networks without padding).
        fine = functional.interpolate(coarse[:, None], size, mode="bilinear")[:, 0]
        added += fine * (coarse.shape[-1] / size[0]) ** 2
    return added

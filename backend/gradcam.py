"""Grad-CAM from cached activations: only the head and the pooling are differentiated.

The trunk is frozen and its deepest tap is cached, so no picture and no backward pass
through the trunk is needed.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backend import pooling
from backend.features import Readout
from backend.head import Head

FloatArray = NDArray[np.float32]
_EPSILON = 1e-8


def gradcam(
    head: Head,
    readout: Readout,
    *,
    features: FloatArray,
    activations: NDArray[np.float16] | FloatArray,
    class_idx: NDArray[np.int64],
    has_mask: NDArray[np.bool_],
) -> FloatArray:
    """Where each crop speaks for a class.

    The layer that is looked at is the last one before the sums over all places: the deepest maps,
    weighted as the pooling weights them (`pooling.summands`). There the gradient is the same at
    every place, so that the weight of a map, its mean, loses nothing: the map shows what each place
    adds to the score. One layer before, at the deepest convolution, the mean is zero for the second
    number of each map, which half of what the head knows is made of, and corners that the pooling
    hardly counts would shine.

    Args:
        head: trained head.
        readout: place of the deepest tap among the features.
        features: (N, D).
        activations: deepest tap, (N, C, h, w).
        class_idx: (N,) class of which the map is asked.
        has_mask: (N,) whether a channel of the trunk's input outlined the cell, see `pooling`.

    Returns:
        (N, h, w) float32 in [0, 1], largest value 1 where any pixel speaks for the class.

    Source:
        Selvaraju et al. 2017, "Grad-CAM", eq. 1 and 2, arXiv:1610.02391; before a sum over all
        places it is the class activation map of Zhou et al. 2016, arXiv:1512.04150.
    """
    inputs = torch.from_numpy(features).requires_grad_()
    scores = head.logits(inputs).gather(1, torch.from_numpy(class_idx)[:, None])
    (gradient,) = torch.autograd.grad(scores.sum(), inputs)
    first_weights, second_weights = gradient[:, readout.first], gradient[:, readout.second]
    spread = inputs.detach()[:, readout.second]
    maps = torch.from_numpy(activations)
    heat = torch.empty(maps[:, 0].shape)
    for masked in np.unique(has_mask):
        rows = torch.from_numpy(np.flatnonzero(has_mask == masked))
        first, second = pooling.summands(maps[rows], has_mask=bool(masked))
        # With a mask the sum is squared spread: by the chain rule, half of 1 / spread.
        scale = 1 / (2 * spread[rows]) if masked else 1.0
        heat[rows] = _weighted_sum(first_weights[rows], first) + _weighted_sum(
            second_weights[rows] * scale, second
        )
    heat = torch.relu(heat)
    heat = heat - heat.amin(dim=(1, 2), keepdim=True)
    return (heat / (heat.amax(dim=(1, 2), keepdim=True) + _EPSILON)).numpy()


def _weighted_sum(weights: Tensor, maps: Tensor) -> Tensor:
    """Of maps (n, C, h, w) by weights (n, C); (n, h, w)."""
    return torch.einsum("nc,nchw->nhw", weights, maps)

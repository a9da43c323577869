"""Grad-CAM from cached activations: only the head and the pooling are differentiated.

The trunk is frozen and its deepest tap is cached, so no picture and no backward pass
through the trunk is needed.
"""

import numpy as np
import torch
from numpy.typing import NDArray

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
) -> FloatArray:
    """Where each crop speaks for a class.

    The weight of a map is the mean gradient of the class score over its pixels. Through the
    weighted mean this is d score / d mean divided by the number of pixels (the weights sum to
    one). Through the map's second number it is zero: neither the spread nor the difference of two
    means changes when the same is added to every pixel. So the gradient with respect to the
    pooled means says all.

    Args:
        head: trained head.
        readout: place of the deepest tap among the features.
        features: (N, D).
        activations: deepest tap, (N, C, h, w).
        class_idx: (N,) class of which the map is asked.

    Returns:
        (N, h, w) float32 in [0, 1], largest value 1 where any pixel speaks for the class.

    Source:
        Selvaraju et al. 2017, "Grad-CAM", eq. 1 and 2, arXiv:1610.02391.
    """
    inputs = torch.from_numpy(features).requires_grad_()
    scores = head.logits(inputs).gather(1, torch.from_numpy(class_idx)[:, None])
    (gradient,) = torch.autograd.grad(scores.sum(), inputs)
    maps = torch.from_numpy(activations).float()
    weights = gradient[:, readout.mean] / (maps.shape[2] * maps.shape[3])
    heat = torch.relu(torch.einsum("nc,nchw->nhw", weights, maps))
    heat = heat - heat.amin(dim=(1, 2), keepdim=True)
    return (heat / (heat.amax(dim=(1, 2), keepdim=True) + _EPSILON)).numpy()

"""What the product's dropout masks stand for: every crop, feature and hidden unit by itself."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backend.head import DROPOUT, Head

FloatArray = NDArray[np.float32]


@torch.inference_mode()
def independent_mc_probabilities(
    head: Head, features: FloatArray, *, passes: int, seed: int
) -> FloatArray:
    """Class probabilities of T passes, each a dense product with masks of each crop's own.

    Args:
        head: trained head.
        features: (N, D) float32.
        passes: T.
        seed: decides the masks.

    Returns:
        (T, N, K) float32, rows sum to 1.
    """
    rng = np.random.default_rng(seed)

    def masked(units: Tensor) -> Tensor:
        drawn = np.frombuffer(rng.bytes(math.ceil(units.numel() / 8)), np.uint8)
        kept = np.unpackbits(drawn, count=units.numel())  # one bit draws DROPOUT, which is one half
        return units * torch.from_numpy(kept).view(units.shape) / (1 - DROPOUT)

    inputs = head.standardise(torch.from_numpy(features))
    drawn = []
    for _ in range(passes):
        hidden = torch.relu(masked(inputs) @ head.hidden_weight + head.hidden_bias)
        scores = (masked(hidden) @ head.class_weight + head.class_bias) / head.temperature
        drawn.append(torch.softmax(scores, dim=1).numpy())
    return np.stack(drawn)

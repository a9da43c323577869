"""The dropout head: features to class probabilities, deterministic or as Monte-Carlo passes.

Dropout on the standardised features, one hidden layer, dropout, class scores. All crops of
a Monte-Carlo pass share one dropout mask (consistent dropout); a shared mask removes whole
columns of the features and of the hidden layer, so a pass multiplies only what is kept.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor
from torch.nn import functional

from backend.precision import fastest_precision

FloatArray = NDArray[np.float32]

DROPOUT = 0.5  # chance of a feature or hidden unit to be dropped
HIDDEN_UNITS = 128
# Crops per matrix product. In float32 so few that what a pass keeps of them stays in the core's
# cache: two thirds of the time of 2,048 at once (10,000 crops, measured). In bfloat16 many, whose
# products are so short that calling them counts.
_BLOCK = {torch.float32: 256, torch.bfloat16: 2048}
# oneDNN compiles a bfloat16 product for every shape that it has not met, which takes 15 ms and 2 MB
# (measured): fifty masks over as many crops as never before took 0.9 s instead of 0.04. So shapes
# are rounded up to few: by zeros, and to what its tiles hold.
_INPUT_STEP = 64
_HIDDEN_STEP = 16
_LEAST_CROPS = 64


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """Weights of one head, float32; on the CPU but while it is trained.

    Attributes:
        mean: (D,) subtracted from the features.
        scale: (D,) the features are multiplied by.
        hidden_weight: (D, H).
        hidden_bias: (H,).
        class_weight: (H, K).
        class_bias: (K,).
        temperature: () divides the class scores; 1 before calibration.
    """

    mean: Tensor
    scale: Tensor
    hidden_weight: Tensor
    hidden_bias: Tensor
    class_weight: Tensor
    class_bias: Tensor
    temperature: Tensor

    @property
    def n_classes(self) -> int:
        """Number of classes K."""
        return self.class_bias.shape[0]

    def standardise(self, features: Tensor) -> Tensor:
        """Features (N, D) with the mean and scale of the training set."""
        return (features - self.mean) * self.scale

    def logits(self, features: Tensor) -> Tensor:
        """Calibrated class scores (N, K) without dropout; differentiable."""
        hidden = torch.relu(self.standardise(features) @ self.hidden_weight + self.hidden_bias)
        return (hidden @ self.class_weight + self.class_bias) / self.temperature

    def to(self, device: torch.device) -> "Head":
        """The same head on a device; itself where it is there."""
        return Head(**{name: getattr(self, name).to(device) for name in self.__slots__})

    def with_temperature(self, temperature: float) -> "Head":
        """The same head at another temperature."""
        return replace(self, temperature=torch.tensor(temperature))

    def to_tensors(self) -> dict[str, Tensor]:
        """The head by name, for a safetensors file."""
        return {name: getattr(self, name).contiguous() for name in self.__slots__}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> "Head":
        """The head that `to_tensors` described.

        Raises:
            KeyError: a tensor is missing.
        """
        return cls(**{name: tensors[name] for name in cls.__slots__})


@dataclass(frozen=True, slots=True, eq=False)
class DropoutMask:
    """One pass: the features and hidden units that are kept, as indices."""

    inputs: Tensor
    hidden: Tensor


def draw_masks(n_inputs: int, n_hidden: int, *, passes: int, seed: int) -> list[DropoutMask]:
    """Dropout masks of the passes, the same for every crop.

    Args:
        n_inputs: features D.
        n_hidden: hidden units H.
        passes: number of masks T.
        seed: decides all of them.

    Returns:
        T masks.
    """
    generator = Generator().manual_seed(seed)
    return [
        DropoutMask(
            torch.nonzero(torch.rand(n_inputs, generator=generator) >= DROPOUT).flatten(),
            torch.nonzero(torch.rand(n_hidden, generator=generator) >= DROPOUT).flatten(),
        )
        for _ in range(passes)
    ]


@dataclass(frozen=True, slots=True, eq=False)
class MaskedHead:
    """The rows and columns of a head that one mask keeps, ready for many crops.

    A few more are there, with weights of zero, so that many masks share one shape.

    Attributes:
        inputs: d features, as indices.
        hidden_weight: (h, d) in the precision of the hidden layer.
        hidden_bias: (h, 1) float32.
        class_weight: (h, K) float32, divided by the temperature as is the bias.
        class_bias: (K,) float32.
    """

    inputs: Tensor
    hidden_weight: Tensor
    hidden_bias: Tensor
    class_weight: Tensor
    class_bias: Tensor

    @classmethod
    def of(cls, head: Head, mask: DropoutMask, precision: torch.dtype) -> "MaskedHead":
        """What is kept is enlarged to keep its mean: in the weights, fewer than the crops."""
        inputs, hidden = _padded(mask.inputs, _INPUT_STEP), _padded(mask.hidden, _HIDDEN_STEP)
        # Transposed in memory, too: the product with crops is three times faster (measured).
        weight = head.hidden_weight.index_select(0, inputs).T.index_select(0, hidden)
        weight = weight / (1 - DROPOUT)
        weight[:, len(mask.inputs) :] = 0
        class_weight = head.class_weight[hidden] / (1 - DROPOUT) / head.temperature
        class_weight[len(mask.hidden) :] = 0
        return cls(
            inputs=inputs,
            hidden_weight=weight.to(precision),
            hidden_bias=head.hidden_bias[hidden, None],
            class_weight=class_weight,
            class_bias=head.class_bias / head.temperature,
        )

    def logits(self, standardised: Tensor) -> Tensor:
        """Class scores of one pass, multiplying only the rows and columns that are kept.

        Args:
            standardised: (N, D) from `Head.standardise`, in the precision of the hidden layer;
                fastest stored column by column.

        Returns:
            (N, K) float32, equal to those of dense layers with the dropped units set to zero.
        """
        # Rows of the transposed crops are gathered, 1.8 times faster than columns (measured).
        kept_inputs = standardised.T.index_select(0, self.inputs)
        hidden = torch.relu((self.hidden_weight @ kept_inputs).float() + self.hidden_bias)
        return torch.addmm(self.class_bias, hidden.T, self.class_weight)


def _padded(kept: Tensor, step: int) -> Tensor:
    """Indices, and so many times the first of all as their number lacks to a multiple of `step`."""
    return functional.pad(kept, (0, -len(kept) % step))


def _columns(n_crops: int) -> int:
    """As how many crops so many are multiplied: the next power of two, of 64 at least."""
    return max(_LEAST_CROPS, 1 << (n_crops - 1).bit_length())


@torch.inference_mode()
def mc_probabilities(head: Head, features: FloatArray, *, passes: int, seed: int) -> FloatArray:
    """Class probabilities of T stochastic passes with masks shared by all crops.

    The hidden layer, nearly all of the work, is multiplied in bfloat16 where the processor does
    so in hardware; what that moves is far below what other masks do (measured, docs/model.md).

    Args:
        head: trained head.
        features: (N, D) float32.
        passes: T.
        seed: decides the masks.

    Returns:
        (T, N, K) float32, rows sum to 1.

    Source:
        Kirsch et al. 2019, "BatchBALD", section 4 (consistent MC dropout), arXiv:1906.08158.
    """
    n_inputs, n_hidden = head.hidden_weight.shape
    masks = draw_masks(n_inputs, n_hidden, passes=passes, seed=seed)
    precision = fastest_precision(torch.device("cpu"))
    heads = [MaskedHead.of(head, mask, precision) for mask in masks]
    result = np.empty((passes, len(features), head.n_classes), np.float32)
    n_together = _BLOCK[precision]
    for start in range(0, len(features), n_together):
        block = head.standardise(torch.from_numpy(features[start : start + n_together]))
        n_crops = len(block)
        columns = functional.pad(block.to(precision).T, (0, _columns(n_crops) - n_crops))
        columns = columns.contiguous()
        for index, masked in enumerate(heads):
            scores = masked.logits(columns.T)[:n_crops]
            result[index, start : start + n_together] = torch.softmax(scores, dim=1).numpy()
    return result


@torch.inference_mode()
def probabilities(head: Head, features: FloatArray) -> FloatArray:
    """Class probabilities without dropout.

    Args:
        head: trained head.
        features: (N, D) float32.

    Returns:
        (N, K) float32, rows sum to 1.
    """
    return torch.softmax(head.logits(torch.from_numpy(features)), dim=1).numpy()


def fresh_head(mean: Tensor, scale: Tensor, *, n_classes: int, rng: np.random.Generator) -> Head:
    """An untrained head: He initialisation, no temperature.

    Args:
        mean: (D,) of the features.
        scale: (D,) inverse spread of the features.
        n_classes: K.
        rng: draws the weights.

    Source:
        He et al. 2015, "Delving Deep into Rectifiers", eq. 10, arXiv:1502.01852.
    """
    n_inputs = mean.shape[0]
    hidden = rng.standard_normal((n_inputs, HIDDEN_UNITS), np.float32) * math.sqrt(2 / n_inputs)
    classes = rng.standard_normal((HIDDEN_UNITS, n_classes), np.float32) / math.sqrt(HIDDEN_UNITS)
    return Head(
        mean=mean,
        scale=scale,
        hidden_weight=torch.from_numpy(hidden.astype(np.float32)),
        hidden_bias=torch.zeros(HIDDEN_UNITS),
        class_weight=torch.from_numpy(classes.astype(np.float32)),
        class_bias=torch.zeros(n_classes),
        temperature=torch.tensor(1.0),
    )

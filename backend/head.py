"""The dropout head: features to class probabilities, deterministic or as Monte-Carlo passes.

Dropout on the standardised features, one hidden layer, dropout, class scores. All crops of
a Monte-Carlo pass share one dropout mask (consistent dropout), and a mask keeps or drops the
features of a group together: the products of all groups are made once, and each pass adds up
those that it keeps.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor
from torch.nn import functional

FloatArray = NDArray[np.float32]

DROPOUT = 0.5  # chance of a feature or hidden unit to be dropped
HIDDEN_UNITS = 128
# Features are kept or dropped in so many groups; half or twice as many make passes that are about
# as good (measured, docs/model.md).
N_GROUPS = 64
# Crops at a time: so few that the sums of their groups stay in the core's cache (measured).
_BLOCK = 64


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
class DropoutMasks:
    """What T passes keep, the same for every crop.

    Attributes:
        order: (D,) the features, as indices, in the order in which they are dealt to N_GROUPS
            groups, one to each in turn.
        groups: (T, N_GROUPS) bool, half of each row.
        hidden: (T, H) bool, hidden units.
    """

    order: Tensor
    groups: Tensor
    hidden: Tensor


def draw_masks(n_inputs: int, n_hidden: int, *, passes: int, seed: int) -> DropoutMasks:
    """Dropout masks of the passes.

    Every second pass keeps the groups that the one before dropped. Such pairs tell the mean over
    all masks better than as many independent passes, masks of single features included
    (measured, docs/model.md).

    Args:
        n_inputs: features D.
        n_hidden: hidden units H, each of which is dropped by itself.
        passes: number of masks T.
        seed: decides all of them.

    Source:
        Hammersley & Morton 1956, "A New Monte Carlo Technique: Antithetic Variates".
    """
    generator = Generator().manual_seed(seed)
    order = torch.randperm(n_inputs, generator=generator)
    chances = torch.rand(-(-passes // 2), N_GROUPS, generator=generator)
    half = chances.argsort(dim=1) < N_GROUPS // 2
    return DropoutMasks(
        order=order,
        groups=torch.stack([half, ~half], dim=1).flatten(0, 1)[:passes],
        hidden=torch.rand(passes, n_hidden, generator=generator) >= DROPOUT,
    )


@dataclass(frozen=True, slots=True, eq=False)
class MaskedHead:
    """A head under the masks of T passes, ready for many crops.

    Attributes:
        inputs: (G * S,) the features group by group, as indices, S to each. Some groups end with a
            feature whose weights are zero there, where D is no multiple of G.
        group_weights: (G, H, S) of the hidden layer.
        hidden_bias: (H, 1).
        groups: (T, G), 1 where a pass keeps the group, else 0.
        class_weights: (T, K, H), 0 where a pass drops the hidden unit; divided by the temperature
            as is the bias.
        class_bias: (K, 1).
    """

    inputs: Tensor
    group_weights: Tensor
    hidden_bias: Tensor
    groups: Tensor
    class_weights: Tensor
    class_bias: Tensor

    @classmethod
    def of(cls, head: Head, masks: DropoutMasks) -> "MaskedHead":
        """What is kept is enlarged to keep its mean: in the weights, fewer than the crops."""
        n_inputs, n_hidden = head.hidden_weight.shape
        dealt = functional.pad(masks.order, (0, -n_inputs % N_GROUPS))
        weights = head.hidden_weight[dealt] / (1 - DROPOUT)
        weights[n_inputs:] = 0
        class_weight = head.class_weight / (1 - DROPOUT) / head.temperature
        return cls(
            inputs=dealt.view(-1, N_GROUPS).T.flatten(),
            group_weights=weights.view(-1, N_GROUPS, n_hidden).permute(1, 2, 0).contiguous(),
            hidden_bias=head.hidden_bias[:, None],
            groups=masks.groups.float(),
            class_weights=class_weight.T * masks.hidden[:, None],
            class_bias=head.class_bias[:, None] / head.temperature,
        )

    def logits(self, standardised: Tensor) -> Tensor:
        """Class scores of all passes.

        Args:
            standardised: (N, D) from `Head.standardise`.

        Returns:
            (T, K, N), equal to those of dense layers with the dropped units set to zero.
        """
        # Crops come last from here on: a feature of all is gathered faster than features of one,
        # and the softmax over classes takes a tenth of the time (measured).
        by_group = standardised.T.index_select(0, self.inputs).view(N_GROUPS, -1, len(standardised))
        sums = (self.group_weights @ by_group).flatten(1)
        hidden = (self.groups @ sums).view(len(self.groups), len(self.hidden_bias), -1)
        active = hidden.add_(self.hidden_bias).relu_()
        return torch.baddbmm(self.class_bias, self.class_weights, active)


@torch.inference_mode()
def mc_probabilities(head: Head, features: FloatArray, *, passes: int, seed: int) -> FloatArray:
    """Class probabilities of T stochastic passes with masks shared by all crops.

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
    masked = MaskedHead.of(head, draw_masks(*head.hidden_weight.shape, passes=passes, seed=seed))
    result = np.empty((passes, len(features), head.n_classes), np.float32)
    for start in range(0, len(features), _BLOCK):
        block = head.standardise(torch.from_numpy(features[start : start + _BLOCK]))
        drawn = torch.softmax(masked.logits(block), dim=1)
        result[:, start : start + _BLOCK] = drawn.transpose(1, 2).numpy()
    return result


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

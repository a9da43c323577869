"""Pixels to features: the frozen VGG16 convolutions, tapped at three depths and pooled.

Everything here is deterministic and the same for every project, so that its results are
cached by content (`feature_cache`) and computed once per crop. Training and Monte-Carlo
passes happen later, on the pooled features (`head`).
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.vgg import cfgs, make_layers

from backend.errors import WeightsError

FloatArray = NDArray[np.float32]
HalfArray = NDArray[np.float16]
UInt8Array = NDArray[np.uint8]

# relu of conv3_3, conv4_3, conv5_3 in torchvision's numbering of `vgg16().features`
TAPS: tuple[int, ...] = (15, 22, 29)
INPUT_PX = 96
BATCH = 32
TRANSFORM = "centre-96/imagenet/1"  # raise when the way from pixels to trunk input changes

# What the weights were trained with. Source: torchvision, VGG16_Weights.IMAGENET1K_V1
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)

# Channels of `model_input` that make the trunk's three. For phase imaging they are phase,
# amplitude and mask (see converters.rendering); for colour pictures red, green and blue.
_CHANNELS: dict[str, tuple[int, int, int]] = {
    "phase": (0, 0, 0),
    "amplitude": (1, 1, 1),
    "both": (0, 1, 2),
    "rgb": (0, 1, 2),
}
MODES = tuple(_CHANNELS)


@dataclass(frozen=True, slots=True, eq=False)
class Extracted:
    """What the trunk says about N crops.

    Attributes:
        features: pooled taps, float32 (N, D), each value exactly a float16 (so that
            cached and fresh features are equal).
        activations: deepest tap, float16 (N, C, h, w).
    """

    features: FloatArray
    activations: HalfArray


@dataclass(frozen=True, slots=True)
class Readout:
    """Where the pooled deepest tap lies in the feature vector: all Grad-CAM needs to know."""

    mean: slice
    spread: slice


class Trunk:
    """Frozen convolutions on one device, in one precision.

    Args:
        layers: VGG16's convolutional layers up to the deepest tap, in order.
        device: where they run.
        precision: bfloat16 or float32.
        weights_digest: identifies the weights; part of `trunk_id`.
    """

    def __init__(
        self,
        layers: nn.Sequential,
        *,
        device: torch.device,
        precision: torch.dtype,
        weights_digest: str,
    ) -> None:
        self._layers = layers.eval().requires_grad_(requires_grad=False).to(device, precision)
        self._layers = self._layers.to(memory_format=torch.channels_last)
        self._device = device
        self._precision = precision
        self._mean = torch.tensor(_MEAN, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(_STD, device=device).view(1, 3, 1, 1)
        widths = [_width(layers, tap) for tap in TAPS]
        self.feature_dim = 2 * sum(widths)
        deepest = widths[-1]
        self.activation_shape = (deepest, INPUT_PX // 16, INPUT_PX // 16)
        self.readout = Readout(
            mean=slice(self.feature_dim - 2 * deepest, self.feature_dim - deepest),
            spread=slice(self.feature_dim - deepest, self.feature_dim),
        )
        recipe = f"vgg16 {weights_digest} {TAPS} mean+spread {precision} {device.type} {TRANSFORM}"
        self.trunk_id = hashlib.sha256(recipe.encode()).hexdigest()[:16]

    def extract(self, pixels: UInt8Array, *, mode: str) -> Extracted:
        """Features and deepest activations of N crops.

        Args:
            pixels: uint8 (N, S, S, 3) as `converters.rendering.model_input` makes them.
            mode: "phase", "amplitude", "both" or "rgb".

        Returns:
            N features and activations; N may be 0.
        """
        batches = [
            self._forward(self._prepare(pixels[start : start + BATCH], mode))
            for start in range(0, len(pixels), BATCH)
        ]
        if not batches:
            return Extracted(
                np.zeros((0, self.feature_dim), np.float32),
                np.zeros((0, *self.activation_shape), np.float16),
            )
        features = torch.cat([pooled for pooled, _ in batches]).half().float()
        activations = torch.cat([deepest for _, deepest in batches]).half()
        return Extracted(features.cpu().numpy(), activations.cpu().numpy())

    def _prepare(self, pixels: UInt8Array, mode: str) -> Tensor:
        """Trunk input (n, 3, INPUT_PX, INPUT_PX), normalised as for ImageNet."""
        channels = torch.from_numpy(pixels[..., list(_CHANNELS[mode])]).to(self._device)
        scaled = fit_to_input(channels.permute(0, 3, 1, 2).float() / 255)
        normalised = (scaled - self._mean) / self._std
        return normalised.to(self._precision).contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def _forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled taps (n, D) float32 and the deepest tap."""
        pooled: list[Tensor] = []
        for index, layer in enumerate(self._layers):
            maps = layer(maps)
            if index in TAPS:
                pooled.extend(mean_and_spread(maps))
        return torch.cat(pooled, dim=1), maps


def fit_to_input(pixels: Tensor) -> Tensor:
    """Bring square crops of any size to INPUT_PX.

    A smaller crop keeps its magnification and is padded by repeating its border; a larger
    one is scaled down, so that no part of the cell is lost.

    Args:
        pixels: float (n, 3, S, S).

    Returns:
        float (n, 3, INPUT_PX, INPUT_PX).
    """
    missing = INPUT_PX - pixels.shape[-1]
    if missing < 0:
        return functional.interpolate(
            pixels, (INPUT_PX, INPUT_PX), mode="bilinear", antialias=True, align_corners=False
        )
    before, after = missing // 2, missing - missing // 2
    return functional.pad(pixels, (before, after, before, after), mode="replicate")


def mean_and_spread(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over the pixels of each map.

    Args:
        maps: (n, C, h, w).

    Returns:
        Two float32 tensors (n, C).
    """
    variance, mean = torch.var_mean(maps.float(), dim=(2, 3), correction=0)
    return mean, variance.sqrt()


def load_trunk(weights: Path, *, device: str | None = None) -> Trunk:
    """The trunk with the weights of a safetensors file.

    Args:
        weights: file with torchvision's names, `features.0.weight` and so on.
        device: "cpu" or "cuda"; by default CUDA where there is one.

    Raises:
        WeightsError: the file cannot be read or lacks a tensor of VGG16.
    """
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    with torch.device("meta"):
        layers = make_layers(cfgs["D"], batch_norm=False)[: TAPS[-1] + 1]
    tensors = _read_weights(weights, set(layers.state_dict()))
    layers.load_state_dict(tensors, assign=True)
    return Trunk(
        layers, device=place, precision=fastest_precision(place), weights_digest=_digest(tensors)
    )


def fastest_precision(device: torch.device) -> torch.dtype:
    """bfloat16 where the processor multiplies it in hardware, else float32."""
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if has_bf16 else torch.float32


def _read_weights(weights: Path, names: set[str]) -> dict[str, Tensor]:
    try:
        stored = load_file(weights)
    except (OSError, SafetensorError) as error:
        raise WeightsError(
            f"The weights file {weights} cannot be read: {error}.",
            hint="Give a safetensors file with VGG16's convolutions.",
        ) from error
    missing = sorted(name for name in names if f"features.{name}" not in stored)
    if missing:
        raise WeightsError(
            f"The weights file {weights} lacks features.{missing[0]} and {len(missing) - 1} more.",
            hint="Give a safetensors file with VGG16's convolutions in torchvision's naming.",
        )
    return {name: stored[f"features.{name}"].float() for name in names}


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def _width(layers: nn.Sequential, tap: int) -> int:
    convolution = layers[tap - 1]
    return int(convolution.out_channels)  # type: ignore[arg-type]

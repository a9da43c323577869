"""Pixels to features: a frozen network (VGG16), tapped at three depths and pooled.

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
from torch import Tensor, nn
from torch.nn import functional

from backend import pooling, winograd
from backend.compact_maps import CompactMaps, kept_shapes
from backend.networks import DEFAULT_NETWORK, INPUT_PX, Network, build_network
from backend.precision import fastest_precision
from backend.weights import WantedWeights, digest_of

FloatArray = NDArray[np.float32]
UInt8Array = NDArray[np.uint8]

BATCH = 32
# A GPU is always given so many crops, empty ones among them if need be: its libraries choose their
# ways by the shape, and crops would have other features beside more or fewer others.
GPU_BATCH = 64
# A crop's cell is in its middle: in colour pictures, which have no mask, what lies around is faded
# to the background with a Gaussian. As a part of INPUT_PX.
FADING_SIGMA = 0.25
AMPLITUDE_GAIN = 3.0
TRANSFORM = "1"  # raise when the way from pixels to features changes

# What the weights were trained with. Source: torchvision, the transforms of IMAGENET1K_V1
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)

# Channels of `model_input` that make the trunk's three. For phase imaging they are phase,
# amplitude and mask (see converters.rendering); for colour pictures red, green and blue.
_CHANNELS: dict[str, tuple[int, int, int]] = {
    "phase": (0, 0, 2),
    "amplitude": (1, 1, 2),
    "both": (0, 1, 2),
    "rgb": (0, 1, 2),
}
_AMPLITUDE_PLACES = {"amplitude": slice(0, 2), "both": slice(1, 2)}


@dataclass(frozen=True, slots=True, eq=False)
class Extracted:
    """What the trunk says about N crops.

    Attributes:
        features: pooled taps, float32 (N, D), each value exactly a float16 (so that
            cached and fresh features are equal).
        maps: the taps, as they are kept for Grad-CAM.
    """

    features: FloatArray
    maps: CompactMaps

    def of_crop(self, index: int) -> "Extracted":
        """The part of one crop, N = 1."""
        own = slice(index, index + 1)
        return Extracted(self.features[own], self.maps.rows(own))


class Trunk:
    """Frozen convolutions on one device, in one precision.

    Args:
        network: whose taps are read; takes over the tensors and the device.
        tensors: its weights by name, as `Network.tensor_shapes` lists them, float32.
        device: where it runs.
        precision: bfloat16 or float32.
    """

    def __init__(
        self,
        network: Network,
        tensors: dict[str, Tensor],
        *,
        device: torch.device,
        precision: torch.dtype,
    ) -> None:
        self.network = network.name
        self.device = device
        self.precision = precision
        self._batch = BATCH if device.type == "cpu" else GPU_BATCH
        self._taps = network.taps
        self._layers = _with_weights(network, tensors, device=device, precision=precision)
        self.is_quickened = (
            device.type == "cpu" and precision == torch.float32 and winograd.quicken(self._layers)
        )
        self._mean = torch.tensor(_MEAN, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(_STD, device=device).view(1, 3, 1, 1)
        self._fading = pooling.centre_weights(INPUT_PX, FADING_SIGMA).to(device)
        self.kept_shapes = kept_shapes(network.map_shapes)
        self.feature_dim = 2 * sum(channels for channels, _, _ in network.map_shapes)
        method = f" {winograd.RECIPE}" if self.is_quickened else ""
        recipe = (
            f"{network.name} {digest_of(tensors)} taps {network.taps} input {INPUT_PX} "
            f"pooling {pooling.RECIPE} fading {FADING_SIGMA} gain {AMPLITUDE_GAIN} "
            f"{precision} {device.type} {TRANSFORM}{method}"
        )
        self.trunk_id = hashlib.sha256(recipe.encode()).hexdigest()[:16]

    def extract(self, pixels: UInt8Array, *, mode: str) -> Extracted:
        """Features and maps of N crops.

        Args:
            pixels: uint8 (N, S, S, 3) as `converters.rendering.model_input` makes them.
            mode: "phase", "amplitude", "both" or "rgb".

        Returns:
            N features and maps; N may be 0.
        """
        features = np.zeros((len(pixels), self.feature_dim), np.float32)
        maps = CompactMaps.empty(len(pixels), self.kept_shapes)
        for start in range(0, len(pixels), self._batch):
            batch = slice(start, start + self._batch)
            pooled, taps = self._pooled(pixels[batch], mode)
            features[batch] = pooled.half().float().cpu().numpy()
            maps.put(batch, CompactMaps.of(taps))
        return Extracted(features, maps)

    def _pooled(self, pixels: UInt8Array, mode: str) -> tuple[Tensor, list[Tensor]]:
        """One batch of crops, as `pool_maps` gives it."""
        maps = self._prepare(pixels, mode)
        if self.device.type != "cpu":
            maps = functional.pad(maps, (0, 0, 0, 0, 0, 0, 0, self._batch - len(maps)))
            maps = maps.contiguous(memory_format=torch.channels_last)
        pooled, taps = self.pool_maps(maps, mode)
        return pooled[: len(pixels)], [tap[: len(pixels)] for tap in taps]

    def _prepare(self, pixels: UInt8Array, mode: str) -> Tensor:
        """Trunk input (n, 3, INPUT_PX, INPUT_PX), normalised as for ImageNet."""
        channels = torch.from_numpy(pixels[..., list(_CHANNELS[mode])]).to(self.device)
        seen = fit_to_input(channels.permute(0, 3, 1, 2).float() / 255)
        if mode == "rgb":
            background = border_median(seen)
            seen = background + (seen - background) * self._fading
        elif mode in _AMPLITUDE_PLACES:
            amplitude = seen[:, _AMPLITUDE_PLACES[mode]]
            contrast = AMPLITUDE_GAIN * (amplitude - border_median(amplitude))
            seen[:, _AMPLITUDE_PLACES[mode]] = (0.5 + contrast).clamp(0, 1)
        normalised = (seen - self._mean) / self._std
        return normalised.to(self.precision).contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def pool_maps(self, maps: Tensor, mode: str) -> tuple[Tensor, list[Tensor]]:
        """Taps of prepared pictures.

        Args:
            maps: (n, 3, S, S) in the trunk's precision, normalised as for ImageNet.
            mode: "phase", "amplitude", "both" or "rgb".

        Returns:
            Pooled taps (n, D) float32, and the taps (n, C, h, w), shallowest first.
        """
        tapped = self._layers(maps)
        taps = [tapped[name] for name in self._taps]
        numbers = [part for tap in taps for part in pooling.pooled(tap, has_mask=has_mask(mode))]
        return torch.cat(numbers, dim=1), taps


def has_mask(mode: str) -> bool:
    """Whether one of the three channels outlines the cell: in all modes but "rgb"."""
    return mode != "rgb"


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


def border_median(pixels: Tensor) -> Tensor:
    """Background of each channel: the median of the outermost pixels.

    Args:
        pixels: (n, c, S, S).

    Returns:
        (n, c, 1, 1).
    """
    rows, columns = pixels[:, :, [0, -1], :], pixels[:, :, :, [0, -1]]
    ring = torch.cat([rows.flatten(2), columns.flatten(2)], dim=2)
    return ring.median(dim=2).values[..., None, None]


def load_trunk(
    weights: Path, *, network: str = DEFAULT_NETWORK, device: str | None = None
) -> Trunk:
    """The trunk with the weights of a safetensors file.

    Args:
        weights: file with torchvision's names, `features.0.weight` and so on.
        network: torchvision's name of the network.
        device: "cpu" or "cuda"; by default CUDA where there is one.

    Raises:
        WeightsError: the file is not what it must be, or the network cannot be a trunk.
    """
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    cut = build_network(network)
    tensors = WantedWeights(network, cut.tensor_shapes()).read(weights)
    return Trunk(cut, tensors, device=place, precision=fastest_precision(place))


def _with_weights(
    network: Network, tensors: dict[str, Tensor], *, device: torch.device, precision: torch.dtype
) -> nn.Module:
    """The network with its weights in place, frozen, batch normalisation folded in."""
    counters = {
        name: torch.tensor(0)
        for name in network.layers.state_dict()
        if name.endswith("num_batches_tracked")
    }
    network.layers.load_state_dict(tensors | counters, assign=True)
    layers = _fused(network.layers) if counters else network.layers
    layers = layers.requires_grad_(requires_grad=False).to(device, precision)
    return layers.to(memory_format=torch.channels_last)


def _fused(layers: nn.Module) -> nn.Module:
    """Layers with batch normalisation folded into the convolutions."""
    from torch.fx.experimental.optimization import fuse  # noqa: PLC0415  slow, and not for VGG16

    fused: nn.Module = fuse(layers, no_trace=True)
    return fused

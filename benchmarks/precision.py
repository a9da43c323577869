"""The trunk in float32, bfloat16 and int8: how fast each is, and whether the head sees the same.

In float32 it runs as torch's convolutions, the reference, and as the product runs it.

int8 is no path of the product; what it would bring is measured here, so that the choice is one.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from scipy.stats import spearmanr
from torch import Tensor, nn

from backend.features import Trunk
from backend.head import mc_probabilities
from backend.metrics import macro_f1
from backend.networks import DEFAULT_NETWORK, build_network
from backend.training import TrainingSettings, fit
from backend.uncertainty import margin_uncertainty
from benchmarks.timing import seconds_in_turn
from converters.crops import ReadOptions
from converters.reading import iter_crops
from converters.rendering import model_input

FloatArray = NDArray[np.float32]
UInt8Array = NDArray[np.uint8]

N_CROPS = 1000
N_LABELS = 300
N_CALIBRATION = 64
BATCH = 32
_LARGE_MAPS = 4  # convolutions whose maps are large: a few crops at a time, as in the product
_AT_ONCE = 8


def measure_precision(weights: Path, source: Path) -> Iterator[tuple[str, float]]:
    """Milliseconds per crop, and agreement with the reference, of each precision.

    Args:
        weights: of VGG16.
        source: labelled colour crops, 96 px.

    The agreement is of heads that were trained, on the same 300 labels, on features of their own
    precision: the macro-F1 of each on the other crops, the share of these that get the class that
    the reference gives, and the rank correlation of their uncertainties.
    """
    crops = [c for c in iter_crops([source], options=ReadOptions()) if c.label is not None]
    chosen = np.random.default_rng(0).permutation(len(crops))[:N_CROPS]
    pixels = np.stack([model_input(crops[row]) for row in chosen])
    _, labels = np.unique([str(crops[row].label) for row in chosen], return_inverse=True)
    reference: FloatArray | None = None
    trunks = _trunks(weights, pixels[:N_CALIBRATION])
    readings = [partial(trunk.extract, pixels[:BATCH], mode="rgb") for trunk in trunks.values()]
    elapsed_s = seconds_in_turn(*readings)
    for (name, trunk), batch_s in zip(trunks.items(), elapsed_s, strict=True):
        yield f"trunk_ms_{name}", 1e3 * batch_s / BATCH
        drawn = _head_says(trunk.extract(pixels, mode="rgb").features, labels.astype(np.int64))
        truth = labels[N_LABELS:]
        n_classes = drawn.shape[1]
        pairs = truth * n_classes + drawn.argmax(axis=1)
        confusion = np.bincount(pairs, minlength=n_classes**2).reshape(n_classes, n_classes)
        yield f"macro_f1_{name}", float(macro_f1(confusion))
        if reference is None:
            reference = drawn
        same = drawn.argmax(axis=1) == reference.argmax(axis=1)
        yield f"same_class_{name}", float(same.mean())
        ranks = spearmanr(margin_uncertainty(drawn), margin_uncertainty(reference))
        yield f"same_order_{name}", float(ranks.statistic)


def _head_says(features: FloatArray, labels: NDArray[np.int64]) -> FloatArray:
    """Probabilities (N - 300, K) under a head trained on the first 300 crops."""
    groups = [str(row) for row in range(N_LABELS)]
    n_classes = int(labels.max()) + 1
    settings = TrainingSettings()
    known = features[:N_LABELS], labels[:N_LABELS]
    head = fit(*known, groups, n_classes=n_classes, settings=settings, pool_features=features).head
    drawn = mc_probabilities(head, features[N_LABELS:], passes=settings.mc_passes, seed=0)
    mean: FloatArray = drawn.mean(axis=0)
    return mean


def _trunks(weights: Path, calibration: UInt8Array) -> dict[str, Trunk]:
    """By precision, the reference first, on the processor and, where there is one, the GPU.

    The layers of one are replaced by whole numbers.
    """
    stored = load_file(weights)

    def trunk(precision: torch.dtype, device: str = "cpu") -> Trunk:
        network = build_network(DEFAULT_NETWORK)
        tensors = {name: stored[name].float() for name in network.tensor_shapes()}
        return Trunk(network, tensors, device=torch.device(device), precision=precision)

    library, whole = trunk(torch.float32), trunk(torch.float32)
    library._layers = build_network(DEFAULT_NETWORK).layers.requires_grad_(requires_grad=False)
    tensors = {name: stored[name].float() for name in library._layers.state_dict()}
    library._layers.load_state_dict(tensors, assign=True)
    library._layers.to(memory_format=torch.channels_last)
    whole._layers = Int8Vgg16(library._layers, library._prepare(calibration, "rgb"))
    trunks = {
        "float32_library": library,
        "float32": trunk(torch.float32),
        "bfloat16": trunk(torch.bfloat16),
        "int8": whole,
    }
    if torch.cuda.is_available():
        trunks["float32_gpu"] = trunk(torch.float32, "cuda")
        trunks["bfloat16_gpu"] = trunk(torch.bfloat16, "cuda")
    return trunks


class Int8Vgg16(nn.Module):
    """VGG16's convolutions with weights and maps of 8 bits, by oneDNN.

    Args:
        exact: the network in float32.
        maps: prepared crops (n, 3, S, S); the largest value of each map gives its scale.

    Source:
        Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
        Integer-Arithmetic-Only Inference", arXiv:1712.05877: weights symmetric by channel, maps
        by tensor.
    """

    @torch.inference_mode()
    def __init__(self, exact: nn.Module, maps: Tensor) -> None:
        super().__init__()
        torch.backends.quantized.engine = "onednn"
        low, high = float(maps.min()), float(maps.max())
        self._input_scale = (high - low) / 255
        self._input_zero = round(-low / self._input_scale)
        self._steps: list[tuple[Tensor, float, bool, str | None]] = []
        taps = build_network(DEFAULT_NETWORK).taps
        layers = list(enumerate(exact.features))  # type: ignore[arg-type]
        starts = [number for number, layer in layers if isinstance(layer, nn.Conv2d)]
        for start, end in zip(starts, [*starts[1:], len(layers)], strict=True):
            following = layers[start + 1 : end]
            pools = any(isinstance(layer, nn.MaxPool2d) for _, layer in following)
            tap = next((t for n, _ in following if (t := f"features.{n}") in taps), None)
            convolution = layers[start][1]
            assert isinstance(convolution, nn.Conv2d)
            maps = torch.relu(convolution(maps))
            self._steps.append((_packed(convolution), float(maps.max()) / 255, pools, tap))
            maps = torch.max_pool2d(maps, 2) if pools else maps

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """Taps by name of pictures (n, 3, S, S), float32."""
        tapped: dict[str, Tensor] = {}
        maps = torch.cat([self._large_maps(part) for part in torch.split(pictures, _AT_ONCE)])
        for packed, scale, pools, tap in self._steps[_LARGE_MAPS:]:
            maps = torch.ops.quantized.conv2d_relu(maps, packed, scale, 0)
            if tap is not None:
                tapped[tap] = maps.dequantize()
            maps = torch.max_pool2d(maps, 2) if pools else maps
        return tapped

    def _large_maps(self, pictures: Tensor) -> Tensor:
        maps = torch.quantize_per_tensor(
            pictures, self._input_scale, self._input_zero, torch.quint8
        )
        for packed, scale, pools, _ in self._steps[:_LARGE_MAPS]:
            maps = torch.ops.quantized.conv2d_relu(maps, packed, scale, 0)
            maps = torch.max_pool2d(maps, 2) if pools else maps
        return maps


def _packed(convolution: nn.Conv2d) -> Tensor:
    """Weights and bias as the operator wants them."""
    weight = convolution.weight
    scales = weight.abs().amax(dim=(1, 2, 3)).double() / 127
    zeros = torch.zeros(len(scales), dtype=torch.long)
    whole = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
    packed: Tensor = torch.ops.quantized.conv2d_prepack(
        whole, convolution.bias, [1, 1], [1, 1], [1, 1], 1
    )
    return packed

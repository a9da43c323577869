"""How near the trunk and the passes are to what the machine can do, each against a baseline.

Medians of warm repetitions; what a ratio compares takes turns in the same process.
"""

import io
import itertools
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchcam.methods import GradCAM
from torchvision.models import vgg16
from torchvision.models.vgg import cfgs, make_layers

from backend.compact_maps import CompactMaps
from backend.feature_cache import FeatureCache, content_key
from backend.features import BATCH, Trunk
from backend.gradcam import TypicalCrop, gradcam, typical_crops
from backend.head import Head, fresh_head, mc_probabilities
from backend.networks import DEFAULT_NETWORK, INPUT_PX, build_network
from backend.prediction import predict
from backend.winograd import quicken
from benchmarks.independent_masks import independent_mc_probabilities
from benchmarks.timing import seconds_in_turn

FloatArray = NDArray[np.float32]
UInt8Array = NDArray[np.uint8]

GEMM_SIDE = 4096
PASSES = 50
N_CLASSES = 5
MASK_CROPS = 256  # 50 independent passes of VGG16's tail over them take seconds
ORIGINAL_PASSES = 5  # of the project this one succeeds
REPETITIONS = 3


@dataclass(frozen=True, slots=True)
class Workload:
    """The trunk and pictures that all measurements share.

    Attributes:
        trunk: as the product loads it.
        pixels: decoded crops, uint8 (32, 96, 96, 3).
    """

    trunk: Trunk
    pixels: UInt8Array


def measure_compute(work: Workload) -> Iterator[tuple[str, float]]:
    """All numbers by name, one after the other as they are measured."""
    yield from trunk_numbers(work)
    yield from prediction_numbers(work)
    yield from original_numbers(work)
    yield from shared_mask_numbers()


def trunk_numbers(work: Workload) -> Iterator[tuple[str, float]]:
    """Time per crop at native size and at 224 px, and its share of a large matrix product's speed.

    The product is of two 4096 x 4096 matrices in the trunk's precision. Multiplications are counted
    as the library's convolutions make them, whose time is compared, too.
    """
    matrix = torch.randn(GEMM_SIDE, GEMM_SIDE).to(work.trunk.device, work.trunk.precision)
    pixels = np.concatenate([work.pixels, work.pixels])  # as many as the product reads at once
    maps = _random_maps(work.trunk, BATCH // 2, 224)

    def product() -> None:
        _ = matrix @ matrix
        _wait(work.trunk)

    native_maps = _random_maps(work.trunk, BATCH, INPUT_PX)
    library = _library_layers(work.trunk)

    def library_forward() -> None:
        with torch.inference_mode():
            library(native_maps)
        _wait(work.trunk)

    product_s, native_s, large_s, library_s, ours_s = seconds_in_turn(
        product,
        lambda: work.trunk.extract(pixels, mode="rgb"),
        lambda: _run_layers(work.trunk, maps),
        library_forward,
        lambda: _run_layers(work.trunk, native_maps),
        repetitions=REPETITIONS,
    )
    peak = 2 * GEMM_SIDE**3 / product_s
    yield "gemm_peak_gflop_s", peak / 1e9
    yield "trunk_ms_96", 1e3 * native_s / len(pixels)
    yield "trunk_fraction_of_peak_96", len(pixels) * trunk_flops(INPUT_PX) / native_s / peak
    yield "library_convolutions_over_ours_96", library_s / ours_s
    yield "trunk_ms_224", 1e3 * large_s / len(maps)
    yield "trunk_fraction_of_peak_224", len(maps) * trunk_flops(224) / large_s / peak


def _library_layers(trunk: Trunk) -> nn.Module:
    """The trunk's network with all convolutions as torch has them, and random weights."""
    layers = build_network(DEFAULT_NETWORK).layers.to_empty(device=trunk.device)
    layers.requires_grad_(requires_grad=False)
    for tensor in layers.parameters():
        tensor.normal_(std=0.01)
    return layers.to(trunk.precision).to(memory_format=torch.channels_last)


def trunk_flops(size_px: int) -> float:
    """Floating-point operations of the layers that the trunk runs, for one crop."""
    network = build_network(DEFAULT_NETWORK)
    with FlopCounterMode(display=False) as counter:
        network.layers(torch.empty(1, 3, size_px, size_px, device="meta"))
    return float(counter.get_total_flops())


def prediction_numbers(work: Workload) -> Iterator[tuple[str, float]]:
    """Class, Monte-Carlo passes and Grad-CAM of 32 crops over the plain forward of VGG16.

    The forward is of the library's convolutions and, at native size, also of those that the trunk
    runs. The typical crop that Grad-CAM compares with is made once for all cards of a version.
    """
    plain, quickened = _full_convolutions(work.trunk), _full_convolutions(work.trunk)
    if work.trunk.is_quickened:
        quicken(quickened)
    head = _random_head(work.trunk.feature_dim)
    typical = _typical(work)
    maps = _random_maps(work.trunk, len(work.pixels), INPUT_PX)
    with tempfile.TemporaryDirectory() as folder:
        cache = FeatureCache(Path(folder), work.trunk, max_bytes=10**9)
        unseen = _unseen_pixels(work.pixels)
        native_s, forward_s, quickened_s = seconds_in_turn(
            lambda: _predict_unseen(work.trunk, head, cache, next(unseen), typical),
            lambda: _plain_forward(work.trunk, plain, maps),
            lambda: _plain_forward(work.trunk, quickened, maps),
            repetitions=REPETITIONS,
        )
    yield "predict_ms_96", 1e3 * native_s / len(work.pixels)
    yield "predict_over_forward_96", native_s / forward_s
    yield "predict_over_quickened_forward_96", native_s / quickened_s
    maps = _random_maps(work.trunk, len(work.pixels), 224)
    _, kept = _run_layers(work.trunk, maps)
    large_typical = typical_crops(kept, np.zeros(len(maps), np.bool_))
    large_s, forward_s = seconds_in_turn(
        lambda: _predict_maps(work.trunk, head, maps, large_typical),
        lambda: _plain_forward(work.trunk, plain, maps),
        repetitions=REPETITIONS,
    )
    yield "predict_over_forward_224", large_s / forward_s


def original_numbers(work: Workload) -> Iterator[tuple[str, float]]:
    """The recipe this product replaces, image by image, over ours from the PNG on disk."""
    network = vgg16(weights=None, num_classes=N_CLASSES, init_weights=False).eval()
    network = network.to(work.trunk.device)
    maps = _random_maps(work.trunk, 1, 224).float().contiguous()
    head = _random_head(work.trunk.feature_dim)
    typical = _typical(work)
    with tempfile.TemporaryDirectory() as folder:
        cache = FeatureCache(Path(folder), work.trunk, max_bytes=10**9)
        unseen = _unseen_pixels(work.pixels)
        turns = range(REPETITIONS + 1)
        files = iter([_write_pngs(Path(folder), turn, next(unseen)) for turn in turns])
        original_s, ours_s = seconds_in_turn(
            lambda: _original_prediction(network, maps),
            lambda: _predict_unseen(work.trunk, head, cache, _read_pngs(next(files)), typical),
            repetitions=REPETITIONS,
        )
    yield "original_ms", 1e3 * original_s
    yield "original_over_ours", original_s / (ours_s / len(work.pixels))


def shared_mask_numbers() -> Iterator[tuple[str, float]]:
    """Independent dense masks over masks that crops share, of 50 passes."""
    yield "shared_mask_speedup_head", _shared_mask_speedup(2560, 128)
    yield "shared_mask_speedup", _shared_mask_speedup(4096, 4096)


def _unseen_pixels(pixels: UInt8Array) -> Iterator[UInt8Array]:
    """The same crops again and again, each time a little different, so that no cache has them."""
    for number in itertools.count():
        changed = pixels.copy()
        changed[:, 0, 0, 0] = number % 256
        yield changed


def _typical(work: Workload) -> dict[bool, TypicalCrop]:
    maps = work.trunk.extract(work.pixels, mode="rgb").maps
    return typical_crops(maps, np.zeros(len(work.pixels), np.bool_))


def _predict_unseen(
    trunk: Trunk,
    head: Head,
    cache: FeatureCache,
    pixels: UInt8Array,
    typical: Mapping[bool, TypicalCrop],
) -> FloatArray:
    """As the product does it for crops that it has not seen: looked up in vain, and stored."""
    keys = [content_key(crop, mode="rgb") for crop in pixels]
    _, found = cache.get_features(keys)
    assert not found.any()
    extracted = trunk.extract(pixels, mode="rgb")
    cache.put_many(keys, extracted)
    return _predict_extracted(head, extracted.features, extracted.maps, typical)


def _predict_maps(
    trunk: Trunk, head: Head, maps: Tensor, typical: Mapping[bool, TypicalCrop]
) -> FloatArray:
    features, kept = _run_layers(trunk, maps)
    return _predict_extracted(head, features.cpu().numpy(), kept, typical)


def _predict_extracted(
    head: Head, features: FloatArray, maps: CompactMaps, typical: Mapping[bool, TypicalCrop]
) -> FloatArray:
    predicted = predict(head, features, passes=PASSES, seed=0)
    return gradcam(
        head,
        features=features,
        maps=maps,
        class_idx=predicted.probabilities.argmax(axis=1),
        has_mask=np.zeros(len(features), np.bool_),
        typical=typical,
    )


def _run_layers(trunk: Trunk, maps: Tensor) -> tuple[Tensor, CompactMaps]:
    """The trunk as it runs, on maps of one batch and any size."""
    pooled, taps = trunk.pool_maps(maps, "rgb")
    kept = CompactMaps.of(taps)
    _wait(trunk)
    return pooled, kept


@torch.inference_mode()
def _plain_forward(trunk: Trunk, convolutions: nn.Module, maps: Tensor) -> None:
    convolutions(maps)
    _wait(trunk)


def _full_convolutions(trunk: Trunk) -> nn.Module:
    """All 13 of VGG16 and nothing else, in the trunk's precision and layout."""
    layers: nn.Module = make_layers(cfgs["D"], batch_norm=False)
    layers.requires_grad_(requires_grad=False).to(trunk.device, trunk.precision)
    return layers.to(memory_format=torch.channels_last)


def _original_prediction(network: nn.Module, maps: Tensor) -> None:
    """Five stochastic passes of the whole network in float32, then Grad-CAM with the library.

    The library differentiates down to the layer that it shows only, where the project went back to
    the picture: the ratio is rather too low.
    """
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.train()
    with torch.no_grad():
        for _ in range(ORIGINAL_PASSES):
            network(maps)
    network.eval()
    with GradCAM(network, target_layer="features.29") as library:
        scores = network(maps.clone().requires_grad_())
        for heat in library(int(scores.argmax()), scores):
            heat.cpu()


def _shared_mask_speedup(n_inputs: int, n_hidden: int) -> float:
    rng = np.random.default_rng(0)
    hidden = torch.from_numpy(rng.standard_normal((n_inputs, n_hidden), np.float32))
    classes = torch.from_numpy(rng.standard_normal((n_hidden, N_CLASSES), np.float32))
    head = Head(
        mean=torch.zeros(n_inputs),
        scale=torch.ones(n_inputs),
        hidden_weight=hidden / n_inputs**0.5,
        hidden_bias=torch.zeros(n_hidden),
        class_weight=classes / n_hidden**0.5,
        class_bias=torch.zeros(N_CLASSES),
        temperature=torch.tensor(1.0),
    )
    features = rng.standard_normal((MASK_CROPS, n_inputs), np.float32)
    shared_s, independent_s = seconds_in_turn(
        lambda: mc_probabilities(head, features, passes=PASSES, seed=0),
        lambda: independent_mc_probabilities(head, features, passes=PASSES, seed=0),
        repetitions=REPETITIONS,
    )
    return independent_s / shared_s


def _random_head(n_inputs: int) -> Head:
    rng = np.random.default_rng(0)
    return fresh_head(torch.zeros(n_inputs), torch.ones(n_inputs), n_classes=N_CLASSES, rng=rng)


def _random_maps(trunk: Trunk, count: int, size_px: int) -> Tensor:
    maps = torch.randn(count, 3, size_px, size_px, generator=torch.Generator().manual_seed(0))
    maps = maps.to(trunk.device, trunk.precision)
    return maps.contiguous(memory_format=torch.channels_last)


def _write_pngs(folder: Path, turn: int, pixels: UInt8Array) -> list[Path]:
    paths = [folder / f"{turn}-{row}.png" for row in range(len(pixels))]
    for path, crop in zip(paths, pixels, strict=True):
        Image.fromarray(crop).save(path)
    return paths


def _read_pngs(paths: list[Path]) -> UInt8Array:
    return np.stack([np.asarray(Image.open(io.BytesIO(path.read_bytes()))) for path in paths])


def _wait(trunk: Trunk) -> None:
    if trunk.device.type == "cuda":
        torch.cuda.synchronize()

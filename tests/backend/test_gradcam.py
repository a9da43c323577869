"""Grad-CAM from cached maps equals a public library's on the same model."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from seeded_networks import NETWORKS, seeded_trunk
from torch import Tensor, nn
from torch.nn import functional
from torchcam.methods import GradCAM

from backend.compact_maps import CompactMaps
from backend.features import Trunk
from backend.gradcam import TypicalCrop, gradcam, typical_crops
from backend.head import Head, fresh_head
from backend.pooling import centre_weights, pooled

N_CLASSES = 3


def maps_of(maps: CompactMaps) -> list[Tensor]:
    """Each tap's as a network has them, (n, C, h, w)."""
    return [
        tap.transpose(1, 2).reshape(-1, *shape)
        for shape, tap in zip(maps.shapes, maps.restored(), strict=True)
    ]


def summands(maps: Tensor, *, has_mask: bool) -> tuple[Tensor, Tensor]:
    """What each place adds to the two numbers of a map, or to the square of the second."""
    size_px = maps.shape[-1]

    def zone(sigma: float) -> Tensor:
        return centre_weights(size_px, sigma)

    if has_mask:
        weights = zone(0.20) / zone(0.20).sum()
        mean = (maps * weights).sum(dim=(2, 3), keepdim=True)
        return maps * weights, (maps - mean) ** 2 * weights
    ring = zone(0.30) - zone(0.16)
    surroundings, centre = ring / ring.sum(), zone(0.08) / zone(0.08).sum()
    return maps * surroundings, maps * (centre - surroundings)


class Assembled(nn.Module):
    """Pooling and head as one ordinary network, which the library can hook.

    The layer that it hooks is what the pooling sums over all places, of all taps at one size, less
    what it sums of a typical crop. The numbers that the head reads are those of the typical crop
    and these sums, the second one divided where it is a difference of squares.
    """

    def __init__(self, head: Head, typical: list[Tensor], *, has_mask: bool) -> None:
        super().__init__()
        self.has_mask = has_mask
        self.typical = typical
        self.weighted = nn.Identity()
        self.head = head

    def forward(self, *taps: Tensor) -> Tensor:
        size = taps[0].shape[-2:]
        parts, typical_numbers = [], []
        for tap, crops in zip(taps, self.typical, strict=True):
            first, second = summands(tap, has_mask=self.has_mask)
            of_first, of_second = (
                part.mean(dim=0, keepdim=True) for part in summands(crops, has_mask=self.has_mask)
            )
            numbers = [part.sum(dim=(2, 3), keepdim=True) for part in (of_first, of_second)]
            second = second - of_second
            if self.has_mask:
                spread = (second + of_second).sum(dim=(2, 3), keepdim=True).add(1e-6).sqrt()
                numbers[1] = (numbers[1] + 1e-6).sqrt()
                second = second / (spread + numbers[1])
            typical_numbers += numbers
            parts += [
                functional.interpolate(part, size, mode="bilinear") * (tap.shape[-1] / size[0]) ** 2
                for part in (first - of_first, second)
            ]
        sums = self.weighted(torch.cat(parts, dim=1)).sum(dim=(2, 3))
        return self.head.logits(torch.cat(typical_numbers, dim=1).flatten(1) + sums)


def seeded_head(trunk: Trunk) -> Head:
    return fresh_head(
        torch.zeros(trunk.feature_dim),
        torch.ones(trunk.feature_dim),
        n_classes=N_CLASSES,
        rng=np.random.default_rng(0),
    )


def nothing_typical(trunk: Trunk) -> dict[bool, TypicalCrop]:
    """Crops are compared with zeros."""
    return typical_crops(CompactMaps.empty(0, trunk.kept_shapes), np.empty(0, np.bool_))


def numbers_of(taps: list[Tensor], *, has_mask: bool) -> NDArray[np.float32]:
    """The features that the head reads."""
    parts = [part for tap in taps for part in pooled(tap, has_mask=has_mask)]
    return torch.cat(parts, dim=1).numpy()


def normalised(heat: NDArray[np.float32]) -> NDArray[np.float32]:
    """Half of the places cold, the hottest at one."""
    above = np.maximum(heat - np.quantile(heat, 0.5, method="lower"), 0)
    return np.asarray(above / above.max(), np.float32)


@pytest.mark.parametrize("mode", ["phase", "rgb"])
@pytest.mark.parametrize("network", NETWORKS)
def test_equals_the_library(network: str, mode: str) -> None:
    trunk = seeded_trunk(network)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 96, 96, 3), np.uint8)
    maps = trunk.extract(pixels, mode=mode).maps
    has_mask = mode != "rgb"
    taps = maps_of(maps)
    features = numbers_of(taps, has_mask=has_mask)
    head = seeded_head(trunk)
    class_idx = np.array([0, 2])
    masked = np.full(6, has_mask)
    ours = gradcam(
        head,
        features=features[:2],
        maps=maps.rows(slice(2)),
        class_idx=class_idx,
        has_mask=masked[:2],
        typical=typical_crops(maps.rows(slice(2, 6)), masked[2:]),
    )

    assert ours.max() == pytest.approx(1, abs=1e-3)
    model = Assembled(head, [tap[2:] for tap in taps], has_mask=has_mask)
    for row, chosen in enumerate(class_idx):
        with GradCAM(model, target_layer="weighted") as library:
            scores = model(*(tap[row : row + 1].clone().requires_grad_() for tap in taps))
            # The same model: what it sums is what the product pools.
            expected = head.logits(torch.from_numpy(features[row : row + 1]))
            torch.testing.assert_close(scores, expected, atol=1e-3, rtol=1e-3)
            (theirs,) = library(int(chosen), scores)
        expected_heat = normalised(theirs[0].detach().numpy())
        np.testing.assert_allclose(ours[row], expected_heat, atol=1e-4)


def test_crops_with_and_without_a_mask_are_compared_with_their_own_kind() -> None:
    trunk = seeded_trunk("vgg16")
    pixels = np.random.default_rng(0).integers(0, 256, (6, 96, 96, 3), np.uint8)
    extracted = trunk.extract(pixels, mode="phase")
    has_mask = np.array([True, False, True, False, True, False])

    def heat_of(rows: list[int]) -> NDArray[np.float32]:
        chosen = np.array(rows)
        features, maps = extracted.features[chosen], extracted.maps.rows(chosen)
        return gradcam(
            seeded_head(trunk),
            features=features,
            maps=maps,
            class_idx=np.zeros(len(rows), np.int64),
            has_mask=has_mask[chosen],
            typical=typical_crops(maps, has_mask[chosen]),
        )

    together = heat_of([0, 1, 2, 3, 4, 5])
    np.testing.assert_allclose(together[::2], heat_of([0, 2, 4]), atol=1e-4)
    np.testing.assert_allclose(together[1::2], heat_of([1, 3, 5]), atol=1e-4)


@pytest.mark.parametrize("mode", ["phase", "rgb"])
def test_kept_maps_have_the_features_of_whole_ones(mode: str) -> None:
    """They are smaller and coarser than what the features were pooled from."""
    trunk = seeded_trunk("vgg16")
    small = np.random.default_rng(0).integers(0, 256, (8, 12, 12, 3), np.uint8)
    extracted = trunk.extract(np.kron(small, np.ones((1, 8, 8, 1), np.uint8)), mode=mode)
    again = numbers_of(maps_of(extracted.maps), has_mask=mode != "rgb")
    for ours, whole in zip(again, extracted.features, strict=True):
        assert np.corrcoef(ours, whole)[0, 1] > 0.97


def test_maps_whose_sizes_do_not_divide_each_other() -> None:
    """Of a network without padding: 11, 11 and 5 px."""
    trunk = seeded_trunk("squeezenet1_1")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), np.uint8)
    extracted = trunk.extract(pixels, mode="rgb")
    assert [shape[1:] for shape in extracted.maps.shapes] == [(11, 11), (11, 11), (5, 5)]
    heat = gradcam(
        seeded_head(trunk),
        features=extracted.features,
        maps=extracted.maps,
        class_idx=np.array([0, 1]),
        has_mask=np.array([False, False]),
        typical=nothing_typical(trunk),
    )
    assert heat.shape == (2, 11, 11)
    assert heat.max(axis=(1, 2)) == pytest.approx(1, abs=1e-3)


def test_shows_what_each_place_adds_to_the_score() -> None:
    """The score falls most where the hottest place fades, and as the map says elsewhere."""
    trunk = seeded_trunk("vgg16")
    generator = torch.Generator().manual_seed(0)
    taps = [torch.rand(1, *shape, generator=generator) for shape in trunk.kept_shapes]
    head = seeded_head(trunk)
    (heat,) = gradcam(
        head,
        features=numbers_of(taps, has_mask=False),
        maps=CompactMaps.of(taps),
        class_idx=np.array([1]),
        has_mask=np.array([False]),
        typical=nothing_typical(trunk),
    )

    def score(maps: list[Tensor]) -> float:
        features = numbers_of(maps, has_mask=False)
        return float(head.logits(torch.from_numpy(features))[0, 1])

    fall = np.zeros(heat.shape)
    for row, column in np.ndindex(heat.shape):
        there = torch.zeros(1, 1, *heat.shape)
        there[..., row, column] = 0.1
        fading = (there, there, functional.avg_pool2d(there, 2))
        faded = [tap * (1 - part) for tap, part in zip(taps, fading, strict=True)]
        fall[row, column] = score(taps) - score(faded)
    above = np.maximum(fall, 0)
    above = np.maximum(above - np.median(above), 0)
    assert np.corrcoef(heat.ravel(), above.ravel())[0, 1] > 0.9

"""Two numbers of each map: what they are, and what they do not depend on."""

import pytest
import torch
from torch import Tensor

from backend.pooling import (
    CENTRE_SIGMA,
    MIDDLE_SIGMA,
    SURROUNDINGS_SIGMAS,
    added_by_place,
    pooled,
    typical_places,
)

SIZE = 24


def _maps(*, seed: int = 0) -> Tensor:
    return torch.rand(3, 5, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def _gaussian(sigma: float) -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    middle = (SIZE - 1) / 2
    squared = ((rows - middle) ** 2 + (columns - middle) ** 2) / SIZE**2
    return torch.exp(-squared / (2 * sigma**2))


def _mean(maps: Tensor, weights: Tensor) -> Tensor:
    return (maps * weights).sum(dim=(2, 3)) / weights.sum()


def test_with_a_mask_they_are_mean_and_spread_around_the_middle() -> None:
    maps = _maps()
    mean, spread = pooled(maps, has_mask=True)
    expected = _mean(maps, _gaussian(MIDDLE_SIGMA))
    torch.testing.assert_close(mean, expected)
    deviations = (maps - expected[:, :, None, None]) ** 2
    torch.testing.assert_close(
        spread, _mean(deviations, _gaussian(MIDDLE_SIGMA)).sqrt(), rtol=1e-3, atol=1e-4
    )


def test_without_one_they_are_the_surroundings_and_what_the_centre_is_above_them() -> None:
    maps = _maps()
    surroundings, contrast = pooled(maps, has_mask=False)
    inner, outer = (_gaussian(sigma) for sigma in SURROUNDINGS_SIGMAS)
    expected = _mean(maps, outer - inner)
    torch.testing.assert_close(surroundings, expected)
    torch.testing.assert_close(contrast, _mean(maps, _gaussian(CENTRE_SIGMA)) - expected)


@pytest.mark.parametrize("has_mask", [True, False])
def test_what_is_added_to_a_whole_map_shows_in_the_first_number_only(has_mask: bool) -> None:
    maps = _maps()
    first, second = pooled(maps, has_mask=has_mask)
    raised_first, raised_second = pooled(maps + 2, has_mask=has_mask)
    torch.testing.assert_close(raised_first, first + 2)
    torch.testing.assert_close(raised_second, second, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("has_mask", [True, False])
def test_a_turned_map_has_the_same_numbers(has_mask: bool) -> None:
    maps = _maps()
    for found, expected in zip(
        pooled(maps.rot90(2, dims=(2, 3)), has_mask=has_mask),
        pooled(maps, has_mask=has_mask),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("has_mask", [True, False])
def test_the_maps_stay_as_they_are(has_mask: bool) -> None:
    maps = _maps()
    before = maps.clone()
    pooled(maps, has_mask=has_mask)
    assert torch.equal(maps, before)


@pytest.mark.parametrize("has_mask", [True, False])
def test_places_add_up_to_what_sets_the_numbers_apart_from_a_typical_crop(has_mask: bool) -> None:
    maps, (typical, *_) = _maps(), _maps(seed=1)
    weights = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(2))
    by_place, typical_by_place = (
        values.permute(0, 2, 3, 1).flatten(1, 2) for values in (maps, typical[None])
    )
    added = added_by_place(
        by_place,
        weights,
        typical=typical_places(typical_by_place, has_mask=has_mask),
        has_mask=has_mask,
    )
    assert added.shape == (3, SIZE, SIZE)
    numbers = torch.stack(pooled(maps, has_mask=has_mask), dim=1)
    expected = numbers - torch.stack(pooled(typical[None], has_mask=has_mask), dim=1)
    torch.testing.assert_close(added.sum(dim=(1, 2)), (weights * expected).sum(dim=(1, 2)))

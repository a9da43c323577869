from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from converters.images import SourceImage
from converters.segmentation import Segmented, Sensitivity, segment

SIZE = (160, 200)


def disc(centre: tuple[float, float], radius: float) -> NDArray[np.bool_]:
    rows, columns = np.ogrid[: SIZE[0], : SIZE[1]]
    inside: NDArray[np.bool_] = np.hypot(rows - centre[0], columns - centre[1]) <= radius
    return inside


def field(*cells: tuple[float, float, float], rad: float = 2.0) -> NDArray[np.float32]:
    """A noisy background with discs (y, x, radius) of equal phase."""
    phase = np.random.default_rng(0).normal(0, 0.08, SIZE)
    for y, x, radius in cells:
        phase[disc((y, x), radius)] = rad
    return phase.astype(np.float32)


def find(
    sensitivity: Sensitivity = "medium", min_area_px: int = 20, **channels: NDArray[Any]
) -> Segmented:
    image = SourceImage("s", "d", 0, **channels)  # type: ignore[arg-type]
    return segment(image, sensitivity=sensitivity, min_area_px=min_area_px)


def centres(found: Segmented) -> list[tuple[int, int]]:
    return sorted((round(cell.centroid[0]), round(cell.centroid[1])) for cell in found.cells)


def test_separate_cells_are_found_where_they_are() -> None:
    found = find(phase=field((40, 50, 11), (100, 150, 12)))
    assert centres(found) == [(40, 50), (100, 150)]
    first = found.cells[0]
    assert first.flags == ()
    assert first.area_px == pytest.approx(np.pi * 11**2, rel=0.15)
    x, y, width, height = first.bbox
    assert [x, y] == pytest.approx([39, 29], abs=1)
    assert [width, height] == pytest.approx([23, 23], abs=2)
    assert (found.labels == first.number).sum() == first.area_px


@pytest.mark.parametrize("gap", [24, 21, 18])
def test_touching_cells_are_separated(gap: int) -> None:
    found = find(phase=field((80, 60, 12), (80, 60 + gap, 12)))
    assert len(found.cells) == 2
    assert all("touching" in cell.flags for cell in found.cells)
    for (y, x), expected in zip(centres(found), (60, 60 + gap), strict=True):
        assert y == pytest.approx(80, abs=1)
        assert x == pytest.approx(expected, abs=2)


def test_touching_cells_in_a_binary_mask_are_separated() -> None:
    mask = disc((80, 60), 12) | disc((80, 83), 12)
    assert len(find(phase=field(), mask=mask.astype(np.uint8)).cells) == 2
    assert len(find(phase=field(), mask=mask).cells) == 2


def test_a_mask_that_numbers_its_cells_is_taken_as_it_is() -> None:
    aggregate = disc((80, 60), 12) | disc((80, 83), 12)
    other = disc((30, 150), 10)
    mask = aggregate.astype(np.uint16)
    assert len(find(phase=field(), mask=mask).cells) == 1
    two = (aggregate + 2 * other).astype(np.uint8)
    assert len(find(phase=field(), mask=two).cells) == 2


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64])
@pytest.mark.parametrize("value", [1, 255])
def test_a_wide_mask_of_one_value_is_no_single_cell(dtype: type, value: int) -> None:
    apart = disc((40, 50), 11) | disc((100, 150), 12)
    mask: NDArray[Any] = value * apart.astype(dtype)
    assert centres(find(phase=field(), mask=mask)) == [(40, 50), (100, 150)]


@pytest.mark.parametrize(("width", "height"), [(8, 16), (16, 9)])
def test_an_oval_cell_stays_whole(width: int, height: int) -> None:
    rows, columns = np.ogrid[: SIZE[0], : SIZE[1]]
    oval = ((rows - 80) / height) ** 2 + ((columns - 90) / width) ** 2 <= 1
    found = find(phase=np.where(oval, 2, 0).astype(np.float32))
    assert len(found.cells) == 1
    assert found.cells[0].flags == ()


def test_a_biconcave_cell_has_no_hole() -> None:
    phase = field((80, 90, 12))
    phase[disc((80, 90), 5)] = 0.1
    [cell] = find(phase=phase).cells
    assert cell.area_px == pytest.approx(np.pi * 12**2, rel=0.15)


def test_the_ring_formed_by_neighbours_is_no_cell() -> None:
    angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    ring = [(80 + 40 * np.sin(a), 100 + 40 * np.cos(a), 11.5) for a in angles]
    found = find(phase=field(*ring))
    assert found.labels[80, 100] == 0


@pytest.mark.parametrize("centre", [(0, 100), (159, 100), (80, 0), (80, 199)])
def test_cells_at_the_border_are_flagged(centre: tuple[int, int]) -> None:
    [cell] = find(phase=field((*centre, 11))).cells
    assert cell.flags == ("border",)


def test_small_objects_are_counted() -> None:
    found = find(phase=field((40, 50, 11), (100, 150, 3)), min_area_px=60)
    assert len(found.cells) == 1
    assert found.n_too_small == 1


@pytest.mark.parametrize(
    ("rad", "found_by"),
    [(0.4, ("high",)), (0.65, ("medium", "high")), (1.5, ("low", "medium", "high"))],
)
def test_sensitivity_decides_how_faint_a_cell_may_be(
    rad: float, found_by: tuple[Sensitivity, ...]
) -> None:
    phase = field((80, 90, 12), rad=rad)
    levels: tuple[Sensitivity, ...] = ("low", "medium", "high")
    assert tuple(level for level in levels if find(level, phase=phase).cells) == found_by


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_missing_values_are_background(dtype: type[np.floating[Any]]) -> None:
    phase = field((80, 90, 12), (40, 40, 10)).astype(dtype)
    phase[:60, :70] = np.nan
    assert centres(find(phase=phase)) == [(80, 90)]
    assert not find(phase=np.full(SIZE, np.nan, dtype)).cells


def test_an_offset_of_the_background_does_not_matter() -> None:
    assert centres(find(phase=field((80, 90, 12)) + np.float32(3))) == [(80, 90)]


def test_dense_field_is_still_thresholded() -> None:
    grid = [(y, x, 12) for y in range(14, 150, 27) for x in range(14, 190, 27)]
    assert len(find(phase=field(*grid)).cells) == len(grid)


@pytest.mark.parametrize("background", [None, 200])
@pytest.mark.parametrize("grey", [90, 250])
def test_camera_pictures(background: int | None, grey: int) -> None:
    image = np.random.default_rng(0).normal(200, 2, (*SIZE, 3))
    image[disc((80, 90), 12)] = grey
    pixels = image.astype(np.uint8)
    if background is None:
        assert centres(find(image=pixels)) == [(80, 90)]
    else:
        empty = np.full((*SIZE, 3), background, np.uint8)
        assert centres(find(image=pixels, background=empty)) == [(80, 90)]


def test_an_even_camera_picture_holds_no_cell() -> None:
    image = np.random.default_rng(0).normal(200, 1, (*SIZE, 3)).astype(np.uint8)
    assert not find(image=image).cells


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 159), st.integers(0, 199), st.integers(2, 25)), max_size=12),
    st.integers(1, 200),
)
def test_cells_are_disjoint_and_complete(
    cells: list[tuple[int, int, int]], min_area_px: int
) -> None:
    mask = np.zeros(SIZE, np.uint8)
    for y, x, radius in cells:
        mask |= disc((y, x), radius)
    found = find(phase=field(), mask=mask, min_area_px=min_area_px)
    areas = np.bincount(found.labels.ravel())
    assert ((found.labels > 0) >= (mask > 0)).all()
    assert len(found.cells) + found.n_too_small == np.count_nonzero(areas[1:])
    for cell in found.cells:
        assert areas[cell.number] == cell.area_px >= min_area_px
        x, y, width, height = cell.bbox
        inside = found.labels[y : y + height, x : x + width] == cell.number
        assert inside.sum() == cell.area_px

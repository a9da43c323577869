import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from converters.crops import Crop, ReadOptions
from converters.errors import SourceError, UnreadableSourceError
from converters.problems import Problems
from converters.reading import count_labels, iter_crops, name_sources, plan_crops

WriteHdf5 = Callable[..., Path]


def read(*sources: Path, **options: Any) -> list[Crop]:
    return list(iter_crops(sources, options=ReadOptions(**options)))


def reasons(*sources: Path, **options: Any) -> dict[str, int]:
    problems = Problems()
    list(iter_crops(sources, options=ReadOptions(**options), problems=problems))
    return {problem.reason: problem.count for problem in problems}


def frame(*cells: tuple[int, int], size: tuple[int, int] = (200, 300)) -> NDArray[np.float16]:
    phase = np.random.default_rng(0).normal(0, 0.05, size)
    rows, columns = np.ogrid[: size[0], : size[1]]
    for y, x in cells:
        phase[np.hypot(rows - y, columns - x) <= 11] = 2.5
    return phase.astype(np.float16)


CELLS = ((60, 60), (60, 200), (150, 100))


def test_a_crop_file_gives_one_crop_per_image(
    write_hdf5: WriteHdf5, crop_stack: dict[str, Any]
) -> None:
    crops = read(write_hdf5("x.seg", crop_stack))
    assert [crop.index for crop in crops] == [0, 1, 2, 3, 4]
    assert [crop.label for crop in crops] == ["rbc", "wbc", None, "rbc", None]
    crop = crops[0]
    assert (crop.source, crop.dataset, crop.flags) == ("x.seg", "phase/images", ())
    assert crop.group == crop.crop_id
    assert crop.bbox == (14, 14, 21, 21)
    assert crop.area_px == crop_stack["mask/images"][0].sum()
    for channel in (crop.phase, crop.amplitude):
        assert channel is not None
        assert channel.shape == (96, 96)
        assert channel.dtype == np.float32
    assert crop.phase is not None
    np.testing.assert_array_equal(crop.phase[24:72, 24:72], crop_stack["phase/images"][0])
    assert abs(crop.phase[0, 0]) < 0.1
    assert crop.mask is not None
    np.testing.assert_array_equal(crop.mask[24:72, 24:72], crop_stack["mask/images"][0] > 0)
    assert crop.mask.sum() == crop.area_px


def test_an_image_between_crop_and_frame_is_cut_around_its_cell(write_hdf5: WriteHdf5) -> None:
    [crop] = read(write_hdf5("x.seg", {"phase/images": frame((100, 60), size=(130, 130))[None]}))
    assert crop.phase is not None
    assert crop.phase.shape == (96, 96)
    assert list(crop.bbox) == pytest.approx([49, 89, 23, 23], abs=1)
    assert crop.mask is not None
    assert crop.mask.sum() == crop.area_px > 350


def test_ids_are_stable_and_differ_by_pixels_and_place(
    write_hdf5: WriteHdf5, crop_stack: dict[str, Any]
) -> None:
    crop_stack["phase/images"][1] = crop_stack["phase/images"][0]
    crop_stack["amplitude/images"][1] = crop_stack["amplitude/images"][0]
    path = write_hdf5("x.seg", crop_stack)
    ids = [crop.crop_id for crop in read(path)]
    assert len(set(ids)) == 5
    assert all(len(crop_id) == 20 and int(crop_id, 16) >= 0 for crop_id in ids)
    assert ids == [crop.crop_id for crop in read(path.rename(path.with_name("y.seg")))]
    crop_stack["phase/images"][2, 0, 0] += 1
    changed = [crop.crop_id for crop in read(write_hdf5("z.seg", crop_stack))]
    assert [a == b for a, b in zip(ids, changed, strict=True)] == [True, True, False, True, True]


def test_a_frame_gives_a_crop_around_each_cell(write_hdf5: WriteHdf5) -> None:
    crops = read(write_hdf5("x.pre", {"phase/images": np.stack([frame(*CELLS), frame((90, 5))])}))
    assert [crop.index for crop in crops] == [0, 0, 0, 1]
    for crop, (y, x) in zip(crops, CELLS, strict=False):
        left, top, width, height = crop.bbox
        assert [left + width / 2, top + height / 2] == pytest.approx([x + 0.5, y + 0.5], abs=1)
        assert crop.phase is not None
        assert crop.phase[48, 48] == 2.5
        assert crop.mask is not None
        assert crop.mask[48, 48]
        assert crop.mask.sum() == crop.area_px
    assert len({crop.group for crop in crops}) == 2
    assert crops[-1].flags == ("border",)


def test_neighbours_stay_visible_but_outside_the_mask(write_hdf5: WriteHdf5) -> None:
    first, second = read(write_hdf5("x.pre", {"phase/images": frame((90, 100), (90, 130))[None]}))
    assert first.phase is not None
    assert first.mask is not None
    assert first.phase[48, 78] == 2.5
    assert not first.mask[48, 78]
    assert second.mask is not None


def test_beyond_the_frame_there_is_background(write_hdf5: WriteHdf5) -> None:
    phase = frame((90, 5)) + np.float16(1)
    amplitude = np.full((1, 200, 300), -7, np.float16)
    path = write_hdf5("x.pre", {"phase/images": phase[None], "amplitude/images": amplitude})
    [crop] = read(path)
    assert crop.phase is not None
    assert crop.amplitude is not None
    assert crop.mask is not None
    assert crop.phase[:, 0] == pytest.approx(1, abs=0.05)
    assert (crop.amplitude[:, 0] == -7).all()
    assert not crop.mask[:, 0].any()


def test_the_label_of_a_frame_with_several_cells_is_given_to_none(write_hdf5: WriteHdf5) -> None:
    path = write_hdf5(
        "x.pre",
        {
            "phase/images": np.stack([frame(*CELLS), frame((90, 100)), frame()]),
            "label/ground_truth": np.array([b"rbc", b"wbc", b"plt"]),
        },
    )
    crops = read(path)
    assert [(crop.index, crop.label) for crop in crops] == [
        (0, None),
        (0, None),
        (0, None),
        (1, "wbc"),
    ]
    assert ["multiple" in crop.flags for crop in crops] == [True, True, True, False]
    assert reasons(path) == {
        "labels of frames that do not hold exactly one cell: dropped": 2,
        "frames in which no cell was found": 1,
    }


def test_small_objects_are_reported(write_hdf5: WriteHdf5) -> None:
    path = write_hdf5("x.pre", {"phase/images": frame(*CELLS)[None]})
    assert reasons(path, min_area_px=10_000) == {
        "objects smaller than 10000 px: left out": 3,
        "frames in which no cell was found": 1,
    }


def test_field_groups_are_kept(write_hdf5: WriteHdf5, crop_stack: dict[str, Any]) -> None:
    path = write_hdf5("x.seg", crop_stack | {"meta/field_group": np.array([1, 1, 2, 2, 2])})
    assert [crop.group for crop in read(path)] == ["x.seg:1"] * 2 + ["x.seg:2"] * 3


def test_missing_values_are_flagged(write_hdf5: WriteHdf5, crop_stack: dict[str, Any]) -> None:
    crop_stack["phase/images"][3, :10, :10] = np.nan
    crop_stack["amplitude/images"][4] = np.nan
    crops = read(write_hdf5("x.seg", crop_stack))
    assert ["nan" in crop.flags for crop in crops] == [False, False, False, True, True]


def test_an_image_without_an_outline(write_hdf5: WriteHdf5) -> None:
    empty = np.zeros((1, 96, 96), np.float32)
    path = write_hdf5("x.seg", {"phase/images": empty, "mask/images": empty.astype("u1")})
    [crop] = read(path)
    assert crop.mask is None
    assert (crop.area_px, crop.bbox) == (0, (0, 0, 96, 96))


def test_rtdc_events_become_rgb_crops(write_hdf5: WriteHdf5) -> None:
    image = np.full((2, 80, 250), 180, np.uint8)
    image[:, 30:50, 100:120] = 90
    mask = np.zeros((3, 80, 250), np.uint8)
    mask[:, 30:50, 100:120] = 255
    events = {"events/image": image, "events/mask": mask}
    crops = read(write_hdf5("x.rtdc", events))
    assert [(crop.dataset, crop.index) for crop in crops] == [
        ("events/image", 0),
        ("events/image", 1),
    ]
    assert crops[0].bbox == (100, 30, 20, 20)
    assert crops[0].image is not None
    assert crops[0].image.shape == (96, 96, 3)
    assert crops[0].image[48, 48].tolist() == [90] * 3
    assert crops[0].image[0, 0].tolist() == [180] * 3


def test_virtual_float16_frames_with_missing_regions(tmp_path: Path) -> None:
    phase = frame(*CELLS)
    phase[:, 240:] = np.nan
    with h5py.File(tmp_path / "part.h5", "w") as file:
        file["raw"] = phase[None]
    layout = h5py.VirtualLayout((2, 200, 300), np.float16)
    for row in range(2):
        layout[row] = h5py.VirtualSource("part.h5", "raw", (1, 200, 300))[0]
    with h5py.File(tmp_path / "x.pre", "w") as file:
        file.create_virtual_dataset("phase/images", layout)
    crops = read(tmp_path / "x.pre")
    assert [crop.index for crop in crops] == [0] * 3 + [1] * 3
    assert ["nan" in crop.flags for crop in crops] == [False, True, False] * 2


@pytest.fixture
def mixed(write_hdf5: WriteHdf5, crop_stack: dict[str, Any]) -> tuple[Path, Path]:
    """Five crops, and three frames with 3, 0 and 1 cells."""
    frames = np.stack([frame(*CELLS), frame(), frame((90, 100))])
    return write_hdf5("x.seg", crop_stack), write_hdf5("y.pre", {"phase/images": frames})


@pytest.mark.parametrize("limit", [1, 2, 4, 7, 8, 9, 10, 100])
def test_limit_is_kept_and_reached(mixed: tuple[Path, Path], limit: int) -> None:
    every = [crop.crop_id for crop in read(*mixed)]
    assert len(every) == 9
    some = [crop.crop_id for crop in read(*mixed, limit=limit)]
    assert len(set(some)) == len(some)
    assert set(some) <= set(every)
    assert len(some) <= limit
    if limit >= 8:
        assert len(some) == min(limit, 9)


def test_limit_is_spread_evenly(write_hdf5: WriteHdf5) -> None:
    stack = np.zeros((40, 8, 8), np.uint8)
    first, second = (write_hdf5(name, {"x": stack}) for name in ("a.h5", "b.h5"))
    crops = read(first, second, limit=8)
    assert [(crop.source, crop.index) for crop in crops] == [
        (name, index) for name in ("a.h5", "b.h5") for index in (9, 19, 29, 39)
    ]


def test_limit_takes_different_cells_of_frames(write_hdf5: WriteHdf5) -> None:
    path = write_hdf5("x.pre", {"phase/images": np.stack([frame(*CELLS)] * 4)})
    crops = read(path, limit=3)
    assert len(crops) == 3
    assert len({crop.bbox for crop in crops}) == 3


def test_an_empty_frame_passes_its_turn_on(write_hdf5: WriteHdf5) -> None:
    frames = np.stack([frame(), frame(), frame(*CELLS), frame(*CELLS)])
    assert len(read(write_hdf5("x.pre", {"phase/images": frames}), limit=3)) == 3


def test_plan_knows_crops_and_estimates_frames(
    mixed: tuple[Path, Path], write_hdf5: WriteHdf5
) -> None:
    crops, frames = mixed
    plan = plan_crops([crops], options=ReadOptions())
    assert (plan.images, plan.cells, plan.exact) == (5, 5, True)
    plan = plan_crops([crops, frames], options=ReadOptions())
    assert (plan.images, plan.cells, plan.exact) == (8, 9, True)
    many = write_hdf5("z.pre", {"phase/images": np.stack([frame(*CELLS)] * 10)})
    plan = plan_crops([many], options=ReadOptions())
    assert (plan.images, plan.cells, plan.exact) == (10, 30, False)
    assert plan_crops([many], options=ReadOptions(limit=4)).cells == 4


def test_labels_are_counted_over_all_sources(
    mixed: tuple[Path, Path], write_hdf5: WriteHdf5
) -> None:
    more = write_hdf5(
        "z.h5", {"x": np.zeros((2, 8, 8), "u1"), "labels": np.array([b"oof", b"rbc"])}
    )
    counts = count_labels([*mixed, more], options=ReadOptions(limit=1))
    assert counts == {"rbc": 3, "wbc": 1, "oof": 1}


def test_folder_of_hdf5_files(write_hdf5: WriteHdf5, crop_stack: dict[str, Any]) -> None:
    path = write_hdf5("run/day1/x.seg", crop_stack)
    write_hdf5("run/y.seg", crop_stack)
    crops = read(path.parents[1])
    assert sorted({crop.source for crop in crops}) == ["run/day1/x.seg", "run/y.seg"]
    assert len(crops) == 10


def test_equal_file_names_are_told_apart(write_hdf5: WriteHdf5, crop_stack: dict[str, Any]) -> None:
    paths = [write_hdf5(f"{day}/x.seg", crop_stack) for day in ("monday", "tuesday")]
    assert [source.name for source in name_sources(paths)] == ["monday/x.seg", "tuesday/x.seg"]
    assert [source.name for source in name_sources(paths[:1])] == ["x.seg"]


def test_a_source_given_twice_is_refused(write_hdf5: WriteHdf5, crop_stack: dict[str, Any]) -> None:
    path = write_hdf5("x.seg", crop_stack)
    with pytest.raises(UnreadableSourceError, match="given twice"):
        read(path, path.parent / "." / "x.seg")


@pytest.mark.parametrize("name", ["absent.seg", "absent.png", "absent"])
def test_absent_sources(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnreadableSourceError, match="does not exist"):
        read(tmp_path / name)


def test_errors_come_before_the_first_crop(
    write_hdf5: WriteHdf5, crop_stack: dict[str, Any]
) -> None:
    path = write_hdf5("x.seg", crop_stack | {"mask/images": np.zeros((3, 48, 48), "u1")})
    with pytest.raises(SourceError):
        next(iter_crops([path], options=ReadOptions()))


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset(
            "x", shape=(4000, 128, 128), dtype="u1", chunks=(50, 128, 128), compression="gzip"
        )[::50] = 1
    tracemalloc.start()
    try:
        count = sum(1 for _ in iter_crops([tmp_path / "x.h5"], options=ReadOptions()))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 4000
    assert peak < 8e6  # of 65 MB


def test_real_crops(shared_file: Callable[[str], Path]) -> None:
    path = shared_file("bccd5.seg")
    counts: dict[str | None, int] = {}
    ids, groups = set(), set()
    for crop in iter_crops([path], options=ReadOptions()):
        counts[crop.label] = counts.get(crop.label, 0) + 1
        ids.add(crop.crop_id)
        groups.add(crop.group)
        assert crop.phase is not None
        assert crop.phase.shape == (96, 96)
        assert crop.mask is not None
    assert counts == {"rbc": 1200, "wbc": 372, "plt": 361, "agg": 220, "oof": 180}
    assert len(ids) == 2333
    assert 100 < len(groups) < 400


def test_real_frames(shared_file: Callable[[str], Path]) -> None:
    path = shared_file("bccd_frames.pre")
    crops = read(path)
    assert {crop.index for crop in crops} == set(range(24))
    assert 240 < len(crops) < 900
    assert len({crop.crop_id for crop in crops}) == len(crops)


def test_real_pictures(shared_file: Callable[[str], Path]) -> None:
    crops = read(shared_file("png"))
    assert sorted({crop.label or "" for crop in crops}) == ["plt", "rbc", "wbc"]
    assert len(crops) == 45

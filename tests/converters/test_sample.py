from collections import Counter
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from converters.crops import Crop, ReadOptions
from converters.problems import Problems
from converters.reading import iter_crops
from converters.sample import (
    PIXEL_UM,
    SHARES,
    draw_cell,
    propagate,
    write_sample_crops,
    write_sample_frames,
)


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> list[Crop]:
    path = tmp_path_factory.mktemp("sample") / "sample.seg"
    write_sample_crops(path, n_cells=120, seed=3)
    return list(iter_crops([path], options=ReadOptions()))


def median(crops: list[Crop], label: str, measure: Callable[[Crop], float]) -> float:
    return float(np.median([measure(crop) for crop in crops if crop.label == label]))


def peak_rad(crop: Crop) -> float:
    assert crop.phase is not None
    return float(crop.phase.max())


def across_px(crop: Crop) -> float:
    return max(crop.bbox[2:])


def test_all_classes_occur_and_red_cells_prevail(crops: list[Crop]) -> None:
    counts = Counter(crop.label for crop in crops)
    assert set(counts) == set(SHARES)
    assert counts.most_common(1)[0][0] == "rbc"
    assert counts["rbc"] > 10 * counts["oof"]


@pytest.mark.parametrize(
    ("label", "rad", "size_px"),
    [
        ("rbc", (2.4, 3.5), (20, 27)),
        ("wbc", (2.6, 4.0), (21, 29)),
        ("plt", (0.9, 1.9), (3, 11)),
        ("agg", (1.3, 2.2), (14, 29)),
    ],
)
def test_phase_and_size_are_as_measured_in_blood(
    crops: list[Crop], label: str, rad: tuple[float, float], size_px: tuple[float, float]
) -> None:
    assert rad[0] < median(crops, label, peak_rad) < rad[1]
    assert size_px[0] <= median(crops, label, across_px) <= size_px[1]


def test_background_is_about_zero(crops: list[Crop]) -> None:
    for crop in crops:
        assert crop.phase is not None
        assert crop.amplitude is not None
        assert abs(np.median(crop.phase[:10])) < 0.3
        assert abs(np.median(crop.amplitude[:10])) < 3


def test_red_cells_are_biconcave() -> None:
    cell = draw_cell(np.random.default_rng(1), "rbc")
    centre = cell.phase[44:52, 44:52].mean()
    assert centre < 0.8 * cell.phase.max()
    assert centre > 0.3


def test_out_of_focus_cells_are_ringed() -> None:
    rng = np.random.default_rng(1)
    rings = [draw_cell(rng, "oof") for _ in range(10)]
    sharp = [draw_cell(rng, "rbc") for _ in range(10)]

    def halo(cell: object) -> float:
        outside = ~cell.support  # type: ignore[attr-defined]
        return float(cell.transmission[outside].std())  # type: ignore[attr-defined]

    assert np.median([halo(c) for c in rings]) > 2 * np.median([halo(c) for c in sharp])


def test_propagation_keeps_energy_and_is_undone_backwards() -> None:
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:64, :64] - 32
    field = np.exp(1j * 2 * np.exp(-(rows**2 + columns**2) / 50)) * rng.uniform(0.9, 1)
    away = propagate(field, 12.0)
    assert np.abs(away - field).max() > 0.1
    assert (np.abs(away) ** 2).sum() == pytest.approx((np.abs(field) ** 2).sum())
    np.testing.assert_allclose(propagate(away, -12.0), field, atol=1e-9)


def test_a_gaussian_beam_spreads_as_theory_says() -> None:
    waist_um, distance_um = 3.0, 40.0
    axis = (np.arange(256) - 128) * PIXEL_UM
    radius2 = axis[:, None] ** 2 + axis[None, :] ** 2
    beam = propagate(np.exp(-radius2 / waist_um**2).astype(complex), distance_um)
    intensity = np.abs(beam) ** 2
    measured = 2 * np.sqrt((intensity * axis[:, None] ** 2).sum() / intensity.sum())
    rayleigh = np.pi * waist_um**2 * 1.34 / 0.530
    assert measured == pytest.approx(waist_um * np.hypot(1, distance_um / rayleigh), rel=0.01)


def test_the_same_seed_gives_the_same_file(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_sample_crops(tmp_path / name, n_cells=10, seed=seed)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()


def test_a_share_of_each_class_is_labelled(tmp_path: Path) -> None:
    write_sample_crops(tmp_path / "all.seg", n_cells=100, seed=1)
    write_sample_crops(tmp_path / "some.seg", n_cells=100, seed=1, labelled_share=0.2)
    with h5py.File(tmp_path / "all.seg") as every, h5py.File(tmp_path / "some.seg") as some:
        truth, kept = every["label/ground_truth"][()], some["label/ground_truth"][()]
        np.testing.assert_array_equal(every["phase/images"][()], some["phase/images"][()])
    labelled = kept != b""
    np.testing.assert_array_equal(kept[labelled], truth[labelled])
    assert 20 <= labelled.sum() <= 25
    assert set(kept[labelled]) == set(truth)
    crops = iter_crops([tmp_path / "some.seg"], options=ReadOptions())
    assert sum(crop.label is None for crop in crops) == 100 - labelled.sum()


def test_frames_hold_numbered_cells_without_labels(tmp_path: Path) -> None:
    write_sample_frames(tmp_path / "x.pre", n_frames=2, seed=1)
    problems = Problems()
    crops = list(iter_crops([tmp_path / "x.pre"], options=ReadOptions(), problems=problems))
    with h5py.File(tmp_path / "x.pre") as file:
        assert file["phase/images"].shape == (2, 384, 512)
        assert len(crops) + sum(p.count for p in problems) == sum(
            len(np.unique(mask)) - 1 for mask in file["mask/images"]
        )
    assert len(crops) > 30
    assert {crop.label for crop in crops} == {None}
    assert len({crop.group for crop in crops}) == 2
    assert any("border" in crop.flags for crop in crops)


def test_the_threshold_finds_the_cells_of_the_mask(tmp_path: Path) -> None:
    write_sample_frames(tmp_path / "x.pre", n_frames=2, seed=1)
    with_mask = list(iter_crops([tmp_path / "x.pre"], options=ReadOptions(min_area_px=60)))
    with h5py.File(tmp_path / "x.pre", "a") as file:
        del file["mask/images"]
    without = list(iter_crops([tmp_path / "x.pre"], options=ReadOptions(min_area_px=60)))

    def centre(crop: Crop) -> tuple[float, float, int]:
        x, y, width, height = crop.bbox
        return x + width / 2, y + height / 2, crop.index

    found = np.array([centre(crop) for crop in without])
    hits = [
        np.min(np.linalg.norm((found - centre(crop)) * (1, 1, 1000), axis=1)) < 8
        for crop in with_mask
    ]
    assert np.mean(hits) > 0.9


def test_files_say_that_they_are_synthetic(tmp_path: Path) -> None:
    write_sample_crops(tmp_path / "x.seg", n_cells=5)
    write_sample_frames(tmp_path / "x.pre", n_frames=1)
    for name in ("x.seg", "x.pre"):
        with h5py.File(tmp_path / name) as file:
            assert file.attrs["synthetic"]
            assert "SYNTHETIC" in file.attrs["note"]

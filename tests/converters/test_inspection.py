import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest
from PIL import Image

from converters.crops import ReadOptions
from converters.errors import NotHdf5Error
from converters.inspection import Inspection, inspect_source

WriteHdf5 = Callable[..., Path]


def inspect(path: Path, **options: Any) -> Inspection:
    return inspect_source(path, options=ReadOptions(**options))


def test_crop_file(write_hdf5: WriteHdf5, crop_stack: dict[str, Any]) -> None:
    crop_stack["phase/images"][:] = 0
    crop_stack["phase/images"][1, 0, :2] = (-1.5, 3)
    crop_stack["phase/images"][4, :2] = np.nan
    found = inspect(write_hdf5("x.seg", crop_stack))
    assert (found.layout, found.error, found.reasons) == ("CellFace", "", {})
    assert found.plan is not None
    assert (found.plan.images, found.plan.cells) == (5, 5)
    assert found.labels == {"rbc": 2, "wbc": 1}
    assert found.n_unlabelled == 2
    phase = next(r for r in found.ranges if r.channel == "phase/images")
    assert (phase.minimum, phase.maximum) == (-1.5, 3)
    assert (phase.n_nan, phase.n_values) == (96, 5 * 48 * 48)


def test_tree_of_datasets(write_hdf5: WriteHdf5) -> None:
    path = write_hdf5(
        "x.h5", {"a/b": np.zeros((4, 8, 8), np.uint8)}, chunks=(2, 8, 8), **hdf5plugin.Zstd()
    )
    with h5py.File(path, "a") as file:
        file["a/gone"] = h5py.SoftLink("/nowhere")
        file["names"] = np.array([b"x", b"y"])
    datasets = {dataset.path: dataset for dataset in inspect(path).datasets}
    assert datasets["a/b"].shape == (4, 8, 8)
    assert datasets["a/b"].dtype == "uint8"
    assert datasets["a/b"].chunks == (2, 8, 8)
    assert "zstd" in datasets["a/b"].compression.lower()
    assert datasets["names"].chunks is None
    assert "/nowhere" in datasets["a/gone"].problem


def test_unknown_layout_says_why(write_hdf5: WriteHdf5) -> None:
    found = inspect(write_hdf5("x.h5", {"table": np.arange(4)}))
    assert found.layout == ""
    assert found.plan is None
    assert set(found.reasons) == {"CellFace", "RT-DC", "qpimage series", "generic images"}
    assert all(found.reasons.values())
    assert "no known layout" in found.error


def test_unusable_file_is_described_all_the_same(
    write_hdf5: WriteHdf5, crop_stack: dict[str, Any]
) -> None:
    path = write_hdf5("x.seg", crop_stack | {"mask/images": np.zeros((2, 48, 48), "u1")})
    found = inspect(path)
    assert "mask/images' has 2 rows" in found.error
    assert "mask/images' has 2 rows" in found.reasons["CellFace"]
    assert len(found.datasets) == 4


def test_series_has_one_range_per_channel(write_hdf5: WriteHdf5) -> None:
    series = {f"qpi_{n}/phase/raw": np.full((8, 8), float(n)) for n in range(4)}
    found = inspect(write_hdf5("x.h5", series))
    assert [(r.channel, r.minimum, r.maximum) for r in found.ranges] == [("phase", 0, 3)]


def test_remarks_are_passed_on(write_hdf5: WriteHdf5) -> None:
    found = inspect(write_hdf5("x.h5", {"x": np.zeros((3, 8, 8), "f4")}))
    assert ["phase in rad" in problem.reason for problem in found.problems] == [True]


def test_images_of_nothing_but_missing_values(write_hdf5: WriteHdf5) -> None:
    found = inspect(write_hdf5("x.pre", {"phase/images": np.full((2, 8, 8), np.nan, "f4")}))
    assert math.isnan(found.ranges[0].minimum)
    assert found.ranges[0].n_nan == 128


def test_folder_of_pictures(tmp_path: Path) -> None:
    (tmp_path / "rbc").mkdir()
    Image.new("L", (20, 20), 7).save(tmp_path / "rbc" / "a.png")
    Image.new("L", (20, 20), 9).save(tmp_path / "b.png")
    (tmp_path / "rbc" / "c.jpg").write_bytes(b"Bud1")
    found = inspect(tmp_path)
    assert found.layout == "pictures"
    assert found.labels == {"rbc": 2}
    assert found.n_unlabelled == 1
    assert [(r.minimum, r.maximum) for r in found.ranges] == [(7, 9)]
    assert [problem.count for problem in found.problems] == [1]


def test_file_of_amplitudes_in_a_folder(write_hdf5: WriteHdf5, tmp_path: Path) -> None:
    """They can be imported, though they are neither phase nor picture."""
    write_hdf5("x.h5", {"amp": np.random.default_rng(0).random((3, 40, 40), np.float32)})
    assert not inspect(tmp_path).error


def test_folder_of_which_no_picture_can_be_read(tmp_path: Path) -> None:
    for number in range(5):  # more than the plan looks at
        (tmp_path / f"{number}.png").write_bytes(b"Bud1")
    found = inspect(tmp_path)
    assert "No cell was found" in found.error
    assert [problem.count for problem in found.problems] == [5]


def test_what_is_no_source_at_all(tmp_path: Path) -> None:
    (tmp_path / "x.seg").write_text("text")
    with pytest.raises(NotHdf5Error):
        inspect(tmp_path / "x.seg")

"""Copies stand alone, hold the same values, and a difference is found."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from converters.errors import OutputError, UnreadableSourceError
from converters.hdf5_copy import check_unchanged, copy_hdf5, same_content
from converters.source import Hdf5Source

IMAGES = np.random.default_rng(0).normal(size=(5, 4, 3)).astype(np.float32)


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a file that borrows from its neighbours in every way HDF5 knows."""
    folder = tmp_path / "lab"
    folder.mkdir()
    monkeypatch.chdir(folder)  # where HDF5 looks for external raw files
    with h5py.File(folder / "frames.h5", "w") as file:
        file["images"] = IMAGES
        file["images"].attrs["unit"] = "rad"
        file["more/labels"] = np.array([b"a", b"b"])
        file["more"].attrs["who"] = "lab"
        file["more/back"] = h5py.ExternalLink("main.h5", "/")
    with h5py.File(folder / "main.h5", "w") as file:
        file["own"] = np.arange(9)
        file["numbers"] = np.arange(9)
        file["text"] = ["ä", "b"]
        file["linked"] = h5py.ExternalLink("frames.h5", "images")
        file["group"] = h5py.ExternalLink("frames.h5", "more")
        file["broken"] = h5py.ExternalLink("gone.h5", "images")
        file["itself"] = h5py.ExternalLink("main.h5", "/")
        file["soft"] = h5py.SoftLink("/own")
        layout = h5py.VirtualLayout(IMAGES.shape, np.float32)
        layout[:] = h5py.VirtualSource("frames.h5", "images", shape=IMAGES.shape)
        file.create_virtual_dataset("virtual", layout)
        own = h5py.VirtualLayout((9,), np.int64)
        own[:] = h5py.VirtualSource(".", "own", shape=(9,))
        file.create_virtual_dataset("inside", own)
        raw = file.create_dataset("raw", (4,), "u1", external=[("pixels.bin", 0, 4)])
        raw.attrs["unit"] = "px"
    (folder / "pixels.bin").write_bytes(bytes([1, 2, 3, 4]))
    return folder


def test_copy_needs_none_of_the_other_files(lab: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy.h5"
    with Hdf5Source(lab / "main.h5") as source:
        assert copy_hdf5(source, target) == ["group", "linked", "raw", "virtual"]
    for file in lab.iterdir():
        file.unlink()
    with h5py.File(target) as copy:
        for name in ("linked", "virtual"):
            np.testing.assert_array_equal(copy[name], IMAGES)
        assert not copy["virtual"].is_virtual
        assert copy["linked"].attrs["unit"] == "rad"
        assert copy["raw"][:].tolist() == [1, 2, 3, 4]
        assert copy["raw"].attrs["unit"] == "px"
        assert copy["group/labels"][:].tolist() == [b"a", b"b"]
        assert copy["group"].attrs["who"] == "lab"
        assert copy["inside"].is_virtual
        assert copy["inside"][:].tolist() == list(range(9))
        assert copy.get("broken", getlink=True).filename == "gone.h5"
        assert copy.get("soft", getlink=True).path == "/own"


def test_file_without_links_is_copied_byte_for_byte(tmp_path: Path) -> None:
    path = tmp_path / "plain.h5"
    with h5py.File(path, "w") as file:
        file["a/images"] = IMAGES
    with Hdf5Source(path) as source:
        assert copy_hdf5(source, tmp_path / "copy.h5", spare_bytes=10_000) == []
    assert (tmp_path / "copy.h5").read_bytes() == path.read_bytes()


def test_links_out_of_the_folder_are_not_followed(lab: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.h5").write_bytes((lab / "frames.h5").read_bytes())
    with h5py.File(lab / "main.h5", "r+") as file:
        file["outside"] = h5py.ExternalLink("../secret.h5", "images")
    target = tmp_path / "copy.h5"
    with Hdf5Source(lab / "main.h5") as source:
        assert "outside" not in copy_hdf5(source, target)
    with Hdf5Source(lab / "main.h5", outside_links=True) as source:
        assert "outside" in copy_hdf5(source, target)
    with h5py.File(target) as copy:
        np.testing.assert_array_equal(copy["outside"], IMAGES)


def test_true_copy_is_accepted_and_one_changed_value_is_not(lab: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy.h5"
    with Hdf5Source(lab / "main.h5") as source:
        copy_hdf5(source, target)
        with h5py.File(target) as copy:
            check_unchanged(source, copy, moved={})
        for path, value in (("numbers", 7), ("virtual", np.nan), ("text", "c")):
            with h5py.File(target, "r+") as copy:
                kept = copy[path][()]
                copy[path][1] = value
                with pytest.raises(OutputError, match=f"'{path}' differs"):
                    check_unchanged(source, copy, moved={})
                copy[path][...] = kept


def test_lost_dataset_is_found(lab: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy.h5"
    with Hdf5Source(lab / "main.h5") as source:
        copy_hdf5(source, target)
        with h5py.File(target, "r+") as copy:
            del copy["text"]
            with pytest.raises(OutputError, match="'text' differs"):
                check_unchanged(source, copy, moved={})


def test_missing_values_are_equal_to_themselves() -> None:
    with h5py.File.in_memory() as file:
        file["a"] = np.array([1, np.nan])
        file["b"] = np.array([1, np.nan])
        file["c"] = np.array([1, np.nan], np.float32)
        assert same_content(file["a"], file["b"])
        assert not same_content(file["a"], file["c"])


def test_file_marked_as_being_written_is_refused_with_its_cure(tmp_path: Path) -> None:
    path = tmp_path / "live.h5"
    with h5py.File(path, "w", libver="latest") as file:
        file["images"] = IMAGES
        file.swmr_mode = True
        file.flush()
        (tmp_path / "crashed.h5").write_bytes(path.read_bytes())
    with (
        Hdf5Source(tmp_path / "crashed.h5") as source,
        pytest.raises(UnreadableSourceError, match="h5clear"),
    ):
        copy_hdf5(source, tmp_path / "copy.h5")

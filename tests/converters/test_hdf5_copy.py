"""Copies stand alone, hold the same values, and a difference is found."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from converters.errors import (
    BrokenLinkError,
    NotHdf5Error,
    OutputError,
    ShapeMismatchError,
    UnreadableSourceError,
)
from converters.hdf5_copy import check_unchanged, copy_hdf5, same_content
from converters.object_values import check_object_values
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


def copied(path: Path, target: Path) -> h5py.File:
    """The copy, compared with its source."""
    with Hdf5Source(path) as source:
        copy_hdf5(source, target)
        with h5py.File(target) as copy:
            check_unchanged(source, copy, moved={})
    return h5py.File(target)


def test_groups_deeper_than_python_can_recurse(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "deep.h5", "w") as file:
        group = file.create_group("start")
        for _ in range(2000):
            group = group.create_group("g")
        group["images"] = IMAGES
    with h5py.File(tmp_path / "main.h5", "w") as file:
        file["deep"] = h5py.ExternalLink("deep.h5", "start")
    with copied(tmp_path / "deep.h5", tmp_path / "copy.h5") as copy:
        np.testing.assert_array_equal(copy["start" + "/g" * 2000 + "/images"], IMAGES)
    with pytest.raises(BrokenLinkError, match="in more than 100 groups in each other"):
        copied(tmp_path / "main.h5", tmp_path / "copy.h5")


def test_name_that_is_no_text_is_kept(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "odd.h5", "w") as file:
        h5py.h5g.create(file.id, b"no \xff text")
        file["images"] = IMAGES
    with copied(tmp_path / "odd.h5", tmp_path / "copy.h5") as copy:
        np.testing.assert_array_equal(copy["images"], IMAGES)
        assert copy.id.links.exists(b"no \xff text")


def test_borrowed_members_that_are_linked_many_times_are_written_once(tmp_path: Path) -> None:
    """Each of 60 groups leads twice into the next: written out, that is 2^60 groups."""
    with h5py.File(tmp_path / "frames.h5", "w") as file:
        group = file.create_group("g")
        for _ in range(60):
            inner = group.create_group("a")
            group["b"] = inner
            group = inner
        group["images"] = IMAGES
        for number in range(50):
            group[f"again{number}"] = group["images"]
    with h5py.File(tmp_path / "main.h5", "w") as file:
        file["g"] = h5py.ExternalLink("frames.h5", "g")
    with copied(tmp_path / "main.h5", tmp_path / "copy.h5") as copy:
        np.testing.assert_array_equal(copy["g" + "/a/b" * 30 + "/again7"], IMAGES)
        assert copy["g/a"] == copy["g/b"]
    assert (tmp_path / "copy.h5").stat().st_size < 2**20


def test_shape_without_content_costs_neither_time_nor_disk(tmp_path: Path) -> None:
    shape = (2**40, 48, 48)
    with h5py.File(tmp_path / "frames.h5", "w") as file:
        file.create_dataset("chunks", shape, "f4", chunks=(64, 48, 48))
        file["chunks"][:64] = 1
    with h5py.File(tmp_path / "main.h5", "w") as file:
        file.create_dataset("own", shape, "f4", chunks=(64, 48, 48))
        file.create_dataset("whole", shape, "f4")
        file["chunks"] = h5py.ExternalLink("frames.h5", "chunks")
    with copied(tmp_path / "main.h5", tmp_path / "copy.h5") as copy:
        assert copy["chunks"][63, 0, 0] == 1
        assert copy["chunks"].shape == shape


@pytest.mark.parametrize("kind", ["virtual", "raw"])
def test_borrowed_data_that_unfold_without_end_are_refused(kind: str, tmp_path: Path) -> None:
    (tmp_path / "pixels.bin").write_bytes(bytes(100))
    with h5py.File(tmp_path / "frames.h5", "w") as file:
        file["images"] = IMAGES
    with h5py.File(tmp_path / "main.h5", "w") as file:
        if kind == "virtual":
            layout = h5py.VirtualLayout((2**40, 4, 3), np.float32)
            layout[:5] = h5py.VirtualSource("frames.h5", "images", shape=IMAGES.shape)
            file.create_virtual_dataset("images", layout)
        else:
            storage = [(str(tmp_path / "pixels.bin"), 0, h5py.h5f.UNLIMITED)]
            file.create_dataset("images", (2**40,), "u1", external=storage)
    with (
        Hdf5Source(tmp_path / "main.h5") as source,
        pytest.raises(ShapeMismatchError, match="declares"),
    ):
        copy_hdf5(source, tmp_path / "copy.h5")


def shared_text(path: Path) -> Path:
    """60,000 rows that all are one text of a megabyte."""
    with h5py.File(path, "w") as file:
        text = file.create_dataset("text", (60_000,), h5py.string_dtype())
        text[0] = "x" * 2**20
        file.flush()
        offset = text.id.get_offset()
    content = bytearray(path.read_bytes())
    content[offset : offset + 16 * 60_000] = content[offset : offset + 16] * 60_000
    path.write_bytes(content)
    return path


def test_text_that_all_rows_share_is_refused(tmp_path: Path) -> None:
    with (
        Hdf5Source(shared_text(tmp_path / "text.h5")) as source,
        pytest.raises(ShapeMismatchError, match="more than 250 times as long as the file"),
    ):
        check_object_values(source, outside_links=False)


def test_damage_of_the_source_is_not_blamed_on_the_disk(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "damaged.h5", "w") as file:
        file["text"] = ["rbc", "wbc"]
        file.flush()
        offset = file["text"].id.get_offset()
    content = bytearray((tmp_path / "damaged.h5").read_bytes())
    content[offset + 4 : offset + 12] = (2**50).to_bytes(8, "little")
    (tmp_path / "damaged.h5").write_bytes(content)
    with pytest.raises(NotHdf5Error, match="'text' cannot be read; the file is damaged"):
        copied(tmp_path / "damaged.h5", tmp_path / "copy.h5")

import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from converters.dataset_checks import check_images
from converters.errors import (
    BrokenLinkError,
    EmptySourceError,
    MissingFilterError,
    NotHdf5Error,
    ShapeMismatchError,
    SourceError,
    UnreadableSourceError,
)
from converters.source import Hdf5Source, fingerprint, read_aligned, read_rows

IMAGES = np.arange(4 * 8 * 8, dtype=np.float32).reshape(4, 8, 8)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UnreadableSourceError, match="does not exist"):
        Hdf5Source(tmp_path / "absent.seg")


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.seg")  # opening it would wait for a writer for ever
    for path in (tmp_path, tmp_path / "pipe.seg"):
        with pytest.raises(UnreadableSourceError, match="is not a file"):
            Hdf5Source(path)


def test_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "secret.seg").write_bytes(b"x")
    monkeypatch.setattr(Path, "open", refuse)  # root, who runs containers, may read everything
    with pytest.raises(UnreadableSourceError, match="Permission denied"):
        Hdf5Source(tmp_path / "secret.seg")


def test_file_without_bytes(tmp_path: Path) -> None:
    (tmp_path / "empty.seg").touch()
    with pytest.raises(EmptySourceError, match="0 bytes"):
        Hdf5Source(tmp_path / "empty.seg")


def test_text_is_not_hdf5(tmp_path: Path) -> None:
    (tmp_path / "notes.seg").write_text("not a file of cells")
    with pytest.raises(NotHdf5Error, match=r"notes\.seg is not an HDF5 file"):
        Hdf5Source(tmp_path / "notes.seg")


def test_truncated_file_gives_one_sentence(write_hdf5: Callable[..., Path]) -> None:
    path = write_hdf5("cut.seg", {"phase/images": np.zeros((64, 32, 32))})
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(NotHdf5Error, match="truncated") as caught:
        Hdf5Source(path)
    assert "\n" not in str(caught.value)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_damaged_headers_raise_only_our_errors(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("damage") / "x.seg"
    with h5py.File(path, "w") as file:
        file.create_dataset("phase/images", data=IMAGES, chunks=(2, 8, 8), compression="gzip")
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(8, min(2000, len(content) - 1)))
    content[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(content))
    try:
        with Hdf5Source(path) as source:
            for node in source.walk():
                if node.dataset is not None:
                    check_images(node.dataset, source="x")
                    read_rows(node.dataset, 0, 2)
    except SourceError:
        pass


def test_missing_filter_is_named(write_hdf5: Callable[..., Path]) -> None:
    path = write_hdf5("packed.seg", {"phase/images": IMAGES}, chunks=(1, 8, 8), **hdf5plugin.Zstd())
    # The header names the filter by number: replace Zstandard by one that nobody has.
    content = path.read_bytes()
    assert content.count(struct.pack("<H", 32015)) == 1
    path.write_bytes(content.replace(struct.pack("<H", 32015), struct.pack("<H", 31999)))
    with Hdf5Source(path) as source, pytest.raises(MissingFilterError, match="filter 31999"):
        source.dataset("phase/images")


def test_zstandard_is_read(write_hdf5: Callable[..., Path]) -> None:
    path = write_hdf5("z.seg", {"phase/images": IMAGES}, chunks=(1, 8, 8), **hdf5plugin.Zstd())
    with Hdf5Source(path) as source:
        dataset = source.dataset("phase/images")
        assert dataset is not None
        np.testing.assert_array_equal(read_rows(dataset, 0, 4), IMAGES)


def link(path: Path, target: str) -> Path:
    with h5py.File(path, "w") as file:
        file["phase/images"] = h5py.ExternalLink(target, "/phase/images")
    return path


def test_broken_external_link_names_its_target(tmp_path: Path) -> None:
    path = link(tmp_path / "linked.seg", "gone.h5")
    with Hdf5Source(path) as source, pytest.raises(BrokenLinkError, match=r"gone\.h5.*not exist"):
        source.dataset("phase/images")


def test_link_to_a_missing_dataset(tmp_path: Path, write_hdf5: Callable[..., Path]) -> None:
    write_hdf5("other.h5", {"elsewhere": IMAGES})
    path = link(tmp_path / "linked.seg", "other.h5")
    with Hdf5Source(path) as source, pytest.raises(BrokenLinkError, match="does not exist"):
        source.dataset("phase/images")


def test_external_link_within_the_folder_is_followed(
    tmp_path: Path, write_hdf5: Callable[..., Path]
) -> None:
    write_hdf5("other.h5", {"phase/images": IMAGES})
    with Hdf5Source(link(tmp_path / "linked.seg", "other.h5")) as source:
        dataset = source.dataset("phase/images")
        assert dataset is not None
        np.testing.assert_array_equal(dataset[()], IMAGES)
        assert [node.path for node in source.walk()] == ["phase/images"]


@pytest.mark.parametrize("absolute", [True, False])
def test_link_out_of_the_folder_is_refused_unless_allowed(
    tmp_path: Path, write_hdf5: Callable[..., Path], absolute: bool
) -> None:
    outside = write_hdf5("outside.h5", {"phase/images": IMAGES})
    (tmp_path / "inner").mkdir()
    path = link(tmp_path / "inner" / "x.seg", str(outside) if absolute else "../outside.h5")
    with Hdf5Source(path) as source, pytest.raises(BrokenLinkError, match="outside its own folder"):
        source.dataset("phase/images")
    with Hdf5Source(path, outside_links=True) as source:
        assert source.dataset("phase/images") is not None


def test_a_symbolic_link_does_not_smuggle_a_file_in(
    tmp_path: Path, write_hdf5: Callable[..., Path]
) -> None:
    outside = write_hdf5("outside.h5", {"phase/images": IMAGES})
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "near.h5").symlink_to(outside)
    path = link(tmp_path / "inner" / "x.seg", "near.h5")
    with Hdf5Source(path) as source, pytest.raises(BrokenLinkError, match="outside its own folder"):
        source.dataset("phase/images")


def virtual(path: Path, source: str) -> Path:
    layout = h5py.VirtualLayout(IMAGES.shape, IMAGES.dtype)
    layout[...] = h5py.VirtualSource(source, "phase/images", IMAGES.shape)
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("phase/images", layout)
    return path


def test_virtual_dataset_within_the_folder(tmp_path: Path, write_hdf5: Callable[..., Path]) -> None:
    write_hdf5("part.h5", {"phase/images": IMAGES})
    with Hdf5Source(virtual(tmp_path / "whole.seg", "part.h5")) as source:
        dataset = source.dataset("phase/images")
        assert dataset is not None
        check_images(dataset, source="whole.seg")
        np.testing.assert_array_equal(read_rows(dataset, 1, 3), IMAGES[1:3])


def test_virtual_dataset_without_its_source_is_no_image_of_zeros(tmp_path: Path) -> None:
    path = virtual(tmp_path / "whole.seg", "gone.h5")
    with Hdf5Source(path) as source, pytest.raises(BrokenLinkError, match=r"gone\.h5"):
        source.dataset("phase/images")


def test_virtual_dataset_out_of_the_folder(tmp_path: Path, write_hdf5: Callable[..., Path]) -> None:
    write_hdf5("outside.h5", {"phase/images": IMAGES})
    (tmp_path / "inner").mkdir()
    path = virtual(tmp_path / "inner" / "whole.seg", "../outside.h5")
    with Hdf5Source(path) as source, pytest.raises(BrokenLinkError, match="outside its own folder"):
        source.dataset("phase/images")


def test_virtual_dataset_over_an_outside_link_in_a_neighbour(
    tmp_path: Path, write_hdf5: Callable[..., Path]
) -> None:
    write_hdf5("outside.h5", {"phase/images": IMAGES})
    (tmp_path / "inner").mkdir()
    link(tmp_path / "inner" / "near.h5", "../outside.h5")
    path = virtual(tmp_path / "inner" / "whole.seg", "near.h5")
    with Hdf5Source(path) as source, pytest.raises(BrokenLinkError, match="outside its own folder"):
        source.dataset("phase/images")


def test_raw_external_storage_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "raw.bin").write_bytes(IMAGES.tobytes())
    path = tmp_path / "inner" / "x.seg"
    with h5py.File(path, "w") as file:
        file.create_dataset(
            "phase/images",
            shape=IMAGES.shape,
            dtype=IMAGES.dtype,
            external=[(str(tmp_path / "raw.bin"), 0, h5py.h5f.UNLIMITED)],
        )
    with Hdf5Source(path) as source, pytest.raises(BrokenLinkError, match="outside its own folder"):
        source.dataset("phase/images")


def test_link_loops_end(tmp_path: Path) -> None:
    path = tmp_path / "loop.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("a")
        group["itself"] = group
        group["root"] = h5py.SoftLink("/")
        file["x"] = h5py.SoftLink("/y")
        file["y"] = h5py.SoftLink("/x")
        file["far"] = h5py.ExternalLink("loop.h5", "/far")
        file["data"] = IMAGES
    with Hdf5Source(path) as source:
        nodes = list(source.walk())
        with pytest.raises(BrokenLinkError, match="more than"):
            source.dataset("x")
    assert [node.path for node in nodes if node.dataset is not None] == ["data"]
    assert {node.path for node in nodes if node.problem is not None} == {"far", "x", "y"}


@pytest.mark.parametrize(
    ("values", "error"),
    [
        (np.zeros((0, 8, 8), np.float32), EmptySourceError),
        (np.array([b"a", b"b"]), ShapeMismatchError),
        (np.zeros((2, 2, 2, 2, 2)), ShapeMismatchError),
        (np.zeros((2, 8, 8), complex), ShapeMismatchError),
        (np.zeros((), np.float32), ShapeMismatchError),
    ],
)
def test_what_cannot_be_images(
    write_hdf5: Callable[..., Path], values: NDArray[Any], error: type[Exception]
) -> None:
    path = write_hdf5("x.h5", {"d": values})
    with h5py.File(path) as file, pytest.raises(error):
        check_images(file["d"], source="x.h5")


@pytest.mark.parametrize(
    ("shape", "chunks", "reason", "error"),
    [
        ((10**9, 8, 8), (1, 8, 8), "stores nothing", EmptySourceError),
        ((2, 10**6, 10**6), (1, 64, 64), "declares images of", ShapeMismatchError),
        ((400, 1000, 1000), (200, 1000, 1000), "chunks of", ShapeMismatchError),
    ],
)
def test_lying_shapes_are_refused_before_reading(
    tmp_path: Path,
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    reason: str,
    error: type[Exception],
) -> None:
    with h5py.File(tmp_path / "liar.h5", "w") as file:
        dataset = file.create_dataset("d", shape=shape, dtype="f8", chunks=chunks, compression=1)
        if error is not EmptySourceError:
            dataset.id.write_direct_chunk((0, 0, 0), b"\0" * 100)
        with pytest.raises(error, match=reason):
            check_images(dataset, source="liar.h5")


def test_mostly_unwritten_dataset_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "liar.h5", "w") as file:
        dataset = file.create_dataset("d", shape=(10**7, 8, 8), dtype="f4", chunks=(1, 8, 8))
        dataset[0] = 1
        with pytest.raises(ShapeMismatchError, match="stores only 1 of 10,000,000 chunks"):
            check_images(dataset, source="liar.h5")


def test_unwritten_images_are_not_filled_from_the_file(tmp_path: Path) -> None:
    options = {"shape": (4, 8, 8), "dtype": "f4", "chunks": (1, 8, 8)}
    with h5py.File(tmp_path / "filled.h5", "w") as file:
        for name, fill in (("default", None), ("given", 1)):
            file.create_dataset(name, **options, fillvalue=fill)[:3] = IMAGES[:3]
        check_images(file["default"], source="filled.h5")
        with pytest.raises(ShapeMismatchError, match="stores 3 of 4 chunks and a value to fill"):
            check_images(file["given"], source="filled.h5")
        file["given"][3] = 0
        check_images(file["given"], source="filled.h5")


def test_virtual_dataset_of_nothing_is_refused(tmp_path: Path) -> None:
    layout = h5py.VirtualLayout((10**8, 8, 8), IMAGES.dtype)
    layout[:4] = h5py.VirtualSource("part.h5", "phase/images", IMAGES.shape)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        dataset = file.create_virtual_dataset("d", layout)
        with pytest.raises(ShapeMismatchError, match="maps only 256 values"):
            check_images(dataset, source="x.h5")


def test_growing_virtual_dataset_is_accepted(
    tmp_path: Path, write_hdf5: Callable[..., Path]
) -> None:
    write_hdf5("part.h5", {"d": IMAGES}, maxshape=(None, 8, 8))
    layout = h5py.VirtualLayout((4, 8, 8), IMAGES.dtype, maxshape=(None, 8, 8))
    part = h5py.VirtualSource("part.h5", "d", IMAGES.shape, maxshape=(None, 8, 8))
    unlimited = h5py.h5s.UNLIMITED
    layout[:unlimited, :, :] = part[:unlimited, :, :]
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_virtual_dataset("d", layout)
    with Hdf5Source(tmp_path / "x.h5") as source:
        dataset = source.dataset("d")
        assert dataset is not None
        check_images(dataset, source="x.h5")
        np.testing.assert_array_equal(read_rows(dataset, 0, 4), IMAGES)


def test_damaged_chunk_is_named(write_hdf5: Callable[..., Path]) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (8, 64, 64), dtype=np.uint8)
    path = write_hdf5("x.h5", {"d": noise}, chunks=(1, 64, 64), compression="gzip")
    with h5py.File(path) as file:
        offset = file["d"].id.get_chunk_info(3).byte_offset
    content = bytearray(path.read_bytes())
    content[offset : offset + 200] = b"\xff" * 200
    path.write_bytes(bytes(content))
    with Hdf5Source(path) as source:
        dataset = source.dataset("d")
        assert dataset is not None
        assert len(read_rows(dataset, 0, 3)) == 3
        with pytest.raises(NotHdf5Error, match=r"x\.h5: rows 3 to 3 of '/d'"):
            read_rows(dataset, 3, 4)


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(1, 40),
    chunk=st.integers(1, 16),
    chosen=st.sets(st.integers(0, 39)),
)
def test_aligned_reading_gives_the_rows_asked_for(
    tmp_path_factory: pytest.TempPathFactory, count: int, chunk: int, chosen: set[int]
) -> None:
    path = tmp_path_factory.mktemp("rows") / "x.h5"
    values = np.arange(count * 4).reshape(count, 2, 2)
    indices = sorted(index for index in chosen if index < count)
    with h5py.File(path, "w") as file:
        columns = {
            "a": file.create_dataset("a", data=values, chunks=(min(chunk, count), 2, 2)),
            "b": file.create_dataset("b", data=np.arange(count)),
        }
        rows = list(read_aligned(columns, indices))
    assert [index for index, _ in rows] == indices
    for index, row in rows:
        np.testing.assert_array_equal(row["a"], values[index])
        assert row["b"] == index


def test_each_chunk_is_read_once(
    write_hdf5: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_hdf5("x.h5", {"d": np.zeros((64, 8, 8))}, chunks=(16, 8, 8))
    starts: list[tuple[int, int]] = []

    def spy(dataset: h5py.Dataset, start: int, stop: int) -> NDArray[Any]:
        starts.append((start, stop))
        return read_rows(dataset, start, stop)

    monkeypatch.setattr("converters.source.read_rows", spy)
    with h5py.File(path) as file:
        assert len(list(read_aligned({"d": file["d"]}, range(64)))) == 64
    assert starts == [(0, 16), (16, 32), (32, 48), (48, 64)]


def test_file_that_is_being_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "live.h5"
    program = """
import sys, h5py, numpy as np
with h5py.File(sys.argv[1], "w", libver="latest") as file:
    images = np.ones((4, 8, 8), "f4")
    dataset = file.create_dataset("d", data=images, maxshape=(None, 8, 8), chunks=(1, 8, 8))
    file.swmr_mode = True
    dataset.flush()
    print("writing", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"writing\n"
        with Hdf5Source(path) as source:
            dataset = source.dataset("d")
            assert dataset is not None
            assert (read_rows(dataset, 0, 4) == 1).all()


def test_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    first, second = tmp_path / "a.bin", tmp_path / "b.bin"
    first.write_bytes(b"cells")
    second.write_bytes(b"cells")
    # sha256sum of "cells"
    assert fingerprint(first) == fingerprint(second)
    assert len(fingerprint(first)) == 64
    second.write_bytes(b"cellz")
    assert fingerprint(first) != fingerprint(second)


def test_fingerprint_of_a_folder_knows_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "rbc").mkdir()
    (tmp_path / "rbc" / "1.png").write_bytes(b"x")
    before = fingerprint(tmp_path)
    assert fingerprint(tmp_path) == before
    (tmp_path / "rbc" / "1.png").rename(tmp_path / "rbc" / "2.png")
    assert fingerprint(tmp_path) != before

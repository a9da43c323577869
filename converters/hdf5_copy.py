"""Copies of HDF5 files that stand alone, and the proof that nothing in them changed.

A byte copy keeps everything as it is, except that data which the file borrows from other files
(external links, virtual datasets, external raw storage) would be looked for beside the copy.
So borrowed data is written into the copy; the rest stays byte for byte.
"""

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from converters.dataset_checks import HDF5_ERRORS, check_volume, damage_named
from converters.errors import (
    BrokenLinkError,
    OutputError,
    UnreadableSourceError,
)
from converters.object_values import object_blocks
from converters.source import Hdf5Source

BLOCK_BYTES = 64 * 2**20
# What the index of chunks takes for each, at the most.
CHUNK_RECORD_BYTES = 256
# Each borrowed member is looked up by its path, which takes as long as the path.
MAX_DEPTH = 100


def copy_hdf5(source: Hdf5Source, target: Path, *, spare_bytes: int = 0) -> list[str]:
    """Copies a file and brings what it borrows from other files into the copy.

    Links that are broken, or that the source may not follow, are kept as they are.

    Args:
        source: the open file.
        target: the copy, replaced if it exists.
        spare_bytes: how much the caller is going to write into the copy.

    Returns:
        Paths of the datasets and groups that were borrowed.

    Raises:
        OSError: the copy cannot be written.
        SourceError: the file or what it borrows is damaged, or unfolds to far more than is stored.
    """
    with damage_named(source.name, "/"):
        borrowed = sorted(_borrowed(source))
        n_bytes = _borrowed_bytes(source, borrowed)
    shutil.copyfile(source.path, target)
    _reserve(target, spare_bytes + n_bytes)
    with opened_copy(source, target, "r+") as copy:
        # By what they are in the source: where they stand in the copy.
        brought = {hash(source.file["/"].id): ""}
        return [path for path in borrowed if _bring(source, path, copy, brought)]


def _reserve(path: Path, n_bytes: int) -> None:
    """Takes disk space beyond the end of an HDF5 file, which gives back the rest when closed.

    HDF5 crashes the process when the disk is full (measured with 2.0.0), so this must fail first.
    """
    block = bytes(min(n_bytes, BLOCK_BYTES))
    with path.open("ab") as file:
        while n_bytes > 0:
            n_bytes -= file.write(block[:n_bytes])


def _borrowed_bytes(source: Hdf5Source, paths: Sequence[str]) -> int:
    """How much the copy grows; refuses what is read value by value and declares far too much.

    Raises:
        ShapeMismatchError: such data unfolds to many times what is stored.
    """
    found = {
        hash(node.dataset.id): (node.path, node.dataset)
        for node in source.walk()
        if node.dataset is not None
    }
    read = [dataset for _, dataset in found.values() if not _is_kept_as_stored(dataset)]
    check_volume([d for d in read if d.shape], source=source.name, stored_bytes=source.stored_bytes)
    folders = tuple(f"{path}/" for path in paths)
    return sum(
        _written_bytes(dataset)
        for path, dataset in found.values()
        if f"{path}/".startswith(folders) or dataset.file != source.file
    )


def _is_kept_as_stored(dataset: h5py.Dataset) -> bool:
    """Whether its bytes alone say what its values are, so that nothing needs to be unfolded."""
    return not (dataset.is_virtual or dataset.external or dataset.dtype.hasobject)


def _written_bytes(dataset: h5py.Dataset) -> int:
    if not _is_kept_as_stored(dataset):
        return int(dataset.nbytes)
    n_chunks = dataset.id.get_num_chunks() if dataset.chunks else 1
    return int(dataset.id.get_storage_size()) + n_chunks * CHUNK_RECORD_BYTES


@contextmanager
def opened_copy(source: Hdf5Source, target: Path, mode: str) -> Iterator[h5py.File]:
    """The copy of a source, open; what libhdf5 says of it, when it is closed too, in one sentence.

    Raises:
        OSError: the disk refuses something.
        NotHdf5Error: the copy, and so the source, is damaged.
        UnreadableSourceError: the source is marked as being written.
    """
    try:
        with h5py.File(target, mode, locking=False) as copy:
            yield copy
    except HDF5_ERRORS as error:
        if "already open for write" in str(error):
            raise UnreadableSourceError(
                f"{source.name} is marked as being written by another program.",
                hint="Close that program, or clear the mark with `h5clear -s` and import again.",
            ) from error
        if isinstance(error, MemoryError) or getattr(error, "errno", None) is not None:
            raise
        with damage_named(source.name, "/"):
            raise


def _borrowed(source: Hdf5Source) -> Iterator[str]:
    """Paths of what lies in other files. Groups may lie deeper than Python can recurse."""
    root = source.file["/"]
    visited = {hash(root.id)}
    waiting = [(root, "")]
    while waiting:
        group, prefix = waiting.pop()
        for name in group:
            if isinstance(name, bytes):  # no text: nothing can be looked up by it
                continue
            path = f"{prefix}{name}"
            link = group.get(name, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                yield path
            elif isinstance(link, h5py.HardLink):
                member = group[name]
                if isinstance(member, h5py.Dataset) and _lies_elsewhere(member):
                    yield path
                elif isinstance(member, h5py.Group) and hash(member.id) not in visited:
                    visited.add(hash(member.id))
                    waiting.append((member, f"{path}/"))


def _lies_elsewhere(dataset: h5py.Dataset) -> bool:
    if dataset.is_virtual:
        return any(source.file_name != "." for source in dataset.virtual_sources())
    return bool(dataset.external)


def _bring(source: Hdf5Source, path: str, copy: h5py.File, brought: dict[int, str]) -> bool:
    try:
        dataset, group = source.dataset(path), source.group(path)
    except BrokenLinkError:
        return False
    if dataset is None and group in (None, source.file["/"]):
        return False
    del copy[path]
    waiting = [path]
    while waiting:
        waiting += _write_member(source, waiting.pop(), copy, brought)
    return True


def _write_member(
    source: Hdf5Source, path: str, copy: h5py.File, brought: dict[int, str]
) -> list[str]:
    """Writes a dataset or a group without its members, which it returns.

    What stands in the copy already is linked: links that lead back to it, or many times to the
    same, would else never end.
    """
    dataset = source.dataset(path)
    member = source.group(path) if dataset is None else dataset
    if member is None:
        return []
    place = brought.setdefault(hash(member.id), path)
    if place != path:
        if place:  # not the file's root, which would be a copy within itself
            copy[path] = copy[place]
        return []
    if dataset is not None:
        _write_dataset(source, dataset, copy, path)
        return []
    if path.count("/") > MAX_DEPTH:
        raise BrokenLinkError(
            f"{source.name}: what it borrows lies in more than {MAX_DEPTH} groups in each other.",
            hint="Copy the datasets into the file itself, e.g. with h5copy.",
        )
    with damage_named(source.name, path):
        names = [name for name in member if isinstance(name, str)]
        attributes = _attributes(member)
    _set_attributes(copy.create_group(path), attributes)
    return [f"{path}/{name}" for name in names]


def _write_dataset(source: Hdf5Source, dataset: h5py.Dataset, copy: h5py.File, path: str) -> None:
    with damage_named(source.name, path):
        attributes = _attributes(dataset)
        if not dataset.is_virtual and not dataset.external:
            copy.copy(dataset, path)
            return
    written = copy.create_dataset(path, shape=dataset.shape, dtype=dataset.dtype)
    for rows in _blocks(dataset):
        with damage_named(source.name, path):
            block = dataset[rows]
        written[rows] = block
    _set_attributes(written, attributes)


def _attributes(source: h5py.HLObject) -> dict[str, tuple[Any, np.dtype[Any]]]:
    return {name: (source.attrs[name], source.attrs.get_id(name).dtype) for name in source.attrs}


def _set_attributes(
    target: h5py.HLObject, attributes: Mapping[str, tuple[Any, np.dtype[Any]]]
) -> None:
    for name, (value, dtype) in attributes.items():
        target.attrs.create(name, value, dtype=dtype)


def check_unchanged(source: Hdf5Source, copy: h5py.File, *, moved: Mapping[str, str]) -> None:
    """Compares every dataset of a file with the one in its copy.

    Args:
        source: the file.
        copy: opened without the files that `source` borrows from.
        moved: new path in the copy by path in the file; what stands at the old path is new.

    Raises:
        OutputError: a dataset differs; names it.
        NotHdf5Error: a dataset is damaged, in the file already.
    """
    for node in source.walk():
        if node.dataset is None:
            continue
        with damage_named(source.name, node.path):
            twin = copy.get(moved.get(node.path, node.path))
            # A soft link to a label column leads to the new one, as it should.
            is_alias = node.path not in moved and any(twin == copy[path] for path in moved)
            is_same = twin is not None and (is_alias or same_content(node.dataset, twin))
        if not is_same:
            raise OutputError(
                f"The copy of {source.name} is wrong: '{node.path}' differs from the source.",
                hint="Nothing was written. Check the disk, then export again.",
            )


def same_content(first: h5py.Dataset, second: h5py.Dataset) -> bool:
    """Whether two datasets have the same shape, type and values, NaN being equal to NaN.

    Packed chunks are compared as they are stored where both are packed alike: a forged one may
    unfold to any size, and a shape may declare any number that are not there.
    """
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    # References are addresses within a file: equal bytes, but never equal objects.
    if h5py.check_ref_dtype(first.dtype) is not None:
        return True
    if _are_stored_alike(first, second):
        if first.chunks:
            return _same_chunks(first, second)
        if first.id.get_storage_size() == second.id.get_storage_size() == 0:
            return True
    return all(_same_values(first[rows], second[rows]) for rows in _blocks(first))


def _are_stored_alike(first: h5py.Dataset, second: h5py.Dataset) -> bool:
    created = (first.id.get_create_plist(), second.id.get_create_plist())
    return (
        _is_kept_as_stored(first)
        and _is_kept_as_stored(second)
        and bool(created[0].equal(created[1]))
    )


def _same_chunks(first: h5py.Dataset, second: h5py.Dataset) -> bool:
    places = _chunk_places(first)
    return places == _chunk_places(second) and all(
        first.id.read_direct_chunk(place) == second.id.read_direct_chunk(place) for place in places
    )


def _chunk_places(dataset: h5py.Dataset) -> list[tuple[int, ...]]:
    places: list[tuple[int, ...]] = []
    dataset.id.chunk_iter(lambda chunk: places.append(chunk.chunk_offset))
    return places


def _same_values(first: Any, second: Any) -> bool:
    if isinstance(first, np.ndarray | np.generic) and not first.dtype.hasobject:
        return bool(first.tobytes() == second.tobytes())
    flat = zip(np.ravel(first), np.ravel(second), strict=True)
    return all(np.array_equal(one, other) for one, other in flat)


def _blocks(dataset: h5py.Dataset) -> Iterator[Any]:
    """Selections that cover the dataset, whole chunks at a time."""
    if dataset.dtype.hasobject:
        yield from object_blocks(dataset)
        return
    if not dataset.shape:
        yield ()
        return
    row_bytes = math.prod(dataset.shape[1:]) * dataset.dtype.itemsize
    chunk = dataset.chunks[0] if dataset.chunks else 1
    rows = max(chunk, BLOCK_BYTES // max(1, row_bytes) // chunk * chunk)
    for start in range(0, dataset.shape[0], rows):
        yield slice(start, start + rows)

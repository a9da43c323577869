"""Copies of HDF5 files that stand alone, and the proof that nothing in them changed.

A byte copy keeps everything as it is, except that data which the file borrows from other files
(external links, virtual datasets, external raw storage) would be looked for beside the copy.
So borrowed data is written into the copy; the rest stays byte for byte.
"""

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from converters.errors import BrokenLinkError, OutputError, UnreadableSourceError
from converters.source import Hdf5Source

BLOCK_BYTES = 64 * 2**20


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
        SourceError: the borrowed data is damaged.
    """
    borrowed = sorted(_borrowed(source.file["/"], "", visited=set()))
    shutil.copyfile(source.path, target)
    _reserve(target, spare_bytes + _total_bytes(source, borrowed))
    with _open_copy(source, target) as copy:
        return [path for path in borrowed if _bring(source, path, copy)]


def _reserve(path: Path, n_bytes: int) -> None:
    """Takes disk space beyond the end of an HDF5 file, which gives back the rest when closed.

    HDF5 crashes the process when the disk is full (measured with 2.0.0), so this must fail first.
    """
    block = bytes(min(n_bytes, BLOCK_BYTES))
    with path.open("ab") as file:
        while n_bytes > 0:
            n_bytes -= file.write(block[:n_bytes])


def _total_bytes(source: Hdf5Source, paths: Sequence[str]) -> int:
    return sum(
        int(node.dataset.nbytes)
        for node in source.walk()
        if node.dataset is not None and f"{node.path}/".startswith(tuple(f"{p}/" for p in paths))
    )


def _open_copy(source: Hdf5Source, target: Path) -> h5py.File:
    try:
        return h5py.File(target, "r+", locking=False)
    except OSError as error:
        if "already open for write" not in str(error):
            raise
        raise UnreadableSourceError(
            f"{source.name} is marked as being written by another program.",
            hint="Close that program, or clear the mark with `h5clear -s` and import again.",
        ) from error


def _borrowed(group: h5py.Group, prefix: str, *, visited: set[int]) -> Iterator[str]:
    visited.add(hash(group.id))
    for name in group:
        path = f"{prefix}{name}"
        link = group.get(name, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            yield path
        elif isinstance(link, h5py.HardLink):
            member = group[name]
            if isinstance(member, h5py.Dataset) and _lies_elsewhere(member):
                yield path
            elif isinstance(member, h5py.Group) and hash(member.id) not in visited:
                yield from _borrowed(member, f"{path}/", visited=visited)


def _lies_elsewhere(dataset: h5py.Dataset) -> bool:
    if dataset.is_virtual:
        return any(source.file_name != "." for source in dataset.virtual_sources())
    return bool(dataset.external)


def _bring(source: Hdf5Source, path: str, copy: h5py.File) -> bool:
    try:
        dataset, group = source.dataset(path), source.group(path)
    except BrokenLinkError:
        return False
    if dataset is None and group in (None, source.file["/"]):
        return False
    del copy[path]
    if dataset is not None:
        _write_dataset(dataset, copy, path)
    else:
        _write_group(source, path, copy, around=(source.file["/"],))
    return True


def _write_group(
    source: Hdf5Source, path: str, copy: h5py.File, *, around: tuple[h5py.Group, ...]
) -> None:
    """Writes a borrowed group; links that lead back to a group around it would never end."""
    group = source.group(path)
    if group is None or group in around:
        return
    _copy_attributes(group, copy.create_group(path))
    for name in group:
        inner = f"{path}/{name}"
        dataset = source.dataset(inner)
        if dataset is not None:
            _write_dataset(dataset, copy, inner)
        else:
            _write_group(source, inner, copy, around=(*around, group))


def _write_dataset(dataset: h5py.Dataset, copy: h5py.File, path: str) -> None:
    if not dataset.is_virtual and not dataset.external:
        copy.copy(dataset, path)
        return
    written = copy.create_dataset(path, shape=dataset.shape, dtype=dataset.dtype)
    for rows in _blocks(dataset):
        written[rows] = dataset[rows]
    _copy_attributes(dataset, written)


def _copy_attributes(source: h5py.HLObject, target: h5py.HLObject) -> None:
    for name in source.attrs:
        target.attrs.create(name, source.attrs[name], dtype=source.attrs.get_id(name).dtype)


def check_unchanged(source: Hdf5Source, copy: h5py.File, *, moved: Mapping[str, str]) -> None:
    """Compares every dataset of a file with the one in its copy.

    Args:
        source: the file.
        copy: opened without the files that `source` borrows from.
        moved: new path in the copy by path in the file; what stands at the old path is new.

    Raises:
        OutputError: a dataset differs; names it.
    """
    for node in source.walk():
        if node.dataset is None:
            continue
        twin = copy.get(moved.get(node.path, node.path))
        # A soft link to a label column leads to the new one, as it should.
        is_alias = node.path not in moved and any(twin == copy[path] for path in moved)
        if twin is None or not (is_alias or same_content(node.dataset, twin)):
            raise OutputError(
                f"The copy of {source.name} is wrong: '{node.path}' differs from the source.",
                hint="Nothing was written. Check the disk, then export again.",
            )


def same_content(first: h5py.Dataset, second: h5py.Dataset) -> bool:
    """Whether two datasets have the same shape, type and values, NaN being equal to NaN."""
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    # References are addresses within a file: equal bytes, but never equal objects.
    if h5py.check_ref_dtype(first.dtype) is not None:
        return True
    return all(_same_values(first[rows], second[rows]) for rows in _blocks(first))


def _same_values(first: Any, second: Any) -> bool:
    if isinstance(first, np.ndarray | np.generic) and not first.dtype.hasobject:
        return bool(first.tobytes() == second.tobytes())
    flat = zip(np.ravel(first), np.ravel(second), strict=True)
    return all(np.array_equal(one, other) for one, other in flat)


def _blocks(dataset: h5py.Dataset) -> Iterator[Any]:
    """Selections that cover the dataset, whole chunks at a time."""
    if not dataset.shape:
        yield ()
        return
    row_bytes = math.prod(dataset.shape[1:]) * dataset.dtype.itemsize
    chunk = dataset.chunks[0] if dataset.chunks else 1
    rows = max(chunk, BLOCK_BYTES // max(1, row_bytes) // chunk * chunk)
    for start in range(0, dataset.shape[0], rows):
        yield slice(start, start + rows)

"""Files as user input: safe opening, links, aligned reading, fingerprint.

What the datasets mean is known to `layouts`; here they are only found, checked and read.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import hdf5plugin  # noqa: F401  registers Zstandard, Blosc, LZ4 ... before the first read
import numpy as np
from numpy.typing import NDArray

from converters.dataset_checks import (
    HDF5_ERRORS,
    check_chunks,
    check_fill,
    check_filters,
    damage_named,
)
from converters.errors import (
    BrokenLinkError,
    EmptySourceError,
    NotHdf5Error,
    SourceError,
    UnreadableSourceError,
)
from converters.memory_limit import limited_memory
from converters.text_columns import is_text_of_any_length, read_text

BLOCK_BYTES = 64 * 2**20
MAX_LINK_DEPTH = 16
# Links that one path may lead through: a chain of ten links to ten links ... never ends.
MAX_LINKS = 200
# Datasets that one virtual dataset may be put together from, those within others counted each time.
MAX_VIRTUAL_PARTS = 10_000


@dataclass(frozen=True, slots=True)
class Node:
    """One member of an HDF5 file: a dataset, or the reason why it cannot be opened."""

    path: str
    dataset: h5py.Dataset | None
    problem: SourceError | None = None


class Hdf5Source:
    """An HDF5 file opened for reading, whose links never leave its folder unless allowed.

    While it is open, the process may allocate `memory_limit.MAX_MEMORY_BYTES` more, not beyond.

    Args:
        path: the file.
        name: how tasks call it.
        outside_links: whether external links and virtual datasets may leave the file's folder.

    Raises:
        UnreadableSourceError: the file is missing, a folder, or may not be read.
        EmptySourceError: the file has no bytes.
        NotHdf5Error: the file is not HDF5, or truncated.
    """

    def __init__(self, path: Path, *, name: str = "", outside_links: bool = False) -> None:
        self.path = path
        self.name = name or path.name
        self._outside_links = outside_links
        self._folder = path.resolve().parent
        self._linked: dict[Path, h5py.File] = {}
        self._n_links = 0
        self._parts: dict[int, int] = {}
        with ExitStack() as opened:
            opened.enter_context(limited_memory(self.name))
            self.file = opened.enter_context(_open(path))
            self._opened = opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._opened.__exit__(kind, error, traceback)

    def dataset(self, path: str) -> h5py.Dataset | None:
        """The dataset at `path`, checked for links and filters; None when there is none.

        Raises:
            BrokenLinkError: a link on the way, or a source of a virtual dataset, is missing
                or leaves the folder.
            MissingFilterError: the dataset's filter is not installed or not safe.
        """
        self._n_links = 0
        found = self._resolve(self.file, path, depth=0)
        if not isinstance(found, h5py.Dataset):
            return None
        self._check_dataset(found)
        return found

    def group(self, path: str) -> h5py.Group | None:
        """The group at `path`, or None.

        Raises:
            BrokenLinkError: as `dataset`.
        """
        self._n_links = 0
        found = self._resolve(self.file, path, depth=0)
        return found if isinstance(found, h5py.Group) else None

    def walk(self) -> Iterator[Node]:
        """Every dataset of the file in name order; broken or refused links come as problems.

        `visititems` follows no external link, and soft links may form loops.
        """
        root = self._root(self.file)
        visited = {hash(root.id)}
        # Groups may lie deeper in each other than Python can recurse.
        waiting = [(root, name, _as_text(name)) for name in self._members(root)]
        while waiting:
            group, name, path = waiting.pop()
            self._n_links = 0
            try:
                member = self._follow(group, name, depth=0)
                if isinstance(member, h5py.Dataset):
                    self._check_dataset(member)
                    yield Node(path, member)
                elif isinstance(member, h5py.Group) and hash(member.id) not in visited:
                    visited.add(hash(member.id))
                    members = self._members(member)
                    waiting.extend((member, n, f"{path}/{_as_text(n)}") for n in members)
            except SourceError as problem:
                yield Node(path, None, problem)

    def root_names(self) -> list[str]:
        """Names of the members of the file's root that are text.

        Raises:
            NotHdf5Error: the file is damaged.
        """
        return [name for name in self._members(self._root(self.file)) if isinstance(name, str)]

    def _root(self, file: h5py.File) -> h5py.Group:
        with damage_named(self.name, "/"):
            return file["/"]

    def _members(self, group: h5py.Group) -> list[str | bytes]:
        """Names in a group, the last one first; bytes where they are no text."""
        with damage_named(self.name, str(group.name)):
            return sorted(group.keys(), key=str, reverse=True)

    @property
    def stored_bytes(self) -> int:
        """Length of the file and of all files that its links have led to so far."""
        return sum(path.stat().st_size for path in {self.path.resolve(), *self._linked})

    def _resolve(self, start: h5py.Group, path: str, *, depth: int) -> Any:
        here: Any = self._root(start.file) if path.startswith("/") else start
        for name in filter(None, path.split("/")):
            if name == ".":
                continue
            if not isinstance(here, h5py.Group):
                return None
            here = self._follow(here, name, depth=depth)
        return here

    def _follow(self, group: h5py.Group, name: str | bytes, *, depth: int) -> Any:
        if isinstance(name, bytes):
            raise NotHdf5Error(
                f"{self.name}: the name {name!r} is not text.",
                hint="The file is damaged, or its writer did not use UTF-8; rename the member.",
            )
        if depth > MAX_LINK_DEPTH:
            raise BrokenLinkError(
                f"{self.name}: the link '{name}' leads through more than {MAX_LINK_DEPTH} links.",
                hint="Copy the data into one file, e.g. with h5repack or h5copy.",
            )
        with damage_named(self.name, name):
            link = group.get(name, getlink=True)
            if isinstance(link, h5py.ExternalLink | h5py.SoftLink):
                self._count_link(name)
            if isinstance(link, h5py.ExternalLink):
                target = self._linked_file(group, link.filename)
                found = self._resolve(target, f"/{link.path}", depth=depth + 1)
                return self._found(found, f"{link.filename}:{link.path}")
            if isinstance(link, h5py.SoftLink):
                found = self._resolve(group, link.path, depth=depth + 1)
                return self._found(found, link.path)
            return group[name] if link is not None else None

    def _count_link(self, name: str) -> None:
        self._n_links += 1
        if self._n_links > MAX_LINKS:
            raise BrokenLinkError(
                f"{self.name}: the link '{name}' leads through more than {MAX_LINKS} links.",
                hint="Copy the data into one file, e.g. with h5repack or h5copy.",
            )

    def _found(self, found: Any, target: str) -> Any:
        if found is None:
            raise BrokenLinkError(
                f"{self.name}: a link points to '{target}', which does not exist.",
                hint="Put the missing file or dataset back, or remove the link.",
            )
        return found

    def _linked_file(self, group: h5py.HLObject, filename: str) -> h5py.File:
        target = (Path(group.file.filename).resolve().parent / filename).resolve()
        self._check_target(target)
        if target not in self._linked:
            self._linked[target] = self._opened.enter_context(_open(target))
        return self._linked[target]

    def _check_target(self, target: Path) -> None:
        if not self._outside_links and not target.is_relative_to(self._folder):
            raise BrokenLinkError(
                f"{self.name} refers to '{target}', outside its own folder.",
                hint="Move that file beside it, or allow it with --outside-links if you trust it.",
            )
        if not target.is_file():
            raise BrokenLinkError(
                f"{self.name} refers to '{target}', which does not exist.",
                hint="Put the missing file back, or remove the link.",
            )

    def _check_dataset(self, dataset: h5py.Dataset, *, within: tuple[int, ...] = ()) -> int:
        """Refuses what is missing, outside or without end; the number of datasets it is made of.

        Args:
            dataset: the dataset.
            within: the virtual datasets that this one is part of.
        """
        with damage_named(self.name, str(dataset.name)):
            number = hash(dataset.id)
            if number not in self._parts:
                check_filters(dataset, source=self.name)
                for filename, *_ in dataset.external or ():
                    # HDF5 looks for it from the working directory, not from the file's folder.
                    self._check_target(Path(filename).resolve())
                parts = self._check_virtual(dataset, (*within, number)) if dataset.is_virtual else 1
                # Only now: HDF5 opens the sources of a growing virtual dataset to tell its shape.
                _ = dataset.shape, dataset.dtype, dataset.chunks, dataset.maxshape
                self._parts[number] = parts
            return self._parts[number]

    def _check_virtual(self, dataset: h5py.Dataset, within: tuple[int, ...]) -> int:
        # HDF5 silently fills the images of a missing source with zeros, so each is looked up.
        parts = 0
        sources = [(s.file_name, s.dset_name) for s in dataset.virtual_sources()]
        for (filename, path), times in Counter(sources).items():
            if "%" in filename + path:
                raise BrokenLinkError(
                    f"{self.name}: a virtual dataset refers to the pattern '{filename}:{path}'.",
                    hint="Only sources with plain names are read; copy the data into one file.",
                )
            file = dataset.file if filename == "." else self._linked_file(dataset, filename)
            found = self._found(self._resolve(file, f"/{path}", depth=1), path)
            if not isinstance(found, h5py.Dataset):
                continue
            if hash(found.id) in within or len(within) > MAX_LINK_DEPTH:
                raise BrokenLinkError(
                    f"{self.name}: a virtual dataset is made of itself or of too many others.",
                    hint="Copy the data into one dataset, e.g. with h5copy.",
                )
            parts += times * self._check_dataset(found, within=within)
            check_chunks(found, f"{self.name}: '{found.name}'")
            check_fill(found, f"{self.name}: '{found.name}'")
        if parts > max(MAX_VIRTUAL_PARTS, len(sources)):
            raise BrokenLinkError(
                f"{self.name}: a virtual dataset is made of {parts:,} parts.",
                hint="Copy the data into one dataset, e.g. with h5copy.",
            )
        return parts


def _as_text(name: str | bytes) -> str:
    return name if isinstance(name, str) else name.decode("utf-8", "replace")


def _open(path: Path) -> h5py.File:
    _check_readable(path)
    try:
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        if "already open for write" in str(error):
            return _open_written(path)
        raise _not_hdf5(path, error) from error
    except HDF5_ERRORS as error:
        raise _not_hdf5(path, error) from error


def _open_written(path: Path) -> h5py.File:
    """A file that another program is writing in HDF5's single-writer mode."""
    try:
        return h5py.File(path, "r", locking=False, swmr=True)
    except HDF5_ERRORS as error:
        raise UnreadableSourceError(
            f"{path.name} is being written by another program, or was left open by a crash.",
            hint="Close the program, or clear the flag with `h5clear -s`.",
        ) from error


def _check_readable(path: Path) -> None:
    if path.exists() and not path.is_file():
        raise UnreadableSourceError(
            f"{path} is not a file.", hint="Give an HDF5 file, a picture, or a folder of them."
        )
    try:
        with path.open("rb") as stream:
            empty = not stream.read(1)
    except FileNotFoundError as error:
        raise UnreadableSourceError(
            f"{path} does not exist.", hint="Check the path for typing errors."
        ) from error
    except OSError as error:
        raise UnreadableSourceError(
            f"{path} cannot be read ({error.strerror}).",
            hint="Check that it is a file and that you may read it.",
        ) from error
    if empty:
        raise EmptySourceError(
            f"{path.name} is empty (0 bytes).", hint="Copy it again from where it was recorded."
        )


def _not_hdf5(path: Path, error: Exception) -> NotHdf5Error:
    if "truncated" in str(error):
        return NotHdf5Error(
            f"{path.name} is truncated: {path.stat().st_size:,} bytes, fewer than it declares.",
            hint="Copy it again from where it was recorded and compare the sizes.",
        )
    if h5py.is_hdf5(path):
        return NotHdf5Error(
            f"{path.name} is a damaged HDF5 file ({error}).",
            hint="Copy it again from where it was recorded and compare the sizes.",
        )
    return NotHdf5Error(
        f"{path.name} is not an HDF5 file.",
        hint="Give an HDF5 file (.pre, .seg, .h5, .rtdc), a picture, or a folder of pictures.",
    )


def count_rows(dataset: h5py.Dataset) -> int:
    """Number of images, labels or groups; a two-dimensional dataset is one image.

    One-dimensional datasets are columns of labels or groups; a single value has no row.
    """
    if not dataset.shape:
        return 0
    return 1 if dataset.ndim == 2 else int(dataset.shape[0])


def read_rows(dataset: h5py.Dataset, start: int, stop: int) -> NDArray[Any]:
    """Rows [start, stop) of a dataset; a two-dimensional image is its only row.

    Raises:
        NotHdf5Error: the stored bytes are damaged or missing.
    """
    try:
        if is_text_of_any_length(dataset):
            return read_text(dataset)[start:stop]
        rows: NDArray[Any] = dataset[()][np.newaxis] if dataset.ndim == 2 else dataset[start:stop]
    except HDF5_ERRORS as error:
        name = Path(dataset.file.filename).name
        raise NotHdf5Error(
            f"{name}: rows {start} to {stop - 1} of '{dataset.name}' cannot be read ({error}).",
            hint="The file is damaged or truncated; copy it again from where it was recorded.",
        ) from error
    return rows


def read_aligned(
    columns: Mapping[str, h5py.Dataset], indices: Sequence[int]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of several datasets in step, whole chunks at a time.

    Random access would decompress a chunk per image. Memory is bounded by `BLOCK_BYTES`
    (or one row), whatever the size of the file.

    Args:
        columns: datasets by name, all with at least max(indices) + 1 rows.
        indices: wanted rows, ascending.

    Yields:
        Index and the row of every column.
    """
    rows = _block_rows(list(columns.values()))
    for _, block in groupby(indices, key=lambda index: index // rows):
        wanted = list(block)
        first = wanted[0]
        arrays = {n: read_rows(d, first, wanted[-1] + 1) for n, d in columns.items()}
        for index in wanted:
            yield index, {name: array[index - first] for name, array in arrays.items()}


def _block_rows(datasets: Sequence[h5py.Dataset]) -> int:
    chunk = max((d.chunks[0] for d in datasets if d.chunks and d.ndim > 2), default=32)
    row_bytes = sum(math.prod(d.shape[1:]) * d.dtype.itemsize for d in datasets)
    return int(max(1, min(chunk, BLOCK_BYTES // max(1, row_bytes))))


def fingerprint(path: Path) -> str:
    """SHA-256 over the whole content of a file, or over paths and contents of a folder.

    The export compares it to prove that a source is still the one that was imported, so
    nothing shorter than all bytes will do; it runs at the speed of the disk in constant memory.

    Returns:
        64 hexadecimal digits.

    Raises:
        UnreadableSourceError: a file may not be read.
    """
    try:
        if not path.is_dir():
            return _digest(path)
        whole = hashlib.sha256()
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            name = file.relative_to(path).as_posix()
            # A name need not be UTF-8; such a file is never read, and changes nothing but this.
            whole.update(f"{name}\0{_digest(file)}\n".encode(errors="surrogateescape"))
    except OSError as error:
        raise UnreadableSourceError(
            f"{path} cannot be read ({error.strerror}).", hint="Check that you may read it."
        ) from error
    return whole.hexdigest()


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

"""Files as user input: safe opening, links, checks before allocating, aligned reading, fingerprint.

What the datasets mean is known to `layouts`; here they are only found, checked and read.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import hdf5plugin  # noqa: F401  registers Zstandard, Blosc, LZ4 ... before the first read
import numpy as np
from numpy.typing import NDArray

from converters.errors import (
    BrokenLinkError,
    EmptySourceError,
    MissingFilterError,
    NotHdf5Error,
    ShapeMismatchError,
    SourceError,
    UnreadableSourceError,
)
from converters.memory_limit import limited_memory
from converters.text_columns import is_text_of_any_length, read_text

BLOCK_BYTES = 64 * 2**20
MAX_CHUNK_BYTES = 2**28
MAX_IMAGE_PX = 24 * 10**6
MAX_COLOUR_CHANNELS = 4
MAX_ITEM_BYTES = 8
MAX_LINK_DEPTH = 16
# Links that one path may lead through: a chain of ten links to ten links ... never ends.
MAX_LINKS = 200
# Datasets that one virtual dataset may be put together from, those within others counted each time.
MAX_VIRTUAL_PARTS = 10_000
MIN_STORED_SHARE = 0.5
FREE_CHUNK_BYTES = 2**16
# A file may declare this much whatever its size, and beyond it so many bytes per stored byte. The
# masks of RT-DC files pack best (about 1:100), beside pictures that hardly pack at all.
FREE_BYTES = 2**28
MAX_UNPACKING = 250

_HDF5_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError)


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
            MissingFilterError: the dataset is compressed with a filter that is not installed.
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
        with _damage_named(self.name, "/"):
            return file["/"]

    def _members(self, group: h5py.Group) -> list[str | bytes]:
        """Names in a group, the last one first; bytes where they are no text."""
        with _damage_named(self.name, str(group.name)):
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
        with _damage_named(self.name, name):
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
        with _damage_named(self.name, str(dataset.name)):
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
        if parts > max(MAX_VIRTUAL_PARTS, len(sources)):
            raise BrokenLinkError(
                f"{self.name}: a virtual dataset is made of {parts:,} parts.",
                hint="Copy the data into one dataset, e.g. with h5copy.",
            )
        return parts


def _as_text(name: str | bytes) -> str:
    return name if isinstance(name, str) else name.decode("utf-8", "replace")


@contextmanager
def _damage_named(source: str, where: str) -> Iterator[None]:
    """Turns what h5py raises on damaged structures into one sentence."""
    try:
        yield
    except _HDF5_ERRORS as error:
        raise NotHdf5Error(
            f"{source}: '{where}' cannot be read; the file is damaged or truncated ({error}).",
            hint="Copy it again from where it was recorded and compare the sizes.",
        ) from error


def _open(path: Path) -> h5py.File:
    _check_readable(path)
    try:
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        if "already open for write" in str(error):
            return _open_written(path)
        raise _not_hdf5(path, error) from error
    except _HDF5_ERRORS as error:
        raise _not_hdf5(path, error) from error


def _open_written(path: Path) -> h5py.File:
    """A file that another program is writing in HDF5's single-writer mode."""
    try:
        return h5py.File(path, "r", locking=False, swmr=True)
    except _HDF5_ERRORS as error:
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


def check_filters(dataset: h5py.Dataset, *, source: str) -> None:
    """Refuses a dataset whose compression cannot be undone here.

    Raises:
        MissingFilterError: names the filter by number and name.
    """
    creation = dataset.id.get_create_plist()
    for position in range(creation.get_nfilters()):
        code, _, _, name = creation.get_filter(position)
        if not h5py.h5z.filter_avail(code):
            text = name.decode("ascii", "replace") or "unnamed"
            raise MissingFilterError(
                f"{source}: '{dataset.name}' is compressed with HDF5 filter {code} ({text}), "
                "which is not installed.",
                hint="Install its HDF5 plugin, or rewrite the file with `h5repack -f GZIP=4`.",
            )


def check_images(dataset: h5py.Dataset, *, source: str) -> None:
    """Refuses an image dataset whose declared shape cannot be true, before anything is allocated.

    Args:
        dataset: images, shape (H, W), (N, H, W) or (N, H, W, C), any numeric dtype.
        source: name for the message.

    Raises:
        EmptySourceError: no image, or none stored.
        ShapeMismatchError: not images of numbers, too large, or far more declared than stored.
    """
    with _damage_named(source, dataset.name):
        _check_images(dataset, f"{source}: '{dataset.name}'")


def _check_images(dataset: h5py.Dataset, where: str) -> None:
    shape = dataset.shape
    if shape is None or dataset.ndim not in (2, 3, 4) or dataset.dtype.kind not in "buif":
        raise ShapeMismatchError(
            f"{where} has shape {shape} and type {dataset.dtype}, which are not images.",
            hint="Images are numbers of shape (N, H, W) or (N, H, W, C).",
        )
    if dataset.dtype.itemsize > MAX_ITEM_BYTES or (
        dataset.ndim == 4 and shape[3] > MAX_COLOUR_CHANNELS
    ):
        raise ShapeMismatchError(
            f"{where} has shape {shape} and type {dataset.dtype}: too wide for a picture.",
            hint="Images have at most 4 channels of at most 64 bits.",
        )
    if 0 in shape:
        raise EmptySourceError(
            f"{where} holds no image (shape {shape}).", hint="Choose a file with cells."
        )
    height, width = image_size(dataset)
    if height * width > MAX_IMAGE_PX:
        raise ShapeMismatchError(
            f"{where} declares images of {width}x{height} px, more than {MAX_IMAGE_PX:,} px.",
            hint="Cut the images into fields before importing them.",
        )
    _check_storage(dataset, where)


def _check_storage(dataset: h5py.Dataset, where: str) -> None:
    if dataset.is_virtual:
        _check_mapping(dataset, where)
        return
    if dataset.external:
        _check_external_length(dataset, where)
        return
    if dataset.id.get_storage_size() == 0:
        raise EmptySourceError(
            f"{where} declares {dataset.shape} but stores nothing.",
            hint="The writer stopped before the first image; record or copy it again.",
        )
    if not dataset.chunks:
        return
    check_chunks(dataset, where)
    sides = zip(dataset.shape, dataset.chunks, strict=True)
    declared = math.prod(-(-size // chunk) for size, chunk in sides)
    stored = dataset.id.get_num_chunks()
    if stored < MIN_STORED_SHARE * declared:
        raise ShapeMismatchError(
            f"{where} declares {dataset.shape} but stores only {stored:,} of {declared:,} chunks.",
            hint="The writer was interrupted or the shape is wrong; record or copy it again.",
        )


def check_chunks(dataset: h5py.Dataset, where: str) -> None:
    """Refuses chunks that would unfold to more than they should; `where` is for the message.

    libhdf5 gives a filter all the memory it asks for. No filter makes data twice as long, so a
    longer chunk unfolds to something else than it declares.

    Raises:
        ShapeMismatchError: a chunk has more than `MAX_CHUNK_BYTES` bytes, or is stored in more than
            twice its size.
    """
    if dataset.chunks is None:
        return
    chunks = dataset.chunks
    whole = math.prod(chunks) * dataset.dtype.itemsize
    if whole > MAX_CHUNK_BYTES:
        raise ShapeMismatchError(
            f"{where} has chunks of {chunks}, more than {MAX_CHUNK_BYTES:,} bytes each.",
            hint="Rewrite it with smaller chunks, e.g. `h5repack -l CHUNK=16x512x512`.",
        )
    longest = 0

    def look(chunk: h5py.h5d.StoreInfo) -> None:
        nonlocal longest
        longest = max(longest, int(chunk.size))

    dataset.id.chunk_iter(look)
    if longest > 2 * whole + FREE_CHUNK_BYTES:
        raise ShapeMismatchError(
            f"{where} stores {longest:,} bytes in a chunk of {whole:,} bytes.",
            hint="The file is damaged or made to harm; record or copy it again.",
        )


def check_volume(datasets: Sequence[h5py.Dataset], *, source: str, stored_bytes: int) -> None:
    """Refuses datasets that unfold to many times what is stored, as bombs do.

    Args:
        datasets: all that are read together.
        source: name for the message.
        stored_bytes: length of the file or files.

    Raises:
        ShapeMismatchError: they declare more than `FREE_BYTES` and more than `MAX_UNPACKING` times
            the length of the file.
    """
    declared = sum(dataset.size * dataset.dtype.itemsize for dataset in datasets)
    if declared > max(FREE_BYTES, MAX_UNPACKING * stored_bytes):
        raise ShapeMismatchError(
            f"{source} declares {declared:,} bytes of images but is only {stored_bytes:,} long.",
            hint="The shape is wrong or the images are all alike; record or copy it again.",
        )


def _check_external_length(dataset: h5py.Dataset, where: str) -> None:
    """Refuses raw storage shorter than the dataset; HDF5 would read zeros beyond its end."""
    stored = sum(
        min(size, max(0, Path(filename).stat().st_size - offset))
        for filename, offset, size in dataset.external
    )
    if stored < dataset.size * dataset.dtype.itemsize:
        raise ShapeMismatchError(
            f"{where} declares {dataset.shape} but its raw file holds only {stored:,} bytes.",
            hint="Copy that file again from where it was recorded.",
        )


def _check_mapping(dataset: h5py.Dataset, where: str) -> None:
    """Refuses a virtual dataset most of which maps to nothing, and would be read as zeros."""
    try:
        mapped = sum(source.vspace.get_select_npoints() for source in dataset.virtual_sources())
    except RuntimeError:
        return  # an unlimited selection is as long as its source
    if mapped < MIN_STORED_SHARE * dataset.size:
        raise ShapeMismatchError(
            f"{where} declares {dataset.shape} but maps only {mapped:,} values to a source.",
            hint="Write the virtual dataset again with the shape of what it refers to.",
        )


def image_size(dataset: h5py.Dataset) -> tuple[int, int]:
    """Height and width in px of images (H, W), (N, H, W) or (N, H, W, C); 0 if it has none."""
    if dataset.shape is None or dataset.ndim < 2:
        return 0, 0
    shape = dataset.shape if dataset.ndim == 2 else dataset.shape[1:3]
    return int(shape[0]), int(shape[1])


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
    except _HDF5_ERRORS as error:
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
            whole.update(f"{file.relative_to(path).as_posix()}\0{_digest(file)}\n".encode())
    except OSError as error:
        raise UnreadableSourceError(
            f"{path} cannot be read ({error.strerror}).", hint="Check that you may read it."
        ) from error
    return whole.hexdigest()


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

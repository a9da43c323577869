"""Files as user input: safe opening, links, checks before allocating, aligned reading, fingerprint.

What the datasets mean is known to `layouts`; here they are only found, checked and read.
"""

import hashlib
import math
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

BLOCK_BYTES = 64 * 2**20
MAX_CHUNK_BYTES = 2**30
MAX_IMAGE_PX = 64 * 10**6
MAX_LINK_DEPTH = 16
MIN_STORED_SHARE = 0.5

_HDF5_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError)


@dataclass(frozen=True, slots=True)
class Node:
    """One member of an HDF5 file: a dataset, or the reason why it cannot be opened."""

    path: str
    dataset: h5py.Dataset | None
    problem: SourceError | None = None


class Hdf5Source:
    """An HDF5 file opened for reading, whose links never leave its folder unless allowed.

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
        self._opened = ExitStack()
        self.file = self._opened.enter_context(_open(path))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._opened.close()

    def dataset(self, path: str) -> h5py.Dataset | None:
        """The dataset at `path`, checked for links and filters; None when there is none.

        Raises:
            BrokenLinkError: a link on the way, or a source of a virtual dataset, is missing
                or leaves the folder.
            MissingFilterError: the dataset is compressed with a filter that is not installed.
        """
        found = self._resolve(self.file, path, depth=0)
        if not isinstance(found, h5py.Dataset):
            return None
        self._check_dataset(found, depth=0)
        return found

    def group(self, path: str) -> h5py.Group | None:
        """The group at `path`, or None.

        Raises:
            BrokenLinkError: as `dataset`.
        """
        found = self._resolve(self.file, path, depth=0)
        return found if isinstance(found, h5py.Group) else None

    def walk(self) -> Iterator[Node]:
        """Every dataset of the file in name order; broken or refused links come as problems.

        `visititems` follows no external link, and soft links may form loops.
        """
        root = self.file["/"]
        yield from self._walk(root, "", visited={hash(root.id)})

    def _walk(self, group: h5py.Group, prefix: str, *, visited: set[int]) -> Iterator[Node]:
        with _damage_named(self.name, group.name):
            names = sorted(group.keys())
        for name in names:
            path = f"{prefix}{name}"
            try:
                member = self._follow(group, name, depth=0)
                if isinstance(member, h5py.Dataset):
                    self._check_dataset(member, depth=0)
            except SourceError as problem:
                yield Node(path, None, problem)
                continue
            if isinstance(member, h5py.Dataset):
                yield Node(path, member)
            elif isinstance(member, h5py.Group) and hash(member.id) not in visited:
                visited.add(hash(member.id))
                yield from self._walk(member, f"{path}/", visited=visited)

    def _resolve(self, start: h5py.Group, path: str, *, depth: int) -> Any:
        here: Any = start.file["/"] if path.startswith("/") else start
        for name in filter(None, path.split("/")):
            if name == ".":
                continue
            if not isinstance(here, h5py.Group):
                return None
            here = self._follow(here, name, depth=depth)
        return here

    def _follow(self, group: h5py.Group, name: str, *, depth: int) -> Any:
        if depth > MAX_LINK_DEPTH:
            raise BrokenLinkError(
                f"{self.name}: the link '{name}' leads through more than {MAX_LINK_DEPTH} links.",
                hint="Copy the data into one file, e.g. with h5repack or h5copy.",
            )
        with _damage_named(self.name, f"{group.name}/{name}"):
            link = group.get(name, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                target = self._linked_file(group, link.filename)
                found = self._resolve(target, f"/{link.path}", depth=depth + 1)
                return self._found(found, f"{link.filename}:{link.path}")
            if isinstance(link, h5py.SoftLink):
                found = self._resolve(group, link.path, depth=depth + 1)
                return self._found(found, link.path)
            return group[name] if link is not None else None

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

    def _check_dataset(self, dataset: h5py.Dataset, *, depth: int) -> None:
        with _damage_named(self.name, dataset.name):
            check_filters(dataset, source=self.name)
            folder = Path(dataset.file.filename).resolve().parent
            for filename, *_ in dataset.external or ():
                self._check_target((folder / filename).resolve())
            if dataset.is_virtual:
                self._check_virtual(dataset, depth=depth)

    def _check_virtual(self, dataset: h5py.Dataset, *, depth: int) -> None:
        # HDF5 silently fills the images of a missing source with zeros, so each is looked up.
        for filename, path in {(s.file_name, s.dset_name) for s in dataset.virtual_sources()}:
            file = dataset.file if filename == "." else self._linked_file(dataset, filename)
            found = self._found(self._resolve(file, f"/{path}", depth=depth + 1), path)
            if depth < MAX_LINK_DEPTH and found != dataset and isinstance(found, h5py.Dataset):
                self._check_dataset(found, depth=depth + 1)


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
        return
    if dataset.id.get_storage_size() == 0:
        raise EmptySourceError(
            f"{where} declares {dataset.shape} but stores nothing.",
            hint="The writer stopped before the first image; record or copy it again.",
        )
    if not dataset.chunks:
        return
    if math.prod(dataset.chunks) * dataset.dtype.itemsize > MAX_CHUNK_BYTES:
        raise ShapeMismatchError(
            f"{where} has chunks of {dataset.chunks}, more than {MAX_CHUNK_BYTES:,} bytes each.",
            hint="Rewrite it with smaller chunks, e.g. `h5repack -l CHUNK=16x512x512`.",
        )
    sides = zip(dataset.shape, dataset.chunks, strict=True)
    declared = math.prod(-(-size // chunk) for size, chunk in sides)
    stored = dataset.id.get_num_chunks()
    if stored < MIN_STORED_SHARE * declared:
        raise ShapeMismatchError(
            f"{where} declares {dataset.shape} but stores only {stored:,} of {declared:,} chunks.",
            hint="The writer was interrupted or the shape is wrong; record or copy it again.",
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
    """Height and width in px of images of shape (H, W), (N, H, W) or (N, H, W, C)."""
    shape = dataset.shape if dataset.ndim == 2 else dataset.shape[1:3]
    return int(shape[0]), int(shape[1])


def count_rows(dataset: h5py.Dataset) -> int:
    """Number of images, labels or groups; a two-dimensional dataset is one image.

    One-dimensional datasets are columns of labels or groups.
    """
    return 1 if dataset.ndim == 2 else int(dataset.shape[0])


def read_rows(dataset: h5py.Dataset, start: int, stop: int) -> NDArray[Any]:
    """Rows [start, stop) of a dataset; a two-dimensional image is its only row.

    Raises:
        NotHdf5Error: the stored bytes are damaged or missing.
    """
    try:
        rows: NDArray[Any] = dataset[()][np.newaxis] if dataset.ndim == 2 else dataset[start:stop]
    except (*_HDF5_ERRORS, MemoryError) as error:
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

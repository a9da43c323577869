"""Checks of a dataset before anything is read or allocated: shape, chunks, storage, filters.

A file may declare what it likes; each check refuses in one sentence what cannot be images of cells.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401  registers Zstandard, Blosc, LZ4 ... before filters are looked for

from converters.errors import (
    EmptySourceError,
    MissingFilterError,
    NotHdf5Error,
    ShapeMismatchError,
)

MAX_CHUNK_BYTES = 2**28
MAX_IMAGE_PX = 24 * 10**6
MAX_COLOUR_CHANNELS = 4
MAX_ITEM_BYTES = 8
MIN_STORED_SHARE = 0.5
FREE_CHUNK_BYTES = 2**16
# A file may declare this much whatever its size, and beyond it so many bytes per stored byte. The
# masks of RT-DC files pack best (about 1:100), beside pictures that hardly pack at all.
FREE_BYTES = 2**28
MAX_UNPACKING = 250

HDF5_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError)


@contextmanager
def damage_named(source: str, where: str) -> Iterator[None]:
    """Turns what h5py raises on damaged structures into one sentence."""
    try:
        yield
    except HDF5_ERRORS as error:
        raise NotHdf5Error(
            f"{source}: '{where}' cannot be read; the file is damaged or truncated ({error}).",
            hint="Copy it again from where it was recorded and compare the sizes.",
        ) from error


def check_filters(dataset: h5py.Dataset, *, source: str) -> None:
    """Refuses a dataset whose compression cannot be undone here, or not without danger.

    Raises:
        MissingFilterError: names the filter.
    """
    creation = dataset.id.get_create_plist()
    for position in range(creation.get_nfilters()):
        code, _, _, name = creation.get_filter(position)
        text = name.decode("ascii", "replace") or "unnamed"
        if code == h5py.h5z.FILTER_NBIT:
            # Its reader believes the parameters in the file (CVE-2026-19026, CVE-2026-19027).
            raise MissingFilterError(
                f"{source}: '{dataset.name}' is packed with HDF5's N-Bit filter, which forged files"
                " can crash.",
                hint="If you trust the file, rewrite it with `h5repack -f GZIP=4`.",
            )
        if not h5py.h5z.filter_avail(code):
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
    with damage_named(source, dataset.name):
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
    declared, stored = _count_chunks(dataset), dataset.id.get_num_chunks()
    if stored < MIN_STORED_SHARE * declared:
        raise ShapeMismatchError(
            f"{where} declares {dataset.shape} but stores only {stored:,} of {declared:,} chunks.",
            hint="The writer was interrupted or the shape is wrong; record or copy it again.",
        )
    check_fill(dataset, where)


def check_fill(dataset: h5py.Dataset, where: str) -> None:
    """Refuses missing chunks that would be filled with a value from the file.

    libhdf5 2.0.0 fills them from a value whose length nobody checked (CVE-2026-106547).

    Args:
        dataset: images, in chunks or not.
        where: name for the message.

    Raises:
        ShapeMismatchError: a chunk is missing and the file gives the value of its pixels.
    """
    if not dataset.chunks:
        return
    declared, stored = _count_chunks(dataset), dataset.id.get_num_chunks()
    filling = dataset.id.get_create_plist().fill_value_defined()
    if stored < declared and filling == h5py.h5d.FILL_VALUE_USER_DEFINED:
        raise ShapeMismatchError(
            f"{where} stores {stored:,} of {declared:,} chunks and a value to fill the rest with.",
            hint="Images were left out. If you trust the file, rewrite it with"
            " `h5repack -f GZIP=4`.",
        )


def _count_chunks(dataset: h5py.Dataset) -> int:
    """How many chunks the shape of a dataset in chunks asks for."""
    sides = zip(dataset.shape, dataset.chunks, strict=True)
    return math.prod(-(-size // chunk) for size, chunk in sides)


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

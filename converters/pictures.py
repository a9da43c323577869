"""Folders of PNG, JPEG and TIFF pictures; the folder a picture lies in names its class.

Pictures are user input: unreadable and oversized ones are reported and left out.
"""

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from converters.dataset_checks import MAX_IMAGE_PX
from converters.errors import UnreadableSourceError
from converters.images import FULL_SCALE_SAMPLES, SourceImage, as_rgb, full_scale
from converters.problems import Problems

PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff"})
HDF5_SUFFIXES = frozenset({".h5", ".hdf5", ".hdf", ".seg", ".pre", ".rtdc"})
FORMATS = ("PNG", "JPEG", "TIFF")
MAX_PAGES = 100_000
# What Pillow raises on damaged or hostile pictures.
PICTURE_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    MemoryError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


@dataclass(frozen=True, slots=True)
class Picture:
    """A page of a picture file.

    Attributes:
        path: the file.
        source: its name, the path relative to the folder that was given.
        label: the class folder it lies in, None outside of any.
        page: of a TIFF with several.
    """

    path: Path
    source: str
    label: str | None
    page: int = 0


@dataclass(frozen=True)
class PictureStack:
    """Pictures of a folder, in the order of their paths."""

    source: str
    pictures: tuple[Picture, ...]
    problems: Problems

    @property
    def count(self) -> int:
        """Number of pictures, pages counted singly."""
        return len(self.pictures)

    @property
    def size_px(self) -> None:
        """Unknown before the pictures are opened."""
        return

    def labels(self) -> Iterator[str | None]:
        """Names of the class folders."""
        return (picture.label for picture in self.pictures)

    def read(self, indices: Sequence[int]) -> Iterator[SourceImage]:
        """The pictures at `indices`; those that cannot be read are reported and left out."""
        for index in indices:
            picture = self.pictures[index]
            pixels = self._pixels(picture)
            if pixels is None:
                continue
            is_phase = pixels.ndim == 2 and pixels.dtype.kind == "f"
            yield SourceImage(
                source=picture.source,
                dataset="",
                index=picture.page,
                label=picture.label,
                phase=pixels if is_phase else None,
                image=None if is_phase else as_rgb(pixels, full_scale=self._scale(pixels)),
                whole=picture.label is not None,
                given=self.source,
            )

    def _pixels(self, picture: Picture) -> NDArray[Any] | None:
        try:
            pixels, remark = read_picture(picture.path, page=picture.page)
        except PICTURE_ERRORS as error:
            self.problems.report(self.source, _why(error), where=picture.source)
            return None
        if remark:
            self.problems.report(self.source, remark, where=picture.source)
        return pixels

    def _scale(self, pixels: NDArray[Any]) -> float:
        return 255.0 if pixels.dtype == np.uint8 else self._deep_scale

    @cached_property
    def _deep_scale(self) -> float:
        """Full scale of the pictures of more than 8 bits, from an even sample of the folder."""
        maximum = 0.0
        for at in np.unique(np.linspace(0, self.count - 1, FULL_SCALE_SAMPLES).astype(int)):
            pixels = _readable(self.pictures[at])
            if pixels is not None and pixels.dtype != np.uint8:
                maximum = max(maximum, float(pixels.max()))
        return full_scale(maximum or 65535, np.dtype(np.uint16))


def _readable(picture: Picture) -> NDArray[Any] | None:
    try:
        return read_picture(picture.path, page=picture.page)[0]
    except PICTURE_ERRORS:
        return None  # reported when its turn comes


def _why(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"picture larger than {MAX_IMAGE_PX:,} px: skipped"
    return "not a readable picture: skipped"


def read_picture(
    path: Path | BinaryIO, *, page: int = 0, max_px: int = MAX_IMAGE_PX
) -> tuple[NDArray[Any], str]:
    """Pixels of a picture, turned upright as its camera recorded.

    CMYK, palettes and alpha (over white) become RGB; 16-bit greys stay 16-bit; 32-bit floats stay
    floats, which are taken as phase in rad.

    Args:
        path: PNG, JPEG or TIFF file, or its content.
        page: of a TIFF with several.
        max_px: pixels that a picture may have.

    Returns:
        (H, W) or (H, W, 3) pixels, and a remark for the user or ''.

    Raises:
        OSError: not a picture, truncated or damaged (Pillow raises others, too).
        PIL.Image.DecompressionBombError: more than `max_px` pixels.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path, formats=FORMATS) as picture:
            picture.seek(page)
            if picture.width * picture.height > max_px:
                msg = f"{picture.width}x{picture.height} px"
                raise Image.DecompressionBombError(msg)
            remark = _animation_remark(picture)
            upright = ImageOps.exif_transpose(picture)
            return _as_array(upright), remark


def _animation_remark(picture: Image.Image) -> str:
    animated = picture.format == "PNG" and getattr(picture, "n_frames", 1) > 1
    return "animated picture: only the first image is used" if animated else ""


def _as_array(picture: Image.Image) -> NDArray[Any]:
    if picture.mode == "F":
        return np.asarray(picture, dtype=np.float32)
    if picture.mode.startswith("I"):
        return np.clip(np.asarray(picture), 0, 65535).astype(np.uint16)
    if picture.mode in ("1", "L"):
        return np.asarray(picture.convert("L"))
    if picture.has_transparency_data:
        return as_rgb(np.asarray(picture.convert("RGBA")), full_scale=255)
    return np.asarray(picture.convert("RGB"))


def find_files(
    root: Path, *, outside_links: bool, problems: Problems
) -> tuple[list[Picture], list[Path]]:
    """Pictures and HDF5 files of a folder and its sub-folders, in the order of their paths.

    Args:
        root: the folder.
        outside_links: whether symbolic links may leave it.
        problems: told about every file that is neither, and refused links.

    Raises:
        UnreadableSourceError: the folder may not be read.
    """
    pictures: list[Picture] = []
    hdf5: list[Path] = []
    for path in _walk(root):
        name = path.relative_to(root).as_posix()
        suffix = path.suffix.casefold()
        if not is_text(name):
            problems.report(root.name, "name is not UTF-8: skipped", where=name)
        elif not outside_links and not path.resolve().is_relative_to(root.resolve()):
            problems.report(root.name, "symbolic link out of the folder: skipped", where=name)
        elif suffix in PICTURE_SUFFIXES:
            pictures.extend(_pages(path, name, root))
        elif suffix in HDF5_SUFFIXES:
            hdf5.append(path)
        else:
            problems.report(root.name, "neither a picture nor HDF5: skipped", where=name)
    return pictures, hdf5


def is_text(name: str) -> bool:
    """Whether a file's name is UTF-8, so that a task can carry it."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _walk(root: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise UnreadableSourceError(
            f"{error.filename} cannot be read ({error.strerror}).",
            hint="Check that you may read the folder and everything in it.",
        ) from error

    for folder, subfolders, files in os.walk(root, onerror=refuse):
        subfolders.sort()
        yield from (Path(folder, name) for name in sorted(files))


def is_picture_source(path: Path) -> bool:
    """Whether the path is a folder or named like a picture; everything else should be HDF5."""
    return path.is_dir() or path.suffix.casefold() in PICTURE_SUFFIXES


def single_picture(path: Path) -> list[Picture]:
    """The pages of a picture that was given by itself; it has no label."""
    return list(_pages(path, path.name, path.parent))


def _pages(path: Path, name: str, root: Path) -> Iterator[Picture]:
    label = path.parent.name if path.parent != root else None
    for page in range(_count_pages(path)):
        yield Picture(path, name, label, page)


def _count_pages(path: Path) -> int:
    if path.suffix.casefold() not in (".tif", ".tiff"):
        return 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=("TIFF",)) as picture:
                return min(int(getattr(picture, "n_frames", 1)), MAX_PAGES)
    except PICTURE_ERRORS:
        return 1  # reported when it is read

"""Images as they stand in a source, with everything the source says about them, one at a time.

Sits between the layouts of files and the cells in the images; knows nothing about cells.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from converters.label_columns import decode_labels
from converters.layouts import Columns
from converters.source import read_aligned, read_rows

FloatArray = NDArray[np.float32]
UInt8Array = NDArray[np.uint8]
BoolArray = NDArray[np.bool_]

CAMERA_FULL_SCALES = (255, 1023, 4095, 16383, 65535)
FULL_SCALE_SAMPLES = 16
LABEL_BLOCK = 65536


@dataclass(frozen=True, slots=True, eq=False)
class SourceImage:
    """One image of a source, at its own size and in its own dtype.

    Attributes:
        source: file name, relative posix path inside a folder.
        dataset: path of the image dataset, '' for a picture.
        index: of the image in the dataset, page of a picture.
        label: class name as the source spells it; None when it has none.
        group: field of view as the source names it, '' when it names none.
        phase: (H, W), rad, any numeric dtype.
        amplitude: (H, W), background-subtracted, any numeric dtype.
        image: (H, W, 3) uint8 RGB.
        background: (H, W, 3) uint8 RGB, the picture without the cell.
        mask: (H, W), 0 outside cells.
        whole: the label names the picture as a whole, whatever its size.
        given: name under which troubles are counted, the folder of a picture; '' for `source`.
    """

    source: str
    dataset: str
    index: int
    label: str | None = None
    group: str = ""
    phase: NDArray[Any] | None = None
    amplitude: NDArray[Any] | None = None
    image: UInt8Array | None = None
    background: UInt8Array | None = None
    mask: NDArray[Any] | None = None
    whole: bool = False
    given: str = ""

    @property
    def size_px(self) -> tuple[int, int]:
        """Height and width."""
        for channel in (self.phase, self.image, self.amplitude):
            if channel is not None:
                return channel.shape[0], channel.shape[1]
        msg = f"{self.source} {self.dataset}[{self.index}] has no channel"
        raise ValueError(msg)

    @property
    def where(self) -> str:
        """Place of the image for messages."""
        return f"{self.dataset}[{self.index}]" if self.dataset else self.source


class ImageStack(Protocol):
    """Images that are read in order, such as a dataset or a folder of pictures."""

    @property
    def source(self) -> str:
        """Name of the source."""

    @property
    def count(self) -> int:
        """Number of images."""

    @property
    def size_px(self) -> tuple[int, int] | None:
        """Height and width when all images share them."""

    def labels(self) -> Iterator[str | None]:
        """Label of each image, read without the images."""

    def read(self, indices: Sequence[int]) -> Iterator[SourceImage]:
        """The images at ascending positions; pictures that cannot be read are left out."""


@dataclass(frozen=True)
class Hdf5Stack:
    """Images of one stack of an HDF5 file; valid while the file is open."""

    source: str
    columns: Columns

    @property
    def count(self) -> int:
        """Number of images."""
        return self.columns.count

    @property
    def size_px(self) -> tuple[int, int]:
        """Height and width of every image."""
        shape = self.columns.first.shape
        return (shape[0], shape[1]) if len(shape) == 2 else (shape[1], shape[2])

    def labels(self) -> Iterator[str | None]:
        """Labels in file order, block by block."""
        column = self.columns.labels
        if column is None:
            yield from (None for _ in range(self.count))
            return
        for start in range(0, self.count, LABEL_BLOCK):
            stop = min(start + LABEL_BLOCK, self.count)
            yield from decode_labels(read_rows(column, start, stop))

    def read(self, indices: Sequence[int]) -> Iterator[SourceImage]:
        """The images at `indices`, whole chunks at a time.

        Raises:
            NotHdf5Error: the stored bytes are damaged.
        """
        for index, row in read_aligned(self.columns.present(), indices):
            yield SourceImage(
                source=self.source,
                dataset=self.columns.dataset,
                index=index,
                label=next(decode_labels(_column(row["labels"]))) if "labels" in row else None,
                group=_group_name(row.get("groups")),
                phase=_plane(row.get("phase")),
                amplitude=self._amplitude(_plane(row.get("amplitude"))),
                image=self._rgb(row.get("image")),
                background=self._rgb(row.get("background")),
                mask=_plane(row.get("mask")),
            )

    def _amplitude(self, amplitude: NDArray[Any] | None) -> NDArray[Any] | None:
        if amplitude is None or not self.columns.relative_amplitude:
            return amplitude
        return percent_of_background(amplitude)

    def _rgb(self, image: NDArray[Any] | None) -> UInt8Array | None:
        return None if image is None else as_rgb(image, full_scale=self._full_scale)

    @cached_property
    def _full_scale(self) -> float:
        image = self.columns.image
        if image is None or image.dtype == np.uint8:
            return 255.0
        positions = np.linspace(0, self.count - 1, FULL_SCALE_SAMPLES).astype(int)
        samples = (read_rows(image, at, at + 1) for at in sorted(set(positions.tolist())))
        return full_scale(max(float(np.nanmax(sample)) for sample in samples), image.dtype)


def _column(value: Any) -> NDArray[Any]:
    array = np.empty(1, dtype=getattr(value, "dtype", object))
    array[0] = value
    return array


def _group_name(value: Any) -> str:
    return "" if value is None else next(decode_labels(_column(value))) or ""


def _plane(channel: NDArray[Any] | None) -> NDArray[Any] | None:
    return channel[..., 0] if channel is not None and channel.ndim == 3 else channel


def full_scale(maximum: float, dtype: np.dtype[Any]) -> float:
    """The value that is drawn white: the full scale of the camera that fits the largest value seen.

    Cameras of 10 to 14 bits store 16-bit numbers; scaling by 65535 would draw them black.

    Args:
        maximum: largest value of a sample of the images.
        dtype: of the images; floats up to 1 have full scale 1.
    """
    if dtype.kind == "b" or (dtype.kind == "f" and maximum <= 1):
        return 1.0
    return float(next((scale for scale in CAMERA_FULL_SCALES if maximum <= scale), maximum))


def as_rgb(image: NDArray[Any], *, full_scale: float) -> UInt8Array:
    """A camera picture as RGB.

    Args:
        image: (H, W) or (H, W, C) with C 1 (grey), 3 (RGB) or 4 (RGBA, over white); NaN becomes 0.
        full_scale: value drawn as 255.

    Returns:
        (H, W, 3) uint8.
    """
    planes = image if image.ndim == 3 else image[..., np.newaxis]
    if planes.dtype != np.uint8:
        scaled = np.nan_to_num(planes.astype(np.float32)) * np.float32(255 / full_scale)
        planes = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    if planes.shape[2] == 4:
        alpha = planes[..., 3:].astype(np.float32) / 255
        planes = np.rint(planes[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    if planes.shape[2] < 3:
        planes = np.repeat(planes[..., :1], 3, axis=2)
    return np.ascontiguousarray(planes)


def border_level(channel: NDArray[Any]) -> float:
    """Median of the outermost pixels, where there is mostly background; 0 when all are NaN.

    Args:
        channel: (H, W), any numeric dtype.
    """
    ring = np.concatenate([channel[0], channel[-1], channel[1:-1, 0], channel[1:-1, -1]])
    finite = ring[np.isfinite(ring)].astype(np.float32)
    return float(np.median(finite)) if finite.size else 0.0


def percent_of_background(amplitude: NDArray[Any]) -> FloatArray:
    """A relative amplitude as percent above the background, on the scale of subtracted ones.

    Args:
        amplitude: (H, W), positive, in units of the illumination.

    Returns:
        (H, W) float32, about -25..45, 0 for background.
    """
    level = border_level(amplitude)
    values = amplitude.astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        return values * np.float32(100 / level) - np.float32(100) if level > 0 else values

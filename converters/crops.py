"""Image into crops: a small picture per cell, fixed size, native resolution, with its origin."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from converters.images import BoolArray, FloatArray, SourceImage, UInt8Array, border_level
from converters.layouts import LayoutOptions
from converters.memory_limit import limited_memory
from converters.problems import Problems
from converters.segmentation import MAX_OBJECTS, Segmented, Sensitivity, segment

FRAME_FACTOR = 1.5


@dataclass(frozen=True, slots=True, eq=False)
class Crop:
    """One cell, as it is shown, labelled and learned.

    Attributes:
        crop_id: 20 hexadecimal digits over pixels and position; the same file gives the same ids.
        source: file name; relative posix path inside a folder.
        dataset: path of the image dataset in the file, '' for a picture.
        index: of the image in it, page of a picture.
        group: hold-outs never split it: field of view, else the frame, else the crop itself.
        bbox: x, y, width, height of the cell in px of its image.
        area_px: area of the cell, 0 when its outline is unknown.
        flags: "border" cut by the edge of the image, "touching" split off a neighbour,
            "nan" has missing values, "scaled" shrunk to fit, "multiple" the label of its image was
            dropped because the image holds several cells.
        label: class name as the source spells it, None when unlabelled.
        phase: (S, S) float32 in rad, surroundings kept; None without phase.
        amplitude: (S, S) float32, background-subtracted; None without amplitude.
        image: (S, S, 3) uint8 RGB; None without camera picture.
        mask: (S, S), True inside the cell; None when its outline is unknown.
    """

    crop_id: str
    source: str
    dataset: str
    index: int
    group: str
    bbox: tuple[int, int, int, int]
    area_px: int
    flags: tuple[str, ...]
    label: str | None
    phase: FloatArray | None
    amplitude: FloatArray | None
    image: UInt8Array | None
    mask: BoolArray | None


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How sources are read.

    Attributes:
        images: path of the image dataset, '' to find it.
        labels: path of the label column, '' to find it.
        sensitivity: of the threshold that finds cells in frames without masks.
        crop_size_px: side S of the crops.
        min_area_px: smaller objects are no cells; platelets have 7-95 px.
        limit: at most that many cells, evenly spread over all sources; None for all.
        outside_links: whether links may leave the folder of their file.
    """

    images: str = ""
    labels: str = ""
    sensitivity: Sensitivity = "medium"
    crop_size_px: int = 96
    min_area_px: int = 20
    limit: int | None = None
    outside_links: bool = False

    @property
    def layout(self) -> LayoutOptions:
        """The part that concerns the datasets."""
        return LayoutOptions(images=self.images, labels=self.labels)


def cut_crops(image: SourceImage, *, options: ReadOptions, problems: Problems) -> list[Crop]:
    """The cells of one image: one for an image about the size of a crop, those found for a frame.

    Args:
        image: the image.
        options: how to read it.
        problems: told about frames without cells, dropped labels and objects too small.
    """
    if not is_frame(image.size_px, options):
        return [_only_cell(image, options)]
    if image.whole:
        reason = f"labelled picture larger than {options.crop_size_px} px: scaled down as one cell"
        problems.report(image.given or image.source, reason, where=image.where)
        return [_scaled_cell(image, options)]
    return _cells_of_frame(image, options, problems)


def is_frame(size_px: tuple[int, int], options: ReadOptions) -> bool:
    """Whether an image of this height and width may hold several cells, which are to be found."""
    return max(size_px) > FRAME_FACTOR * options.crop_size_px


def count_cells(image: SourceImage, *, options: ReadOptions) -> int:
    """How many crops `cut_crops` makes of the image."""
    if image.whole or not is_frame(image.size_px, options):
        return 1
    return len(_segment(image, options).cells)


def _cells_of_frame(image: SourceImage, options: ReadOptions, problems: Problems) -> list[Crop]:
    found = _segment(image, options)
    _report_frame(image, found, options, problems)
    flags: tuple[str, ...] = ()
    if image.label is not None and len(found.cells) != 1:
        image, flags = replace(image, label=None), ("multiple",)
    group = image.group or f"{image.dataset}[{image.index}]"
    size = options.crop_size_px
    return [
        _crop(
            replace(image, group=group, mask=found.labels),
            number=cell.number,
            corner=_corner(cell.centroid, size),
            size=size,
            bbox=cell.bbox,
            area_px=cell.area_px,
            flags=cell.flags + flags,
        )
        for cell in found.cells
    ]


def _report_frame(
    image: SourceImage, found: Segmented, options: ReadOptions, problems: Problems
) -> None:
    source = image.given or image.source
    if found.n_too_small:
        reason = f"objects smaller than {options.min_area_px} px: left out"
        problems.report(source, reason, where=image.where, count=found.n_too_small)
    if found.n_too_many:
        reason = f"frames of more than {MAX_OBJECTS:,} objects, which is noise: left out"
        problems.report(source, reason, where=image.where)
    elif not found.cells:
        problems.report(source, "frames in which no cell was found", where=image.where)
    if image.label is not None and len(found.cells) != 1:
        reason = "labels of frames that do not hold exactly one cell: dropped"
        problems.report(source, reason, where=image.where)


def _only_cell(image: SourceImage, options: ReadOptions) -> Crop:
    """The cell of an image that shows one: by its mask, else the object nearest the middle."""
    height, width = image.size_px
    size = options.crop_size_px
    mask = _outline(image, options)
    middle = ((height - 1) / 2, (width - 1) / 2)
    if mask is None:
        corner, bbox, flags = _corner(middle, size), (0, 0, width, height), ()
        return _crop(
            replace(image, mask=None), corner=corner, size=size, bbox=bbox, area_px=0, flags=flags
        )
    bbox = _bounding_box(mask)
    left, top, wide, high = bbox
    centre = (top + (high - 1) / 2, left + (wide - 1) / 2)
    corner = (
        _clamped(centre[0], height, size),
        _clamped(centre[1], width, size),
    )
    at_border = mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any()
    return _crop(
        replace(image, mask=mask),
        corner=corner,
        size=size,
        bbox=bbox,
        area_px=int(np.count_nonzero(mask)),
        flags=("border",) if at_border else (),
    )


def _outline(image: SourceImage, options: ReadOptions) -> BoolArray | None:
    if image.mask is not None:
        given: BoolArray = np.nan_to_num(image.mask) > 0
        return given if given.any() else None
    if image.phase is None:
        return None
    found = _segment(image, options)
    if not found.cells:
        return None
    height, width = image.size_px
    middle = np.array([height - 1, width - 1]) / 2
    nearest = min(found.cells, key=lambda cell: float(np.hypot(*(cell.centroid - middle))))
    outline: BoolArray = found.labels == nearest.number
    return outline


def _corner(centre: tuple[float, float], size: int) -> tuple[int, int]:
    """Top and left of the window around a centre."""
    return round(centre[0] - (size - 1) / 2), round(centre[1] - (size - 1) / 2)


def _clamped(centre: float, length: int, size: int) -> int:
    """Start of the window along a side: the image centred if it fits, else the cell."""
    if length <= size:
        return -((size - length) // 2)
    return min(max(round(centre - (size - 1) / 2), 0), length - size)


def _bounding_box(mask: BoolArray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    return left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top


def _crop(
    image: SourceImage,
    *,
    corner: tuple[int, int],
    size: int,
    bbox: tuple[int, int, int, int],
    area_px: int,
    flags: tuple[str, ...],
    number: int | None = None,
) -> Crop:
    """A crop from its window in the image; beyond the edge it is filled with background.

    With a `number` the mask numbers all cells of the image and this is one of them. Work and memory
    grow with the window, not with the image: there may be thousands of cells in one.
    """
    window = _Window(*corner, size)
    raw = {
        role: window.inside(channel)
        for role in ("phase", "amplitude", "image")
        if (channel := getattr(image, role)) is not None
    }
    crop_id = _crop_id(image, raw.values(), bbox)
    phase, amplitude = window.filled(image.phase), window.filled(image.amplitude)
    has_nan = any(c is not None and bool(np.isnan(c.min())) for c in (phase, amplitude))
    return Crop(
        crop_id=crop_id,
        source=image.source,
        dataset=image.dataset,
        index=image.index,
        group=f"{image.source}:{image.group}" if image.group else crop_id,
        bbox=bbox,
        area_px=area_px,
        flags=flags + (("nan",) if has_nan else ()),
        label=image.label,
        phase=phase,
        amplitude=amplitude,
        image=_filled_rgb(window, image.image),
        mask=_mask_in(window, image.mask, number),
    )


@dataclass(frozen=True, slots=True)
class _Window:
    """A square of an image that may reach beyond its edge."""

    top: int
    left: int
    size: int

    def inside(self, channel: NDArray[Any]) -> NDArray[Any]:
        """The part of the channel within the window."""
        bottom, right = self.top + self.size, self.left + self.size
        return channel[max(self.top, 0) : max(bottom, 0), max(self.left, 0) : max(right, 0)]

    def padded(
        self, channel: NDArray[Any], *, fill: float, dtype: type[np.generic] | None = None
    ) -> NDArray[Any]:
        """The channel in the window, `fill` beyond the edge of the image."""
        part = self.inside(channel)
        if part.shape[:2] == (self.size, self.size):
            return part.astype(dtype or channel.dtype)
        whole = np.full((self.size, self.size), fill, dtype or channel.dtype)
        row, column = max(-self.top, 0), max(-self.left, 0)
        whole[row : row + part.shape[0], column : column + part.shape[1]] = part
        return whole

    def filled(self, channel: NDArray[Any] | None) -> FloatArray | None:
        """The channel in the window as float32, its own border level beyond the edge."""
        if channel is None:
            return None
        if self.inside(channel).shape == (self.size, self.size):
            return self.padded(channel, fill=0, dtype=np.float32)
        return self.padded(channel, fill=border_level(channel), dtype=np.float32)


def _mask_in(window: _Window, mask: NDArray[Any] | None, number: int | None) -> BoolArray | None:
    if mask is None:
        return None
    part = window.padded(mask, fill=0)
    inside: BoolArray = part > 0 if number is None else part == number
    return inside


def _filled_rgb(window: _Window, image: UInt8Array | None) -> UInt8Array | None:
    if image is None:
        return None
    planes = (image[..., channel] for channel in range(3))
    return np.stack([window.padded(p, fill=int(border_level(p))) for p in planes], axis=2)


def _crop_id(
    image: SourceImage, channels: Iterable[NDArray[Any]], bbox: tuple[int, int, int, int]
) -> str:
    """Hash of the pixels and of where they are; pictures have no dataset, so their path counts."""
    position = f"{image.dataset or image.source}|{image.index}|{bbox}"
    digest = hashlib.sha256(position.encode())
    for channel in channels:
        digest.update(f"|{channel.dtype.str}{channel.shape}".encode())
        digest.update(np.ascontiguousarray(channel).data)
    return digest.hexdigest()[:20]


def _scaled_cell(image: SourceImage, options: ReadOptions) -> Crop:
    """A labelled picture that is larger than a crop, shrunk to fit: its label names all of it."""
    height, width = image.size_px
    factor = options.crop_size_px / max(height, width)
    target = (max(1, round(width * factor)), max(1, round(height * factor)))
    small = replace(image, phase=_resized(image.phase, target), image=_resized(image.image, target))
    crop = _only_cell(small, options)
    raw = [channel for channel in (image.phase, image.image) if channel is not None]
    bbox = (0, 0, width, height)
    crop_id = _crop_id(image, raw, bbox)
    group = crop_id if crop.group == crop.crop_id else crop.group
    return replace(
        crop, crop_id=crop_id, group=group, bbox=bbox, area_px=0, flags=(*crop.flags, "scaled")
    )


def _resized(channel: NDArray[Any] | None, target: tuple[int, int]) -> NDArray[Any] | None:
    if channel is None:
        return None
    return np.asarray(Image.fromarray(channel).resize(target, Image.Resampling.BOX))


def _segment(image: SourceImage, options: ReadOptions) -> Segmented:
    with limited_memory(image.source):
        return segment(image, sensitivity=options.sensitivity, min_area_px=options.min_area_px)

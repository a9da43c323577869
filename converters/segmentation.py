"""Frames into cells: a mask or a threshold, touching cells separated, border cells flagged."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.measure import label, regionprops
from skimage.morphology import h_maxima
from skimage.segmentation import watershed

from converters.images import BoolArray, SourceImage, UInt8Array, border_level

Sensitivity = Literal["low", "medium", "high"]
LabelImage = NDArray[np.int32]

PHASE_THRESHOLDS_RAD: dict[Sensitivity, float] = {"low": 0.8, "medium": 0.5, "high": 0.3}
OTSU_FACTORS: dict[Sensitivity, float] = {"low": 1.25, "medium": 1.0, "high": 0.6}
BACKGROUND_PERCENTILE = 25
MIN_CONTRAST_GREY = 12.0
SMOOTHING_PX = 1.0
MAX_HOLE_PX = 400
MIN_NECK_DEPTH = 0.2
MIN_NECK_PX = 1.0
# Of one image; each costs about a millisecond, and noise may hold millions.
MAX_OBJECTS = 5000


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell in an image.

    Attributes:
        number: its value in the label image.
        bbox: x, y, width, height in px.
        area_px: pixels of its mask.
        centroid: y, x in px.
        flags: "border" the edge of the image cuts it, "touching" it was split off a neighbour.
    """

    number: int
    bbox: tuple[int, int, int, int]
    area_px: int
    centroid: tuple[float, float]
    flags: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Segmented:
    """Cells of an image.

    Attributes:
        labels: (H, W) int32, 0 background, else the number of the cell.
        cells: those of at least the minimum area, in reading order.
        n_too_small: objects left out for their area.
        n_too_many: objects of an image that holds more than `MAX_OBJECTS`, of which none is a cell.
    """

    labels: LabelImage
    cells: tuple[Cell, ...]
    n_too_small: int
    n_too_many: int = 0


def segment(image: SourceImage, *, sensitivity: Sensitivity, min_area_px: int) -> Segmented:
    """The cells of an image: from its mask if it has one, else by a threshold.

    A mask of integers with several values numbers the cells and is taken as it is, as is one of
    more than 8 bits with one value in one piece; touching cells in any other are separated.

    Args:
        image: the image; NaN is background.
        sensitivity: threshold, "high" finds fainter cells.
        min_area_px: smaller objects are counted, not returned.
    """
    if image.mask is not None and _numbers_cells(image.mask):
        labels = _consecutive(image.mask)
        n_objects = _count_objects(labels, min_area_px)
        if n_objects > MAX_OBJECTS:
            return Segmented(np.zeros_like(labels), (), 0, n_objects)
        return _measure(labels, np.zeros(0, np.int32), min_area_px)
    mask = _foreground(image, sensitivity)
    components = _components(_fill_small_holes(mask))
    n_objects = _count_objects(components, min_area_px)
    if n_objects > MAX_OBJECTS:
        return Segmented(np.zeros_like(components), (), 0, n_objects)
    labels, split = _separate(components)
    return _measure(labels, split, min_area_px)


def _consecutive(mask: NDArray[Any]) -> LabelImage:
    """The mask's own numbers if they are few, else 1, 2, ...: memory grows with the largest."""
    if int(mask.min()) >= 0 and int(mask.max()) <= mask.size:
        return mask.astype(np.int32)
    _, places = np.unique(np.append(np.maximum(mask, 0), 0), return_inverse=True)
    labels: LabelImage = places[:-1].reshape(mask.shape).astype(np.int32)
    return labels


def _count_objects(labels: LabelImage, min_area_px: int) -> int:
    """Number of objects; of so many that it matters, only those that are large enough."""
    areas = np.bincount(labels.ravel())[1:]
    n_objects = int(np.count_nonzero(areas))
    if n_objects <= MAX_OBJECTS:
        return n_objects
    small = np.append(False, areas < min_area_px)
    labels[small[labels]] = 0
    return int(np.count_nonzero(areas >= min_area_px))


def _numbers_cells(mask: NDArray[Any]) -> bool:
    if mask.dtype.kind not in "ui":
        return False
    if len(np.unique(mask[mask > 0])) > 1:
        return True
    # Numbers of cells are often stored wide, but so are some binary masks.
    return mask.dtype.itemsize > 1 and int(label(mask > 0, connectivity=2).max()) == 1


def _foreground(image: SourceImage, sensitivity: Sensitivity) -> BoolArray:
    if image.mask is not None:
        return np.nan_to_num(image.mask) > 0
    if image.phase is not None:
        return threshold_phase(image.phase, sensitivity=sensitivity)
    if image.image is not None:
        return threshold_picture(image.image, image.background, sensitivity=sensitivity)
    amplitude = np.nan_to_num(np.asarray(image.amplitude, np.float32))
    return _stands_out(np.abs(amplitude - border_level(amplitude)), sensitivity)


def threshold_phase(phase: NDArray[Any], *, sensitivity: Sensitivity) -> BoolArray:
    """Where the smoothed phase exceeds that of the background by a fixed number of rad.

    The lower quartile stands for the background: true until cells cover three quarters of a field,
    and below it by less than the noise elsewhere.

    Args:
        phase: (H, W) in rad; NaN is background.
        sensitivity: key of `PHASE_THRESHOLDS_RAD`.
    """
    values = phase.astype(np.float32)
    finite = values[np.isfinite(values)]
    level = np.float32(np.percentile(finite, BACKGROUND_PERCENTILE) if finite.size else 0)
    values = np.where(np.isfinite(values), values, level)
    smooth: NDArray[np.float32] = ndimage.gaussian_filter(values, SMOOTHING_PX)
    return smooth - level > PHASE_THRESHOLDS_RAD[sensitivity]


def threshold_picture(
    image: UInt8Array, background: UInt8Array | None = None, *, sensitivity: Sensitivity
) -> BoolArray:
    """Where a camera picture differs from its background, by Otsu's threshold.

    Args:
        image: (H, W, 3) uint8 RGB.
        background: the same without cells; the colour of the image's border when None.
        sensitivity: key of `OTSU_FACTORS`.
    """
    planes = image.astype(np.float32)
    empty = (
        background.astype(np.float32)
        if background is not None
        else np.array([border_level(planes[..., channel]) for channel in range(3)], np.float32)
    )
    return _stands_out(np.abs(planes - empty).max(axis=2), sensitivity)


def _stands_out(difference: NDArray[np.float32], sensitivity: Sensitivity) -> BoolArray:
    smooth: NDArray[np.float32] = ndimage.gaussian_filter(difference, SMOOTHING_PX)
    if smooth.max() < MIN_CONTRAST_GREY:
        return np.zeros(smooth.shape, np.bool_)
    threshold = float(threshold_otsu(smooth)) * OTSU_FACTORS[sensitivity]
    return smooth > max(MIN_CONTRAST_GREY / 2, threshold)


def _fill_small_holes(mask: BoolArray) -> BoolArray:
    """Fills the dim centres of red cells, but not the space that a ring of cells encloses."""
    holes = _components(ndimage.binary_fill_holes(mask) & ~mask)
    small = np.bincount(holes.ravel()) <= MAX_HOLE_PX
    small[0] = False
    return mask | small[holes]


def _components(mask: BoolArray) -> LabelImage:
    labels: LabelImage = label(mask, connectivity=1).astype(np.int32)
    return labels


def _separate(components: LabelImage) -> tuple[LabelImage, LabelImage]:
    """Cuts components at their necks.

    Returns:
        Labels and the numbers of those that were cut from a larger component.
    """
    labels = components.copy()
    split: list[int] = []
    highest = int(labels.max(initial=0))
    for number, box in enumerate(ndimage.find_objects(components), start=1):
        parts = _cut_at_necks(components[box] == number)
        if parts is None:
            continue
        inside = parts > 0
        labels[box][inside] = parts[inside] + highest
        split.extend(range(highest + 1, highest + int(parts.max()) + 1))
        highest += int(parts.max())
    return labels, np.array(split, np.int32)


def _cut_at_necks(component: BoolArray) -> LabelImage | None:
    """Watershed of the distance to the edge; None when the component has no pronounced neck.

    Its half-width must be less than that of both sides by a fifth of the largest, so that uneven
    outlines of single cells do not cut them.
    """
    distance = ndimage.distance_transform_edt(np.pad(component, 1))
    depth = max(MIN_NECK_PX, MIN_NECK_DEPTH * float(distance.max()))
    if distance.max() <= depth:
        return None
    markers = label(h_maxima(distance, depth))[1:-1, 1:-1]
    if markers.max() < 2:
        return None
    parts: LabelImage = watershed(-distance[1:-1, 1:-1], markers, mask=component).astype(np.int32)
    return parts


def _measure(labels: LabelImage, split: LabelImage, min_area_px: int) -> Segmented:
    height, width = labels.shape
    touching = set(split.tolist())
    cells, n_too_small = [], 0
    for region in regionprops(labels):
        if region.area < min_area_px:
            n_too_small += 1
            continue
        top, left, bottom, right = region.bbox
        at_border = top == 0 or left == 0 or bottom == height or right == width
        names = {"border": at_border, "touching": region.label in touching}
        cells.append(
            Cell(
                number=int(region.label),
                bbox=(left, top, right - left, bottom - top),
                area_px=int(region.area),
                centroid=(float(region.centroid[0]), float(region.centroid[1])),
                flags=tuple(name for name, applies in names.items() if applies),
            )
        )
    cells.sort(key=lambda cell: cell.centroid)
    return Segmented(labels, tuple(cells), n_too_small)

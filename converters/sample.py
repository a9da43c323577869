"""SYNTHETIC quantitative-phase blood cells for demonstrations and tests, never for conclusions.

Cells are bodies of known thickness; light passes them, propagates to the plane of focus and is
recorded with noise. Five classes, unbalanced, in the CellFace layout: frames with numbered masks
(.pre) and crops with labels (.seg). The same seed gives the same file.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.restoration import unwrap_phase

from converters.durable import replacing
from converters.images import BoolArray, FloatArray

PIXEL_UM = 0.345
WAVELENGTH_UM = 0.530
MEDIUM_INDEX = 1.34
SOURCE_ANGLE_RAD = 0.04
PATCH_PX = 96
FRAME_PX = (384, 512)
CELLS_PER_FIELD = 24
AMPLITUDE_SCALE = 60.0
SHARES = {"rbc": 0.62, "wbc": 0.14, "plt": 0.14, "agg": 0.06, "oof": 0.04}
NOTE = "SYNTHETIC cells, computed by cellai; not measured on any patient or instrument"

ComplexArray = NDArray[np.complex128]
_CHUNK = 64


@dataclass(frozen=True, slots=True, eq=False)
class SyntheticCell:
    """A cell in the middle of its patch.

    Attributes:
        phase: (96, 96) in rad, background 0.
        transmission: (96, 96), modulus of the field, background 1.
        support: (96, 96), where the body of the cell is.
    """

    phase: FloatArray
    transmission: FloatArray
    support: BoolArray


@dataclass(frozen=True, slots=True)
class _Field:
    """What the cells of one field of view have in common."""

    focus_um: float
    tilt_rad: tuple[float, float]
    noise_rad: float


def write_sample_crops(
    path: Path, *, n_cells: int = 600, seed: int = 0, labelled_share: float = 1.0
) -> None:
    """Writes a labelled (.seg) file of synthetic crops, one cell each, 96x96 px.

    Args:
        path: the file to write, replaced at once when complete.
        n_cells: number of crops.
        seed: equal seeds give equal cells, whatever the labelled share.
        labelled_share: of each class, in [0, 1]; the other labels are empty.

    Raises:
        OSError: the file cannot be written.
    """
    rng = np.random.default_rng(seed)
    kinds = _draw_kinds(rng, n_cells)
    fields = [_draw_field(rng) for _ in range(-(-n_cells // CELLS_PER_FIELD))]
    groups = np.arange(n_cells) // CELLS_PER_FIELD
    with replacing(path) as unfinished, h5py.File(unfinished, "w") as file:
        _describe(file, seed)
        images = _create_images(file, n_cells, (PATCH_PX, PATCH_PX), mask_type=np.uint8)
        for start in range(0, n_cells, _CHUNK):
            rows = range(start, min(start + _CHUNK, n_cells))
            crops = [_draw_crop(rng, kinds[row], fields[groups[row]]) for row in rows]
            for dataset, planes in zip(images, zip(*crops, strict=True), strict=True):
                dataset[rows.start : rows.stop] = np.stack(planes)
        labels = _keep_labels(np.random.default_rng([seed, 1]), kinds, labelled_share)
        file.create_dataset("label/ground_truth", data=np.array(labels, "S3"))
        file.create_dataset("meta/field_group", data=groups)


def write_sample_frames(path: Path, *, n_frames: int = 24, seed: int = 0) -> None:
    """Writes an unlabelled (.pre) file of synthetic frames, 384x512 px, about 24 cells each.

    The mask numbers the cells of each frame, so that an aggregate stays one cell.

    Args:
        path: the file to write, replaced at once when complete.
        n_frames: number of frames.
        seed: equal seeds give equal frames.

    Raises:
        OSError: the file cannot be written.
    """
    rng = np.random.default_rng(seed)
    with replacing(path) as unfinished, h5py.File(unfinished, "w") as file:
        _describe(file, seed)
        images = _create_images(file, n_frames, FRAME_PX, mask_type=np.uint16)
        for row in range(n_frames):
            for dataset, plane in zip(images, _draw_frame(rng), strict=True):
                dataset[row] = plane
        file.create_dataset("meta/field_group", data=np.arange(n_frames))


def _describe(file: h5py.File, seed: int) -> None:
    file.attrs["synthetic"] = True
    file.attrs["note"] = NOTE
    file.attrs["seed"] = seed
    file.attrs["pixel_size_um"] = PIXEL_UM
    file.attrs["wavelength_um"] = WAVELENGTH_UM


def _create_images(
    file: h5py.File,
    count: int,
    size_px: tuple[int, int],
    *,
    mask_type: type[np.unsignedinteger[Any]],
) -> tuple[h5py.Dataset, h5py.Dataset, h5py.Dataset]:
    def create(path: str, dtype: type[np.generic]) -> h5py.Dataset:
        chunk = max(1, min(count, _CHUNK * PATCH_PX**2 // (size_px[0] * size_px[1])))
        return file.create_dataset(
            path,
            shape=(count, *size_px),
            dtype=dtype,
            chunks=(chunk, *size_px),
            compression="gzip",
            compression_opts=1,
        )

    return (
        create("phase/images", np.float16),
        create("amplitude/images", np.float16),
        create("mask/images", mask_type),
    )


def _draw_kinds(rng: np.random.Generator, n_cells: int) -> list[str]:
    """Classes in random order, in exact shares, each at least once where the number allows."""
    counts = {kind: max(1, round(share * n_cells)) for kind, share in SHARES.items()}
    kinds = [kind for kind in reversed(SHARES) for _ in range(counts[kind])][:n_cells]
    kinds += ["rbc"] * (n_cells - len(kinds))
    return [kinds[at] for at in rng.permutation(n_cells)]


def _keep_labels(rng: np.random.Generator, kinds: list[str], share: float) -> list[str]:
    kept = [""] * len(kinds)
    for kind in SHARES:
        rows = [row for row, name in enumerate(kinds) if name == kind]
        for at in rng.permutation(len(rows))[: int(np.ceil(share * len(rows)))]:
            kept[rows[at]] = kind
    return kept


def _draw_field(rng: np.random.Generator) -> _Field:
    tilt = rng.normal(0, 0.05, 2)
    return _Field(
        focus_um=float(rng.normal(0, 0.4)),
        tilt_rad=(float(tilt[0]), float(tilt[1])),
        noise_rad=float(rng.uniform(0.03, 0.07)),
    )


def _draw_crop(
    rng: np.random.Generator, kind: str, field: _Field
) -> tuple[FloatArray, FloatArray, BoolArray]:
    cell = draw_cell(rng, kind, focus_um=field.focus_um)
    phase, amplitude = _record(rng, cell.phase, cell.transmission, field)
    return phase, amplitude, cell.support


def _draw_frame(rng: np.random.Generator) -> tuple[FloatArray, FloatArray, NDArray[np.uint16]]:
    field = _draw_field(rng)
    margin = PATCH_PX
    padded = (FRAME_PX[0] + 2 * margin, FRAME_PX[1] + 2 * margin)
    phase, transmission = np.zeros(padded, np.float32), np.ones(padded, np.float32)
    numbers = np.zeros(padded, np.uint16)
    kinds = _draw_kinds(rng, CELLS_PER_FIELD)
    for number, (kind, corner) in enumerate(zip(kinds, _draw_corners(rng), strict=False), start=1):
        cell = draw_cell(rng, kind, focus_um=field.focus_um)
        window = tuple(slice(at, at + PATCH_PX) for at in corner)
        phase[window] += cell.phase
        transmission[window] *= cell.transmission
        numbers[window][cell.support & (numbers[window] == 0)] = number
    inner = (slice(margin, -margin), slice(margin, -margin))
    recorded = _record(rng, phase[inner], transmission[inner], field)
    return *recorded, numbers[inner]


def _draw_corners(rng: np.random.Generator) -> Iterator[tuple[int, int]]:
    """Patch corners in the padded frame, a cell's width apart; some centres lie on the border."""
    distance_px = 36
    taken: list[NDArray[np.float64]] = []
    for centre in rng.uniform((0, 0), FRAME_PX, (40 * CELLS_PER_FIELD, 2)):
        if all(np.hypot(*(centre - other)) > distance_px for other in taken):
            taken.append(centre)
            corner = np.round(centre).astype(int) + PATCH_PX - PATCH_PX // 2
            yield int(corner[0]), int(corner[1])


def _record(
    rng: np.random.Generator, phase: FloatArray, transmission: FloatArray, field: _Field
) -> tuple[FloatArray, FloatArray]:
    """What the camera yields: tilted, noisy phase and background-subtracted amplitude."""
    rows, columns = np.meshgrid(*(np.linspace(-1, 1, n) for n in phase.shape), indexing="ij")
    tilt = field.tilt_rad[0] * rows + field.tilt_rad[1] * columns
    noise = ndimage.gaussian_filter(rng.normal(0, 1, phase.shape), 0.7)
    speckle = ndimage.gaussian_filter(rng.normal(0, 1, phase.shape), 0.7)
    recorded = phase + tilt + field.noise_rad * noise / noise.std()
    amplitude = AMPLITUDE_SCALE * (transmission - 1) + 1.5 * speckle / speckle.std()
    return recorded.astype(np.float32), amplitude.astype(np.float32)


def draw_cell(rng: np.random.Generator, kind: str, *, focus_um: float = 0.0) -> SyntheticCell:
    """A cell of a class (rbc, wbc, plt, agg, oof), as seen at a distance from the focus.

    Args:
        rng: source of its shape and orientation.
        kind: class name.
        focus_um: distance of the field from the focus.
    """
    distance_um = focus_um + float(rng.normal(0, 0.3))
    if kind == "oof":
        blurred = ("rbc", "rbc", "wbc", "plt")[rng.integers(4)]
        path_rad, support = _BODIES[blurred](rng)
        distance_um += float(rng.choice([-1, 1]) * rng.uniform(9, 18))
    else:
        path_rad, support = _BODIES[kind](rng)
    field = _averaged(propagate(np.exp((1j - 0.01) * path_rad), distance_um), distance_um)
    return SyntheticCell(
        phase=_unwrapped(np.angle(field)),
        transmission=np.abs(field).astype(np.float32),
        support=support,
    )


def propagate(field: ComplexArray, distance_um: float) -> ComplexArray:
    """Free-space propagation of a field by its angular spectrum.

    Args:
        field: (H, W) complex amplitude in a plane, sampled at `PIXEL_UM`.
        distance_um: to the plane wanted; negative goes backwards.

    Source:
        Goodman, "Introduction to Fourier Optics", 3rd ed., eq. 3-74: transfer function
        exp(i k z sqrt(1 - (l fx)^2 - (l fy)^2)); here without the common factor exp(i k z).
    """
    wavelength = WAVELENGTH_UM / MEDIUM_INDEX
    fy, fx = (np.fft.fftfreq(n, PIXEL_UM) for n in field.shape)
    cosine = np.emath.sqrt(1 - (wavelength * fx) ** 2 - (wavelength * fy[:, np.newaxis]) ** 2)
    turns = 2j * np.pi / wavelength * distance_um * (np.real(cosine) - 1)
    decay = -2 * np.pi / wavelength * abs(distance_um) * np.imag(cosine)
    propagated: ComplexArray = np.fft.ifft2(np.fft.fft2(field) * np.exp(turns + decay))
    return propagated


def _averaged(field: ComplexArray, distance_um: float) -> ComplexArray:
    """The field averaged over the directions of an extended source, which blurs by distance."""
    blur_px = abs(distance_um) * SOURCE_ANGLE_RAD / PIXEL_UM
    averaged: ComplexArray = ndimage.gaussian_filter(field, blur_px)
    return averaged


def _unwrapped(phase: NDArray[Any]) -> FloatArray:
    unwrapped = np.asarray(unwrap_phase(phase))
    border = np.concatenate([unwrapped[0], unwrapped[-1], unwrapped[:, 0], unwrapped[:, -1]])
    turns = np.round(np.median(border) / (2 * np.pi))
    level: FloatArray = (unwrapped - 2 * np.pi * turns).astype(np.float32)
    return level


def _grid_um(rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coordinates of the patch in um, turned and shifted at random."""
    axis = (np.arange(PATCH_PX) - (PATCH_PX - 1) / 2) * PIXEL_UM
    y, x = np.meshgrid(axis - rng.normal(0, 0.3), axis - rng.normal(0, 0.3), indexing="ij")
    angle = rng.uniform(0, np.pi)
    return np.cos(angle) * y - np.sin(angle) * x, np.sin(angle) * y + np.cos(angle) * x


def _path_rad(thickness_um: NDArray[np.float64], index_step: float) -> NDArray[np.float64]:
    """Phase delay of a body, 2 pi dn h / wavelength."""
    return 2 * np.pi * index_step * thickness_um / WAVELENGTH_UM


Body = tuple[NDArray[np.float64], BoolArray]


def _red_cell(rng: np.random.Generator) -> Body:
    """Biconcave disc, slightly oval.

    Source:
        Evans & Fung 1972, Microvasc. Res. 4:335: h = sqrt(1 - q) (0.81 + 7.83 q - 4.39 q^2) um,
        q = (r / R)^2, diameter 7.82 um.
    """
    y, x = _grid_um(rng)
    radius = 3.91 * rng.normal(1, 0.05)
    oval = rng.normal(1, 0.04)
    q = ((y / oval) ** 2 + (x * oval) ** 2) / radius**2
    rim = np.sqrt(np.clip(1 - q, 0, None))
    thickness = rim * (0.81 * rng.uniform(0.6, 1.6) + 7.83 * q - 4.39 * q**2)
    return _path_rad(np.clip(thickness, 0, None), rng.normal(0.095, 0.006)), q < 1


def _white_cell(rng: np.random.Generator) -> Body:
    """Sphere flattened on the glass, with a lobed nucleus and granules."""
    y, x = _grid_um(rng)
    radius = rng.uniform(3.8, 4.8)
    height = np.sqrt(np.clip(1 - (y**2 + x**2) / radius**2, 0, None)) * 2 * radius * 0.85
    nucleus = np.zeros_like(y)
    turn = rng.uniform(0, 2 * np.pi)
    for lobe in range(rng.integers(1, 5)):
        angle, far = turn + lobe * 1.4, radius * 0.42
        near = (y - far * np.sin(angle)) ** 2 + (x - far * np.cos(angle)) ** 2
        nucleus = np.maximum(nucleus, np.exp(-near / (0.36 * radius) ** 2))
    granules = ndimage.gaussian_filter(rng.normal(0, 1, y.shape), rng.uniform(0.8, 1.3))
    texture = 1 + rng.uniform(0.08, 0.16) * granules / granules.std()
    path = _path_rad(height * texture * (0.8 + 0.45 * nucleus), rng.normal(0.027, 0.002))
    return path, height > 0


def _platelet(rng: np.random.Generator) -> Body:
    """Small lens."""
    y, x = _grid_um(rng)
    return _lens(rng, y, x, rng.uniform(0.9, 1.8))


def _lens(
    rng: np.random.Generator,
    y: NDArray[np.float64],
    x: NDArray[np.float64],
    radius: float,
) -> Body:
    oval = rng.uniform(0.85, 1.15)
    q = ((y / oval) ** 2 + (x * oval) ** 2) / radius**2
    thickness = np.sqrt(np.clip(1 - q, 0, None)) * rng.uniform(1.6, 2.4)
    return _path_rad(thickness, rng.normal(0.052, 0.004)), q < 1


def _aggregate(rng: np.random.Generator) -> Body:
    """Five to ten platelets, each touching one of those before it."""
    y, x = _grid_um(rng)
    centres: list[NDArray[np.float64]] = [np.zeros(2)]
    path, support = _lens(rng, y, x, rng.uniform(1.2, 1.8))
    for _ in range(rng.integers(4, 10)):
        angle, step = rng.uniform(0, 2 * np.pi), rng.uniform(1.7, 2.4)
        centre = centres[rng.integers(len(centres))] + step * np.array(
            [np.sin(angle), np.cos(angle)]
        )
        if np.hypot(*centre) > 3.2:
            continue
        centres.append(centre)
        more, where = _lens(rng, y - centre[0], x - centre[1], rng.uniform(1.2, 1.8))
        path, support = np.maximum(path, more) + 0.25 * np.minimum(path, more), support | where
    return path, support


_BODIES: dict[str, Callable[[np.random.Generator], Body]] = {
    "rbc": _red_cell,
    "wbc": _white_cell,
    "plt": _platelet,
    "agg": _aggregate,
}

"""Fixtures: files of cells for the converter tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"

WriteHdf5 = Callable[..., Path]


@pytest.fixture
def write_hdf5(tmp_path: Path) -> WriteHdf5:
    """Writes datasets given by path into a new file."""

    def write(name: str, datasets: dict[str, Any], **options: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            for dataset, values in datasets.items():
                file.create_dataset(dataset, data=values, **options)
        return path

    return write


@pytest.fixture
def shared_file() -> Callable[[str], Path]:
    """Finds a file of real data beside the checkout; skips where there is none."""

    def find(name: str) -> Path:
        path = SHARED_DATA / name
        if not path.exists():
            pytest.skip(f"needs the data file {name} in ../shared/data")
        return path

    return find


def disc(size: tuple[int, int], centre: tuple[float, float], radius: float) -> NDArray[Any]:
    """A disc of True, (H, W)."""
    rows, columns = np.ogrid[: size[0], : size[1]]
    inside: NDArray[Any] = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2
    return inside


@pytest.fixture
def crop_stack() -> dict[str, Any]:
    """Five 48x48 CellFace crops with masks and labels, two of them unlabelled."""
    rng = np.random.default_rng(0)
    cell = disc((48, 48), (24, 24), 10)
    phase = rng.normal(0, 0.05, (5, 48, 48)) + 2.5 * cell
    return {
        "phase/images": phase.astype(np.float16),
        "amplitude/images": rng.normal(0, 3, (5, 48, 48)).astype(np.float16),
        "mask/images": np.repeat(cell[np.newaxis], 5, axis=0).astype(np.uint8),
        "label/ground_truth": np.array([b"rbc", b"wbc", b"", b"rbc ", b"nan"]),
    }

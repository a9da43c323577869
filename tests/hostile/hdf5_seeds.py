"""Small sound files of every layout, which the fuzzer damages."""

import io
from collections.abc import Callable
from typing import Any

import h5py
import hdf5plugin
import numpy as np

SIDE = 20
_rng = np.random.default_rng(0)


def _planes(count: int, dtype: str, *, side: int = SIDE) -> Any:
    rows, columns = np.ogrid[:side, :side]
    cell = (rows - side / 2) ** 2 + (columns - side / 2) ** 2 < (side / 4) ** 2
    values = _rng.normal(0, 0.05, (count, side, side)) + 2.5 * cell
    return values.astype(dtype) if dtype[0] == "f" else (40 * np.abs(values)).astype(dtype)


def _cellface(file: h5py.File) -> None:
    file["phase/images"] = _planes(3, "f2")
    file["amplitude/images"] = _planes(3, "f2")
    file["mask/images"] = (_planes(3, "f2") > 1).astype(np.uint8)
    file["label/ground_truth"] = np.array([b"rbc", b"wbc", b""])


def _packed_cellface(file: h5py.File) -> None:
    options: dict[str, Any] = {"chunks": (1, SIDE, SIDE), "compression": "gzip", "shuffle": True}
    file.create_dataset("phase/images", data=_planes(3, "f4"), **options, fletcher32=True)
    file.create_dataset("amplitude/images", data=_planes(3, "f4"), **options)
    one_hot = np.zeros(3, [("rbc", "f4"), ("wbc", "f4")])
    one_hot["rbc"] = 1
    file["label/celltype"] = one_hot


def _frames(file: h5py.File) -> None:
    chunks = (1, 160, 160)
    file.create_dataset(
        "phase/images", data=_planes(2, "f2", side=160), chunks=chunks, compression=9
    )


def _rtdc(file: h5py.File) -> None:
    chunks = (2, SIDE, SIDE)
    file.create_dataset("events/image", data=_planes(4, "u1"), chunks=chunks, **hdf5plugin.Zstd())
    file.create_dataset("events/mask", data=_planes(5, "u1") > 60, chunks=chunks, compression="lzf")
    file["events/qpi_pha"] = _planes(4, "f4")
    file["events/qpi_amp"] = 1 + _planes(4, "f4")
    file["meta/field_group"] = np.array(["a", "a", "b", "b"], h5py.string_dtype())


def _qpimage(file: h5py.File) -> None:
    for number in range(2):
        file[f"qpi_{number}/phase/raw"] = _planes(1, "f4")[0]
        file[f"qpi_{number}/amplitude/raw"] = 1 + _planes(1, "f4")[0]


def _pictures(file: h5py.File) -> None:
    file["images"] = np.repeat(_planes(3, "u1")[..., np.newaxis], 3, axis=3)
    kinds = h5py.enum_dtype({"rbc": 0, "wbc": 1}, basetype="u1")
    file.create_dataset("labels", data=[0, 1, 0], dtype=kinds)


def _texts(file: h5py.File) -> None:
    file.create_dataset("cells", data=_planes(3, "u2"), chunks=(1, 8, 8), scaleoffset=0)
    file.create_dataset("label", data=["rbc", "wbc", "plt"], dtype=h5py.string_dtype())


def _linked(file: h5py.File) -> None:
    file["store/phase"] = _planes(3, "f4")
    file["phase/images"] = h5py.SoftLink("/store/phase")
    layout = h5py.VirtualLayout((3, SIDE, SIDE), "f4")
    layout[...] = h5py.VirtualSource(".", "store/phase", (3, SIDE, SIDE))
    file.create_virtual_dataset("amplitude/images", layout)


_WRITERS: tuple[Callable[[h5py.File], None], ...] = (
    _cellface,
    _packed_cellface,
    _frames,
    _rtdc,
    _qpimage,
    _pictures,
    _texts,
    _linked,
)


def seed_files() -> list[bytes]:
    """Contents of sound files: every layout, most in the oldest format, which has no checksums."""
    seeds = []
    for versions in ("earliest", "latest"):
        for write in _WRITERS:
            buffer = io.BytesIO()
            with h5py.File(buffer, "w", libver=versions) as file:
                write(file)
            seeds.append(buffer.getvalue())
    return seeds

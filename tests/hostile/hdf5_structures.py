"""HDF5 files of any structure, drawn by hypothesis: shapes, types, filters, links, nonsense."""

import contextlib
import itertools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

# What the layouts look for, and what they do not.
PATHS = (
    "phase/images",
    "amplitude/images",
    "mask/images",
    "label/ground_truth",
    "label/celltype",
    "events/image",
    "events/image_bg",
    "events/mask",
    "events/qpi_pha",
    "events/qpi_amp",
    "qpi_0/phase/raw",
    "qpi_0/amplitude/raw",
    "qpi_1/phase/raw",
    "phase/raw",
    "meta/field_group",
    "images",
    "labels",
    "class",
    "phase",
    "a/b/c",
    "[/red]",
    "é\N{SNOWMAN}",
)
TYPES = (
    *("f2", "f4", "f8", ">f4", "g", "u1", "u2", "u4", "u8", "i1", "i4", "i8", "?", "c8", "S5"),
    np.dtype("S70000"),
    np.dtype("V3"),
    np.dtype([("rbc", "f4"), ("wbc", "f4")]),
    np.dtype([("rbc", "f4", (2, 2)), ("wbc", "S3")]),
    np.dtype(("f4", (3,))),
    h5py.string_dtype(),
    h5py.string_dtype("ascii", 7),
    h5py.vlen_dtype(np.dtype("f4")),
    h5py.enum_dtype({"rbc": 0, "wbc": 1}, basetype="i2"),
    h5py.ref_dtype,
    h5py.regionref_dtype,
    h5py.opaque_dtype(np.dtype("M8[s]")),
)
SIDES = (0, 1, 2, 3, 4, 20, 20, 20, 30, 200)
LIES = (2**20, 2**31, 2**40, 2**62)
FILTERS: tuple[dict[str, Any], ...] = (
    {},
    {"compression": "gzip", "shuffle": True},
    {"compression": "lzf", "fletcher32": True},
    {"scaleoffset": 2},
    dict(hdf5plugin.Zstd()),
    dict(hdf5plugin.LZ4()),
    dict(hdf5plugin.Blosc()),
    dict(hdf5plugin.Bitshuffle()),
)
LINKS = (
    "/",
    "/phase",
    "/phase/images",
    "/images",
    "..",
    "a/b",
    "/a/a/a/a",
    "/outside/phase/images",
)
FILES = ("case.h5", "../outside/private.h5", "/absent.h5", "near.h5", ".", "link.h5", "p%b.h5")

_common_shape = st.sampled_from([(4, 20, 20), (4, 20, 20), (4,), (20, 20), (2, 160, 160)])
_odd_shape = st.lists(st.sampled_from((*SIDES, *LIES)), max_size=5).map(tuple)
_shape = st.one_of(
    _common_shape,
    _common_shape,
    st.lists(st.sampled_from(SIDES), max_size=5).map(tuple),
    _odd_shape,
)
_dataset = st.fixed_dictionaries(
    {
        "kind": st.just("dataset"),
        "shape": _shape,
        "dtype": st.sampled_from(TYPES),
        "filters": st.sampled_from(FILTERS),
        "chunks": st.sampled_from([None, True, (1, 20, 20), (2, 8, 8), (2,), (1, 2**14, 2**14)]),
        "content": st.sampled_from(["numbers", "numbers", "nothing", "nan", "huge", "raw chunk"]),
    }
)
_link = st.fixed_dictionaries(
    {"kind": st.sampled_from(["soft", "hard"]), "target": st.sampled_from(LINKS)}
)
_outside = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["external", "raw", "virtual"]),
        "file": st.sampled_from(FILES),
        "target": st.sampled_from((*LINKS, *PATHS)),
        "shape": _shape,
    }
)
FILE = st.lists(
    st.tuples(st.sampled_from(PATHS), st.one_of(_dataset, _dataset, _dataset, _link, _outside)),
    min_size=1,
    max_size=7,
)
# What h5py refuses to write is left out of the file.
_REFUSED = (OSError, ValueError, TypeError, RuntimeError, KeyError, OverflowError, MemoryError)


def write_file(path: Path, members: list[tuple[str, dict[str, Any]]]) -> Path:
    """The file that was drawn."""
    with h5py.File(path, "w") as file:
        for name, member in members:
            with contextlib.suppress(*_REFUSED):
                _WRITERS[member["kind"]](file, name, member)
    return path


def write_apart(path: Path, members: list[tuple[str, dict[str, Any]]]) -> Path:
    """As `write_file`, in a process that libhdf5's filters may crash; what it left is the case."""
    path.unlink(missing_ok=True)
    writer = os.fork()
    if writer == 0:
        try:
            write_file(path, members)
            os._exit(0)
        finally:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
    _, status = os.waitpid(writer, 0)
    assert os.waitstatus_to_exitcode(status) <= 0, f"writing failed: {members}"
    return path


def _dataset_of(file: h5py.File, name: str, drawn: dict[str, Any]) -> None:
    shape, content = drawn["shape"], drawn["content"]
    size = int(np.prod(shape, dtype=float))
    options = drawn["filters"] | ({"chunks": drawn["chunks"]} if drawn["chunks"] else {})
    if max(shape, default=0) >= LIES[0] and not options:
        options = {"chunks": True}  # else the whole would be written at closing
    dataset = file.create_dataset(name, shape=shape, dtype=drawn["dtype"], **options)
    if content == "raw chunk":
        dataset.id.write_direct_chunk((0,) * len(shape), bytes(range(256)) * 2)
    elif content != "nothing" and size < 200_000:
        fill = {"numbers": None, "nan": np.nan, "huge": 1e30}[content]
        values = np.arange(size) % 7 if fill is None else np.full(size, fill)
        _fill(dataset, values.reshape(shape))


def _fill(dataset: h5py.Dataset, values: Any) -> None:
    dtype = dataset.dtype
    if dtype.names:
        for field in dtype.names:
            dataset[field] = values
    elif dtype.kind in "SO":
        dataset[...] = values.astype(str).astype("S")
    else:
        with np.errstate(all="ignore"):
            dataset[...] = values.astype(dtype)


def _soft(file: h5py.File, name: str, drawn: dict[str, Any]) -> None:
    file[name] = h5py.SoftLink(drawn["target"])


def _hard(file: h5py.File, name: str, drawn: dict[str, Any]) -> None:
    file[name] = file[drawn["target"]]


def _external(file: h5py.File, name: str, drawn: dict[str, Any]) -> None:
    file[name] = h5py.ExternalLink(drawn["file"], drawn["target"])


def _raw(file: h5py.File, name: str, drawn: dict[str, Any]) -> None:
    storage = [(drawn["file"], 0, h5py.h5f.UNLIMITED)]
    file.create_dataset(name, shape=drawn["shape"], dtype="f4", external=storage)


def _virtual(file: h5py.File, name: str, drawn: dict[str, Any]) -> None:
    layout = h5py.VirtualLayout(drawn["shape"], "f4")
    layout[...] = h5py.VirtualSource(drawn["file"], drawn["target"], drawn["shape"])
    file.create_virtual_dataset(name, layout)


_WRITERS: dict[str, Callable[[h5py.File, str, dict[str, Any]], None]] = {
    "dataset": _dataset_of,
    "soft": _soft,
    "hard": _hard,
    "external": _external,
    "raw": _raw,
    "virtual": _virtual,
}


def write_structures(
    first: int, count: int, folder: Path, run: Callable[[str, Callable[[Path], Path], Path], None]
) -> None:
    """Draws `count` files and runs each; `first` seeds the drawing."""
    numbers = itertools.count()
    outside = folder.parent / "outside" / "private.h5"
    (folder / "link.h5").symlink_to(outside)

    @seed(first)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(FILE)
    def draw(members: list[tuple[str, dict[str, Any]]]) -> None:
        name = f"structure {first}.{next(numbers)} {members}"
        run(name, lambda folder: write_apart(folder / "case.h5", members), folder)

    draw()

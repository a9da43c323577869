"""Whether libhdf5 gets through the text and the arrays of any length in a file, in a child process.

The rows of such a dataset are addresses within the file. In a damaged file libhdf5 can look for
what stands there without end, or crash, and nothing within the process can stop it. An import
reads one such column, which `text_columns` guards; a copy is compared in all of them.
"""

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from converters.dataset_checks import FREE_BYTES, HDF5_ERRORS, MAX_UNPACKING
from converters.errors import CellAIError, NotHdf5Error, ShapeMismatchError
from converters.source import Hdf5Source

# Of processor time, for each block; a sound one takes milliseconds.
MAX_SECONDS = 10
# How long the rows are shows only when they are read.
BLOCK_ROWS = 256
TOO_LONG = 3  # what the child process ends with


def check_object_values(source: Hdf5Source, *, outside_links: bool) -> None:
    """Refuses a file whose text or arrays of any length cannot be read to their end.

    Args:
        source: the open file.
        outside_links: whether external links and virtual datasets may leave the file's folder.

    Raises:
        NotHdf5Error: reading them crashes or does not end.
        ShapeMismatchError: they are many times as long as the file, since rows share what they say.
    """
    if not any(True for _ in object_datasets(source)):
        return
    child = subprocess.run(
        [sys.executable, "-P", "-m", __name__, source.path, *["any"] * outside_links],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    if child.returncode < 0:
        what = "did not end" if child.returncode == -signal.SIGPROF else "crashed"
        raise NotHdf5Error(
            f"{source.name}: reading the text or arrays in the file {what}.",
            hint="The file is damaged; copy it again from where it was recorded.",
        )
    if child.returncode == TOO_LONG:
        raise ShapeMismatchError(
            f"{source.name}: the text or arrays in the file are more than {MAX_UNPACKING} times as"
            " long as the file.",
            hint="It is damaged or made to harm; record or copy it again.",
        )


def object_datasets(source: Hdf5Source) -> Iterator[h5py.Dataset]:
    """The datasets whose values lie elsewhere in the file: text and arrays of any length.

    References are left out: nothing looks for what they lead to.
    """
    for node in source.walk():
        dataset = node.dataset
        if (
            dataset is not None
            and dataset.dtype.hasobject
            and h5py.check_ref_dtype(dataset.dtype) is None
        ):
            yield dataset


def object_blocks(dataset: h5py.Dataset) -> Iterator[Any]:
    """Selections of a few rows that cover a dataset."""
    if not dataset.shape:
        yield ()
        return
    for start in range(0, dataset.shape[0], BLOCK_ROWS):
        yield slice(start, start + BLOCK_ROWS)


def _length(value: Any) -> int:
    """Bytes of a text, an array, or of all of them in a row with fields."""
    if isinstance(value, np.void):
        return sum(_length(value[name]) for name in value.dtype.names or ())
    return len(value) if isinstance(value, bytes) else int(getattr(value, "nbytes", 0))


def main() -> None:
    """The child process: `python -m converters.object_values FILE [any]`.

    What can be said about the values is for the parent to find; only whether this ends counts.
    """
    path, *outside_links = sys.argv[1:]
    signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)
    with (
        contextlib.suppress(CellAIError),
        Hdf5Source(Path(path), outside_links=bool(outside_links)) as source,
    ):
        n_bytes = 0
        for dataset in object_datasets(source):
            with contextlib.suppress(*HDF5_ERRORS):
                for rows in object_blocks(dataset):
                    signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)
                    n_bytes += sum(_length(value) for value in np.ravel(dataset[rows]))
                    if n_bytes > max(FREE_BYTES, MAX_UNPACKING * source.stored_bytes):
                        sys.exit(TOO_LONG)


if __name__ == "__main__":
    main()

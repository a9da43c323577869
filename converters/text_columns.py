"""Columns of text of any length, read in a child process.

Each row of such a column is an address within the file. In a damaged file libhdf5 can look for it
without end, or crash, and nothing within the process can stop it.
"""

import json
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from converters.errors import NotHdf5Error

DEADLINE_SECONDS = 10.0
# Allowed on top, for long columns; a sound one is read several times as fast.
ROWS_PER_SECOND = 50_000
MAX_DEADLINE_SECONDS = 120.0
READER = Path(__file__).with_name("text_reader.py")
_HINT = "The file is damaged or truncated; copy it again from where it was recorded."


def is_text_of_any_length(dataset: h5py.Dataset) -> bool:
    """Whether it is a column of text of any length, in a file on disk that is only read."""
    kind = h5py.check_string_dtype(dataset.dtype)
    if kind is None or kind.length is not None or dataset.ndim != 1:
        return False
    return dataset.file.mode == "r" and Path(dataset.file.filename).is_file()


def read_text(dataset: h5py.Dataset) -> NDArray[Any]:
    """The whole column as bytes objects, shape (N,); kept until another few are asked for.

    Raises:
        NotHdf5Error: reading it fails, crashes or does not end.
    """
    file = dataset.file
    stat = Path(file.filename).stat()
    version = (stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size)
    mode = "swmr" if file.swmr_mode else "plain"
    return _read(file.filename, str(dataset.name), mode, int(dataset.shape[0]), version)


@lru_cache(maxsize=4)
def _read(path: str, name: str, mode: str, count: int, version: tuple[int, ...]) -> NDArray[Any]:
    # Each row takes a byte at the least, so that a false count buys a damaged file no time.
    believed = min(count, version[-1])
    where = f"{Path(path).name}: the text of '{name}'"
    deadline = min(DEADLINE_SECONDS + believed / ROWS_PER_SECOND, MAX_DEADLINE_SECONDS)
    try:
        child = subprocess.run(
            [sys.executable, "-P", str(READER), path, name, mode],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=deadline,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise NotHdf5Error(
            f"{where} could not be read within {deadline:.0f} seconds.", hint=_HINT
        ) from error
    if child.returncode:
        raise NotHdf5Error(
            f"{where} cannot be read; its reader ended with {child.returncode}.", hint=_HINT
        )
    # Plugins of libhdf5 print there, too, but not after the answer.
    answer = json.loads(child.stdout.splitlines()[-1])
    if "error" in answer:
        raise NotHdf5Error(f"{where} cannot be read ({answer['error']}).", hint=_HINT)
    rows = [row.encode("utf-8", "surrogateescape") for row in answer["rows"]]
    if len(rows) != count:
        raise NotHdf5Error(f"{where} has {len(rows):,} rows, not {count:,}.", hint=_HINT)
    column = np.empty(count, dtype=object)
    column[:] = rows
    column.flags.writeable = False
    return column

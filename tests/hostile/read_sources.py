"""Reads sources as `cellai inspect` and the import do, in a process that may die of it.

    python read_sources.py mutations FIRST COUNT FOLDER
    python read_sources.py structures SEED COUNT FOLDER
    python read_sources.py attacks FIRST COUNT FOLDER
    python read_sources.py kept FIRST COUNT FOLDER
    python read_sources.py mutations FIRST COUNT FOLDER here
    python read_sources.py attacks FIRST COUNT FOLDER export beside

With "here" columns of text are read in this process, not in one of their own; with "export" labels
are written into a copy of the file instead; with "beside" there are sound cells in it, too.

Prints one JSON object per case, before it ("begin") and after it. A case that lasts longer than
`MAX_SECONDS` (with "here", `MAX_SECONDS_HERE`) or breaks the interpreter ends the process, with the
traceback on standard error.
"""

import ctypes
import faulthandler
import gzip
import io
import json
import os
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import h5py
from hdf5_attacks import ATTACKS
from hdf5_mutations import damaged
from hdf5_seeds import seed_files
from hdf5_structures import write_structures
from label_copies import beside_cells, export
from numpy.typing import NDArray
from rich.console import Console

from converters import structure, text_columns
from converters.crops import ReadOptions
from converters.dataset_checks import HDF5_ERRORS
from converters.errors import CellAIError, NotHdf5Error
from converters.inspection import inspect_source
from converters.reading import iter_crops
from converters.tables import inspection_parts

# Of processor time, so that a busy machine makes no hang; waiting is allowed longer.
MAX_SECONDS = 10
# Of a case whose text is read here; the parent tries one that lasts longer again, without "here".
MAX_SECONDS_HERE = 2
MAX_WAIT_SECONDS = 180
# Crops come one by one, so a long import is no hang.
MAX_CROPS = 1000
IN_ACCESS, IN_OPEN, IN_NONBLOCK = 0x1, 0x20, 0o4000
OPTIONS = ReadOptions()
# Mutations that once broke something. Their numbers would give other files with another h5py.
KEPT = sorted((Path(__file__).parent / "regressions").glob("*.gz"))


class Watched:
    """Tells whether anybody opened a file of a folder (Linux: inotify)."""

    def __init__(self, folder: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = libc.inotify_init1(IN_NONBLOCK)
        if libc.inotify_add_watch(self._descriptor, bytes(folder), IN_OPEN | IN_ACCESS) < 0:
            raise OSError(ctypes.get_errno(), "inotify")

    def opened(self) -> list[str]:
        """Names of the files that were opened since the last call."""
        try:
            events = os.read(self._descriptor, 65536)
        except BlockingIOError:
            return []
        names, at = [], 0
        while at < len(events):
            *_, length = struct.unpack_from("iIII", events, at)
            names.append(events[at + 16 : at + 16 + length].rstrip(b"\0").decode())
            at += 16 + length
        return [name for name in names if name]


def read(path: Path) -> str:
    """Everything that is ever read from a source; what came of it in a word."""
    console = Console(file=io.TextIOWrapper(io.BytesIO(), "utf-8"))
    outcome = ""
    try:
        inspection = inspect_source(path, options=OPTIONS)
        outcome = "refused" if inspection.error else ""
        for part in inspection_parts(inspection):
            console.print(part)
    except CellAIError as error:
        outcome = type(error).__name__
        console.print(str(error), markup=False)
    try:
        n_crops = sum(1 for _ in islice(iter_crops([path], options=OPTIONS), MAX_CROPS))
    except CellAIError as error:
        return type(error).__name__
    return outcome or ("crops" if n_crops else "no crop")


def reset_peak() -> None:
    """Lets `peak_bytes` begin anew, so that no case hides behind a larger one before it."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """Largest resident size that the process had since `reset_peak` (Linux: VmHWM)."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def run(
    name: str,
    write: Callable[[Path], Path],
    folder: Path,
    *,
    watched: Watched,
    use: Callable[[Path], str] = read,
    max_seconds: float = MAX_SECONDS,
) -> None:
    """One case: write the file, read it or what `use` does with it, say what happened."""
    path = write(folder)
    say(begin=name)
    watched.opened()  # nothing of this case yet
    reset_peak()
    before, began = peak_bytes(), time.process_time()
    faulthandler.dump_traceback_later(MAX_WAIT_SECONDS, exit=True)
    signal.setitimer(signal.ITIMER_PROF, max_seconds)
    try:
        outcome, trace = use(path), ""
    except Exception:  # noqa: BLE001  what is looked for
        outcome, trace = "FAILED", traceback.format_exc()
    signal.setitimer(signal.ITIMER_PROF, 0)
    faulthandler.cancel_dump_traceback_later()
    say(
        case=name,
        outcome=outcome,
        trace=trace,
        seconds=round(time.process_time() - began, 3),
        grown=peak_bytes() - before,
        outside=watched.opened(),
    )


def say(**fields: Any) -> None:
    """One line for the parent, at once."""
    print(json.dumps(fields), flush=True)


def unpacked(kept: Path, folder: Path) -> Path:
    """A file of `KEPT` as it was."""
    path = folder / "case.h5"
    path.write_bytes(gzip.decompress(kept.read_bytes()))
    return path


def cases(kind: str, first: int, count: int) -> Iterator[tuple[str, Callable[[Path], Path]]]:
    """Name and writer of each case that does not come from hypothesis."""
    if kind == "attacks":
        for name in list(ATTACKS)[first : first + count]:
            yield name, ATTACKS[name]
        return
    if kind == "kept":
        for kept in KEPT[first : first + count]:
            yield kept.stem, partial(unpacked, kept)
        return
    seeds = seed_files()
    for number in range(first, first + count):

        def write(folder: Path, number: int = number) -> Path:
            path = folder / "case.h5"
            path.write_bytes(damaged(seeds, number))
            return path

        yield f"mutation {number}", write


def read_text_here(path: str, name: str, mode: str, *_: Any) -> NDArray[Any]:
    """What a process of its own would answer, which takes a third of a second for each column."""
    try:
        with h5py.File(path, "r", locking=False, swmr=mode == "swmr") as file:
            rows: NDArray[Any] = file[name][()]
    except HDF5_ERRORS as error:
        raise NotHdf5Error(f"{name} cannot be read ({error}).", hint="") from error
    return rows


def main() -> None:
    """Runs the cases that the arguments name."""
    # Half a second for each case; this process is itself the one that may hang, and the parent
    # lets the command with its check judge every case that does.
    structure._walk = lambda *_: 0  # type: ignore[assignment]
    faulthandler.enable()
    faulthandler.register(signal.SIGPROF, chain=True)
    kind, first, count, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    options = sys.argv[5:]
    if "here" in options:
        text_columns._read = read_text_here  # type: ignore[assignment]
    os.chdir(folder)
    # One for all cases: to close it takes as long as to read a file.
    watched = Watched(folder.parent / "outside")
    max_seconds = MAX_SECONDS_HERE if "here" in options else MAX_SECONDS
    run_watched = partial(run, watched=watched, max_seconds=max_seconds)
    if kind == "structures":
        write_structures(first, count, folder, run_watched)
        return
    use = partial(export, options=OPTIONS) if "export" in options else read
    for name, write in cases(kind, first, count):
        written = beside_cells(write) if "beside" in options else write
        run_watched(name, written, folder, use=use)


if __name__ == "__main__":
    main()

"""Whether libhdf5 gets through the structure of a file, tried in a child process.

In a damaged file libhdf5 can look for what a member is made of without end, or crash (a global
heap whose object has no length, for one: version 1.14 and 2.0 spin over it). Nothing within the
process can stop it, so another process goes first.
"""

import contextlib
import signal
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

from converters.errors import CellAIError, NotHdf5Error
from converters.source import Hdf5Source

# Of processor time, for each member; a sound one takes less than a millisecond.
MAX_SECONDS = 10


def check_structure(path: Path, *, name: str, outside_links: bool) -> None:
    """Refuses a file whose members cannot all be opened; once for each state of the file.

    Args:
        path: the HDF5 file.
        name: how tasks call it.
        outside_links: whether external links and virtual datasets may leave the file's folder.

    Raises:
        NotHdf5Error: opening a member crashes or does not end.
    """
    if not path.is_file():
        return
    stat = path.stat()
    version = (stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size)
    ended_with = _walk(path, outside_links, version)
    if ended_with == -signal.SIGPROF:
        raise NotHdf5Error(
            f"{name}: opening what is in the file did not end within {MAX_SECONDS} seconds.",
            hint="The file is damaged; copy it again from where it was recorded.",
        )
    if ended_with < 0:
        raise NotHdf5Error(
            f"{name}: opening what is in the file crashed (signal {-ended_with}).",
            hint="The file is damaged; copy it again from where it was recorded.",
        )


@lru_cache(maxsize=256)
def _walk(path: Path, outside_links: bool, _version: tuple[int, ...]) -> int:  # noqa: FBT001
    """What a child process that opens every member ends with."""
    child = subprocess.run(
        [sys.executable, "-P", "-m", "converters.structure", path, *["any"] * outside_links],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    return child.returncode


def main() -> None:
    """The child process: `python -m converters.structure FILE [any]`.

    What can be said about the file is for the parent to find; only whether this ends counts.
    """
    path, *outside_links = sys.argv[1:]
    signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)
    with (
        contextlib.suppress(CellAIError),
        Hdf5Source(Path(path), outside_links=bool(outside_links)) as source,
    ):
        for _ in source.walk():
            signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)


if __name__ == "__main__":
    main()

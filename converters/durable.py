"""Files that appear whole or not at all, whatever happens while they are written."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(target: Path, *, private: bool = False) -> Iterator[Path]:
    """Gives a temporary path to write; it becomes `target` when the block ends without error.

    The content is on disk before the name changes, so even a power cut leaves the old file or
    the new one. After an error nothing is left and `target` is as it was.

    Args:
        target: file to create or replace; its folder must exist.
        private: only the owner may read it, at no moment anybody else.

    Yields:
        An empty file of the same suffix in the same folder.

    Raises:
        OSError: the folder cannot be written or the disk is full.
    """
    descriptor, name = tempfile.mkstemp(
        dir=target.parent, prefix=f".{target.name}-", suffix=target.suffix
    )
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o600 if private else 0o666 & ~_umask())
        sync(temporary)
        temporary.replace(target)
        sync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Brings a file's content, or a folder's names, from memory to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    # The only portable way to read it is to set it.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask

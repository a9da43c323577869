"""How much memory reading a source may take, whatever the source claims.

Shapes, chunks and pictures are checked before they are read, but a compressed chunk or a long text
may unfold to any size inside libhdf5. There only the operating system can say no.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import psutil

from converters.errors import ShapeMismatchError

MAX_MEMORY_BYTES = 4 * 2**30

_lock = Lock()
_holders = 0


@contextmanager
def limited_memory(source: str) -> Iterator[None]:
    """While it lasts the process may allocate `MAX_MEMORY_BYTES` more, and not beyond.

    Linux only: elsewhere the checks of shapes and sizes are all there is. Nested calls share the
    limit of the outermost.

    Args:
        source: name for the message.

    Raises:
        ShapeMismatchError: the code within asked for more.
    """
    global _holders  # noqa: PLW0603  a limit is the process's
    with _lock:
        if _holders == 0:
            _set_limit(MAX_MEMORY_BYTES)
        _holders += 1
    try:
        yield
    except MemoryError as error:
        raise ShapeMismatchError(
            f"{source} needs more than {MAX_MEMORY_BYTES // 2**30} GiB of memory.",
            hint="Cut the images into fields or the file into parts before importing them.",
        ) from error
    finally:
        with _lock:
            _holders -= 1
            if _holders == 0:
                _set_limit(None)


def _set_limit(more: int | None) -> None:
    if sys.platform != "linux":
        return
    import resource  # noqa: PLC0415  there is none on Windows

    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    soft = hard
    if more is not None:
        soft = psutil.Process().memory_info().data + more
        soft = soft if hard == resource.RLIM_INFINITY else min(soft, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))

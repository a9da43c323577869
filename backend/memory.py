"""Telling a lack of memory from other failures, so that it can be named."""

import errno
import mmap

OUT_OF_MEMORY = (
    "The job runner has too little memory. Give it more, or stop other programs;"
    " it tries again by itself."
)
# Less than any job needs: where this cannot be had, what fails fails for lack of memory.
_PROBE_BYTES = 32_000_000
# torch 2.15 raises a plain RuntimeError on the processor; Python does where no thread can start.
_WORDS = ("can't allocate memory", "out of memory", "can't start new thread")


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory could not be had.

    Args:
        error: of Python, NumPy (a MemoryError), torch, the operating system or SQLite, which
            says "disk I/O error" when it cannot map its shared memory.
    """
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    if isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS):
        return True
    return isinstance(error, MemoryError) or _is_short()


def _is_short() -> bool:
    try:
        mmap.mmap(-1, _PROBE_BYTES).close()
    except OSError:
        return True
    return False

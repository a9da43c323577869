"""Telling a lack of memory from other failures, so that it can be named."""

import errno

OUT_OF_MEMORY = (
    "The job runner has too little memory. Give it more, or stop other programs;"
    " it tries again by itself."
)
# torch 2.15 raises a plain RuntimeError on the processor; Python does where no thread can start.
_WORDS = ("can't allocate memory", "out of memory", "can't start new thread")


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory could not be had.

    Args:
        error: of Python, NumPy (a MemoryError), torch or the operating system.
    """
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, RuntimeError):
        return any(words in str(error) for words in _WORDS)
    return isinstance(error, MemoryError)

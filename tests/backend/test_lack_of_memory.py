"""A lack of memory is told from other failures, whoever says it."""

import errno
import mmap
from collections.abc import Callable

import numpy as np
import pytest
import torch

from backend.memory import is_out_of_memory

FAR_TOO_MUCH = 10**15


@pytest.mark.parametrize(
    "ask",
    [
        lambda: bytearray(FAR_TOO_MUCH),
        lambda: np.empty(FAR_TOO_MUCH, np.uint8),
        lambda: torch.empty(FAR_TOO_MUCH, dtype=torch.uint8),
        lambda: mmap.mmap(-1, FAR_TOO_MUCH),
    ],
    ids=["Python", "NumPy", "torch", "the operating system"],
)
def test_what_asks_for_too_much_memory(ask: Callable[[], object]) -> None:
    with pytest.raises((MemoryError, RuntimeError, OSError)) as raised:
        ask()
    assert is_out_of_memory(raised.value)


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("shapes differ"), ValueError()],
)
def test_other_failures(error: Exception) -> None:
    assert not is_out_of_memory(error)

"""A limit on the length of files, as on a full disk or where a quota is used up."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def longest_file(n_bytes: int) -> Iterator[None]:
    """This process can write no longer file: EFBIG, since Python ignores SIGXFSZ."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

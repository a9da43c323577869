"""A job runner with too little memory: said clearly, nothing lost, back when there is more."""

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from fault_table import note_seen
from installation import OwnBackend, wait_until
from laboratory import FEW_EPOCHS, new_laboratory
from own_label_studio import OwnLabelStudio

from backend.runner_record import read_runner

pytestmark = [pytest.mark.label_studio, pytest.mark.faults]

DEADLINE_S = 300
# Enough for requests, too little for a new job runner to load its model.
ROOM_FOR_REQUESTS_BYTES = 150_000_000


@contextmanager
def memory_limited(pid: int, *, more_bytes: int) -> Iterator[None]:
    """A process, and those it starts, may map so much more memory than now."""
    process = psutil.Process(pid)
    before = process.rlimit(psutil.RLIMIT_AS)
    limit = process.memory_info().vms + more_bytes
    process.rlimit(psutil.RLIMIT_AS, (limit, before[1]))
    try:
        yield
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.rlimit(psutil.RLIMIT_AS, before)


def test_too_little_memory(
    label_studio: OwnLabelStudio, own_backend: OwnBackend, small_sample: Path, tmp_path: Path
) -> None:
    """The memory of the job runner is limited (RLIMIT_AS), until the limit is lifted."""
    backend = replace(own_backend, data_dir=tmp_path / "memory")
    with (
        backend.running(CELLAI_RECONCILE_SECONDS="5", CELLAI_EPOCHS=FEW_EPOCHS),
        new_laboratory(label_studio, backend, small_sample) as laboratory,
    ):
        runner = read_runner(backend.data_dir)
        assert runner is not None
        web_pid = psutil.Process(runner.pid).ppid()
        with (
            memory_limited(web_pid, more_bytes=ROOM_FOR_REQUESTS_BYTES),
            memory_limited(runner.pid, more_bytes=0),
        ):
            laboratory.annotate(5)
            said = wait_until(laboratory.problem, deadline_s=DEADLINE_S, what="503 of a lack")
            assert "too little memory" in said or "times in a row" in said
            assert said in laboratory.diagnosed()
            note_seen(f"/health, /ready and doctor: {said.partition('.')[0]}")
        laboratory.check()
        wait_until(
            lambda: laboratory.problem() is None and not laboratory.diagnosed(),
            deadline_s=DEADLINE_S,
            what="end of the trouble",
        )

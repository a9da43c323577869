"""kill -9 of web process and job runner between any two steps: nothing is lost.

After each kill: every submitted label is in the next training set, no task has two predictions
of a version, the queue is sorted by the version in service, and all of it comes back by itself.
"""

from pathlib import Path

import pytest
from fault_table import note_times
from installation import wait_until
from laboratory import CARD_POINTS, RUNNER_POINTS, Laboratory

pytestmark = pytest.mark.label_studio

WEB = ("webhook-arrived", "webhook-stored")
SHORT = ("head-fitted", "predictions-imported")
KILL_DEADLINE_S = 300


def wait_for_kill(fault_file: Path, point: str) -> None:
    wait_until(lambda: not fault_file.exists(), deadline_s=KILL_DEADLINE_S, what=f"kill at {point}")


@pytest.mark.faults
def test_killed_while_it_sweeps(laboratory: Laboratory, fault_file: Path) -> None:
    """kill -9 of job runner, web process and Label Studio in the sweep of old predictions.

    After each kill it goes on. First of the module, where few versions are to be swept: predictions
    go one by one. The sweep waits for a minute of quiet, which a clock that is ahead cuts short.
    """
    kept = 3 * len(laboratory.truth)  # of the serving version and its two predecessors at most
    while (before := len(laboratory.predictions())) <= kept:
        laboratory.annotate(2)
        laboratory.check()
    clock = Path(f"{fault_file}.clock")
    clock.write_text("60")
    for victim in ("0", "parent", str(laboratory.label_studio.pid)):
        fault_file.write_text(f"sweep-begun {victim}")
        wait_for_kill(fault_file, "sweep-begun")
    laboratory.label_studio.wait_for_death()
    laboratory.label_studio.start()
    note_times(3)
    wait_until(
        lambda: len(laboratory.predictions()) <= kept,
        deadline_s=KILL_DEADLINE_S,
        what=f"end of the sweep of {before} predictions",
    )
    clock.unlink()
    laboratory.annotate(1)
    laboratory.check()


@pytest.mark.parametrize(
    "point",
    [pytest.param(p, marks=() if p in SHORT else pytest.mark.faults) for p in WEB + RUNNER_POINTS],
)
def test_backend_killed(laboratory: Laboratory, fault_file: Path, point: str) -> None:
    """kill -9 of the process that is at `{point}` (web process or job runner)."""
    if point in CARD_POINTS:
        laboratory.check_cards()  # else cards of the version before may still be written
    fault_file.write_text(f"{point} 0")
    laboratory.annotate(2)
    wait_for_kill(fault_file, point)
    laboratory.annotate(1)
    laboratory.check()
    if point in CARD_POINTS:
        laboratory.check_cards()


@pytest.mark.faults
@pytest.mark.timeout(1200)  # each kill costs a start of torch
def test_web_process_killed_at_every_step_of_the_job_runner(
    laboratory: Laboratory, fault_file: Path
) -> None:
    """kill -9 of the web process that keeps the job runner, at each step of it in turn."""
    for point in RUNNER_POINTS:
        fault_file.write_text(f"{point} parent")
        laboratory.annotate(1)
        wait_for_kill(fault_file, point)
    note_times(len(RUNNER_POINTS))
    laboratory.check()
    laboratory.check_cards()


@pytest.mark.faults
@pytest.mark.parametrize("jump_h", [-48, 48])
def test_clock_jumps(laboratory: Laboratory, fault_file: Path, jump_h: int) -> None:
    """The backend's clock jumps by {jump_h} h while labels come, and back again."""
    clock = Path(f"{fault_file}.clock")
    laboratory.annotate(1)
    clock.write_text(str(3600 * jump_h))
    try:
        laboratory.annotate(2)
        laboratory.check()
        laboratory.annotate(1)
    finally:
        clock.unlink()
    note_times(2)
    laboratory.annotate(1)
    laboratory.check()

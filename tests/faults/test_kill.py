"""kill -9 between any two steps of backend, job runner and Label Studio: nothing is lost.

After each kill: every submitted label is in the next training set, no task has two predictions
of a version, the queue is sorted by the version in service, and all of it comes back by itself.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from installation import OwnBackend, wait_until
from laboratory import Laboratory, fault_environment, new_laboratory
from own_label_studio import OwnLabelStudio

pytestmark = pytest.mark.label_studio

WEB = ("webhook-arrived", "webhook-stored")
RUNNER = (
    "labels-read",
    "head-fitted",
    "version-written",
    "pool-scored",
    "import-begun",
    "predictions-imported",
    "queue-switched",
    "version-served",
    "job-finished",
    "cards-begun",
)
SHORT = ("webhook-arrived", "head-fitted", "predictions-imported")


@pytest.fixture(scope="module")
def laboratory(
    label_studio: OwnLabelStudio, own_backend: OwnBackend, small_sample: Path, fault_file: Path
) -> Iterator[Laboratory]:
    environment = {"CELLAI_RECONCILE_SECONDS": "5"} | fault_environment(fault_file)
    with own_backend.running(log=None, **environment):
        yield new_laboratory(label_studio, own_backend, small_sample)


@pytest.mark.parametrize(
    "point",
    [pytest.param(p, marks=() if p in SHORT else pytest.mark.faults) for p in WEB + RUNNER],
)
def test_backend_killed(laboratory: Laboratory, fault_file: Path, point: str) -> None:
    fault_file.write_text(f"{point} 0")
    laboratory.annotate(3)
    wait_until(lambda: not fault_file.exists(), deadline_s=90, what=f"kill at {point}")
    laboratory.annotate(2)
    laboratory.check()


@pytest.mark.faults
@pytest.mark.parametrize("point", ["webhook-stored", *RUNNER])
def test_label_studio_killed(laboratory: Laboratory, fault_file: Path, point: str) -> None:
    fault_file.write_text(f"{point} {laboratory.label_studio.pid}")
    laboratory.annotate_into_a_crash(2)
    assert not fault_file.exists()
    laboratory.annotate(2)
    laboratory.check()


@pytest.mark.faults
def test_backend_killed_while_it_sweeps(laboratory: Laboratory, fault_file: Path) -> None:
    """The sweep waits for a minute of quiet; after the kill it goes on."""
    laboratory.check()
    fault_file.write_text("sweep-begun 0")
    wait_until(lambda: not fault_file.exists(), deadline_s=150, what="kill in the sweep")
    laboratory.annotate(2)
    laboratory.check()

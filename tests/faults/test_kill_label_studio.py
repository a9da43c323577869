"""kill -9 of Label Studio between any two steps of the backend: nothing is lost."""

from pathlib import Path

import pytest
from laboratory import CARD_POINTS, RUNNER_POINTS, Laboratory

pytestmark = [pytest.mark.label_studio, pytest.mark.faults]


@pytest.mark.parametrize("point", ["webhook-stored", *RUNNER_POINTS])
def test_label_studio_killed(laboratory: Laboratory, fault_file: Path, point: str) -> None:
    """kill -9 of Label Studio when the backend is at `{point}`."""
    if point in CARD_POINTS:
        laboratory.check_cards()  # else cards of the version before may still be written
    fault_file.write_text(f"{point} {laboratory.label_studio.pid}")
    laboratory.annotate_into_a_crash(2)
    assert not fault_file.exists()
    laboratory.annotate(1)
    laboratory.check()
    if point in CARD_POINTS:
        laboratory.check_cards()

"""The job runner as a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

NOBODY = 2**30  # no process has this number


def test_job_runner_whose_web_process_died_while_it_started_ends(
    weights: Path, tmp_path: Path
) -> None:
    """An orphan would hold the lock for ever, and its successors would never come to work."""
    answer = subprocess.run(
        [sys.executable, "-m", "backend.worker", str(NOBODY)],
        env=os.environ
        | {
            "CELLAI_LABEL_STUDIO_API_KEY": "x",
            "CELLAI_DATA_DIR": str(tmp_path),
            "CELLAI_WEIGHTS": str(weights),
        },
        timeout=300,
        check=False,
    )
    assert answer.returncode == 1

"""How torch's threads wait is told before torch is loaded."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(sys.platform != "linux", reason="torch has GNU's OpenMP on Linux")
@pytest.mark.parametrize(("given", "used"), [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7")])
def test_threads_sleep_soon_unless_told_otherwise(
    given: dict[str, str], used: str, tmp_path: Path
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    answer = subprocess.run(
        [sys.executable, "-c", "import backend._wsgi, torch"],
        env=environment
        | given
        | {
            "OMP_DISPLAY_ENV": "VERBOSE",
            "CELLAI_LABEL_STUDIO_API_KEY": "x",
            "CELLAI_DATA_DIR": str(tmp_path),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"GOMP_SPINCOUNT = '{used}'" in answer.stderr

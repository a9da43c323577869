"""How fast the trunk is beside another process that computes; run as a module it is one of them.

So it is where a web process predicts while the job runner reads a pool. How long threads wait awake
for each other (GOMP_SPINCOUNT, backend/__init__.py) decides it.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from backend.features import load_trunk
from backend.networks import INPUT_PX

ROOT = Path(__file__).resolve().parent.parent
CROPS = 32
SECONDS = 3.0
PROCESSES = 2
# What the library takes by itself. Source: libgomp, env.c.
LIBRARY_SPINS = "300000"


def contention_numbers(weights: Path, seconds: float = SECONDS) -> Iterator[tuple[str, float]]:
    """Milliseconds per crop of two trunks at once; how many times as long it is with the library's.

    Args:
        weights: of the trunk.
        seconds: for which each of them computes.
    """
    ours = _ms_beside_each_other(weights, seconds, os.environ["GOMP_SPINCOUNT"])
    yield "two_trunks_ms_96", ours
    yield "two_trunks_speedup", _ms_beside_each_other(weights, seconds, LIBRARY_SPINS) / ours


def _ms_beside_each_other(weights: Path, seconds: float, spins: str) -> float:
    """Mean of the processes', which begin together."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.contention", str(weights.resolve()), str(seconds)],
            cwd=ROOT,
            env=os.environ | {"GOMP_SPINCOUNT": spins},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(PROCESSES)
    ]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()  # it is warm
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    return float(np.mean([float(process.communicate()[0]) for process in processes]))


def _compute(weights: Path, seconds: float) -> None:
    """Tell that the trunk is warm, wait for a line, tell the milliseconds per crop."""
    trunk = load_trunk(weights, device="cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (CROPS, INPUT_PX, INPUT_PX, 3), np.uint8)
    trunk.extract(pixels, mode="both")
    print("warm", flush=True)
    sys.stdin.readline()
    n_crops, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        trunk.extract(pixels, mode="both")
        n_crops += CROPS
    print(elapsed / n_crops * 1e3)


if __name__ == "__main__":
    _compute(Path(sys.argv[1]), float(sys.argv[2]))

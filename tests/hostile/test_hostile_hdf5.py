"""Hostile HDF5 files: cells or one of our errors; no crash, no hang, no flood, no foreign file."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hdf5_attacks import ATTACKS
from installation import run_cellai
from read_sources import KEPT, peak_bytes, reset_peak

from converters.errors import NotHdf5Error
from converters.memory_limit import MAX_MEMORY_BYTES

ROOT = Path(__file__).parents[2]
CHILD = Path(__file__).with_name("read_sources.py")
N_LONG = {"mutations": 10_000, "structures": 1_000}
# Ten thousand mutations read text within the process that may die, twice as fast; that the reader's
# answer is understood, and its rows counted, the others try.
HERE = {"mutations": ["here"], "structures": []}
# Files that the walk through the structure, which the child process leaves out, may refuse.
REFUSED_KINDS = {"mutations", "kept"}
BATCH = 1000
N_WORKERS = 2
# Resident size also counts pages of files that a case maps or reads.
ALLOWED_BYTES = MAX_MEMORY_BYTES + 2**28

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="inotify and limits are Linux's")


@dataclass
class Tally:
    """What came of the cases of some child processes."""

    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def add(self, other: "Tally") -> None:
        self.outcomes += other.outcomes
        self.failures += other.failures


def judge(line: dict[str, Any]) -> Iterator[str]:
    """What is wrong with a case that ended."""
    if line["trace"]:
        yield f"{line['case']}: {line['trace']}"
    if line["outside"]:
        yield f"{line['case']}: opened {line['outside']}"
    if line["grown"] > ALLOWED_BYTES:
        yield f"{line['case']}: {line['grown'] / 2**20:.0f} MiB"


def run_batch(kind: str, first: int, count: int, folder: Path, *options: str) -> Tally:
    """Runs cases in a child process, in another after each that kills it."""
    folder = folder / f"{kind}-{first}"
    (folder / "cases").mkdir(parents=True)
    (folder / "outside").mkdir()
    with h5py.File(folder / "outside" / "private.h5", "w") as file:
        file["phase/images"] = np.full((4, 20, 20), 3.25, np.float32)
    tally, at, end = Tally(), first, first + count
    while at < end:
        at += run_child(kind, at, end - at, folder, tally, *options)
    return tally


def run_child(kind: str, first: int, count: int, folder: Path, tally: Tally, *options: str) -> int:
    """One child; how many cases it began."""
    child = subprocess.run(
        [sys.executable, CHILD, kind, str(first), str(count), folder / "cases", *options],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    # Plugins of libhdf5 print there, too.
    lines = [json.loads(line) for line in child.stdout.splitlines() if line[:1] == "{"]
    begun = [line["begin"] for line in lines if "begin" in line]
    ended = [line for line in lines if "case" in line]
    tally.outcomes.update(line["outcome"] for line in ended)
    for line in ended:
        tally.failures.extend(judge(line))
    if child.returncode and "here" in options and begun:
        others = [option for option in options if option != "here"]
        run_child(kind, first + len(begun) - 1, 1, folder, tally, *others)  # with text processes
    elif child.returncode:
        last = begun[-1] if len(begun) > len(ended) else "no case"
        if (
            len(begun) > len(ended)
            and kind in REFUSED_KINDS
            and is_refused(folder / "cases/case.h5")
        ):
            tally.outcomes["refused by the check of the structure"] += 1
        else:
            tally.failures.append(f"{last}: died with {child.returncode}\n{child.stderr[-3000:]}")
    return count if kind == "structures" or not child.returncode else max(1, len(begun))


def is_refused(path: Path) -> bool:
    """Whether the command, which tries a file in another process first, refuses it in words."""
    answer = run_cellai("inspect", path)
    return answer.returncode == NotHdf5Error.exit_code and "did not end" in answer.stderr


def check(tally: Tally, *, at_least: int) -> None:
    """No failure, and cases of both sorts were among them."""
    assert not tally.failures, f"{len(tally.failures)}:\n" + "\n".join(tally.failures[:12])
    assert tally.outcomes.total() >= at_least
    print(dict(tally.outcomes.most_common()))


def test_attacks(tmp_path: Path) -> None:
    check(run_batch("attacks", 0, len(ATTACKS), tmp_path), at_least=len(ATTACKS))


@pytest.mark.parametrize(("kind", "count"), [("mutations", 300), ("structures", 150)])
def test_some_hundred_cases(kind: str, count: int, tmp_path: Path) -> None:
    tally = run_batch(kind, 0, count, tmp_path)
    check(tally, at_least=count)
    assert tally.outcomes["crops"] > count / 100
    assert tally.outcomes["crops"] < count * 0.95


def kept_number(name: str) -> int:
    """Where a file of `regressions` comes among them."""
    return [path.name for path in KEPT].index(f"{name}.h5.gz")


@pytest.mark.parametrize(
    ("name", "is_refused_at_once"),
    [
        # Once libhdf5 spun for ever over the text of this damaged file,
        ("mutation-7083", False),
        # and over the virtual datasets of these.
        ("mutation-7103", True),
        pytest.param("mutation-7119", True, marks=pytest.mark.faults),
    ],
)
def test_kept_files_that_never_ended(name: str, is_refused_at_once: bool, tmp_path: Path) -> None:
    tally = run_batch("kept", kept_number(name), 1, tmp_path)
    check(tally, at_least=1)
    assert tally.outcomes["refused by the check of the structure"] == is_refused_at_once


def test_labels_into_copies_of_attacks(tmp_path: Path) -> None:
    """Export reads all that a file holds, so each attack stands beside sound cells, too."""
    for options in (["export"], ["export", "beside"]):
        tally = run_batch("attacks", 0, len(ATTACKS), tmp_path / options[-1], *options)
        check(tally, at_least=len(ATTACKS))
        assert tally.outcomes["exported"] >= 5
        assert not tally.outcomes["OutputError"]  # would blame the disk


def test_labels_into_copies_of_damaged_files(tmp_path: Path) -> None:
    tally = run_batch("mutations", 0, 150, tmp_path, "export")
    check(tally, at_least=150)
    assert tally.outcomes["exported"] > 15
    assert not tally.outcomes["OutputError"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        # Text without end, in a column that no import reads,
        ("mutation-7083", ["export", "beside"]),
        # and a copy that could not be closed.
        ("mutation-1061", ["export"]),
    ],
)
def test_kept_files_are_not_copied(name: str, options: list[str], tmp_path: Path) -> None:
    tally = run_batch("kept", kept_number(name), 1, tmp_path, *options)
    check(tally, at_least=1)
    assert tally.outcomes["NotHdf5Error"] == 1


def test_peak_of_memory_is_that_of_the_case() -> None:
    reset_peak()
    before = peak_bytes()
    np.ones(2**25)
    assert peak_bytes() - before > 2**27
    reset_peak()
    assert peak_bytes() - before < 2**26


@pytest.mark.faults
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", N_LONG)
def test_ten_thousand_cases(kind: str, tmp_path: Path) -> None:
    whole = Tally()
    with ThreadPoolExecutor(N_WORKERS) as pool:
        batches = [
            pool.submit(run_batch, kind, first, BATCH, tmp_path, *HERE[kind])
            for first in range(1000, 1000 + N_LONG[kind], BATCH)
        ]
        for batch in batches:
            whole.add(batch.result())
    check(whole, at_least=N_LONG[kind])


@pytest.mark.faults
@pytest.mark.timeout(1200)
def test_labels_into_copies_of_more_damaged_files(tmp_path: Path) -> None:
    tally = run_batch("mutations", 1000, 300, tmp_path, "export")
    check(tally, at_least=300)
    assert not tally.outcomes["OutputError"]

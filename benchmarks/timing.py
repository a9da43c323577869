"""Seconds and memory of a task."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import psutil


def seconds(task: Callable[[], object], *, repetitions: int = 5) -> float:
    """Median time of a task after one run that does not count."""
    return seconds_in_turn(task, repetitions=repetitions)[0]


def seconds_in_turn(*tasks: Callable[[], object], repetitions: int = 5) -> tuple[float, ...]:
    """Median time of each task, after one round that does not count.

    The tasks take turns: a machine whose speed changes, because others share its processor, changes
    it for all of them. One after the other, their ratios were wrong by up to a third (measured).
    """
    times: list[list[float]] = [[] for _ in tasks]
    for task in tasks:
        task()
    for _ in range(repetitions):
        for task, own in zip(tasks, times, strict=True):
            started = time.perf_counter()
            task()
            own.append(time.perf_counter() - started)
    return tuple(median(own) for own in times)


class PeakMemory:
    """Resident memory added in a `with` block, between its start and its highest; in MB."""

    def __enter__(self) -> "PeakMemory":
        _reset_peak()
        self._before = psutil.Process().memory_info().rss
        self.added_mb = 0.0
        return self

    def __exit__(self, *_: object) -> None:
        self.added_mb = max(0.0, (_peak_rss() - self._before) / 1e6)


def _reset_peak() -> None:
    """Linux: writing 5 to clear_refs resets the high-water mark of resident memory."""
    control = Path("/proc/self/clear_refs")
    if os.access(control, os.W_OK):
        control.write_text("5")


def _peak_rss() -> int:
    status = Path("/proc/self/status")
    if not status.exists():
        return int(psutil.Process().memory_info().rss)
    line = next(row for row in status.read_text().splitlines() if row.startswith("VmHWM"))
    return int(line.split()[1]) * 1024

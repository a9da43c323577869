"""The table of docs/reliability.md, written by the run itself.

What a test injects is the first line of its docstring, with its parameters filled in. What was
seen comes from `note_check`, which the laboratory calls whenever everything held. With FAULT_TABLE
naming a Markdown file, the rows replace what stands there between the two marks.
"""

import inspect
import os
import platform
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

BEGIN, END = "<!-- table of a run -->", "<!-- /table of a run -->"
HEADER = ["| Injected | Times | Seen | Back after |", "|---|---|---|---|"]


@dataclass
class Row:
    """What one test has injected and seen so far."""

    times: int = 1
    seen: str = ""
    looks: int = 0
    back_s: float = 0.0
    notes: list[str] = field(default_factory=list)


_BEGAN = time.monotonic()
_rows = [Row()]  # of the tests so far; the last one is the running test's


def note_check(*, n_labels: int, n_tasks: int, looks: int, back_s: float) -> None:
    """Everything held: labels in the version, sorted tasks, looks at the queue meanwhile."""
    row = _rows[-1]
    row.seen = f"{n_labels} labels, {n_tasks} tasks"
    row.looks += looks
    row.back_s = max(row.back_s, back_s)


def note_times(times: int) -> None:
    """How often the test injected its fault, if not once."""
    _rows[-1].times = times


def note_seen(what: str) -> None:
    """Something else that was seen, such as what the backend said."""
    _rows[-1].notes.append(what)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    """A new test begins a new row; what its fixtures saw before is no part of it."""
    _rows.append(Row())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Attach the row to the report of the test's call."""
    report = yield
    if report.when == "call" and Path(__file__).parent in item.path.parents:
        report.user_properties.append(("fault", _line(item, report)))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table, and write it where FAULT_TABLE says."""
    reports = [
        report
        for outcome in ("passed", "failed", "skipped")
        for report in terminalreporter.getreports(outcome)
    ]
    rows = sorted(
        value for report in reports for name, value in report.user_properties if name == "fault"
    )
    if not rows:
        return
    table = [*HEADER, *rows]
    terminalreporter.write_line("\n".join(table))
    if "FAULT_TABLE" in os.environ:
        seconds = time.monotonic() - _BEGAN
        _insert(Path(os.environ["FAULT_TABLE"]), [_origin(len(rows), seconds), "", *table])


def _line(item: pytest.Item, report: pytest.TestReport) -> str:
    row = _rows[-1]
    if report.passed:
        watched = f", queue watched {row.looks} times" if row.looks else ""
        seen = "; ".join(filter(None, [row.seen + watched, *row.notes]))
        back = f"{row.back_s:.0f} s" if row.seen else ""
    else:
        seen, back = f"**{report.outcome}**", ""
    return f"| {_injected(item)} | {row.times} | {seen} | {back} |"


def _injected(item: pytest.Item) -> str:
    function = getattr(item, "function", None)
    sentence = (inspect.getdoc(function) or item.name).splitlines()[0].rstrip(".")
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    return sentence.format(**parameters)


def _origin(n_rows: int, seconds: float) -> str:
    machine = f"{os.cpu_count()} cores ({platform.machine()}), load {os.getloadavg()[2]:.0f}"
    return (
        f"Written by `make test-faults` on {datetime.now(UTC):%Y-%m-%d}: {n_rows} tests,"
        f" {seconds / 60:.0f} minutes, {machine}."
    )


def _insert(page: Path, lines: Sequence[str]) -> None:
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin, f"{page} has no {BEGIN}"
    assert end, f"{page} has no {END}"
    page.write_text("\n".join([before + BEGIN, *lines, END + after]))

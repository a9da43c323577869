"""One finding of `cellai doctor`."""

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """How a check ended; only a problem makes an installation unhealthy."""

    OK = "ok"
    ADVICE = "advice"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of `cellai doctor`.

    Attributes:
        name: what was looked at.
        verdict: how it ended.
        finding: what was found.
        fix: what to do; '' when there is nothing to do.
    """

    name: str
    verdict: Verdict
    finding: str
    fix: str = ""

    def __str__(self) -> str:
        """The line as it is printed."""
        fix = f" Fix: {self.fix}" if self.fix else ""
        return f"{self.verdict:<8} {self.name}: {self.finding}{fix}"


def ok(name: str, finding: str) -> Check:
    """All is well."""
    return Check(name, Verdict.OK, finding)


def advice(name: str, finding: str, fix: str) -> Check:
    """It works, and could work better."""
    return Check(name, Verdict.ADVICE, finding, fix)


def problem(name: str, finding: str, fix: str) -> Check:
    """It does not work as it should."""
    return Check(name, Verdict.PROBLEM, finding, fix)

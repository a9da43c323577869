"""From the learning curve to one plain sentence: what to label next, and whether it still helps.

Stop rule: stabilising predictions. Versions at least STEP_LABELS labels apart are compared on
cells that neither was trained on; when the mean agreement of the last WINDOW comparisons reaches
STABLE, further labels hardly change what the model says.

Source: Bloodgood and Vijay-Shanker 2009, "A Method for Stopping Active Learning Based on
Stabilizing Predictions and the Need for User-Adjustable Stopping", section 3, arXiv:1409.5165.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from backend.history import STEP_LABELS, VersionRecord
from backend.training import MIN_HOLDOUT_LABELS

STABLE = 0.99
WINDOW = 3
# With fewer shared cells one changed prediction moves kappa by more than the margin to 1.
MIN_SHARED = 100

AGREEMENT_RULE = (
    f"Stop rule: versions at least {STEP_LABELS} labels apart predict the same open cells; when"
    f" Cohen's kappa between successive ones averages {STABLE} or more over the last {WINDOW}"
    " comparisons, the predictions are stable (Bloodgood and Vijay-Shanker 2009). The gain is"
    " macro-F1 now against that with half the labels or fewer; it counts as real beyond two"
    " standard errors of the difference."
)

Verdict = Literal["start", "continue", "stop"]


@dataclass(frozen=True, slots=True)
class Agreement:
    """How much two successive versions agree on the stop set.

    Attributes:
        n_labels: of the later version.
        kappa: Cohen's kappa, 1 where every prediction is the same.
    """

    n_labels: int
    kappa: float


@dataclass(frozen=True, slots=True)
class Gain:
    """Macro-F1 now against the one with half as many labels or fewer; `se` of the difference."""

    n_before: int
    before: float
    after: float
    se: float

    @property
    def is_sure(self) -> bool:
        """Whether the rise exceeds two standard errors."""
        return self.after - self.before > 2 * self.se


@dataclass(frozen=True, slots=True)
class Advice:
    """What the report says first."""

    verdict: Verdict
    sentence: str
    agreements: tuple[Agreement, ...]


@dataclass(frozen=True, slots=True)
class ClassState:
    """One class: what the annotator reads, labels it has, F1 on the hold-out (None unmeasured)."""

    title: str
    n_labels: int
    f1: float | None


def advise(records: Sequence[VersionRecord], classes: Sequence[ClassState]) -> Advice:
    """The advice for a project.

    Args:
        records: its versions, oldest first.
        classes: its classes as they are now.
    """
    found = agreements(records)
    n_labels = sum(state.n_labels for state in classes)
    if sum(state.n_labels > 0 for state in classes) < 2:
        return Advice("start", "Label cells of at least two classes: learning starts then.", ())
    if n_labels < MIN_HOLDOUT_LABELS:
        sentence = (
            f"Go on with the queue: with {MIN_HOLDOUT_LABELS} labels (now {n_labels}) the model"
            " can be measured as well."
        )
        return Advice("start", sentence, found)
    weakest = _weakest(classes)
    if is_stable(found):
        sentence = (
            f"You can stop: the last {WINDOW * STEP_LABELS} labels or more have hardly changed any"
            f" prediction; go on only if {weakest} must become better."
        )
        return Advice("stop", sentence, found)
    sentence = f"Go on with the queue and look for {weakest} above all; {_prospect(records)}."
    return Advice("continue", sentence, found)


def agreements(records: Sequence[VersionRecord]) -> tuple[Agreement, ...]:
    """Agreement of successive versions that are STEP_LABELS labels or more apart.

    Args:
        records: oldest first; only those that predict the latest version's classes count.
    """
    found: list[Agreement] = []
    last: VersionRecord | None = None
    for record in records:
        if not record.stop_set or record.classes != records[-1].classes:
            continue
        if last is None:
            last = record
        elif record.n_labels - last.n_labels >= STEP_LABELS:
            agreement = kappa(last.stop_set, record.stop_set)
            if agreement is not None:
                found.append(Agreement(record.n_labels, agreement))
            last = record
    return tuple(found)


def is_stable(found: Sequence[Agreement]) -> bool:
    """Whether the stop rule holds."""
    last = found[-WINDOW:]
    return len(last) == WINDOW and math.fsum(a.kappa for a in last) / WINDOW >= STABLE


def kappa(first: Mapping[int, int], second: Mapping[int, int]) -> float | None:
    """Agreement of two predictions beyond chance.

    Args:
        first: class index by task id.
        second: class index by task id.

    Returns:
        In [-1, 1]; None with fewer than MIN_SHARED tasks in both.

    Source:
        Cohen 1960, "A Coefficient of Agreement for Nominal Scales", eq. 1.
    """
    shared = first.keys() & second.keys()
    if len(shared) < MIN_SHARED:
        return None
    agreeing = sum(first[task] == second[task] for task in shared) / len(shared)
    counts_first = Counter(first[task] for task in shared)
    counts_second = Counter(second[task] for task in shared)
    chance = sum(counts_first[idx] * counts_second[idx] for idx in counts_first) / len(shared) ** 2
    return 1.0 if chance == 1 else (agreeing - chance) / (1 - chance)


def recent_gain(records: Sequence[VersionRecord]) -> Gain | None:
    """What doubling the labels brought; None while no version with half of them was measured."""
    measured = [
        (record.n_labels, f1, se)
        for record in records
        if isinstance(f1 := record.metrics.get("macro_f1"), float)
        and isinstance(se := record.metrics.get("macro_f1_se"), float)
        and record.classes == records[-1].classes
    ]
    earlier = [point for point in measured if 2 * point[0] <= measured[-1][0]]
    if not earlier:
        return None
    (n_before, before, se_before), (_, after, se_after) = earlier[-1], measured[-1]
    return Gain(n_before, before, after, math.hypot(se_before, se_after))


def _prospect(records: Sequence[VersionRecord]) -> str:
    gain = recent_gain(records)
    if gain is None:
        return "whether more labels help shows once their number has doubled"
    before, after = f"{gain.before:.2f} at {gain.n_before} labels", f"{gain.after:.2f} now"
    if gain.is_sure:
        return f"more labels still help: macro-F1 was {before} and is {after}"
    return (
        "more labels still change predictions, though macro-F1"
        f" ({before}, {after}) has not risen beyond its error"
    )


def _weakest(classes: Sequence[ClassState]) -> str:
    """The class without a label, else the one of the lowest F1, else of the fewest labels."""
    state = min(
        classes,
        key=lambda c: (c.n_labels > 0, c.f1 is None, c.f1 or 0, c.n_labels),
    )
    count = f"{state.n_labels} label{'' if state.n_labels == 1 else 's'}"
    measured = "" if state.f1 is None else f", F1 {state.f1:.2f}"
    return f"“{state.title}” ({count}{measured})"

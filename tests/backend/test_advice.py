"""What the report advises: kappa, the stop rule, the gain of labels, the weakest class."""

from typing import Any

import pytest

from backend import advice
from backend.advice import Agreement, ClassState, advise, agreements, is_stable, kappa, recent_gain
from backend.history import VersionRecord

CLASSES = ("a", "b")
N_SHARED = 200


def record(n_labels: int, **changes: Any) -> VersionRecord:
    """A version that predicts the first `n_a` stop-set tasks as the first class."""
    n_a = changes.pop("n_a", N_SHARED // 2)
    metrics = {"macro_f1": changes.pop("f1", 0.9), "macro_f1_se": changes.pop("se", 0.01)}
    parts: dict[str, Any] = {
        "version": f"v{n_labels}",
        "created_at": f"2026-01-01T00:{n_labels // 60:02}:{n_labels % 60:02}+00:00",
        "classes": CLASSES,
        "n_labels": n_labels,
        "metrics": metrics,
        "stop_set": {task: int(task >= n_a) for task in range(N_SHARED)},
    }
    return VersionRecord(**parts | changes)


def states(*rows: tuple[str, int, float | None]) -> list[ClassState]:
    return [ClassState(*row) for row in rows]


def test_kappa_by_hand() -> None:
    """20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no, twice over: kappa 0.4."""
    table = [(1, 1)] * 40 + [(1, 0)] * 10 + [(0, 1)] * 20 + [(0, 0)] * 30
    first, second = (dict(enumerate(column)) for column in zip(*table, strict=True))
    assert kappa(first, second) == pytest.approx(0.4)
    assert kappa(first, first) == 1


def test_kappa_needs_enough_cells_in_both() -> None:
    stop_set = dict.fromkeys(range(advice.MIN_SHARED - 1), 0)
    assert kappa(stop_set, stop_set) is None
    assert kappa(dict.fromkeys(range(100), 0), dict.fromkeys(range(100), 0)) == 1


def test_versions_a_few_labels_apart_are_not_compared() -> None:
    records = [record(n) for n in (20, 25, 39, 40, 41, 70)]
    assert [found.n_labels for found in agreements(records)] == [40, 70]


def test_versions_of_other_classes_do_not_count() -> None:
    records = [record(20, classes=("a", "c")), record(40), record(60)]
    assert [found.n_labels for found in agreements(records)] == [60]


def test_stop_rule_asks_for_three_stable_comparisons() -> None:
    stable = [Agreement(n, 0.992) for n in (40, 60, 80)]
    assert is_stable(stable)
    assert not is_stable(stable[:2])
    assert not is_stable([*stable, Agreement(100, 0.98)])
    assert is_stable([Agreement(20, 0.1), *stable])


def test_gain_is_against_half_the_labels() -> None:
    records = [record(20, f1=0.4), record(45, f1=0.6), record(55, f1=0.7), record(100, f1=0.9)]
    gain = recent_gain(records)
    assert gain is not None
    assert (gain.n_before, gain.before, gain.after) == (45, 0.6, 0.9)
    assert gain.se == pytest.approx(0.01 * 2**0.5)
    assert gain.is_sure
    assert recent_gain(records[2:]) is None


def test_advice_before_two_classes_have_a_label() -> None:
    given = advise([], states(("A", 30, None), ("B", 0, None)))
    assert given.verdict == "start"
    assert "two classes" in given.sentence


def test_advice_before_a_hold_out() -> None:
    given = advise([record(10)], states(("A", 5, None), ("B", 5, None)))
    assert given.verdict == "start"
    assert "25 labels (now 10)" in given.sentence


def test_advice_to_go_on_names_the_weakest_class_and_the_gain() -> None:
    records = [record(50, f1=0.6, n_a=100), record(100, f1=0.9, n_a=60)]
    given = advise(records, states(("A", 80, 0.95), ("B", 20, 0.5)))
    assert given.verdict == "continue"
    assert "“B” (20 labels, F1 0.50)" in given.sentence
    assert "more labels still help: macro-F1 was 0.60 at 50 labels and is 0.90 now" in (
        given.sentence
    )


def test_gain_within_its_error_is_said_to_be_so() -> None:
    records = [record(50, f1=0.8, se=0.1), record(100, f1=0.9, se=0.1, n_a=60)]
    sentence = advise(records, states(("A", 80, 0.95), ("B", 20, 0.5))).sentence
    assert "has not risen beyond its error" in sentence


def test_class_without_a_label_comes_first() -> None:
    given = advise([record(30)], states(("A", 29, 0.1), ("B", 0, None), ("C", 1, 0.2)))
    assert "“B” (0 labels)" in given.sentence


def test_advice_to_stop_when_predictions_are_stable() -> None:
    records = [record(n) for n in (40, 60, 80, 100)]
    given = advise(records, states(("A", 80, 0.95), ("B", 20, 0.5)))
    assert given.verdict == "stop"
    assert given.sentence.startswith("You can stop")
    changing = [*records, record(120, n_a=60)]
    assert advise(changing, states(("A", 80, 0.95), ("B", 40, 0.5))).verdict == "continue"

"""Numbers and learning curves to results.json, Markdown tables and plots."""

import json
import math
import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from backend.precision import fastest_precision
from benchmarks.goals import goals
from benchmarks.learning import (
    BATCH,
    FULL_SCORE_SHARE,
    FULL_STRATEGIES,
    JUDGED_AT,
    Point,
    Run,
    area,
    at,
    macro_f1_at,
)
from benchmarks.plots import plot_learning, plot_stability

FIRST_LABELS = 50
RARE_RECALL_AT = (30, 50, 100)
CALIBRATION_AT = (30, 50, 100)  # where the hold-outs are tiny, and errors many
SYNTHETIC = (
    "Made up are the features of retrain_*, rescore_*, shared_mask_* and cache_* (but for"
    " cache_kb_per_crop), and the pictures and heads behind predict_* and original_*."
)
SINGLE_CRITERIA = ("entropy", "margin", "bald", "entropy_5_passes")


class Results:
    """All numbers of one benchmark run.

    Args:
        folder: where the files go, in place of those of an earlier run.
        full: whether all seeds and strategies were asked for.
    """

    def __init__(self, folder: Path, *, full: bool) -> None:
        self.folder = folder
        self._full = full
        self.numbers: dict[str, float] = {}
        self.runs: list[Run] = []

    def add(self, name: str, value: float) -> None:
        """Record a number and show it."""
        self.numbers[name] = round(value, 6)
        print(f"{name:44s} {value:12.4g}", flush=True)

    def add_run(self, run: Run) -> None:
        """Record a simulation and show it."""
        self.runs.append(run)
        print(
            f"{run.dataset:20s} seed {run.seed} {run.strategy:18s} area {area(run):.3f} "
            f"labels to 95 % of {run.full_macro_f1:.3f}: {run.labels_to_95 or math.inf:.0f}",
            flush=True,
        )

    def write(self) -> None:
        """Write results.json, runs.json, results.md and one plot per data set."""
        facts = {
            "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": _processor(),
            "cores": os.cpu_count(),
            "torch": torch.__version__,
            "precision": str(fastest_precision(torch.device("cpu"))).removeprefix("torch."),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "full": self._full,
            "synthetic": SYNTHETIC,
        }
        # What is not a number, such as the correlation of constants, has no word in JSON but null.
        numbers = {
            name: value if math.isfinite(value) else None for name, value in self.numbers.items()
        }
        text = json.dumps(facts | numbers, indent=1, allow_nan=False)
        (self.folder / "results.json").write_text(text + "\n")
        (self.folder / "runs.json").write_text(json.dumps([asdict(run) for run in self.runs]))
        (self.folder / "results.md").write_text(self._markdown())
        for plot in self.folder.glob("learning-*.png"):
            plot.unlink()
        for dataset in sorted({run.dataset for run in self.runs}):
            path = self.folder / f"learning-{dataset}.png"
            plot_learning(runs_by_strategy(self.runs, dataset), path)
        plot_stability(self.numbers, self.folder / "stability.png")

    def _markdown(self) -> str:
        datasets = sorted({run.dataset for run in self.runs})
        lines = ["# Benchmark results", "", SYNTHETIC, ""]
        lines += ["| goal | wanted | value | met |", "|---|---|---|---|"]
        for goal in goals(self.numbers, datasets):
            met = "yes" if goal.is_met else "no"
            lines.append(f"| `{goal.name}` | {goal.wanted} | {goal.value:.4g} | {met} |")
        lines += ["", "| number | value |", "|---|---|"]
        lines += [f"| `{name}` | {value:.4g} |" for name, value in self.numbers.items()]
        for dataset in datasets:
            lines += ["", *learning_table(dataset, runs_by_strategy(self.runs, dataset))]
        return "\n".join(lines) + "\n"


def _processor() -> str:
    """The processor's name as Linux gives it, else its kind."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def learning_numbers(runs: Sequence[Run]) -> Iterator[tuple[str, float]]:
    """What each data set says against the goals of docs/model.md, and a curve's labels.

    The best single criterion is the best of those that were simulated.
    """
    yield "budget", runs[0].budget
    for dataset in sorted({run.dataset for run in runs}):
        by_strategy = runs_by_strategy(runs, dataset)
        ours, rnd = by_strategy["cellai"], by_strategy["random"]
        single = [by_strategy[name] for name in SINGLE_CRITERIA if name in by_strategy]
        best_single = max(single, key=_mean_area)
        ratios = [_crossing(mine) / _crossing(other) for mine, other in zip(ours, rnd, strict=True)]
        yield f"labels_to_95_ratio_{dataset}", float(np.median(ratios))
        ratio = _labels_to_95_of_mean(ours) / _labels_to_95_of_mean(rnd)
        yield f"labels_to_95_ratio_of_means_{dataset}", ratio
        yield f"area_{dataset}", _mean_area(ours)
        yield from _gain(f"area_gain_{dataset}", map(area, ours), map(area, best_single))
        yield from _gain(f"area_gain_over_random_{dataset}", map(area, ours), map(area, rnd))
        first50 = ((macro_f1_at(run, FIRST_LABELS) for run in own) for own in (ours, rnd))
        yield from _gain(f"first50_gain_{dataset}", *first50)
        yield f"first50_lowest_{dataset}", _lowest_gain(ours, rnd)
        yield from _gain(
            f"rare_of_first60_{dataset}", map(_rare_share, ours), map(_rare_share, rnd)
        )
        for n_labels in RARE_RECALL_AT:
            recall = ((at(run, n_labels).rare_recall for run in own) for own in (ours, rnd))
            yield from _gain(f"rare_recall_gain_{n_labels}_{dataset}", *recall)
        last = [at(run, JUDGED_AT) for run in ours]
        yield f"ece_before_{dataset}", float(np.median([point.ece_before for point in last]))
        yield f"ece_after_{dataset}", float(np.median([point.ece_after for point in last]))
        for n_labels in CALIBRATION_AT:
            points = [at(run, n_labels) for run in ours]
            for name in ("ece_before", "ece_after", "brier_before", "brier_after"):
                errors = [getattr(point, name) for point in points]
                yield f"{name}_{n_labels}_{dataset}", float(np.median(errors))
            yield from _risk_half(f"{n_labels}_{dataset}", points)
        yield f"brier_before_{dataset}", float(np.median([point.brier_before for point in last]))
        yield f"brier_after_{dataset}", float(np.median([point.brier_after for point in last]))
        yield from _risk_half(dataset, last)
        yield f"errors_{dataset}", sum(point.n_errors for point in last)


def learning_table(dataset: str, by_strategy: dict[str, list[Run]]) -> list[str]:
    """Markdown table of one data set: mean and standard error over seeds."""
    full = np.mean([run.full_macro_f1 for own in by_strategy.values() for run in own])
    places = sorted({FIRST_LABELS, 100, next(iter(by_strategy.values()))[0].budget})
    lines = [
        f"## {dataset} (macro-F1 of the whole pool {full:.3f})",
        "",
        f"| strategy | area to {places[-1]} | macro-F1 {' | '.join(f'at {n}' for n in places)} "
        "| balanced accuracy at 100 | rare recall at 100 | to 95 % |",
        "|---" * (len(places) + 5) + "|",
    ]
    for strategy, own in by_strategy.items():
        areas = [area(run) for run in own]
        error = np.std(areas, ddof=1) / len(areas) ** 0.5 if len(areas) > 1 else float("nan")
        cells = [f"{_mean_macro_f1_at(own, n):.3f}" for n in places]
        balanced = np.mean([at(run, 100).balanced_accuracy for run in own])
        rare = np.mean([at(run, 100).rare_recall for run in own])
        lines.append(
            f"| {strategy} | {np.mean(areas):.3f} ± {error:.3f} | {' | '.join(cells)} | "
            f"{balanced:.3f} | {rare:.3f} | {_labels_to_95(own):.0f} |"
        )
    return lines


def _labels_to_95(runs: Sequence[Run]) -> float:
    """Median over seeds."""
    return float(np.median([_crossing(run) for run in runs]))


def _crossing(run: Run) -> float:
    """Labels at 95 % of the whole pool's score; the pool's size where all were needed."""
    return run.points[-1].n_labels if run.labels_to_95 is None else run.labels_to_95


def _labels_to_95_of_mean(runs: Sequence[Run]) -> int:
    """Labels where the mean curve over seeds crosses the line, each as a part of its pool's score.

    One curve crosses it late or early by chance, which moves the median of a few seeds; their mean
    is smooth enough to be above once. Where it never is, the most labels that any of them got to.
    """
    last = max(run.points[-1].n_labels for run in runs)
    for n_labels in range(BATCH, last + 1):
        shares = [macro_f1_at(run, n_labels) / run.full_macro_f1 for run in runs]
        if np.mean(shares) >= FULL_SCORE_SHARE:
            return n_labels
    return last


def runs_by_strategy(runs: Sequence[Run], dataset: str) -> dict[str, list[Run]]:
    """The runs of one data set, each strategy's in the order of the seeds."""
    own = sorted((run for run in runs if run.dataset == dataset), key=lambda run: run.seed)
    by_strategy = {name: [run for run in own if run.strategy == name] for name in FULL_STRATEGIES}
    return {name: its_runs for name, its_runs in by_strategy.items() if its_runs}


def _gain(name: str, ours: Iterable[float], theirs: Iterable[float]) -> Iterator[tuple[str, float]]:
    """Mean of the differences, split by split, and its standard error over the splits."""
    differences = np.array([mine - other for mine, other in zip(ours, theirs, strict=True)])
    yield name, float(differences.mean())
    if len(differences) > 1:
        yield f"{name}_se", float(differences.std(ddof=1) / len(differences) ** 0.5)


def _lowest_gain(ours: Sequence[Run], rnd: Sequence[Run]) -> float:
    """Over the first labels, the lowest of the mean gain plus its standard error.

    Below zero: somewhere the gain is below that of random labels by more than a standard error.
    """
    lowest = math.inf
    for n_labels in range(BATCH, FIRST_LABELS + 1, BATCH):
        pairs = zip(ours, rnd, strict=True)
        gains = [
            macro_f1_at(mine, n_labels) - macro_f1_at(other, n_labels) for mine, other in pairs
        ]
        error = np.std(gains, ddof=1) / len(gains) ** 0.5 if len(gains) > 1 else 0.0
        lowest = min(lowest, float(np.mean(gains) + error))
    return lowest


def _risk_half(name: str, points: Sequence[Point]) -> Iterator[tuple[str, float]]:
    """Share of a split's errors that lie in its most certain half: the median, and of all together.

    Both, since one split may have two errors, of which a single one is a half.
    """
    shares = [point.n_certain_errors / max(point.n_errors, 1) for point in points]
    yield f"risk_half_{name}", float(np.median(shares))
    n_errors = sum(point.n_errors for point in points)
    n_certain = sum(point.n_certain_errors for point in points)
    yield f"risk_half_together_{name}", n_certain / max(n_errors, 1)


def _rare_share(run: Run) -> float:
    """Share of the two classes that are rarest in the pool among the first 60 labels."""
    return sum(run.first_classes[class_idx] for class_idx in run.rarest) / sum(run.first_classes)


def _mean_macro_f1_at(runs: Sequence[Run], n_labels: int) -> float:
    return float(np.mean([macro_f1_at(run, n_labels) for run in runs]))


def _mean_area(runs: Sequence[Run]) -> float:
    return float(np.mean([area(run) for run in runs]))

"""Numbers and learning curves to results.json, a Markdown table and plots."""

import json
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import matplotlib as mpl
import numpy as np

from benchmarks.learning import BUDGET, Run, area, at, macro_f1_at

mpl.use("Agg")
import matplotlib.pyplot as plt

FIRST_LABELS = 50
SINGLE_CRITERIA = ("entropy", "margin", "bald")


class Results:
    """All numbers of one benchmark run.

    Args:
        folder: where the files go, in place of those of an earlier run.
        full: whether all seeds and strategies were asked for.
    """

    def __init__(self, folder: Path, *, full: bool) -> None:
        self._folder = folder
        self._full = full
        self.numbers: dict[str, float] = {}
        self.runs: list[Run] = []

    def add(self, name: str, value: float) -> None:
        """Record a number and show it."""
        self.numbers[name] = round(value, 6)
        print(f"{name:44s} {value:12.4g}", flush=True)

    def add_runs(self, runs: Sequence[Run]) -> None:
        """Record simulations of one split and show them."""
        self.runs.extend(runs)
        for run in runs:
            print(
                f"{run.dataset:20s} seed {run.seed} {run.strategy:18s} area {area(run):.3f} "
                f"labels to 95 % of {run.full_macro_f1:.3f}: {run.labels_to_95}",
                flush=True,
            )

    def write(self) -> None:
        """Write results.json, runs.json, results.md and one plot per data set."""
        facts = {
            "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": platform.processor() or platform.machine(),
            "full": self._full,
        }
        text = json.dumps(facts | self.numbers, indent=1)
        (self._folder / "results.json").write_text(text + "\n")
        (self._folder / "runs.json").write_text(json.dumps([asdict(run) for run in self.runs]))
        (self._folder / "results.md").write_text(self._markdown())
        for dataset in sorted({run.dataset for run in self.runs}):
            plot_curves([run for run in self.runs if run.dataset == dataset], self._folder)

    def _markdown(self) -> str:
        lines = ["# Benchmark results", "", "| number | value |", "|---|---|"]
        lines += [f"| `{name}` | {value:.4g} |" for name, value in self.numbers.items()]
        for dataset in sorted({run.dataset for run in self.runs}):
            lines += ["", *learning_table([run for run in self.runs if run.dataset == dataset])]
        return "\n".join(lines) + "\n"


def learning_numbers(runs: Sequence[Run]) -> Iterator[tuple[str, float]]:
    """The numbers of issue 3 for each data set."""
    for dataset in sorted({run.dataset for run in runs}):
        by_strategy = _by_strategy([run for run in runs if run.dataset == dataset])
        ours, rnd = by_strategy["cellai"], by_strategy["random"]
        best_single = max(_mean_area(by_strategy[name]) for name in SINGLE_CRITERIA)
        yield f"labels_to_95_ratio_{dataset}", _labels_to_95(ours) / _labels_to_95(rnd)
        yield f"area_{dataset}", _mean_area(ours)
        yield f"area_gain_{dataset}", _mean_area(ours) - best_single
        yield f"area_gain_over_random_{dataset}", _mean_area(ours) - _mean_area(rnd)
        first50 = [_mean_macro_f1_at(own, FIRST_LABELS) for own in (ours, rnd)]
        yield f"first50_gain_{dataset}", first50[0] - first50[1]
        last = [at(run, BUDGET) for run in ours]
        yield f"ece_before_{dataset}", float(np.median([point.ece_before for point in last]))
        yield f"ece_after_{dataset}", float(np.median([point.ece_after for point in last]))
        yield f"brier_before_{dataset}", float(np.median([point.brier_before for point in last]))
        yield f"brier_after_{dataset}", float(np.median([point.brier_after for point in last]))
        yield f"risk_half_{dataset}", float(np.median([point.risk_half for point in last]))


def learning_table(runs: Sequence[Run]) -> list[str]:
    """Markdown table of one data set: mean and standard error over seeds."""
    lines = [
        f"## {runs[0].dataset} (macro-F1 of the whole pool "
        f"{np.mean([run.full_macro_f1 for run in runs]):.3f})",
        "",
        "| strategy | area | macro-F1 at 50 | at 100 | at 200 | rare recall at 100 | to 95 % |",
        "|---|---|---|---|---|---|---|",
    ]
    for strategy, own in _by_strategy(runs).items():
        areas = [area(run) for run in own]
        error = np.std(areas, ddof=1) / len(areas) ** 0.5 if len(areas) > 1 else float("nan")
        cells = [f"{_mean_macro_f1_at(own, n):.3f}" for n in (50, 100, 200)]
        rare = np.mean([at(run, 100).rare_recall for run in own])
        lines.append(
            f"| {strategy} | {np.mean(areas):.3f} ± {error:.3f} | {' | '.join(cells)} | "
            f"{rare:.3f} | {_labels_to_95(own):.0f} |"
        )
    return lines


def plot_curves(runs: Sequence[Run], folder: Path) -> Path:
    """Macro-F1 and rare-class recall against labels, mean and deviation over seeds."""
    figure, panels = plt.subplots(1, 2, figsize=(11, 4), sharex=True)
    for strategy, own in _by_strategy(runs).items():
        counts = sorted({p.n_labels for run in own for p in run.points if p.n_labels <= BUDGET})
        for panel, name in zip(panels, ("macro_f1", "rare_recall"), strict=True):
            curves = np.array([[getattr(at(run, n), name) for n in counts] for run in own])
            mean, deviation = curves.mean(axis=0), curves.std(axis=0)
            panel.plot(counts, mean, label=strategy)
            panel.fill_between(counts, mean - deviation, mean + deviation, alpha=0.12)
            panel.set(xlabel="labels", ylabel=name.replace("_", " "))
    panels[0].axhline(
        0.95 * np.mean([run.full_macro_f1 for run in runs]), color="grey", linestyle=":"
    )
    panels[0].legend()
    figure.suptitle(runs[0].dataset)
    path = folder / f"learning-{runs[0].dataset}.png"
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)
    return path


def _labels_to_95(runs: Sequence[Run]) -> float:
    """Median over seeds; a run that needed the whole pool counts with its size."""
    counts = [
        run.labels_to_95 if run.labels_to_95 is not None else run.points[-1].n_labels
        for run in runs
    ]
    return float(np.median(counts))


def _by_strategy(runs: Sequence[Run]) -> dict[str, list[Run]]:
    names = dict.fromkeys(run.strategy for run in runs)
    return {name: [run for run in runs if run.strategy == name] for name in names}


def _mean_macro_f1_at(runs: Sequence[Run], n_labels: int) -> float:
    return float(np.mean([macro_f1_at(run, n_labels) for run in runs]))


def _mean_area(runs: Sequence[Run]) -> float:
    return float(np.mean([area(run) for run in runs]))

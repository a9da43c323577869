"""Plots of a benchmark run: learning curves, risk against coverage, stability of the order."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np

from benchmarks.learning import COVERAGES, FULL_SCORE_SHARE, Run, at

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

CURVES = {
    "macro_f1": "macro-F1",
    "balanced_accuracy": "balanced accuracy",
    "rare_recall": "recall of the two rarest classes",
}


def plot_learning(by_strategy: Mapping[str, Sequence[Run]], path: Path) -> None:
    """Curves of one data set, mean and standard deviation over seeds.

    Args:
        by_strategy: runs of one data set.
        path: of the PNG file.
    """
    figure, panels = plt.subplots(1, len(CURVES) + 1, figsize=(18, 4), layout="constrained")
    budget = next(iter(by_strategy.values()))[0].budget
    for strategy, runs in by_strategy.items():
        counts = sorted({p.n_labels for run in runs for p in run.points if p.n_labels <= budget})
        for panel, name in zip(panels, CURVES, strict=False):
            values = [[getattr(at(run, n), name) for n in counts] for run in runs]
            _plot_band(panel, counts, values, label=strategy)
        risks = [at(run, budget).risk_at_coverage for run in runs]
        _plot_band(panels[-1], COVERAGES, risks, label=strategy)
    full = np.mean([run.full_macro_f1 for runs in by_strategy.values() for run in runs])
    panels[0].axhline(FULL_SCORE_SHARE * full, color="grey", linestyle=":")
    for panel, name in zip(panels, CURVES.values(), strict=False):
        panel.set(xlabel="labels", ylabel=name)
    panels[-1].set(
        xlabel=f"most certain part of the cells, after {budget} labels", ylabel="error rate"
    )
    panels[0].legend()
    figure.suptitle(next(iter(by_strategy.values()))[0].dataset)
    _save(path)


def plot_stability(numbers: Mapping[str, float], path: Path) -> None:
    """Rank correlation of the order with that of many passes, against the passes T.

    Args:
        numbers: by name; those called `spearman_T<passes>_<data set>` are drawn.
        path: of the PNG file; not written where there is none of them.
    """
    curves: dict[str, dict[int, float]] = {}
    for name, value in numbers.items():
        if name.startswith("spearman_T"):
            passes, _, dataset = name.removeprefix("spearman_T").partition("_")
            curves.setdefault(dataset, {})[int(passes)] = value
    if not curves:
        return
    _, panel = plt.subplots(figsize=(5, 4))
    for dataset, curve in curves.items():
        panel.plot(list(curve), list(curve.values()), marker="o", label=dataset)
    panel.set(xscale="log", xlabel="passes T", ylabel="Spearman's rank correlation")
    panel.legend()
    _save(path)


def _plot_band(
    panel: Axes, places: Sequence[float], values: Sequence[Sequence[float]], *, label: str
) -> None:
    curves = np.array(values)
    mean, deviation = curves.mean(axis=0), curves.std(axis=0)
    panel.plot(places, mean, label=label)
    panel.fill_between(places, mean - deviation, mean + deviation, alpha=0.12)


def _save(path: Path) -> None:
    plt.savefig(path, dpi=100, bbox_inches="tight")
    plt.close()

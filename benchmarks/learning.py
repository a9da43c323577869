"""How many labels the queue saves: pool-based simulation with the product's own code.

An oracle annotator labels what comes next, 10 cells per version, as in Label Studio: cold
start, `fit`, Monte-Carlo passes, `queue_priorities`. Test cells are those of other fields.
"""

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from threadpoolctl import threadpool_limits

from backend.acquisition import cold_start_priorities, queue_priorities
from backend.head import Head, mc_probabilities
from backend.metrics import brier_score, expected_calibration_error, macro_f1
from backend.thinning import thinned
from backend.training import MOST_UNLABELLED, TrainingSettings, feature_scaling, fit, train_head
from backend.uncertainty import margin_uncertainty
from benchmarks.labelled_features import LabelledFeatures

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]

BATCH = 10  # as in the product, where pools of under 5,000 are retrained so often
BUDGET, FULL_BUDGET = 100, 200
TAIL_STEP = 0.15  # beyond the budget, labels for each version, as a part of those there are
# Labels at which the errors of ours are judged, whatever the budget, or the whole pool if smaller.
JUDGED_AT = 200
TEST_SHARE = 1 / 3
FULL_SCORE_SHARE = 0.95
FULL_HEADS = 3
COVERAGES = tuple(tenth / 10 for tenth in range(1, 11))
STRATEGIES = ("random", "entropy", "margin", "bald", "cellai")
# With the acquisition of the project this one succeeds, and what the cold start alone gives.
FULL_STRATEGIES = (
    "random",
    "entropy",
    "margin",
    "bald",
    "cellai",
    "entropy_5_passes",
    "margin_after_cold_start",
)


@dataclass(frozen=True, slots=True)
class Point:
    """A head somewhere on a learning curve, measured on the test cells."""

    n_labels: int
    macro_f1: float
    balanced_accuracy: float
    rare_recall: float  # mean recall of two classes: of those with test cells, rarest in the pool
    ece_before: float  # at temperature 1
    ece_after: float
    brier_before: float
    brier_after: float
    n_errors: int  # of the test cells
    n_certain_errors: int  # of them, in the most certain half
    risk_at_coverage: tuple[float, ...]  # error rate of the most certain COVERAGES


@dataclass(frozen=True, slots=True)
class Run:
    """One simulation."""

    dataset: str
    strategy: str
    seed: int
    budget: int
    points: tuple[Point, ...]
    full_macro_f1: float
    labels_to_95: float | None  # None: not reached with the whole pool
    first_classes: tuple[int, ...]  # labels per class among the first 60
    rarest: tuple[int, int]  # the two rarest classes of the pool


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Pool and test cells of one seed; no group is in both."""

    pool: LabelledFeatures
    test: LabelledFeatures


def use_one_thread() -> None:
    """For each process, which has a core of its own; waiting threads would take the others'."""
    torch.set_num_threads(1)
    threadpool_limits(1)


@dataclass(frozen=True, slots=True)
class Simulation:
    """What is simulated: a strategy on one split of a data set.

    Attributes:
        seed: decides the split and everything else that is random.
        balanced: whether all classes are cut down to the size of the rarest.
        strategy: one of FULL_STRATEGIES.
        budget: labels of the learning curve, one version for each BATCH.
    """

    seed: int
    balanced: bool
    strategy: str
    budget: int

    @property
    def split(self) -> tuple[int, bool]:
        """What decides the split, by which simulations share it."""
        return self.seed, self.balanced


def full_macro_f1(data: LabelledFeatures, simulation: Simulation) -> float:
    """What heads trained on the whole pool of a simulation's split reach on its test cells.

    The mean of FULL_HEADS: the labels at 95 % depend on it, and one head's differs by its draws.
    """
    cells = split(data, seed=simulation.seed, balanced=simulation.balanced)
    n_labels = len(cells.pool.labels)
    scores = []
    for seed in range(simulation.seed, simulation.seed + FULL_HEADS):
        head = train_head(  # a class wants no temperature, and so no trial on a hold-out
            [cells.pool.features, cells.pool.turned_features],
            cells.pool.labels,
            feature_scaling(cells.pool.features),
            n_classes=_k(cells.pool),
            settings=TrainingSettings(seed=seed),
        )
        point = measure(head, cells, n_labels=n_labels, seed=seed)
        scores.append(point.macro_f1)
    return float(np.mean(scores))


def split(data: LabelledFeatures, *, seed: int, balanced: bool) -> Split:
    """Pool and test by group.

    Args:
        data: all labelled crops.
        seed: decides which groups are test.
        balanced: cut all classes down to the size of the rarest.
    """
    if balanced:
        data = replace(data, name=f"{data.name}_balanced")
    rng = np.random.default_rng(seed)
    groups = rng.permutation(np.unique(data.groups))
    is_test = np.isin(data.groups, groups[: max(1, round(len(groups) * TEST_SHARE))])
    pool, test = (
        data.rows(_chosen(data.labels, np.flatnonzero(part), rng=rng, balanced=balanced))
        for part in (~is_test, is_test)
    )
    return Split(pool, test)


def simulate(data: LabelledFeatures, simulation: Simulation, *, full_score: float) -> Run:
    """Label the pool in the order of the queue until the budget and 95 % are reached.

    Ours goes on to JUDGED_AT.

    Args:
        data: all labelled crops.
        simulation: what to do with them.
        full_score: of `full_macro_f1`.

    The pool needs labels of two classes.
    """
    seed, strategy, budget = simulation.seed, simulation.strategy, simulation.budget
    cells = split(data, seed=seed, balanced=simulation.balanced)
    settings = TrainingSettings(seed=seed)
    if strategy == "entropy_5_passes":
        settings = replace(settings, mc_passes=5)
    criterion = strategy.split("_", maxsplit=1)[0]
    pool = cells.pool
    labelled = _first_cells(pool, strategy=strategy, seed=seed)
    points: list[Point] = []
    target = FULL_SCORE_SHARE * full_score
    least = max(budget, JUDGED_AT) if strategy == "cellai" else budget
    while True:
        queue = _missing(labelled, len(pool.labels))
        if len(np.unique(pool.labels[labelled])) < 2:
            labelled = np.append(labelled, queue[_cold_start_order(pool, labelled)[:BATCH]])
            continue
        head = _fit(pool, labelled, settings=settings)
        points.append(measure(head, cells, n_labels=len(labelled), seed=seed))
        if not len(queue) or (len(labelled) >= least and _reached(points, target) is not None):
            break
        order = _order(head, pool, queue, labelled, strategy=criterion, settings=settings)
        labelled = np.append(labelled, queue[order[: _step(len(labelled), budget, least)]])
    return Run(
        dataset=pool.name,
        strategy=strategy,
        seed=seed,
        budget=budget,
        points=tuple(points),
        full_macro_f1=full_score,
        labels_to_95=_reached(points, target),
        first_classes=tuple(
            int(count) for count in np.bincount(pool.labels[labelled[:60]], minlength=_k(pool))
        ),
        rarest=_rarest(pool),
    )


def _step(n_labels: int, budget: int, least: int) -> int:
    """Labels to the next version: larger steps beyond the budget, one of which ends at `least`."""
    if n_labels < budget:
        return BATCH
    step = math.ceil(TAIL_STEP * n_labels)
    return min(step, least - n_labels) if n_labels < least else step


def measure(head: Head, cells: Split, *, n_labels: int, seed: int) -> Point:
    """All numbers of one head on the test cells."""
    test = cells.test
    passes = TrainingSettings().mc_passes
    raw = mc_probabilities(head.with_temperature(1.0), test.features, passes=passes, seed=seed)
    before = raw.mean(axis=0)
    # A temperature divides the logits, which these are but for a constant.
    logits = np.log(np.maximum(raw, np.finfo(np.float32).tiny))
    after = softmax(logits / float(head.temperature), axis=2).mean(axis=0)
    n_classes = after.shape[1]
    predicted = after.argmax(axis=1)
    pairs = test.labels * n_classes + predicted
    confusion = np.bincount(pairs, minlength=n_classes**2).reshape(n_classes, n_classes)
    support = confusion.sum(axis=1)
    recall = np.diag(confusion)[support > 0] / support[support > 0]
    n_learned = np.bincount(cells.pool.labels, minlength=n_classes)[support > 0]
    rarest = np.argsort(n_learned, kind="stable")[:2]
    return Point(
        n_labels=n_labels,
        macro_f1=float(macro_f1(confusion)),
        balanced_accuracy=float(recall.mean()),
        rare_recall=float(recall[rarest].mean()),
        ece_before=expected_calibration_error(before, test.labels),
        ece_after=expected_calibration_error(after, test.labels),
        brier_before=brier_score(before, test.labels),
        brier_after=brier_score(after, test.labels),
        n_errors=int(np.count_nonzero(predicted != test.labels)),
        n_certain_errors=_errors_of_certain_half(after, predicted != test.labels),
        risk_at_coverage=_risk_at_coverage(after, predicted != test.labels),
    )


def area(run: Run) -> float:
    """Mean macro-F1 over the budget: the area under the learning curve, per label."""
    return float(np.mean([p.macro_f1 for p in run.points if p.n_labels <= run.budget]))


def at(run: Run, n_labels: int) -> Point:
    """The last point of a run with at most so many labels, the first one if there is none."""
    return max(
        (p for p in run.points if p.n_labels <= n_labels),
        key=lambda p: p.n_labels,
        default=run.points[0],
    )


def macro_f1_at(run: Run, n_labels: int) -> float:
    """Macro-F1 of a run at a number of labels, between points on the straight line."""
    counts = [p.n_labels for p in run.points]
    return float(np.interp(n_labels, counts, [p.macro_f1 for p in run.points]))


def _fit(pool: LabelledFeatures, labelled: IntArray, *, settings: TrainingSettings) -> Head:
    return fit(
        pool.features[labelled],
        pool.labels[labelled],
        [str(group) for group in pool.groups[labelled]],
        n_classes=_k(pool),
        settings=settings,
        pool_features=pool.features,
        turned_features=pool.turned_features[labelled],
        unlabelled_features=pool.features[
            thinned(_missing(labelled, len(pool.labels)), MOST_UNLABELLED)
        ],
    ).head


def _first_cells(pool: LabelledFeatures, *, strategy: str, seed: int) -> IntArray:
    """The first batch: by cold start, or random for the baselines, which have none."""
    if strategy in {"cellai", "margin_after_cold_start"}:
        return _cold_start_order(pool, np.zeros(0, np.int64))[:BATCH]
    return np.random.default_rng(seed).permutation(len(pool.labels))[:BATCH]


def _cold_start_order(pool: LabelledFeatures, labelled: IntArray) -> IntArray:
    """The queue as the product sorts it while labels of two classes are missing."""
    queue = _missing(labelled, len(pool.labels))
    priorities = cold_start_priorities(
        pool.features[queue], labelled_features=pool.features[labelled]
    )
    return np.argsort(-priorities)


def _order(
    head: Head,
    pool: LabelledFeatures,
    queue: IntArray,
    labelled: IntArray,
    *,
    strategy: str,
    settings: TrainingSettings,
) -> IntArray:
    """The queue as the product would sort it."""
    priorities = queue_priorities(
        pool.features,
        mc_probabilities(head, pool.features[queue], passes=settings.mc_passes, seed=settings.seed),
        pool.labels[labelled],
        strategy=strategy,
        seed=settings.seed + len(labelled),
        rows=queue,
    )
    return np.argsort(-priorities)


def _reached(points: list[Point], target: float) -> float | None:
    """Labels where the curve first crosses the target, between versions on the straight line.

    It has crossed it where two versions in a row are above.
    """
    before = points[0]
    for point, following in pairwise(points):
        if point.macro_f1 >= target and following.macro_f1 >= target:
            curve = [before.macro_f1, point.macro_f1]
            return float(np.interp(target, curve, [before.n_labels, point.n_labels]))
        before = point
    return None


def _errors_of_certain_half(probabilities: FloatArray, is_wrong: NDArray[np.bool_]) -> int:
    most_certain = np.argsort(margin_uncertainty(probabilities), kind="stable")
    return int(is_wrong[most_certain[: len(is_wrong) // 2]].sum())


def _risk_at_coverage(probabilities: FloatArray, is_wrong: NDArray[np.bool_]) -> tuple[float, ...]:
    """Error rate of the most certain part of the cells, for each of COVERAGES.

    Source:
        El-Yaniv & Wiener 2010, "On the Foundations of Noise-free Selective Classification".
    """
    most_certain_first = is_wrong[np.argsort(margin_uncertainty(probabilities), kind="stable")]
    counts = [max(1, round(coverage * len(is_wrong))) for coverage in COVERAGES]
    return tuple(float(most_certain_first[:count].mean()) for count in counts)


def _chosen(
    labels: IntArray, rows: IntArray, *, rng: np.random.Generator, balanced: bool
) -> IntArray:
    rows = rng.permutation(rows)
    if not balanced:
        return rows
    of_class = [rows[labels[rows] == class_idx] for class_idx in np.unique(labels[rows])]
    smallest = min(len(members) for members in of_class)
    return rng.permutation(np.concatenate([members[:smallest] for members in of_class]))


def _rarest(pool: LabelledFeatures) -> tuple[int, int]:
    first, second = np.argsort(np.bincount(pool.labels, minlength=_k(pool)), kind="stable")[:2]
    return int(first), int(second)


def _missing(labelled: IntArray, n_crops: int) -> IntArray:
    is_open = np.ones(n_crops, np.bool_)
    is_open[labelled] = False
    return np.flatnonzero(is_open)


def _k(data: LabelledFeatures) -> int:
    return len(data.classes)

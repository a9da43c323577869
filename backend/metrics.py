"""Hold-out probabilities to the metrics that a version records: quality, spread, calibration."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
Float64Array = NDArray[np.float64]
IntArray = NDArray[np.int64]
Metric = float | int | list[float | None] | list[list[int]] | list[list[float]] | None

BOOTSTRAPS = 200
FEWEST_GROUPS = 10  # fewer groups than this say little of how groups differ, one nothing at all
CALIBRATION_BINS = 10


def holdout_metrics(
    probabilities: FloatArray, labels: IntArray, groups: Sequence[str], *, seed: int
) -> dict[str, Metric]:
    """Metrics of a hold-out; `Fitted.metrics` names them.

    Args:
        probabilities: (N, K).
        labels: (N,).
        groups: of each crop; the bootstrap draws whole groups where they are at least
            FEWEST_GROUPS, else single crops, whose error is rather too small.
        seed: of the bootstrap.
    """
    n_classes = probabilities.shape[1]
    predicted = probabilities.argmax(axis=1)
    pairs = labels * n_classes + predicted
    confusion = np.bincount(pairs, minlength=n_classes**2).reshape(n_classes, n_classes)
    support, called, hits = confusion.sum(axis=1), confusion.sum(axis=0), np.diag(confusion)
    return {
        "macro_f1": float(macro_f1(confusion)),
        "macro_f1_se": _bootstrap_error(pairs, groups, n_classes=n_classes, seed=seed),
        "balanced_accuracy": float(np.mean(hits[support > 0] / support[support > 0])),
        "accuracy": float(hits.sum() / len(labels)),
        "precision": _ratios(hits, called),
        "recall": _ratios(hits, support),
        "confusion": [[int(count) for count in row] for row in confusion],
        "ece": expected_calibration_error(probabilities, labels),
        "brier": brier_score(probabilities, labels),
        "reliability": reliability(probabilities, labels),
    }


def macro_f1(confusion: NDArray[np.int64] | Float64Array) -> Float64Array:
    """Mean F1 of the classes that have a label.

    Args:
        confusion: (..., K, K), rows: label, columns: prediction.

    Returns:
        (...) in [0, 1].
    """
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    support, called = confusion.sum(axis=-1), confusion.sum(axis=-2)
    present = support > 0
    f1 = 2 * hits / np.maximum(support + called, 1)
    return np.asarray((f1 * present).sum(axis=-1) / np.maximum(present.sum(axis=-1), 1))


def expected_calibration_error(probabilities: FloatArray, labels: IntArray) -> float:
    """Mean gap between confidence and accuracy over ten equal bins of confidence.

    Source:
        Guo et al. 2017, eq. 3, arXiv:1706.04599.
    """
    rows = np.array(reliability(probabilities, labels))
    return float((rows[:, 0] * np.abs(rows[:, 1] - rows[:, 2])).sum() / len(labels))


def reliability(probabilities: FloatArray, labels: IntArray) -> list[list[float]]:
    """Confidence against accuracy, one row for each bin of confidence that has a crop.

    Args:
        probabilities: (N, K).
        labels: (N,).

    Returns:
        Rows [number of crops, mean confidence, accuracy], confidence ascending.

    Source:
        Guo et al. 2017, section 2 (reliability diagrams), arXiv:1706.04599.
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    correct = probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    return [
        [float(chosen.sum()), float(confidence[chosen].mean()), float(correct[chosen].mean())]
        for chosen in (bins == index for index in np.unique(bins))
    ]


def brier_score(probabilities: FloatArray, labels: IntArray) -> float:
    """Mean squared distance of the probabilities from the one-hot label, in [0, 2].

    Source:
        Brier 1950, "Verification of forecasts expressed in terms of probability", eq. 2.
    """
    truth = np.eye(probabilities.shape[1])[labels]
    return float(((probabilities - truth) ** 2).sum(axis=1).mean())


def _bootstrap_error(pairs: IntArray, groups: Sequence[str], *, n_classes: int, seed: int) -> float:
    """Standard error of macro-F1 when whole groups are drawn with replacement.

    Below FEWEST_GROUPS single crops are drawn: the error of one group would be zero, and any
    drop at all beyond doubt.
    """
    names, group_idx = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < FEWEST_GROUPS:
        names = group_idx = np.arange(len(pairs))
    per_group = np.zeros((len(names), n_classes**2))
    np.add.at(per_group, (group_idx, pairs), 1)
    draws = np.random.default_rng(seed).multinomial(
        len(names), np.full(len(names), 1 / len(names)), size=BOOTSTRAPS
    )
    return float(macro_f1((draws @ per_group).reshape(-1, n_classes, n_classes)).std(ddof=1))


def _ratios(hits: IntArray, totals: IntArray) -> list[float | None]:
    return [float(h / t) if t else None for h, t in zip(hits, totals, strict=True)]

"""Labelled features to a fitted, calibrated head and its metrics.

Each fit starts from a fresh head. Where there are enough labels, a stratified hold-out that
never splits a group gives the temperature and the metrics; the head that is returned is
then fitted on all labels. Same labels, seed and machine: same head.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor
from torch.nn import functional

from backend.errors import DivergedError, SingleClassError
from backend.head import (
    HIDDEN_DROPOUT,
    INPUT_DROPOUT,
    Head,
    fresh_head,
    mc_probabilities,
)

FloatArray = NDArray[np.float32]
Float64Array = NDArray[np.float64]
IntArray = NDArray[np.int64]
Metric = float | int | list[float | None] | list[list[int]] | list[list[float]] | None

BATCH = 64
WEIGHT_DECAY = 1e-2
FOLDS = 5
MIN_HOLDOUT_LABELS = 25  # below, a fifth is too few to say anything
BOOTSTRAPS = 200
CALIBRATION_BINS = 10


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """How a head is trained.

    Attributes:
        learning_rate: of AdamW, at the start of a cosine to zero.
        epochs: passes over the labels.
        mc_passes: Monte-Carlo dropout passes T behind probabilities.
        seed: decides initialisation, batches, dropout and folds.
    """

    learning_rate: float = 1e-3
    epochs: int = 60
    mc_passes: int = 50
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """A head and what is known about it.

    Attributes:
        head: fitted on all labels, calibrated.
        metrics: n_labels, n_holdout, temperature; with a hold-out also macro_f1,
            macro_f1_se, balanced_accuracy, accuracy, precision, recall (per class, None
            without a label), confusion (rows: label, columns: prediction), ece, brier,
            reliability (see `reliability`).
    """

    head: Head
    metrics: dict[str, Metric]


def fit(
    features: FloatArray,
    labels: IntArray,
    groups: Sequence[str],
    *,
    n_classes: int,
    settings: TrainingSettings,
    pool_features: FloatArray | None = None,
) -> Fitted:
    """Train a fresh head on all labels and calibrate it on a hold-out.

    Args:
        features: (N, D).
        labels: class index of each crop, (N,), in [0, n_classes).
        groups: source image or field of each crop; never split by the hold-out.
        n_classes: K; classes without a label are allowed.
        settings: how to train.
        pool_features: (M, D) unlabelled crops, whose mean and spread then scale the
            features together with the labelled ones.

    Returns:
        The head and its metrics.

    Raises:
        SingleClassError: fewer than two classes have a label.
        DivergedError: a loss or a weight is not finite.
    """
    n_present = len(np.unique(labels))
    if n_present < 2:
        raise SingleClassError(
            f"Labels of {n_present} class(es) are too few to train.",
            hint="Label a cell of a second class.",
        )
    order = _canonical_order(features, labels, groups)
    features, labels = features[order], labels[order]
    named_groups = [groups[index] for index in order]
    scaling = _scaling(features, pool_features)
    held_out = _hold_out(labels, named_groups, seed=settings.seed)
    metrics: dict[str, Metric] = {"n_labels": len(labels), "n_holdout": int(held_out.sum())}
    temperature = 1.0
    if held_out.any():
        trial = _train(
            features[~held_out], labels[~held_out], scaling, n_classes=n_classes, settings=settings
        )
        temperature = fit_temperature(
            trial, features[held_out], labels[held_out], settings=settings
        )
        probabilities = mc_probabilities(
            trial.with_temperature(temperature),
            features[held_out],
            passes=settings.mc_passes,
            seed=settings.seed,
        ).mean(axis=0)
        kept_groups = [name for name, held in zip(named_groups, held_out, strict=True) if held]
        metrics |= holdout_metrics(probabilities, labels[held_out], kept_groups, seed=settings.seed)
    head = _train(features, labels, scaling, n_classes=n_classes, settings=settings)
    metrics["temperature"] = temperature
    return Fitted(head.with_temperature(temperature), metrics)


def fit_temperature(
    head: Head, features: FloatArray, labels: IntArray, *, settings: TrainingSettings
) -> float:
    """Temperature of the smallest negative log-likelihood of the Monte-Carlo mean.

    Source:
        Guo et al. 2017, "On Calibration of Modern Neural Networks", section 4.2,
        arXiv:1706.04599.
    """
    raw = mc_probabilities(
        head.with_temperature(1.0), features, passes=settings.mc_passes, seed=settings.seed
    )
    logits = np.log(np.clip(raw, 1e-12, 1))
    candidates = np.exp(np.linspace(math.log(0.25), math.log(8), 41))
    losses = [_mean_log_loss(logits / candidate, labels) for candidate in candidates]
    return float(candidates[int(np.argmin(losses))])


def holdout_metrics(
    probabilities: FloatArray, labels: IntArray, groups: Sequence[str], *, seed: int
) -> dict[str, Metric]:
    """Metrics of a hold-out; `Fitted.metrics` names them.

    Args:
        probabilities: (N, K).
        labels: (N,).
        groups: of each crop; the bootstrap draws whole groups.
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


def _train(
    features: FloatArray,
    labels: IntArray,
    scaling: tuple[Tensor, Tensor],
    *,
    n_classes: int,
    settings: TrainingSettings,
) -> Head:
    """A fresh head after `epochs` of class-balanced batches.

    Raises:
        DivergedError: a loss or a weight is not finite.
    """
    generator = Generator().manual_seed(settings.seed)
    head = fresh_head(*scaling, n_classes=n_classes, generator=generator)
    weights = [head.hidden_weight, head.class_weight]
    biases = [head.hidden_bias, head.class_bias]
    for parameter in weights + biases:
        parameter.requires_grad_()
    optimiser = torch.optim.AdamW(
        [{"params": weights, "weight_decay": WEIGHT_DECAY}, {"params": biases, "weight_decay": 0}],
        lr=settings.learning_rate,
    )
    steps = settings.epochs * math.ceil(len(labels) / BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    inputs = head.standardise(torch.from_numpy(features))
    targets = torch.from_numpy(labels)
    chances = sampling_chances(labels)
    for _ in range(steps):
        batch = torch.multinomial(
            torch.from_numpy(chances), BATCH, replacement=True, generator=generator
        )
        loss = functional.cross_entropy(
            _dropped_logits(head, inputs[batch], generator), targets[batch]
        )
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    trained = replace(
        head,
        **{
            name: getattr(head, name).detach()
            for name in ("hidden_weight", "hidden_bias", "class_weight", "class_bias")
        },
    )
    if not (
        torch.isfinite(loss) and all(t.isfinite().all() for t in trained.to_tensors().values())
    ):
        raise DivergedError(
            f"Training on {len(labels)} labels diverged (loss {loss.item()}).",
            hint=f"Lower the learning rate, now {settings.learning_rate}.",
        )
    return trained


def sampling_chances(labels: IntArray) -> Float64Array:
    """Chance of each crop to be drawn into a batch: every class that has a label is as likely.

    Args:
        labels: (N,).

    Returns:
        (N,), sum 1.
    """
    chances = 1 / np.bincount(labels)[labels]
    return np.asarray(chances / chances.sum())


def _dropped_logits(head: Head, inputs: Tensor, generator: Generator) -> Tensor:
    """Class scores with independent dropout masks per crop, as in ordinary training."""
    hidden = torch.relu(
        _drop(inputs, INPUT_DROPOUT, generator) @ head.hidden_weight + head.hidden_bias
    )
    return _drop(hidden, HIDDEN_DROPOUT, generator) @ head.class_weight + head.class_bias


def _drop(values: Tensor, probability: float, generator: Generator) -> Tensor:
    kept = torch.rand(values.shape, generator=generator) >= probability
    return values * kept / (1 - probability)


def _scaling(features: FloatArray, pool_features: FloatArray | None) -> tuple[Tensor, Tensor]:
    """Mean and inverse spread of each feature over all crops that are known."""
    known = features if pool_features is None else np.concatenate([features, pool_features])
    mean = known.mean(axis=0, dtype=np.float64)
    spread = known.std(axis=0, dtype=np.float64)
    floor = max(float(np.median(spread)) * 1e-2, 1e-6)  # a map that never varies says nothing
    scale = np.where(spread > floor, 1 / np.maximum(spread, floor), 0)
    return torch.from_numpy(mean.astype(np.float32)), torch.from_numpy(scale.astype(np.float32))


def _canonical_order(features: FloatArray, labels: IntArray, groups: Sequence[str]) -> IntArray:
    """An order that depends on the crops only, not on how they were listed."""
    names = [
        (int(label), group, hashlib.blake2b(np.ascontiguousarray(row).data).digest())
        for row, label, group in zip(features, labels, groups, strict=True)
    ]
    return np.array(sorted(range(len(names)), key=names.__getitem__), np.int64)


def _hold_out(labels: IntArray, groups: Sequence[str], *, seed: int) -> NDArray[np.bool_]:
    """A fifth of the labels in whole groups, class shares kept; empty with too few labels."""
    nothing = np.zeros(len(labels), np.bool_)
    if len(labels) < MIN_HOLDOUT_LABELS:
        return nothing
    folds = stratified_folds(labels, groups, n_folds=FOLDS, seed=seed)
    held_out = folds == 0
    left, out = np.unique(labels[~held_out]), np.unique(labels[held_out])
    return held_out if len(left) == len(np.unique(labels)) and len(out) >= 2 else nothing


def stratified_folds(
    labels: IntArray, groups: Sequence[str], *, n_folds: int, seed: int
) -> IntArray:
    """Fold of each crop: whole groups, the classes spread evenly.

    The groups, largest class imbalance first, go one by one to the fold that most lacks
    their classes.

    Args:
        labels: (N,).
        groups: (N,).
        n_folds: number of folds.
        seed: decides between equal groups.

    Returns:
        (N,) in [0, n_folds).
    """
    names, group_idx = np.unique(np.asarray(groups), return_inverse=True)
    n_classes = int(labels.max()) + 1
    counts = np.zeros((len(names), n_classes))
    np.add.at(counts, (group_idx, labels), 1)
    shares = counts / np.maximum(counts.sum(axis=0), 1)
    shuffled = np.random.default_rng(seed).permutation(len(names))
    order = shuffled[np.argsort(-shares[shuffled].sum(axis=1), kind="stable")]
    filled = np.zeros((n_folds, n_classes))
    fold_of_group = np.zeros(len(names), np.int64)
    for group in order:
        fold = int(np.argmin(((filled + shares[group]) ** 2 - filled**2).sum(axis=1)))
        fold_of_group[group] = fold
        filled[fold] += shares[group]
    return fold_of_group[group_idx]


def _mean_log_loss(logits: FloatArray, labels: IntArray) -> float:
    """Negative log-likelihood of the mean over passes of softmax; logits (T, N, K)."""
    shifted = np.exp(logits - logits.max(axis=2, keepdims=True))
    mean = (shifted / shifted.sum(axis=2, keepdims=True)).mean(axis=0)
    return float(-np.log(np.clip(mean[np.arange(len(labels)), labels], 1e-12, 1)).mean())


def _bootstrap_error(pairs: IntArray, groups: Sequence[str], *, n_classes: int, seed: int) -> float:
    """Standard error of macro-F1 when whole groups are drawn with replacement."""
    names, group_idx = np.unique(np.asarray(groups), return_inverse=True)
    per_group = np.zeros((len(names), n_classes**2))
    np.add.at(per_group, (group_idx, pairs), 1)
    draws = np.random.default_rng(seed).multinomial(
        len(names), np.full(len(names), 1 / len(names)), size=BOOTSTRAPS
    )
    return float(macro_f1((draws @ per_group).reshape(-1, n_classes, n_classes)).std(ddof=1))


def _ratios(hits: IntArray, totals: IntArray) -> list[float | None]:
    return [float(h / t) if t else None for h, t in zip(hits, totals, strict=True)]

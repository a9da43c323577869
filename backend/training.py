"""Labelled features to a fitted, calibrated head and its metrics.

Each fit starts from a fresh head. Where there are enough labels, a stratified hold-out that
never splits a group gives the temperature and the metrics; the head that is returned is
then fitted on all labels. Same labels, same pool in the same order, seed and machine: same head.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from backend.adamw import AdamW
from backend.errors import DivergedError, SingleClassError
from backend.head import DROPOUT, Head, fresh_head, mc_probabilities
from backend.metrics import Metric, holdout_metrics
from backend.settings import ProjectParameters

FloatArray = NDArray[np.float32]
Float64Array = NDArray[np.float64]
IntArray = NDArray[np.int64]

CPU = torch.device("cpu")
_ENLARGED = 1 / (1 - DROPOUT)
BATCH = 64
MOST_UNLABELLED = 2048  # crops to learn from without a label: as many as few labels' steps draw
LABELLED_STEPS = 80  # from labels alone, before a head is asked; with fewer its answers are guesses
WEIGHT_DECAY = 1e-2
FOLDS = 5
SCALED_AT_ONCE = 4096
MASKED_AT_ONCE = 16  # steps whose dropout masks are drawn together: 3 MB
MIN_HOLDOUT_LABELS = 25  # below, a fifth is too few to say anything
MOST_HELD_OUT = 0.5
TEMPERATURE_SPREAD = 0.5  # of its logarithm, before any label tells


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """How a head is trained.

    Attributes:
        learning_rate: of AdamW, at the start of a cosine to zero.
        epochs: passes over the labels, or fewer where crops without a label take their place.
        least_steps: so many batches are drawn where the epochs would be fewer; with few labels
            a head is not done after 40 of them (measured, docs/model.md).
        mc_passes: Monte-Carlo dropout passes T behind probabilities.
        seed: decides initialisation, batches, dropout and folds.
    """

    learning_rate: float = 1e-3
    epochs: int = 40
    least_steps: int = 160
    mc_passes: int = 50
    seed: int = 0

    @classmethod
    def of(cls, parameters: ProjectParameters, *, seed: int) -> "TrainingSettings":
        """What a project's parameters say; the defaults where they say nothing.

        Epochs that somebody asked for are made as they are, however few steps they take.
        """
        settings = cls(mc_passes=parameters.mc_passes, seed=seed)
        if parameters.learning_rate is not None:
            settings = replace(settings, learning_rate=parameters.learning_rate)
        if parameters.epochs is not None:
            settings = replace(settings, epochs=parameters.epochs, least_steps=0)
        return settings


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
    turned_features: FloatArray | None = None,
    unlabelled_features: FloatArray | None = None,
    device: torch.device = CPU,
) -> Fitted:
    """Train a fresh head on all labels and calibrate it on a hold-out.

    Args:
        features: (N, D).
        labels: class index of each crop, (N,), in [0, n_classes).
        groups: source image or field of each crop; never split by the hold-out.
        n_classes: K; classes without a label are allowed.
        settings: how to train.
        pool_features: (M, D) all crops of the project, whose mean and spread scale the
            features; the labelled ones alone where it is not given.
        turned_features: (N, D) of the same crops turned by half a circle, which take their
            place in every second draw: a cell has no upside (measured, docs/model.md).
        unlabelled_features: (U, D) of crops without a label, from which heads learn too, see
            `train_head`. Crops held out are such crops, too, for the head that is tried on them, as
            those are whose classes it is to tell.
        device: where to train.

    Returns:
        The head and its metrics.

    Raises:
        SingleClassError: fewer than two classes have a label.
        DivergedError: a weight is not finite.
    """
    n_present = len(np.unique(labels))
    if n_present < 2:
        raise SingleClassError(
            f"Labels of {n_present} class(es) are too few to train.",
            hint="Label a cell of a second class.",
        )
    order = _canonical_order(features, labels, groups)
    features, labels = features[order], labels[order]
    views = [features] if turned_features is None else [features, turned_features[order]]
    named_groups = [groups[index] for index in order]
    scaling = feature_scaling(features if pool_features is None else pool_features)
    held_out = _hold_out(labels, named_groups, seed=settings.seed)
    metrics: dict[str, Metric] = {"n_labels": len(labels), "n_holdout": int(held_out.sum())}
    unlabelled = features[:0] if unlabelled_features is None else unlabelled_features
    n_drawn = _unlabelled_of_batch(len(unlabelled), len(labels))
    temperature = 1.0
    if held_out.any():
        trial = train_head(
            [view[~held_out] for view in views],
            labels[~held_out],
            scaling,
            n_classes=n_classes,
            settings=settings,
            unlabelled=np.concatenate([unlabelled, features[held_out]]),
            n_unlabelled_drawn=n_drawn,
            device=device,
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
    head = train_head(
        views,
        labels,
        scaling,
        n_classes=n_classes,
        settings=settings,
        unlabelled=unlabelled,
        n_unlabelled_drawn=n_drawn,
        device=device,
    )
    metrics["temperature"] = temperature
    return Fitted(head.with_temperature(temperature), metrics)


def fit_temperature(
    head: Head, features: FloatArray, labels: IntArray, *, settings: TrainingSettings
) -> float:
    """The likeliest temperature: of the Monte-Carlo mean's likelihood and what one expects.

    A few dozen held-out labels, chosen because they were difficult, say little about it; alone they
    gave anything from 0.25 to 8. Expected is a logarithm around zero, spread by TEMPERATURE_SPREAD.

    Args:
        head: fitted without the hold-out.
        features: (N, D) of the hold-out.
        labels: class index of each, (N,).
        settings: how the head was trained.

    Source:
        Guo et al. 2017, "On Calibration of Modern Neural Networks", section 4.2,
        arXiv:1706.04599; the expectation as a prior (docs/model.md, *Calibration*).
    """
    raw = mc_probabilities(
        head.with_temperature(1.0), features, passes=settings.mc_passes, seed=settings.seed
    )
    logits = np.log(np.clip(raw, 1e-12, 1))
    candidates = np.exp(np.linspace(math.log(0.25), math.log(8), 41))
    losses = [
        len(labels) * _mean_log_loss(logits / candidate, labels)
        + (math.log(candidate) / TEMPERATURE_SPREAD) ** 2 / 2
        for candidate in candidates
    ]
    return float(candidates[int(np.argmin(losses))])


def train_head(
    views: Sequence[FloatArray],
    labels: IntArray,
    scaling: tuple[Tensor, Tensor],
    *,
    n_classes: int,
    settings: TrainingSettings,
    unlabelled: FloatArray | None = None,
    n_unlabelled_drawn: int = 0,
    device: torch.device = CPU,
) -> Head:
    """A fresh head after `epochs`, or `least_steps`, of batches in which all classes are as many.

    In the second half of the steps, a part of each batch are crops without a label instead. What
    they are is what the head itself says of them half-way, without dropout, its probabilities
    squared, so that it believes most what it is sure of.

    Args:
        views: one or more (N, D) of the same crops; each draw takes one of them.
        labels: class index of each crop, (N,), in [0, n_classes).
        scaling: of `feature_scaling`.
        n_classes: K.
        settings: how to train.
        unlabelled: (U, D) of crops without a label.
        n_unlabelled_drawn: how many of them are in each batch, 0 to BATCH.
        device: where to train; the random numbers are the same everywhere.

    Returns:
        The head, on the CPU.

    Raises:
        DivergedError: a weight is not finite.

    Source:
        Lee 2013, "Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method for Deep
        Neural Networks"; squared: Berthelot et al. 2019, "MixMatch", eq. 7 with T = 1/2,
        arXiv:1905.02249. What it brings: docs/model.md, *Crops without a label*.
    """
    rng = np.random.default_rng(settings.seed)
    head = fresh_head(*scaling, n_classes=n_classes, rng=rng).to(device)
    weights = [head.hidden_weight, head.class_weight]
    biases = [head.hidden_bias, head.class_bias]
    steps = max(settings.epochs * math.ceil(len(labels) / BATCH), settings.least_steps)
    optimiser = AdamW(
        [(weights, WEIGHT_DECAY), (biases, 0.0)], learning_rate=settings.learning_rate, steps=steps
    )
    draws = rng.choice(len(labels), size=(steps, BATCH), p=sampling_chances(labels))
    rows = rng.integers(len(views), size=draws.shape) * len(labels) + draws
    truths = functional.one_hot(torch.from_numpy(labels), n_classes).repeat(len(views), 1)
    truths = truths.to(device, torch.float32)
    half_way = max(steps // 2, LABELLED_STEPS)
    if unlabelled is not None and n_unlabelled_drawn and half_way < steps:
        drawn = rng.integers(len(unlabelled), size=(steps - half_way, n_unlabelled_drawn))
        rows[half_way:, :n_unlabelled_drawn] = len(truths) + drawn
        views = [*views, unlabelled]
    inputs = torch.from_numpy(np.concatenate(views)).to(device)
    # In place: 400 MB for 20,000 labels. What dropout keeps is enlarged, to keep its mean.
    inputs.sub_(head.mean).mul_(head.scale * _ENLARGED)
    masks = _dropout_masks(steps, *head.hidden_weight.shape, rng=rng, device=device)
    batches = zip(torch.from_numpy(rows).to(device), masks, strict=True)
    with _one_thread(), torch.inference_mode():
        for step, (batch, kept) in enumerate(batches):
            if step == half_way and len(truths) < len(inputs):
                truths = torch.cat([truths, _sharpened_answers(head, inputs[len(truths) :])])
            truth = truths.index_select(0, batch)
            optimiser.step(gradients(head, inputs.index_select(0, batch), truth, kept))
    _check_finite(weights + biases, settings)
    return head.to(CPU)


def _unlabelled_of_batch(n_unlabelled: int, n_labelled: int) -> int:
    """As there are crops of either kind, but no more than half: the last few must not fill it."""
    return round(BATCH * min(0.5, n_unlabelled / (n_unlabelled + n_labelled)))


def _sharpened_answers(head: Head, inputs: Tensor) -> Tensor:
    """Probabilities without dropout, squared and made to add up to one again; (U, K).

    Args:
        head: half trained.
        inputs: (U, D) from `Head.standardise` over 1 - DROPOUT.
    """
    hidden = torch.addmm(head.hidden_bias, inputs, head.hidden_weight, alpha=1 / _ENLARGED).relu_()
    return torch.softmax(2 * torch.addmm(head.class_bias, hidden, head.class_weight), dim=1)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Train on one core, whatever else torch may use.

    A step takes a millisecond: on a machine with other work, waiting for a second thread
    made it up to 30 times longer (measured). One thread also makes sums reproducible.
    """
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


def sampling_chances(labels: IntArray) -> Float64Array:
    """Chance of each crop to be drawn into a batch: every class that has a label is as likely.

    Args:
        labels: (N,).

    Returns:
        (N,), sum 1.
    """
    chances = 1 / np.bincount(labels)[labels]
    return np.asarray(chances / chances.sum())


def gradients(
    head: Head, inputs: Tensor, truth: Tensor, kept: tuple[Tensor, Tensor]
) -> list[Tensor]:
    """Gradients of the mean cross-entropy of a batch under independent dropout masks of each crop.

    Two layers need no graph, which took an eighth longer when the step was first written out.

    Args:
        head: the weights, at temperature 1.
        inputs: (B, D) from `Head.standardise` over 1 - DROPOUT; overwritten.
        truth: (B, K), 1 for the class of each crop, else 0.
        kept: 1 for what dropout keeps, else 0: of the inputs, (B, D), and hidden units, (B, H).

    Returns:
        By hidden weight, class weight, hidden bias and class bias.

    Source:
        Bishop 2006, "Pattern Recognition and Machine Learning", eq. 4.109 and section 5.3.
    """
    inputs.mul_(kept[0])
    hidden = torch.addmm(head.hidden_bias, inputs, head.hidden_weight).relu_().mul_(kept[1])
    hidden.mul_(_ENLARGED)
    scores = torch.addmm(head.class_bias, hidden, head.class_weight)
    errors = torch.softmax(scores, dim=1).sub_(truth).div_(len(truth))
    hidden_errors = ((errors * _ENLARGED) @ head.class_weight.T).mul_(hidden > 0)
    return [
        inputs.T @ hidden_errors,
        hidden.T @ errors,
        hidden_errors.sum(dim=0),
        errors.sum(dim=0),
    ]


def _dropout_masks(
    steps: int, n_inputs: int, n_hidden: int, *, rng: np.random.Generator, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """For each step what `gradients` wants to be kept; one bit draws DROPOUT, which is one half."""
    n_bits = BATCH * (n_inputs + n_hidden)
    for start in range(0, steps, MASKED_AT_ONCE):
        n_steps = min(MASKED_AT_ONCE, steps - start)
        drawn = np.frombuffer(rng.bytes(n_steps * n_bits // 8), np.uint8)
        # A GPU need not have done the steps before when it is given the next masks.
        bits = torch.from_numpy(np.unpackbits(drawn)).to(device, non_blocking=True)
        for of_step in bits.view(n_steps, BATCH, -1):
            yield of_step[:, :n_inputs], of_step[:, n_inputs:]


def _check_finite(parameters: list[Tensor], settings: TrainingSettings) -> None:
    if all(bool(tensor.isfinite().all()) for tensor in parameters):
        return
    raise DivergedError(
        f"Training diverged at the learning rate {settings.learning_rate}:"
        " weights are no longer finite.",
        hint="Lower the learning rate.",
    )


def feature_scaling(known: FloatArray) -> tuple[Tensor, Tensor]:
    """Mean and inverse spread of each feature over the crops that are known, (M, D)."""
    mean = known.mean(axis=0, dtype=np.float64)
    variance = np.zeros_like(mean)
    for start in range(0, len(known), SCALED_AT_ONCE):  # all at once: 2 GB for 100,000 crops
        variance += ((known[start : start + SCALED_AT_ONCE] - mean) ** 2).sum(axis=0) / len(known)
    spread = np.sqrt(variance)
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
    """The usable fold nearest to a fifth of the labels; empty where there is none."""
    nothing = np.zeros(len(labels), np.bool_)
    if len(labels) < MIN_HOLDOUT_LABELS:
        return nothing
    folds = stratified_folds(labels, groups, n_folds=FOLDS, seed=seed)
    usable = [held for fold in range(FOLDS) if _is_usable(held := folds == fold, labels)]
    return min(usable, key=lambda held: abs(held.mean() - 1 / FOLDS), default=nothing)


def _is_usable(held_out: NDArray[np.bool_], labels: IntArray) -> bool:
    """Whether half the labels and some of every class are left to train on, and two classes tell.

    A class of one label, or with all of its labels in one group, makes its fold unusable.
    """
    left, out = np.unique(labels[~held_out]), np.unique(labels[held_out])
    leaves_all = len(left) == len(np.unique(labels))
    return leaves_all and len(out) >= 2 and held_out.mean() <= MOST_HELD_OUT


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

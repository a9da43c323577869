"""How far a project's labels are believed, each judged by heads that never saw it.

A head learns wrong labels by heart, so what it says about its own labels tells little: of six
wrong ones among 150 it contradicted none (measured). Here the labels are dealt into folds, and
each fold is judged by a head that learned from the others.
"""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from backend.head import mc_probabilities
from backend.training import CPU, TrainingSettings, feature_scaling, stratified_folds, train_head

FloatArray = NDArray[np.float32]
Float64Array = NDArray[np.float64]
IntArray = NDArray[np.int64]

FOLDS = 3
# Half the passes over the labels tell contradictions as well (measured, docs/model.md), as long as
# they are that many steps.
EPOCHS_SHARE = 0.5
LEAST_STEPS = 80
# With fewer, what a head without them says is a guess, and nobody's label need be doubted for it.
MIN_LABELS = 25
MIN_LABELS_OF_CLASS = 6
BELIEVED = 1.0


def label_confidence(
    features: FloatArray,
    labels: IntArray,
    *,
    n_classes: int,
    temperature: float,
    settings: TrainingSettings,
    device: torch.device = CPU,
) -> Float64Array:
    """The probability of each label under a head that was trained without it.

    Args:
        features: (N, D) of the labelled crops.
        labels: class index of each, (N,), in [0, n_classes).
        n_classes: K.
        temperature: of the version in service.
        settings: how its head was trained; these learn from labels alone, in fewer steps.
        device: where to train.

    Returns:
        (N,) in [0, 1], low where the label is contradicted; 1 where too few labels tell.

    Source:
        Northcutt et al. 2021, "Confident Learning: Estimating Uncertainty in Dataset Labels",
        section 3 (self-confidence by cross-validation), arXiv:1911.00068.
    """
    confidence = np.full(len(labels), BELIEVED)
    if len(labels) < MIN_LABELS:
        return confidence
    is_judged = np.bincount(labels, minlength=n_classes)[labels] >= MIN_LABELS_OF_CLASS
    rows = [str(row) for row in range(len(labels))]
    folds = stratified_folds(labels, rows, n_folds=FOLDS, seed=settings.seed)
    epochs = max(1, round(settings.epochs * EPOCHS_SHARE))
    short = replace(settings, epochs=epochs, least_steps=LEAST_STEPS)
    scaling = feature_scaling(features)
    for fold in range(FOLDS):
        learned, judged = folds != fold, (folds == fold) & is_judged
        if not judged.any():
            continue
        head = train_head(
            [features[learned]],
            labels[learned],
            scaling,
            n_classes=n_classes,
            settings=short,
            device=device,
        )
        drawn = mc_probabilities(
            head.with_temperature(temperature),
            features[judged],
            passes=settings.mc_passes,
            seed=settings.seed,
        )
        confidence[judged] = drawn.mean(axis=0)[np.arange(judged.sum()), labels[judged]]
    return confidence

"""Pool to the order of the queue: uncertainty, class balance, diversity, cold start.

The order is expressed as priorities in [0, 1], strictly decreasing along it and as near to
the plain normalised uncertainty as that allows; `uncertainty.score_from_priority` makes the
score of them.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.isotonic import IsotonicRegression

from backend.uncertainty import margin_uncertainty, mutual_information, predictive_entropy

FloatArray = NDArray[np.float32]
Float64Array = NDArray[np.float64]
IntArray = NDArray[np.int64]

STRATEGIES = ("cellai", "entropy", "margin", "bald", "random")
PRIORITY_STEP = 1e-7  # least distance of two priorities
CLUSTERS = 20
COMPONENTS = 50
REFERENCE_CROPS = 4096
NEIGHBOURS = 20


def queue_priorities(
    pool_features: FloatArray,  # noqa: ARG001
    mc_probabilities: FloatArray,
    labelled_features: FloatArray,  # noqa: ARG001
    labels: IntArray,  # noqa: ARG001
    *,
    n_classes: int,  # noqa: ARG001
    strategy: str,
    seed: int,
) -> Float64Array:
    """Priorities of the pool.

    Args:
        pool_features: (N, D).
        mc_probabilities: (T, N, K).
        labelled_features: (M, D).
        labels: (M,).
        n_classes: K.
        strategy: one of STRATEGIES.
        seed: decides where the strategy is random.

    Returns:
        (N,) in [0, 1], all different, highest to be labelled first.
    """
    uncertainty = _UNCERTAINTIES[strategy](mc_probabilities, seed)
    if strategy != "cellai":
        return priorities_along(np.argsort(-uncertainty, kind="stable"), uncertainty)
    predicted = mc_probabilities.mean(axis=0).argmax(axis=1)
    return priorities_along(class_balanced_order(uncertainty, predicted), uncertainty)


def class_balanced_order(uncertainty: Float64Array, predicted: IntArray) -> IntArray:
    """Most uncertain first, every class in turn by predicted class.

    Args:
        uncertainty: (N,).
        predicted: class index, (N,).

    Returns:
        The crops' indices in the wanted order, (N,).
    """
    order = np.argsort(-uncertainty, kind="stable")
    turn = np.zeros(len(order), np.int64)
    for class_idx in np.unique(predicted):
        of_class = order[predicted[order] == class_idx]
        turn[of_class] = np.arange(len(of_class))
    return np.asarray(np.lexsort((-uncertainty, turn)), np.int64)


def priorities_along(order: IntArray, uncertainty: Float64Array) -> Float64Array:
    """Priorities that fall along an order and stay nearest to the uncertainty.

    Isotonic regression gives the least-squares fit of a falling sequence; a step of
    PRIORITY_STEP from each rank to the next makes it strict.

    Args:
        order: indices of the crops, first to be labelled first, (N,).
        uncertainty: (N,) in [0, 1].

    Returns:
        (N,) in [0, 1].
    """
    ramp = PRIORITY_STEP * np.arange(len(order))
    lowest = ramp[-1] if len(ramp) else 0.0
    falling = IsotonicRegression(increasing=False, y_min=lowest, y_max=1.0)
    priorities = np.empty(len(order))
    if len(order):
        fitted = falling.fit_transform(np.arange(len(order)), uncertainty[order] + ramp)
        priorities[order] = fitted - ramp
    return priorities


def cold_start_priorities(pool_features: FloatArray, *, seed: int) -> Float64Array:
    """Priorities without any label: typical crops of all clusters in turn.

    Args:
        pool_features: (N, D).
        seed: of the clustering.

    Returns:
        (N,) in [0, 1], all different.

    Source:
        Hacohen et al. 2022, "Active Learning on a Budget: Opposite Strategies Suit High and
        Low Budgets" (TypiClust), arXiv:2202.02794.
    """
    n_crops = len(pool_features)
    if n_crops < 3:
        return priorities_along(np.arange(n_crops), np.ones(n_crops))
    rng = np.random.default_rng(seed)
    reference = np.sort(rng.permutation(n_crops)[:REFERENCE_CROPS])
    embedded = _embed(pool_features, reference)
    typicality = _typicality(embedded, embedded[reference])
    clusters = KMeans(min(CLUSTERS, n_crops), n_init=4, random_state=seed)
    cluster = clusters.fit(embedded[reference]).predict(embedded)
    order = class_balanced_order(typicality, cluster.astype(np.int64))
    return priorities_along(order, typicality)


def _embed(features: FloatArray, reference: IntArray) -> FloatArray:
    """Standardised features on the leading principal components of the reference crops."""
    known = features[reference]
    spread = known.std(axis=0)
    scale = np.where(spread > 0, 1 / np.maximum(spread, 1e-6), 0).astype(np.float32)
    components = min(COMPONENTS, *known.shape)
    pca = PCA(components, svd_solver="randomized", random_state=0).fit(known * scale)
    return np.asarray(pca.transform(features * scale), np.float32)


def _typicality(embedded: FloatArray, reference: FloatArray) -> Float64Array:
    """Density around each crop, the mean distance to its neighbours turned into [0, 1]."""
    count = min(NEIGHBOURS + 1, len(reference))
    result = np.empty(len(embedded))
    for start in range(0, len(embedded), 2048):
        block = embedded[start : start + 2048]
        squared = (block**2).sum(1)[:, None] + (reference**2).sum(1) - 2 * block @ reference.T
        nearest = np.partition(squared, count - 1, axis=1)[:, :count]
        result[start : start + 2048] = np.sqrt(np.maximum(nearest, 0)).mean(axis=1)
    typical_distance = max(float(np.median(result)), 1e-12)
    return np.asarray(1 / (1 + result / typical_distance))


def _random(mc_probabilities: FloatArray, seed: int) -> Float64Array:
    return np.random.default_rng(seed).random(mc_probabilities.shape[1])


def _margin(mc_probabilities: FloatArray, _seed: int) -> Float64Array:
    return margin_uncertainty(mc_probabilities.mean(axis=0))


def _entropy(mc_probabilities: FloatArray, _seed: int) -> Float64Array:
    return predictive_entropy(mc_probabilities)


def _bald(mc_probabilities: FloatArray, _seed: int) -> Float64Array:
    return mutual_information(mc_probabilities)


_UNCERTAINTIES: dict[str, Callable[[FloatArray, int], Float64Array]] = {
    "cellai": _margin,
    "entropy": _entropy,
    "margin": _margin,
    "bald": _bald,
    "random": _random,
}

"""Pool to the order of the queue: uncertainty, class balance, diversity, cold start.

The order is expressed as priorities in [0, 1], strictly decreasing along it and as near to
the plain normalised uncertainty as that allows; `uncertainty.score_from_priority` makes the
score of them.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from backend.errors import DivergedError
from backend.uncertainty import margin_uncertainty, mutual_information, predictive_entropy

FloatArray = NDArray[np.float32]
Float64Array = NDArray[np.float64]
IntArray = NDArray[np.int64]

PRIORITY_STEP = 1e-7  # least distance of two priorities

# Labels are few before the next retraining, so only the head of the queue is chosen jointly.
JOINTLY_CHOSEN = 60
CANDIDATES = 400
UNCERTAINTY_POWER = 2
BALANCE_POWER = 0.25
SIMILARITY_WEIGHT = 0.5

CLUSTERS = 20
COMPONENTS = 50
REFERENCE_CROPS = 4096
NEIGHBOURS = 20


def queue_priorities(
    pool_features: FloatArray,
    mc_probabilities: FloatArray,
    labels: IntArray,
    *,
    strategy: str,
    seed: int,
) -> Float64Array:
    """Priorities of the pool.

    Args:
        pool_features: (N, D).
        mc_probabilities: (T, N, K).
        labels: class index of the crops labelled so far, (M,).
        strategy: one of `settings.Acquisition`.
        seed: decides where the strategy is random.

    Returns:
        (N,) in [0, 1], all different, highest to be labelled first.

    Raises:
        DivergedError: a probability is not finite.
    """
    uncertainty = _UNCERTAINTIES[strategy](mc_probabilities, seed)
    if not np.isfinite(uncertainty).all():
        raise DivergedError(
            f"{np.count_nonzero(~np.isfinite(uncertainty))} cells have no finite uncertainty.",
            hint="The trunk's weights do not fit its pictures: check CELLAI_WEIGHTS.",
        )
    if strategy == "cellai":
        mean = mc_probabilities.mean(axis=0)
        order = balanced_diverse_order(pool_features, mean, uncertainty, labels)
    else:
        order = np.argsort(-uncertainty, kind="stable")
    return priorities_along(order, uncertainty)


def balanced_diverse_order(
    pool_features: FloatArray,
    probabilities: FloatArray,
    uncertainty: Float64Array,
    labels: IntArray,
) -> IntArray:
    """Crops in the order of uncertainty x class balance x diversity.

    The value of a crop is u^2 * sum_k(p_k (1 + n_k)^-1/4) * (1 - s / 2): u its uncertainty (one
    minus the margin), p_k its class probabilities, n_k the labels of class k, s its largest
    cosine similarity to a crop chosen before it. The crop of the largest value comes next;
    n_k then grows by its p_k. Behind the jointly chosen crops s is left out.

    Args:
        pool_features: (N, D).
        probabilities: (N, K).
        uncertainty: (N,) in [0, 1].
        labels: class index of the crops labelled so far, (M,).

    Returns:
        The crops' indices in the wanted order, (N,).

    Source:
        Margin: Scheffer et al. 2001. Greedy choice by value and distance: after Kirsch et al.
        2019 (BatchBALD), arXiv:1906.08158, and Sener & Savarese 2018, arXiv:1708.00489. Why
        this product of the three: docs/model.md.
    """
    counts = 1.0 + np.bincount(labels, minlength=probabilities.shape[1]).astype(np.float64)
    doubt = uncertainty**UNCERTAINTY_POWER
    value = doubt * (probabilities @ counts**-BALANCE_POWER)
    order = np.argsort(-value, kind="stable")
    candidates = order[:CANDIDATES]
    chosen = _choose_jointly(
        _directions(pool_features, candidates),
        probabilities[candidates],
        doubt[candidates],
        counts,
    )
    left = np.ones(len(order), np.bool_)
    left[candidates[chosen]] = False
    return np.concatenate([candidates[chosen], order[left[order]]])


def _choose_jointly(
    directions: FloatArray,
    probabilities: FloatArray,
    doubt: Float64Array,
    counts: Float64Array,
) -> IntArray:
    """Greedy choice among the candidates; see `balanced_diverse_order`."""
    counts = counts.copy()
    similarity = np.zeros(len(directions))
    is_free = np.ones(len(directions), np.bool_)
    chosen: list[int] = []
    for _ in range(min(JOINTLY_CHOSEN, len(directions))):
        value = (
            doubt * (probabilities @ counts**-BALANCE_POWER) * (1 - SIMILARITY_WEIGHT * similarity)
        )
        best = int(np.where(is_free, value, -1).argmax())
        is_free[best] = False
        chosen.append(best)
        counts += probabilities[best]
        similarity = np.maximum(similarity, directions @ directions[best])
    return np.array(chosen, np.int64)


def _directions(pool_features: FloatArray, candidates: IntArray) -> FloatArray:
    """Standardised features of the candidates, scaled to length one."""
    every = max(1, len(pool_features) // REFERENCE_CROPS)
    reference = pool_features[::every]
    mean, spread = reference.mean(axis=0), reference.std(axis=0)
    inverse = np.where(spread > 0, 1 / np.maximum(spread, 1e-6), 0)
    standardised = (pool_features[candidates] - mean) * inverse
    length = np.linalg.norm(standardised, axis=1, keepdims=True)
    return np.asarray(standardised / np.maximum(length, 1e-6), np.float32)


def clusters_in_turn(value: Float64Array, cluster: IntArray) -> IntArray:
    """Highest value first, every cluster in turn.

    Args:
        value: (N,).
        cluster: cluster of each crop, (N,).

    Returns:
        The crops' indices in the wanted order, (N,).
    """
    order = np.argsort(-value, kind="stable")
    turn = np.zeros(len(order), np.int64)
    for member in np.unique(cluster):
        of_cluster = order[cluster[order] == member]
        turn[of_cluster] = np.arange(len(of_cluster))
    return np.asarray(np.lexsort((-value, turn)), np.int64)


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
    priorities = np.empty(len(order))
    if len(order):
        # Here, since it takes a fifth of torch's time, and web processes order no queue.
        from scipy.optimize import isotonic_regression  # noqa: PLC0415

        falling = isotonic_regression(uncertainty[order] + ramp, increasing=False).x
        priorities[order] = falling.clip(lowest, 1.0) - ramp
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
    from sklearn.cluster import KMeans  # noqa: PLC0415  slow, and only for versions without a head

    n_crops = len(pool_features)
    if n_crops < 3:
        return priorities_along(np.arange(n_crops), np.ones(n_crops))
    rng = np.random.default_rng(seed)
    reference = np.sort(rng.permutation(n_crops)[:REFERENCE_CROPS])
    embedded = _embed(pool_features, reference)
    typicality = _typicality(embedded, embedded[reference])
    clusters = KMeans(min(CLUSTERS, n_crops), n_init=4, random_state=seed)
    cluster = clusters.fit(embedded[reference]).predict(embedded)
    order = clusters_in_turn(typicality, cluster.astype(np.int64))
    return priorities_along(order, typicality)


def _embed(features: FloatArray, reference: IntArray) -> FloatArray:
    """Standardised features on the leading principal components of the reference crops."""
    from sklearn.decomposition import PCA  # noqa: PLC0415  as above

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

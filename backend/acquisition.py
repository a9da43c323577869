"""Pool to the order of the queue: uncertainty, class balance, diversity, cold start.

The order is expressed as priorities in [0, 1], strictly decreasing along it and as near to
the plain normalised uncertainty as that allows; `uncertainty.score_from_priority` makes the
score of them.
"""

from collections.abc import Callable
from heapq import heappop, heappush

import numpy as np
from numpy.typing import NDArray

from backend.errors import DivergedError
from backend.thinning import thinned
from backend.uncertainty import margin_uncertainty, mutual_information, predictive_entropy

FloatArray = NDArray[np.float32]
Float64Array = NDArray[np.float64]
IntArray = NDArray[np.int64]

PRIORITY_STEP = 1e-7  # least distance of two priorities

# Labels are few before the next retraining, so only the head of the queue is chosen jointly.
JOINTLY_CHOSEN = 60
CANDIDATES = 400  # of the queue, to choose from; 60 or all are as good (measured, docs/model.md)
BALANCE_POWER = 0.25
REFERENCE_CROPS = 4096  # of the pool, at cold start: to choose from, and to be stood for
DOUBTFUL_CROPS = 2048  # of the queue, for which the chosen ones are to stand
SCALED_AT_ONCE = 256  # crops: 3 MB

_UNFIT_WEIGHTS = "The trunk's weights do not fit its pictures: check CELLAI_WEIGHTS."


def queue_priorities(
    pool_features: FloatArray,
    mc_probabilities: FloatArray,
    labels: IntArray,
    *,
    strategy: str,
    seed: int,
    rows: IntArray | None = None,
) -> Float64Array:
    """Priorities of the crops in the queue.

    Args:
        pool_features: (P, D) of the pool.
        mc_probabilities: (T, N, K) of the queue.
        labels: class index of the crops labelled so far, (M,).
        strategy: one of `settings.Acquisition`.
        seed: decides where the strategy is random.
        rows: which crops of the pool are in the queue, (N,); all of them where it is not given.
            To copy their features took a tenth of rescoring.

    Returns:
        (N,) in [0, 1], all different, highest to be labelled first.

    Raises:
        DivergedError: a probability is not finite.
    """
    uncertainty = _UNCERTAINTIES[strategy](mc_probabilities, seed)
    if not np.isfinite(uncertainty).all():
        n_cells = np.count_nonzero(~np.isfinite(uncertainty))
        raise DivergedError(f"{n_cells} cells have no finite uncertainty.", hint=_UNFIT_WEIGHTS)
    if strategy == "cellai":
        mean = mc_probabilities.mean(axis=0)
        order = representative_order(pool_features, mean, uncertainty, labels, rows=rows)
    else:
        order = np.argsort(-uncertainty, kind="stable")
    return priorities_along(order, uncertainty)


def representative_order(
    pool_features: FloatArray,
    probabilities: FloatArray,
    uncertainty: Float64Array,
    labels: IntArray,
    *,
    rows: IntArray | None = None,
) -> IntArray:
    """Crops in the order of uncertainty x class balance x what they say of other doubtful crops.

    The value of crop j is u_j * sum_k(p_jk (1 + n_k)^-1/4) * sum_i(u_i max(0, s_ij - c_i)): u the
    uncertainty (one minus the margin), p the class probabilities, n_k the labels of class k,
    s the cosine similarity of standardised features, c_i the largest similarity of crop i to a
    crop chosen before, at least 0. The crop of the largest value comes next. Of a large queue i
    is every so many crops, j those of the largest first two factors; behind the jointly chosen
    c stays as it is, and the crops that are not j follow by their first two factors.

    Args:
        pool_features: (P, D) of the pool.
        probabilities: (N, K) of the queue.
        uncertainty: (N,) in [0, 1].
        labels: class index of the crops labelled so far, (M,).
        rows: as for `queue_priorities`.

    Returns:
        The crops' indices in the wanted order, (N,).

    Source:
        Margin: Scheffer et al. 2001. Facility location among uncertain crops: Wei, Iyer & Bilmes
        2015, "Submodularity in Data Subset Selection and Active Learning" (FASS); that those
        stood for count by their uncertainty, too, is ours. Why this product: docs/model.md.
    """
    if rows is None:
        rows = np.arange(len(uncertainty))
    counts = 1.0 + np.bincount(labels, minlength=probabilities.shape[1])
    quality = uncertainty * (probabilities @ counts**-BALANCE_POWER)
    order = np.argsort(-quality, kind="stable")
    candidates, others = order[:CANDIDATES], order[CANDIDATES:]
    stood_for = thinned(np.arange(len(rows)), DOUBTFUL_CROPS)
    reference = rows[stood_for]
    scaling = _scaling(pool_features, reference)
    directions = _directions(pool_features, rows[candidates], scaling)
    value = _representation_gains(
        directions @ _directions(pool_features, reference, scaling).T,
        np.zeros(len(stood_for), np.float32),
        weight=uncertainty[stood_for].astype(np.float32),
        quality=quality[candidates],
    )
    return np.concatenate([candidates[np.argsort(-value, kind="stable")], others])


def _scaling(features: FloatArray, rows: IntArray) -> tuple[FloatArray, FloatArray]:
    """Mean of each feature over some crops, and one over its spread or 0 where they are alike.

    A few crops at a time: to write copies of 2,048 took longer than all else (measured).
    """
    chunks = [rows[start : start + SCALED_AT_ONCE] for start in range(0, len(rows), SCALED_AT_ONCE)]
    mean = sum(features[chunk].sum(axis=0) for chunk in chunks) / np.float32(len(rows))
    squares = np.zeros_like(mean)
    for chunk in chunks:
        centred = features[chunk] - mean
        squares += np.einsum("ij,ij->j", centred, centred)
    spread = np.sqrt(squares / np.float32(len(rows)))
    return mean, np.where(spread > 0, 1 / np.maximum(spread, 1e-6), 0)


def _directions(
    features: FloatArray, rows: IntArray, scaling: tuple[FloatArray, FloatArray]
) -> FloatArray:
    """Features of some crops, standardised and scaled to length one."""
    mean, inverse_spread = scaling
    directions = features[rows]
    directions -= mean
    directions *= inverse_spread
    length = np.sqrt(np.einsum("ij,ij->i", directions, directions))[:, None]
    directions /= np.maximum(length, 1e-6)
    return directions


def priorities_along(order: IntArray, uncertainty: Float64Array) -> Float64Array:
    """Priorities that fall along an order and stay nearest to the uncertainty.

    Isotonic regression gives the least-squares fit of a falling sequence; a step of
    PRIORITY_STEP from each rank to the next makes it strict.

    Args:
        order: indices of the crops, first to be labelled first, (N,).
        uncertainty: (N,) in [0, 1].

    Returns:
        (N,) in (0, 1]: behind the last crop come those whose pictures cannot be read, with 0.
    """
    ramp = PRIORITY_STEP * np.arange(len(order))
    priorities = np.empty(len(order))
    if len(order):
        # Here, since it takes a fifth of torch's time, and web processes order no queue.
        from scipy.optimize import isotonic_regression  # noqa: PLC0415

        falling = isotonic_regression(uncertainty[order] + ramp, increasing=False).x
        priorities[order] = falling.clip(ramp[-1] + PRIORITY_STEP, 1.0) - ramp
    return priorities


def cold_start_priorities(
    pool_features: FloatArray, *, labelled_features: FloatArray
) -> Float64Array:
    """Priorities without a head: those crops first which together stand best for the whole pool.

    The next crop is the one that most raises the sum, over all crops, of the similarity to the
    nearest crop chosen or labelled: large groups come first, each by a crop of its middle, and
    outliers late. Of a large pool every so many crops are compared; the others come last.

    Args:
        pool_features: (N, D) of the crops without a label.
        labelled_features: (M, D) of those with one; M may be 0.

    Returns:
        (N,) in [0, 1], all different.

    Raises:
        DivergedError: a feature is not finite.

    Source:
        Facility location: Wei, Iyer & Bilmes 2015, "Submodularity in Data Subset Selection and
        Active Learning", section 3. Compared with others: docs/model.md.
    """
    n_crops = len(pool_features)
    if not n_crops:
        return np.zeros(0)
    n_unusable = sum(
        np.count_nonzero(~np.isfinite(features).all(axis=1))
        for features in (pool_features, labelled_features)
    )
    if n_unusable:
        raise DivergedError(f"{n_unusable} cells have no finite features.", hint=_UNFIT_WEIGHTS)
    compared = thinned(np.arange(n_crops), REFERENCE_CROPS)
    scaling = _scaling(pool_features, compared)
    directions = _directions(pool_features, compared, scaling)
    covered = np.zeros(len(compared), np.float32)
    if len(labelled_features):
        some = thinned(np.arange(len(labelled_features)), REFERENCE_CROPS)
        labelled = _directions(labelled_features, some, scaling)
        covered = (directions @ labelled.T).max(axis=1).clip(0)
    gain = np.zeros(n_crops)
    gain[compared] = _representation_gains(
        directions @ directions.T,
        covered,
        weight=np.ones(len(compared), np.float32),
        quality=np.ones(len(compared)),
    ).clip(0, 1)
    return priorities_along(np.argsort(-gain, kind="stable"), gain)


def _representation_gains(
    similarity: FloatArray,
    covered: FloatArray,
    *,
    weight: FloatArray,
    quality: Float64Array,
) -> Float64Array:
    """What each crop adds to the mean similarity to the nearest chosen, when it is its turn.

    Args:
        similarity: of N crops to the M crops that they are to stand for, (N, M).
        covered: largest similarity to what was chosen before, at least 0, (M,).
        weight: of each of these in the mean, (M,).
        quality: what the gain of each crop is multiplied with, at least 0, (N,).

    Returns:
        (N,), at least 0; of the crops behind the jointly chosen, what they would add after those.

    Source:
        The greedy choice is within 1 - 1/e of the best: Nemhauser, Wolsey & Fisher 1978 (with
        qualities of one). Gains only fall, so that few have to be computed again: Minoux 1978,
        "Accelerated Greedy Algorithms for Maximizing Submodular Set Functions".
    """

    def gain_of(row: int) -> float:
        added = np.maximum(similarity[row] - covered, 0)
        return float(quality[row] * (added @ weight) / len(weight))

    gain = np.zeros(len(similarity))
    waiting = [(-np.inf, row) for row in range(len(similarity))]
    n_chosen = 0
    while waiting and n_chosen < JOINTLY_CHOSEN:
        _, row = heappop(waiting)
        gain[row] = gain_of(row)
        if waiting and gain[row] < -waiting[0][0]:
            heappush(waiting, (-gain[row], row))
        else:
            covered = np.maximum(covered, similarity[row])
            n_chosen += 1
    for _, row in waiting:
        gain[row] = gain_of(row)
    return gain


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

"""Does the number of passes suffice, and do the maps depend on the head and lie on the cell?"""

from collections.abc import Iterator
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn import functional

from backend.acquisition import queue_priorities
from backend.card_refresh import TYPICAL_OF
from backend.feature_cache import FeatureCache
from backend.gradcam import gradcam, typical_crops
from backend.head import Head, fresh_head, mc_probabilities
from backend.networks import INPUT_PX
from backend.thinning import thinned
from backend.training import MOST_UNLABELLED, TrainingSettings, fit
from backend.uncertainty import margin_uncertainty
from benchmarks.independent_masks import independent_mc_probabilities
from benchmarks.labelled_features import LabelledFeatures

N_LABELS = 200
LEAST_LABELS = 2 * N_LABELS  # as many are left to look at
N_CROPS = 1000  # whose uncertainties are compared
N_MAPS = 300
REFERENCE_PASSES = 400
PASSES = (5, 10, 20, 50, 100)
ORDER_SEEDS = 5


def objection(data: LabelledFeatures) -> str | None:
    """Why `measure_model` cannot be asked about a data set; None where it can."""
    if len(data.labels) < LEAST_LABELS:
        return f"it has under {LEAST_LABELS} labels"
    known, _ = _known_and_others(data)
    if len(np.unique(known.labels)) < 2:
        return f"the {N_LABELS} labels to learn from are all {data.classes[known.labels[0]]}"
    return None


def measure_model(data: LabelledFeatures, cache: FeatureCache) -> Iterator[tuple[str, float]]:
    """Stability of the order against T and seed, and the sanity of the maps.

    Args:
        data: labelled crops against which `objection` has nothing.
        cache: holds their maps.
    """
    known, others = _known_and_others(data)
    head = fit(
        known.features,
        known.labels,
        [str(group) for group in known.groups],
        n_classes=len(data.classes),
        settings=TrainingSettings(),
        pool_features=data.features,
        turned_features=known.turned_features,
        unlabelled_features=thinned(others.features, MOST_UNLABELLED),
    ).head
    yield from _stability(head, others.features)
    yield "spearman_order_of_seeds", _order_stability(head, others.features, known.labels)
    yield from _map_numbers(head, others.rows(np.arange(min(N_MAPS, len(others.labels)))), cache)


def _known_and_others(data: LabelledFeatures) -> tuple[LabelledFeatures, LabelledFeatures]:
    """Random labels to learn from, and the other crops."""
    rows = np.random.default_rng(0).permutation(len(data.labels))
    return data.rows(rows[:N_LABELS]), data.rows(rows[N_LABELS:])


def _stability(head: Head, features: NDArray[np.float32]) -> Iterator[tuple[str, float]]:
    """Spearman's rank correlation of the uncertainties with those of 400 independent passes."""
    some = features[:N_CROPS]

    def agreement(probabilities: NDArray[np.float32]) -> float:
        ranks = spearmanr(margin_uncertainty(probabilities.mean(axis=0)), reference)
        return float(ranks.statistic)

    drawn = independent_mc_probabilities(head, some, passes=REFERENCE_PASSES, seed=1)
    reference = margin_uncertainty(drawn.mean(axis=0))
    for passes in PASSES:
        ours = mc_probabilities(head, some, passes=passes, seed=0)
        yield f"spearman_T{passes}", agreement(ours)
    passes = TrainingSettings().mc_passes
    independent = independent_mc_probabilities(head, some, passes=passes, seed=0)
    yield f"spearman_independent_T{passes}", agreement(independent)


def _order_stability(head: Head, features: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Median rank correlation of the product's order between pairs of seeds, at its own T."""
    passes = TrainingSettings().mc_passes
    orders = [
        queue_priorities(
            features,
            mc_probabilities(head, features, passes=passes, seed=seed),
            labels,
            strategy="cellai",
            seed=seed,
        )
        for seed in range(ORDER_SEEDS)
    ]
    pairs = combinations(orders, 2)
    return float(np.median([spearmanr(one, other).statistic for one, other in pairs]))


def _map_numbers(
    head: Head, cells: LabelledFeatures, cache: FeatureCache
) -> Iterator[tuple[str, float]]:
    """Correlation with the maps of a random head, and the share of heat on the cell.

    Source:
        Adebayo et al. 2018, "Sanity Checks for Saliency Maps", arXiv:1810.03292.
    """
    kept, found = cache.get_maps(cells.keys)
    rows = np.flatnonzero(found)
    readable = cells.rows(rows)
    random_head = fresh_head(
        head.mean, head.scale, n_classes=head.n_classes, rng=np.random.default_rng(1)
    )
    compared = thinned(np.arange(len(rows)), TYPICAL_OF)
    typical = typical_crops(kept.rows(rows[compared]), readable.has_mask[compared])
    maps, random_maps = (
        gradcam(
            some,
            features=readable.features,
            maps=kept.rows(rows),
            class_idx=readable.labels,
            has_mask=readable.has_mask,
            typical=typical,
        )
        for some in (head, random_head)
    )
    yield "gradcam_random_head_correlation", _mean_correlation(maps, random_maps)
    if readable.masks is not None:
        share, by_chance = _share_on_cell(maps, readable.masks)
        yield "gradcam_heat_on_cell", share
        yield "cell_area_share", by_chance


def _mean_correlation(maps: NDArray[np.float32], others: NDArray[np.float32]) -> float:
    pairs = zip(maps.reshape(len(maps), -1), others.reshape(len(others), -1), strict=True)
    vary = [(one, two) for one, two in pairs if np.ptp(one) > 0 and np.ptp(two) > 0]
    return float(np.mean([np.corrcoef(one, two)[0, 1] for one, two in vary]))


def _share_on_cell(maps: NDArray[np.float32], masks: NDArray[np.bool_]) -> tuple[float, float]:
    """Share of the heat inside the masks, and the masks' share of the area."""
    size = (INPUT_PX, INPUT_PX)
    heat = functional.interpolate(torch.from_numpy(maps)[:, None], size, mode="bilinear")[:, 0]
    inside = _as_seen(torch.from_numpy(masks).float()[:, None])[:, 0]
    total = heat.sum(dim=(1, 2))
    has_heat = total > 0
    shares = (heat * inside).sum(dim=(1, 2))[has_heat] / total[has_heat]
    return float(shares.mean()), float(inside.mean())


def _as_seen(masks: Tensor) -> Tensor:
    """Masks (n, 1, S, S) where the trunk sees the cells: see `fit_to_input`, but with no border."""
    missing = INPUT_PX - masks.shape[-1]
    if missing < 0:
        return functional.interpolate(masks, (INPUT_PX, INPUT_PX))
    before, after = missing // 2, missing - missing // 2
    return functional.pad(masks, (before, after, before, after))

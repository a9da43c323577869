"""The standard error of a hold-out: what it is drawn from."""

import numpy as np

from backend.metrics import FEWEST_GROUPS, holdout_metrics
from backend.retraining import is_worse

N_CROPS = 60


def standard_error(n_groups: int) -> float:
    """Of crops of two classes, every sixth of which is wrong, in equal groups."""
    labels = np.arange(N_CROPS) % 2
    wrong = np.arange(N_CROPS) % 6 == 0
    probabilities = np.eye(2, dtype=np.float32)[np.where(wrong, 1 - labels, labels)]
    groups = [f"{row * n_groups // N_CROPS:02}" for row in range(N_CROPS)]
    metrics = holdout_metrics(probabilities, labels, groups, seed=0)
    error = metrics["macro_f1_se"]
    assert isinstance(error, float)
    return error


def test_few_groups_have_the_error_of_their_crops() -> None:
    of_crops = standard_error(N_CROPS)
    assert of_crops > 0.02
    assert {standard_error(n_groups) for n_groups in (1, 2, FEWEST_GROUPS - 1)} == {of_crops}


def test_many_groups_are_drawn_whole() -> None:
    """Each has one wrong crop, so that they differ less than crops do."""
    assert standard_error(FEWEST_GROUPS) < standard_error(N_CROPS) / 5


def test_small_drop_of_a_hold_out_of_one_group_is_no_reason_to_reject() -> None:
    metrics = {"n_holdout": N_CROPS, "macro_f1_se": standard_error(1)}
    assert not is_worse(metrics | {"macro_f1": 0.82}, metrics | {"macro_f1": 0.83})
    assert is_worse(metrics | {"macro_f1": 0.5}, metrics | {"macro_f1": 0.83})

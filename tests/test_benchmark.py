"""The benchmark measures any labelled file and goes on where it was interrupted."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
from numpy.typing import NDArray
from seeded_networks import seeded_tensors

from backend.networks import build_network
from benchmarks import __main__ as benchmark
from benchmarks.contention import contention_numbers
from benchmarks.finished import FinishedRuns, features_digest
from benchmarks.goals import goals
from benchmarks.labelled_features import LabelledFeatures
from benchmarks.learning import (
    BATCH,
    Point,
    Run,
    Simulation,
    _reached,
    _step,
    full_macro_f1,
    simulate,
    split,
)
from benchmarks.model_checks import _share_on_cell, objection
from benchmarks.results import Results, learning_numbers
from converters.sample import write_sample_crops

POINT = Point(
    n_labels=10,
    macro_f1=0.1 + 0.2,  # has no short decimal form
    balanced_accuracy=0.5,
    rare_recall=0.5,
    ece_before=0.1,
    ece_after=0.1,
    brier_before=0.1,
    brier_after=0.1,
    n_errors=3,
    n_certain_errors=1,
    risk_at_coverage=(0.0, 0.5),
)
RUN = Run(
    dataset="cells",
    strategy="random",
    seed=1,
    budget=200,
    points=(POINT, POINT),
    full_macro_f1=0.9,
    labels_to_95=None,
    first_classes=(5, 5),
    rarest=(0, 1),
)


def test_runs_are_found_again_after_an_interruption(tmp_path: Path) -> None:
    path = tmp_path / "simulations.jsonl"
    FinishedRuns(path).add("first", RUN)
    FinishedRuns(path).add("cut off", RUN)
    path.write_text(path.read_text()[:-9])
    FinishedRuns(path).add("third", replace(RUN, labels_to_95=20))
    found = FinishedRuns(path)
    assert found.get("first") == RUN
    assert found.get("cut off") is None
    assert found.get("third") == replace(RUN, labels_to_95=20)


def test_other_features_are_told_apart() -> None:
    cells = LabelledFeatures(
        name="cells",
        features=np.zeros((2, 3), np.float32),
        turned_features=np.zeros((2, 3), np.float32),
        labels=np.array([0, 1]),
        groups=np.array(["a", "b"]),
        classes=("rbc", "wbc"),
        keys=("0", "1"),
        has_mask=np.zeros(2, np.bool_),
        masks=None,
    )
    others = [
        replace(cells, features=np.ones((2, 3), np.float32)),
        replace(cells, labels=np.array([1, 0])),
        replace(cells, groups=np.array(["a", "c"])),
        replace(cells, classes=("rbc", "plt")),
    ]
    assert len({features_digest(data) for data in (cells, *others)}) == 1 + len(others)


def labelled(
    features: NDArray[np.float32], labels: NDArray[np.int64], *, groups: list[str]
) -> LabelledFeatures:
    """Crops of three classes that look the same turned."""
    return LabelledFeatures(
        name="cells",
        features=features,
        turned_features=features,
        labels=labels,
        groups=np.array(groups),
        classes=("rbc", "wbc", "plt"),
        keys=tuple(str(row) for row in range(len(labels))),
        has_mask=np.zeros(len(labels), np.bool_),
        masks=None,
    )


def test_pool_of_one_class_is_refused_in_a_sentence() -> None:
    """What is not of the first class may all be in the fields that are kept for the test."""
    labels = np.zeros(90, np.int64)
    labels[:2] = 1
    cells = labelled(
        np.zeros((90, 16), np.float32), labels, groups=[str(row // 3) for row in range(90)]
    )
    simulations = [Simulation(seed, False, "random", BATCH) for seed in range(9)]
    of_one_class = [
        some
        for some in simulations
        if 1 not in split(cells, seed=some.seed, balanced=False).pool.labels
    ]
    assert 0 < len(of_one_class) < len(simulations)
    fit = [some for some in simulations if some not in of_one_class]
    assert benchmark._splittable(cells, fit) is cells
    with pytest.raises(SystemExit, match="All crops of cells to learn from are rbc when a third"):
        benchmark._splittable(cells, simulations)


def test_model_is_not_checked_with_labels_of_one_class() -> None:
    labels = np.zeros(500, np.int64)
    groups = [str(row) for row in range(500)]
    features = np.zeros((500, 16), np.float32)
    assert objection(labelled(features[:399], labels[:399], groups=groups[:399])) is not None
    why = objection(labelled(features, labels, groups=groups))
    assert why == "the 200 labels to learn from are all rbc"
    labels[::2] = 1
    assert objection(labelled(features, labels, groups=groups)) is None


@pytest.mark.parametrize("size_px", [64, 96, 128])
def test_heat_is_compared_with_the_mask_where_the_trunk_saw_the_cell(size_px: int) -> None:
    """Smaller crops are padded, larger ones scaled down; the cell here is the left half."""
    masks = np.zeros((1, size_px, size_px), np.bool_)
    masks[:, :, : size_px // 2] = True
    heat = np.zeros((1, 12, 12), np.float32)
    heat[:, 6, 3] = 1  # from 24 to 32 px of 96, and a little beside it
    share, by_chance = _share_on_cell(heat, masks)
    assert share > 0.9
    assert by_chance == pytest.approx(min(size_px, 96) ** 2 / 2 / 96**2)


def test_goals_are_told_with_whether_they_are_met() -> None:
    numbers = {
        "trunk_fraction_of_peak_96": 0.79,
        "rescore_10k_share_of_import": 0.2,
        **{f"labels_to_95_ratio_{name}": 0.6 for name in ("cells", "cells_balanced")},
        **{f"area_gain_{name}": -0.01 for name in ("cells", "cells_balanced")},
        "area_gain_cells_balanced_se": 0.02,
        **{f"first50_lowest_{name}": 0.01 for name in ("cells", "cells_balanced")},
        "risk_half_cells": 0.1,
        "risk_half_together_cells": 0.09,
        "risk_half_cells_balanced": 0.09,
        "risk_half_together_cells_balanced": 0.1,
    }
    assert {goal.name: goal.is_met for goal in goals(numbers, ["cells", "cells_balanced"])} == {
        "trunk_fraction_of_peak_96": False,
        "rescore_10k_share_of_import": True,
        "labels_to_95_ratio_cells": False,
        "area_gain_cells": False,
        "first50_lowest_cells": True,
        "risk_half_cells": False,
        "risk_half_together_cells": True,
        "area_gain_cells_balanced": True,
        "first50_lowest_cells_balanced": True,
        "risk_half_cells_balanced": True,
        "risk_half_together_cells_balanced": False,
    }


def test_what_is_no_number_is_null_in_the_results(tmp_path: Path) -> None:
    results = Results(tmp_path, full=False)
    for name, value in (("defined", 0.5), ("undefined", math.nan), ("unbounded", math.inf)):
        results.add(name, value)
    results.write()
    written = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)
    assert [written[name] for name in ("defined", "undefined", "unbounded")] == [0.5, None, None]


def test_simulation_labels_up_to_its_budget_and_comes_out_the_same_again() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 40)
    features = (rng.normal(size=(120, 16)) + 3 * np.eye(3, 16)[labels]).astype(np.float32)
    cells = labelled(features, labels, groups=[str(row % 12) for row in range(120)])
    simulation = Simulation(seed=0, balanced=False, strategy="cellai", budget=2 * BATCH)
    full_score = full_macro_f1(cells, simulation)
    run = simulate(cells, simulation, full_score=full_score)
    assert run == simulate(cells, simulation, full_score=full_score)
    assert [point.n_labels for point in run.points][:2] == [BATCH, 2 * BATCH]
    assert run.full_macro_f1 == full_score > 0.8
    assert run.labels_to_95 is not None
    assert BATCH <= run.labels_to_95 <= run.points[-1].n_labels


@pytest.mark.parametrize(
    ("scores", "n_labels"),
    [
        ((0.5, 0.7, 0.9, 0.95), 25),
        ((0.5, 0.9, 0.7, 0.9, 0.9), 35),  # one version above is chance
        ((0.9, 0.9), 10),
        ((0.5, 0.7, 0.9), None),
    ],
)
def test_the_curve_is_followed_between_versions(
    scores: tuple[float, ...], n_labels: float | None
) -> None:
    points = [
        replace(POINT, n_labels=10 * place, macro_f1=score)
        for place, score in enumerate(scores, start=1)
    ]
    assert _reached(points, 0.8) == (None if n_labels is None else pytest.approx(n_labels))


def test_two_trunks_are_timed_beside_each_other(tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(seeded_tensors(build_network("vgg16")), weights)
    numbers = dict(contention_numbers(weights, seconds=0.2))
    assert numbers["two_trunks_ms_96"] > 0
    assert numbers["two_trunks_speedup"] > 0


@pytest.mark.parametrize(
    ("n_labels", "step"), [(10, 10), (90, 10), (100, 15), (176, 24), (200, 30)]
)
def test_steps_grow_beyond_the_budget_and_one_ends_where_errors_are_judged(
    n_labels: int, step: int
) -> None:
    assert _step(n_labels, budget=100, least=200) == step


def test_splits_are_compared_each_by_itself_and_their_errors_counted_together() -> None:
    def run(strategy: str, seed: int, labels_to_95: float, errors: tuple[int, int]) -> Run:
        point = replace(POINT, n_certain_errors=errors[0], n_errors=errors[1])
        return replace(
            RUN, strategy=strategy, seed=seed, points=(point, point), labels_to_95=labels_to_95
        )

    ours = [
        run("cellai", 0, 10, (1, 2)),
        run("cellai", 1, 20, (0, 8)),
        run("cellai", 2, 50, (0, 0)),
    ]
    others = [
        run(strategy, seed, labels, (9, 9))
        for strategy in ("random", "margin")
        for seed, labels in enumerate((100, 40, 50))
    ]
    numbers = dict(learning_numbers([*others, *ours]))
    assert numbers["labels_to_95_ratio_cells"] == pytest.approx(0.5)  # of 0.1, 0.5 and 1
    assert numbers["risk_half_cells"] == 0  # of 0.5, 0 and 0
    assert numbers["risk_half_together_cells"] == pytest.approx(0.1)
    assert numbers["errors_cells"] == 10


@pytest.fixture
def run_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Runs `python -m benchmarks --data FILE` in a folder of its own, with made-up weights."""
    weights = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(seeded_tensors(build_network("vgg16")), weights)
    monkeypatch.setenv("CELLAI_WEIGHTS", str(weights))
    monkeypatch.setattr(benchmark, "OUT", tmp_path / "out")
    monkeypatch.setattr(benchmark, "SEEDS", 1)

    def run(path: Path) -> None:
        monkeypatch.setattr("sys.argv", ["benchmarks", "--data", str(path)])
        benchmark.main()

    return run


def test_learning_is_measured_on_a_small_labelled_file(
    run_on: Callable[[Path], None], tmp_path: Path
) -> None:
    write_sample_crops(tmp_path / "mine.seg", n_cells=72, seed=0, labelled_share=1.0)
    run_on(tmp_path / "mine.seg")
    numbers = json.loads((tmp_path / "out" / "part" / "results.json").read_text())
    for pool in ("mine", "mine_balanced"):
        assert numbers[f"labels_to_95_ratio_{pool}"] > 0
        for name in ("area_gain", "first50_gain", "ece_after", "risk_half"):
            assert -1 <= numbers[f"{name}_{pool}"] <= 1
        assert (tmp_path / "out" / "part" / f"learning-{pool}.png").exists()
    assert (
        "| `risk_half_mine` | below 0.1 |" in (tmp_path / "out" / "part" / "results.md").read_text()
    )
    assert not (tmp_path / "out" / "results.json").exists()  # that of a whole run stays


def test_files_that_teach_nothing_are_refused_in_a_sentence(
    run_on: Callable[[Path], None], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match=r"none\.seg does not exist"):
        run_on(tmp_path / "none.seg")
    write_sample_crops(tmp_path / "open.seg", n_cells=30, seed=0, labelled_share=0.0)
    with pytest.raises(SystemExit, match=r"No crop in .*open\.seg has a label\."):
        run_on(tmp_path / "open.seg")
    write_sample_crops(tmp_path / "few.seg", n_cells=30, seed=0, labelled_share=1.0)
    with pytest.raises(SystemExit, match="few has 30 labelled crops, fewer than 60"):
        run_on(tmp_path / "few.seg")

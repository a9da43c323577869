"""Cards that cannot be stored are tried again, and until then they do not count as written."""

import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from pydantic import SecretStr

from backend import card_refresh
from backend.card_refresh import CardRefresh
from backend.compact_maps import CompactMaps
from backend.gradcam import TypicalCrop, gradcam, typical_crops
from backend.head import fresh_head
from backend.label_studio import LabelStudioClient, Task
from backend.pool import FeatureReader, Pool
from backend.prediction import Predicted
from backend.registry import Version
from backend.rescoring import Rescored
from backend.settings import Settings
from backend.thinning import thinned
from backend.training_set import Snapshot
from converters.label_config import LabelConfig

N_TASKS = 40
SHAPES = ((2, 3, 3), (4, 3, 3))
FEATURE_DIM = 12
VERSION = Version("cellai-0007", 3, ("a", "b"), 0, "", "", {"mode": "auto"}, "")


def refresh(files_dir: Path, *, reader: SimpleNamespace) -> CardRefresh:
    settings = Settings(label_studio_api_key=SecretStr("x"), files_dir=files_dir)
    client = LabelStudioClient("http://label-studio", "token")
    return CardRefresh(settings, client=client, features=cast(FeatureReader, reader))


def snapshot_of(tasks: list[Task]) -> Snapshot:
    return Snapshot(3, LabelConfig("c", "card", ("a", "b"), ("A", "B"), ()), tasks, {}, "")


def test_cards_on_a_folder_that_takes_none_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(card_refresh, "RETRY_SECONDS", 0.0)
    cards = refresh(tmp_path, reader=SimpleNamespace())
    tasks = [Task(n, {"card": f"/data/local-files/?d=cards/{n}.html"}) for n in range(N_TASKS)]
    cards.show(
        snapshot_of(tasks),
        Pool(tasks, np.zeros((N_TASKS, 1), np.float32), np.ones(N_TASKS, np.bool_)),
        Rescored(VERSION, None, None, np.linspace(0, 1, N_TASKS).astype(np.float64)),
    )
    in_the_way = tmp_path / "cards"
    in_the_way.touch()
    assert [cards.step() for _ in range(5)] == [[]] * 5
    assert cards.version(3) == "cellai-0007"
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2  # one line for each of the passes that ended
    assert told[0].startswith("project 3: 40 of 40 cards are incomplete, the first of task 0: ")

    in_the_way.unlink()
    in_the_way.mkdir()
    steps = [cards.step() for _ in range(2 * N_TASKS // card_refresh.BATCH + 2)]
    assert [(3, "cellai-0007")] in steps
    assert len(list(in_the_way.glob("*.html"))) == N_TASKS
    assert cards.step() is None


def test_what_cards_do_not_show_is_not_kept(tmp_path: Path) -> None:
    cards = refresh(tmp_path, reader=SimpleNamespace())
    tasks = [Task(n, {}) for n in range(N_TASKS)]
    drawn = np.full((50, N_TASKS, 2), 0.5, np.float32)
    is_gone = weakref.ref(drawn)
    cards.show(
        snapshot_of(tasks),
        Pool(tasks, np.zeros((N_TASKS, 1), np.float32), np.ones(N_TASKS, np.bool_)),
        Rescored(
            VERSION,
            None,
            Predicted(drawn, drawn.mean(axis=0), np.ones(N_TASKS)),
            np.linspace(0, 1, N_TASKS).astype(np.float64),
        ),
    )
    del drawn
    assert is_gone() is None
    assert cards.version(3) == "cellai-0007"


def test_crops_are_compared_with_the_readable_ones_of_the_whole_pool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for all cards of a version: some of each kind, and none whose picture is gone."""
    rng = np.random.default_rng(0)
    maps = CompactMaps.of([torch.from_numpy(rng.random((N_TASKS, *shape))) for shape in SHAPES])
    features = rng.random((N_TASKS, FEATURE_DIM), np.float32)
    features[5] = np.nan
    is_readable = ~np.isnan(features[:, 0])
    n_asked = []

    def maps_of(tasks: list[Task], *, mode: str) -> tuple[CompactMaps, Any]:
        n_asked.append(len(tasks))
        rows = np.array([task.id for task in tasks])
        return maps.rows(rows), is_readable[rows]

    compared_with = []

    def told_gradcam(*args: Any, typical: dict[bool, TypicalCrop], **named: Any) -> Any:
        compared_with.append(typical)
        return gradcam(*args, typical=typical, **named)

    monkeypatch.setattr(card_refresh, "gradcam", told_gradcam)
    monkeypatch.setattr(card_refresh, "TYPICAL_OF", 14)
    cards = refresh(tmp_path, reader=SimpleNamespace(maps=maps_of))
    has_mask = np.arange(N_TASKS) % 3 == 0
    stack = {"model_input": "m.png", "phase": "p.png"}
    tasks = [Task(n, stack if has_mask[n] else {}) for n in range(N_TASKS)]
    probabilities = np.full((N_TASKS, 2), 0.5, np.float32)
    cards.show(
        snapshot_of(tasks),
        Pool(tasks, features, is_readable),
        Rescored(
            VERSION,
            fresh_head(torch.zeros(FEATURE_DIM), torch.ones(FEATURE_DIM), n_classes=2, rng=rng),
            Predicted(probabilities[None], probabilities, np.ones(N_TASKS)),
            np.linspace(0, 1, N_TASKS).astype(np.float64),
        ),
    )
    assert cards.step() == []
    assert cards.step() == [(3, "cellai-0007")]
    assert n_asked == [28, card_refresh.BATCH, N_TASKS - card_refresh.BATCH]
    unmasked, masked = (np.flatnonzero(is_readable & (has_mask == kind)) for kind in (False, True))
    assert (len(unmasked), len(masked)) == (25, 14)
    some = np.concatenate([thinned(unmasked, 14), masked])
    expected = typical_crops(maps.rows(some), has_mask[some])
    assert len(compared_with) == 2
    for typical in compared_with:
        torch.testing.assert_close(typical, expected)

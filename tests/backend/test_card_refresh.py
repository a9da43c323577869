"""Cards that cannot be stored are tried again, and until then they do not count as written."""

import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from pydantic import SecretStr

from backend import card_refresh
from backend.card_refresh import CardRefresh
from backend.label_studio import LabelStudioClient, Task
from backend.pool import FeatureReader, Pool
from backend.prediction import Predicted
from backend.registry import Version
from backend.rescoring import Rescored
from backend.settings import Settings
from backend.training_set import Snapshot
from converters.label_config import LabelConfig

N_TASKS = 40


def test_cards_on_a_folder_that_takes_none_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(card_refresh, "RETRY_SECONDS", 0.0)
    settings = Settings(label_studio_api_key=SecretStr("x"), files_dir=tmp_path)
    client = LabelStudioClient("http://label-studio", "token")
    cards = CardRefresh(settings, client=client, features=cast(FeatureReader, SimpleNamespace()))
    tasks = [Task(n, {"card": f"/data/local-files/?d=cards/{n}.html"}) for n in range(N_TASKS)]
    version = Version("cellai-0007", 3, ("a", "b"), 0, "", "", {"mode": "auto"}, "")
    cards.show(
        Snapshot(3, LabelConfig("c", "card", ("a", "b"), ("A", "B"), ()), tasks, {}, ""),
        Pool(tasks, np.zeros((N_TASKS, 1), np.float32), np.ones(N_TASKS, np.bool_)),
        Rescored(version, None, None, np.linspace(0, 1, N_TASKS).astype(np.float64)),
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
    settings = Settings(label_studio_api_key=SecretStr("x"), files_dir=tmp_path)
    client = LabelStudioClient("http://label-studio", "token")
    cards = CardRefresh(settings, client=client, features=cast(FeatureReader, SimpleNamespace()))
    tasks = [Task(n, {}) for n in range(N_TASKS)]
    version = Version("cellai-0007", 3, ("a", "b"), 0, "", "", {"mode": "auto"}, "")
    drawn = np.full((50, N_TASKS, 2), 0.5, np.float32)
    is_gone = weakref.ref(drawn)
    cards.show(
        Snapshot(3, LabelConfig("c", "card", ("a", "b"), ("A", "B"), ()), tasks, {}, ""),
        Pool(tasks, np.zeros((N_TASKS, 1), np.float32), np.ones(N_TASKS, np.bool_)),
        Rescored(
            version,
            None,
            Predicted(drawn, drawn.mean(axis=0), np.ones(N_TASKS)),
            np.linspace(0, 1, N_TASKS).astype(np.float64),
        ),
    )
    del drawn
    assert is_gone() is None
    assert cards.version(3) == "cellai-0007"

"""What `cellai up` waits for once its services run."""

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from stand_in import stand_in

from converters.backend_client import BackendClient
from converters.importing import ImportOptions
from converters.launcher import Launcher, UpOptions
from converters.processes import Children
from converters.project import BackendAddress


@pytest.mark.timeout(20)
def test_project_without_cells_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An import that was stopped before its first cell leaves one; no version ever sorts it."""
    idle: dict[str, object] = {
        "project_id": 7,
        "model_version": None,
        "wanted_version": None,
        "versions": [],
        "jobs": [],
        "waiting": False,
    }
    said: list[str] = []
    options = UpOptions(
        data_dir=tmp_path,
        port=0,
        backend_port=0,
        weights=None,
        label_config="",
        asks_for_classes=False,
        import_options=ImportOptions(),
    )
    launcher = Launcher(options, say=said.append)
    monkeypatch.setattr(launcher, "_project_id", lambda: 7)
    launcher._children = cast("Children", SimpleNamespace(check=lambda: None))
    with stand_in({"GET /status": [idle]}) as server:
        launcher._backend = BackendClient(BackendAddress(server.url, "", ""))
        state = launcher.wait_until_sorted(on_state=lambda _: None)
        launcher._backend.close()
    assert not state.is_sorted
    assert said == ["The project has no cells yet; `cellai import` brings some."]

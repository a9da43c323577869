"""Import is resumable and idempotent, and works with either kind of token."""

import shutil
import signal
import sqlite3
import subprocess
import threading
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import h5py
import numpy as np
import pytest
from installation import (
    CELLAI,
    Installation,
    free_port,
    run_cellai,
    scores_by_task,
    wait_until,
)

from backend.acquisition import cold_start_priorities
from backend.feature_cache import FeatureCache, content_key
from backend.features import load_trunk
from backend.images import decode
from converters.crops import ReadOptions
from converters.importing import BATCH, ImportOptions, import_sources
from converters.label_config import TEMPLATE_PATH
from converters.label_studio import Connection
from converters.project import create_project, default_title

pytestmark = pytest.mark.label_studio

N_CELLS = 4 * BATCH
LOCKED_SECONDS = 8  # Django waits for five


@pytest.fixture(scope="module")
def large_file(tmp_path_factory: pytest.TempPathFactory, sample_file: Path) -> Path:
    """2,000 labelled cells: the sample's, several times over (position makes them different)."""
    path = tmp_path_factory.mktemp("large") / "large.seg"
    with h5py.File(sample_file) as sample, h5py.File(path, "w") as file:
        rows = [index % len(sample["phase/images"]) for index in range(N_CELLS)]
        for name in ("phase/images", "amplitude/images", "label/ground_truth"):
            file[name] = sample[name][:][rows]
    return path


class LockingConnection(Connection):
    """Label Studio whose SQLite another writer holds as tasks arrive.

    Attributes:
        answers: to the imports of tasks.
    """

    def __init__(self, demo: Installation) -> None:
        super().__init__(demo.label_studio.url, demo.connection_file.api_key)
        self._database = demo.data_dir / "label-studio" / "label_studio.sqlite3"
        self.answers: list[dict[str, Any]] = []

    def post(self, path: str, payload: object, **params: object) -> Any:
        if not path.endswith("/import"):
            return super().post(path, payload, **params)
        writer = sqlite3.connect(self._database, isolation_level=None, check_same_thread=False)
        with closing(writer):
            writer.execute("BEGIN IMMEDIATE")
            release = threading.Timer(LOCKED_SECONDS, writer.execute, ["ROLLBACK"])
            release.start()
            self.answers.append(super().post(path, payload, **params))
            release.join()
        return self.answers[-1]


def test_locked_database_takes_no_label(
    demo: Installation, sample_file: Path, sample_labels: list[str]
) -> None:
    """Label Studio repeats such an import without the labels; they are submitted one by one."""
    project_id = create_project(
        demo.label_studio, title="locked import", label_config=TEMPLATE_PATH.read_text()
    )
    with closing(LockingConnection(demo)) as connection:
        report = import_sources(
            connection,
            project_id,
            [sample_file],
            files_dir=demo.data_dir / "files",
            options=ImportOptions(read=ReadOptions(limit=6)),
            on_progress=lambda _: None,
        )
    assert report.imported == report.labelled == 6
    assert [answer["annotation_count"] for answer in connection.answers] == [0]
    tasks = demo.label_studio.get("api/tasks/", project=project_id, fields="all")["tasks"]
    assert len(tasks) == 6
    for task in tasks:
        (annotation,) = task["annotations"]
        assert annotation["ground_truth"]
        (choice,) = annotation["result"]
        assert choice["value"]["choices"] == [sample_labels[task["data"]["index"]]]


def test_killed_import_goes_on_without_loss_or_doubles(
    demo: Installation, large_file: Path
) -> None:
    project_id = create_project(
        demo.label_studio, title="killed import", label_config=TEMPLATE_PATH.read_text()
    )
    arguments = _arguments(demo, large_file, project_id)
    first = subprocess.Popen(
        [CELLAI, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_until(
        lambda: _project(demo, project_id)["task_number"] >= BATCH,
        deadline_s=120,
        what="first batch",
    )
    first.send_signal(signal.SIGKILL)
    first.wait(10)
    assert BATCH <= _project(demo, project_id)["task_number"] < N_CELLS

    second = run_cellai(*arguments)
    assert second.returncode == 0, second.stderr
    tasks = demo.label_studio.get(
        "api/tasks/", project=project_id, page_size=10_000, fields="task_only"
    )["tasks"]
    assert sorted(task["data"]["index"] for task in tasks) == list(range(N_CELLS))
    assert len({task["data"]["crop_id"] for task in tasks}) == N_CELLS
    assert _project(demo, project_id)["total_annotations_number"] == N_CELLS

    third = run_cellai(*arguments)
    assert third.returncode == 0, third.stderr
    assert f"0 cells imported, 0 of them labelled; {N_CELLS} were there already" in third.stderr
    assert _project(demo, project_id)["task_number"] == N_CELLS


def test_import_writes_lost_files_again(demo: Installation, sample_file: Path) -> None:
    project_id = create_project(
        demo.label_studio, title="lost files", label_config=TEMPLATE_PATH.read_text()
    )
    arguments = (*_arguments(demo, sample_file, project_id), "--limit", 4)
    assert run_cellai(*arguments).returncode == 0
    folder = demo.data_dir / "files" / f"project-{project_id}"
    written = {path: path.read_bytes() for path in folder.rglob("*.png")}
    picture, card = next(iter(written)), next(folder.rglob("*.html"))
    picture.unlink()
    card.unlink()

    again = run_cellai(*arguments)
    assert again.returncode == 0, again.stderr
    n_cells = len({picture.name.partition("-")[0], card.stem})
    assert f"{n_cells} of these lacked files, which are written again." in again.stderr
    assert {path: path.read_bytes() for path in folder.rglob("*.png")} == written
    assert card.exists()
    assert _project(demo, project_id)["task_number"] == 4
    assert "lacked" not in run_cellai(*arguments).stderr


def test_file_with_a_long_name_gives_a_project_of_a_short_one(
    demo: Installation, sample_file: Path, tmp_path: Path
) -> None:
    source = tmp_path / f"{'patient-17_measurement_' * 4}.seg"
    shutil.copy(sample_file, source)
    arguments = (source, "--limit", 1, "--data-dir", demo.data_dir)
    answer = run_cellai("import", *arguments, "--title", source.name)
    assert answer.returncode == 2
    assert "96 characters" in answer.stderr
    assert "3 to 50" in answer.stderr

    project_id = create_project(
        demo.label_studio, title=default_title(source), label_config=TEMPLATE_PATH.read_text()
    )
    title = _project(demo, project_id)["title"]
    assert title == "CellAI: patient-17_measurement_patient-17_measure…"
    answer = run_cellai("import", *arguments, "--project", project_id)
    assert answer.returncode == 0, answer.stderr


def test_backend_that_only_label_studio_reaches(demo: Installation, sample_file: Path) -> None:
    """As with Compose, where the backend's name means something to its neighbours only."""
    project_id = create_project(
        demo.label_studio, title="out of reach", label_config=TEMPLATE_PATH.read_text()
    )
    connection = demo.connection_file
    backend_url = connection.backend_url.replace("127.0.0.1", "localhost")
    answer = run_cellai(
        *_arguments(demo, sample_file, project_id),
        *("--limit", 3, "--backend-url", backend_url),
        CELLAI_BASIC_AUTH_USER=connection.backend_user,
        CELLAI_BASIC_AUTH_PASSWORD=connection.backend_password,
        http_proxy=f"http://127.0.0.1:{free_port()}",  # nothing answers there
        no_proxy="127.0.0.1",
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout == f"{project_id}\n"
    assert f"The backend at {backend_url} does not answer (ConnectError)." in answer.stderr
    (attached,) = demo.label_studio.get("api/ml/", project=project_id)
    assert attached["url"] == backend_url


def test_cells_added_later_are_ordered_with_the_others(
    demo: Installation, sample_file: Path, sample_labels: list[str], weights: Path
) -> None:
    """The order that Label Studio has is the one that the product computes for the whole pool."""
    arguments = ("import", sample_file, "--no-labels", "--data-dir", demo.data_dir)
    answer = run_cellai(*arguments, "--limit", 40, "--title", "grows")
    assert answer.returncode == 0, answer.stderr
    with closing(demo.other_project(int(answer.stdout))) as grows:
        wait_until(lambda: grows.project()["model_version"], deadline_s=90, what="first order")
        assert len(grows.tasks()) == 40
        answer = run_cellai(*arguments, "--project", grows.project_id)
        assert answer.returncode == 0, answer.stderr
        version = wait_until(
            lambda: name if (name := grows.project()["model_version"]) != "cellai-0001" else None,
            deadline_s=90,
            what="order of all cells",
        )
        scores = scores_by_task(grows.label_studio, grows.project_id, version)
        tasks = sorted(grows.tasks(), key=lambda task: int(task["id"]))
    assert len(scores) == len(tasks) == len(sample_labels)

    cache = FeatureCache(
        demo.data_dir / "backend" / "features", load_trunk(weights), max_bytes=10**10
    )
    keys = [_content_key(demo, task["data"]["model_input"]) for task in tasks]
    features, found = cache.get_features(keys)
    assert found.all()
    priorities = cold_start_priorities(features, labelled_features=features[:0])
    wanted = [tasks[row]["id"] for row in np.argsort(-priorities)]
    assert sorted(scores, key=scores.__getitem__) == wanted


def test_both_kinds_of_token_work(demo: Installation, personal_token: str) -> None:
    personal = Connection(demo.connection_file.label_studio_url, personal_token)
    try:
        whoami = personal.get("api/current-user/whoami")
    finally:
        personal.close()
    assert whoami["email"] == demo.connection_file.email


def _arguments(demo: Installation, source: Path, project_id: int) -> list[str]:
    connection = demo.connection_file
    return [
        "import",
        str(source),
        "--url",
        connection.label_studio_url,
        "--api-key",
        connection.api_key,
        "--project",
        str(project_id),
        "--files-dir",
        str(demo.data_dir / "files"),
    ]


def _content_key(demo: Installation, url: str) -> str:
    (name,) = parse_qs(urlsplit(url).query)["d"]
    return content_key(decode((demo.data_dir / "files" / name).read_bytes()), mode="both")


def _project(demo: Installation, project_id: int) -> dict[str, Any]:
    return dict(demo.label_studio.get(f"api/projects/{project_id}/"))

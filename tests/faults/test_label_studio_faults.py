"""Label Studio fails, changes under a running job or is hit by many at once: nothing is lost."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from installation import OwnBackend, annotate, free_port, run_cellai, wait_until
from laboratory import Laboratory, fault_environment, new_laboratory
from own_label_studio import FaultyProxy, OwnLabelStudio

from converters.label_studio import Connection
from converters.project import BackendAddress

pytestmark = pytest.mark.label_studio

ANNOTATORS = 8
CROWD_LABELS = 500


@pytest.fixture(scope="module")
def proxy(label_studio: OwnLabelStudio) -> Iterator[FaultyProxy]:
    proxy = FaultyProxy(label_studio.url)
    yield proxy
    proxy.close()


@pytest.fixture(scope="module")
def laboratory(
    label_studio: OwnLabelStudio,
    own_backend: OwnBackend,
    proxy: FaultyProxy,
    small_sample: Path,
    fault_file: Path,
) -> Iterator[Laboratory]:
    """Two web processes of eight threads, behind the proxy."""
    backend = replace(own_backend, label_studio_url=proxy.url)
    environment = {
        "CELLAI_RECONCILE_SECONDS": "5",
        "CELLAI_WORKERS": "2",
    } | fault_environment(fault_file)
    with backend.running(log=None, **environment):
        yield new_laboratory(label_studio, backend, small_sample)


@contextmanager
def paused_at(point: str, laboratory: Laboratory, fault_file: Path) -> Iterator[None]:
    """The job runner stands still at a point of a job for new labels until the block ends."""
    fault_file.write_text(f"{point} pause")
    paused = Path(f"{fault_file}.paused")
    laboratory.annotate(2)
    wait_until(paused.exists, deadline_s=90, what=f"pause at {point}")
    try:
        yield
    finally:
        paused.unlink()


# --- answers that fail --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "only"),
    [
        pytest.param("500", "", marks=pytest.mark.faults),
        pytest.param("429", "", marks=pytest.mark.faults),
        pytest.param("reset", "", marks=pytest.mark.faults),
        pytest.param("reset", "import/predictions", marks=pytest.mark.faults),
        ("lost", "import/predictions"),
        pytest.param("lost", "", marks=pytest.mark.faults),
        pytest.param("slow", "", marks=pytest.mark.faults),
    ],
)
def test_label_studio_answers_badly(
    laboratory: Laboratory, proxy: FaultyProxy, mode: str, only: str
) -> None:
    with proxy.failing(mode, only=only):
        laboratory.annotate(3)
        wait_until(lambda: proxy.faults > 0, deadline_s=90, what="request that fails")
    laboratory.check()


@pytest.mark.faults
def test_proxy_that_finds_nothing_makes_no_project_forgotten(
    laboratory: Laboratory, proxy: FaultyProxy
) -> None:
    with proxy.failing("404"):
        laboratory.annotate(2)
        wait_until(lambda: proxy.faults > 1, deadline_s=90, what="request that fails")
    laboratory.check()


# --- webhooks -----------------------------------------------------------------------------------


def test_webhooks_doubled_and_of_unknown_projects(laboratory: Laboratory) -> None:
    address = laboratory.backend.address
    with httpx.Client(base_url=address.url, auth=(address.user, address.password)) as client:
        for project_id in [laboratory.project_id, 999_999] * 20:
            event = {"action": "ANNOTATION_CREATED", "project": {"id": project_id}}
            assert client.post("/webhook", json=event).is_success
    laboratory.annotate(1)
    laboratory.check()


# --- changes while a job runs -------------------------------------------------------------------


@pytest.mark.faults
def test_tasks_deleted_while_rescoring(laboratory: Laboratory, fault_file: Path) -> None:
    with paused_at("pool-scored", laboratory, fault_file):
        gone = [task for task in laboratory.truth if task not in laboratory.submitted][:5]
        for task_id in gone:
            laboratory.connection.request("DELETE", f"api/tasks/{task_id}/")
            del laboratory.truth[task_id]
    laboratory.check()


@pytest.mark.faults
def test_tasks_imported_while_rescoring(laboratory: Laboratory, fault_file: Path) -> None:
    with paused_at("pool-scored", laboratory, fault_file):
        models = [task for task in laboratory.truth if task not in laboratory.submitted][:5]
        rows = [{"data": laboratory.connection.get(f"api/tasks/{t}/")["data"]} for t in models]
        answer = laboratory.connection.post(
            f"api/projects/{laboratory.project_id}/import", rows, return_task_ids=True
        )
        for task_id, model in zip(answer["task_ids"], models, strict=True):
            laboratory.truth[task_id] = laboratory.truth[model]
    laboratory.check()


@pytest.mark.faults
def test_class_added_while_training(laboratory: Laboratory, fault_file: Path) -> None:
    project = laboratory.project()
    with paused_at("head-fitted", laboratory, fault_file):
        config = project["label_config"].replace(
            "</Choices>", '<Choice value="blast" hotkey="9"/></Choices>'
        )
        laboratory.connection.patch(
            f"api/projects/{laboratory.project_id}/", {"label_config": config}
        )
    laboratory.check()
    laboratory.annotate(2)
    laboratory.check()
    answer = laboratory.predictions()
    version = laboratory.project()["model_version"]
    newest = next(row for row in answer if row["model_version"] == version)
    assert "blast" in newest["result"][0]["meta"]["probabilities"]


@pytest.mark.faults
def test_project_deleted_while_training(
    laboratory: Laboratory, small_sample: Path, fault_file: Path
) -> None:
    other = new_laboratory(laboratory.label_studio, laboratory.backend, small_sample)
    with paused_at("head-fitted", other, fault_file):
        other.connection.request("DELETE", f"api/projects/{other.project_id}/")
    laboratory.annotate(2)
    laboratory.check()


@pytest.mark.faults
def test_two_projects_with_the_same_name(laboratory: Laboratory, small_sample: Path) -> None:
    twin = new_laboratory(laboratory.label_studio, laboratory.backend, small_sample)
    assert twin.project()["title"] == laboratory.project()["title"]
    laboratory.annotate(1)
    twin.annotate(3)
    laboratory.check()
    twin.check()


@pytest.mark.faults
def test_predictions_of_another_backend(laboratory: Laboratory) -> None:
    choice = {
        "from_name": "cell_class",
        "to_name": "card",
        "type": "choices",
        "value": {"choices": ["rbc"]},
    }
    foreign: list[dict[str, Any]] = [
        {"task": task, "result": [choice], "score": 0.0, "model_version": "cellai-of-others"}
        for task in list(laboratory.truth)[:20]
    ]
    laboratory.connection.post(f"api/projects/{laboratory.project_id}/import/predictions", foreign)
    laboratory.annotate(2)
    laboratory.check()
    kept = [r for r in laboratory.predictions() if r["model_version"] == "cellai-of-others"]
    assert len(kept) == len(foreign)


# --- many at once -------------------------------------------------------------------------------


@pytest.mark.faults
def test_eight_annotators_as_fast_as_they_can(
    label_studio: OwnLabelStudio,
    laboratory: Laboratory,
    tmp_path: Path,
) -> None:
    source = tmp_path / "crowd.seg"
    answer = run_cellai("sample", source, "--cells", CROWD_LABELS + 100, "--labelled", 1)
    assert answer.returncode == 0, answer.stderr
    crowd = new_laboratory(label_studio, laboratory.backend, source)
    waiting = [task for task in crowd.truth if task not in crowd.submitted]
    chosen = waiting[: CROWD_LABELS - len(crowd.submitted)]
    with ThreadPoolExecutor(ANNOTATORS) as annotators:
        own = threading.local()

        def submit(task_id: int) -> None:
            if not hasattr(own, "connection"):
                own.connection = Connection(label_studio.url, label_studio.api_key)
            annotate(own.connection, task_id, crowd.truth[task_id])

        list(annotators.map(submit, chosen))
    crowd.submitted.extend(chosen)
    assert len(crowd.submitted) == CROWD_LABELS
    crowd.check()


# --- two backends, other tokens -----------------------------------------------------------------


@pytest.mark.faults
def test_second_backend_on_the_data_directory_waits_and_takes_over(
    label_studio: OwnLabelStudio,
    own_backend: OwnBackend,
    small_sample: Path,
    tmp_path: Path,
) -> None:
    first = replace(own_backend, data_dir=tmp_path / "shared")
    other_port = BackendAddress(f"http://127.0.0.1:{free_port()}", "tester", "a secret")
    second = replace(first, address=other_port)
    log = tmp_path / "second.log"
    with first.running() as process:
        laboratory = new_laboratory(label_studio, first, small_sample)
        with second.running(log=log):
            assert "another web process keeps the job runner" in log.read_text()
            process.kill()
            laboratory.annotate(3)
            wait_until(
                lambda: f"({len(laboratory.submitted)} labels)" in log.read_text(),
                deadline_s=120,
                what="job of the second backend",
            )
            replace(laboratory, backend=second).check()


@pytest.mark.faults
def test_revoked_token_is_named_and_a_new_one_goes_on(
    label_studio: OwnLabelStudio, own_backend: OwnBackend, small_sample: Path, tmp_path: Path
) -> None:
    """Last of the module: the old token is gone afterwards."""
    backend = replace(own_backend, data_dir=tmp_path / "token")
    with backend.running():
        laboratory = new_laboratory(label_studio, backend, small_sample)
        answer = label_studio.connection.post("api/current-user/reset-token/", {})
        label_studio.use_key(answer["token"])
        laboratory.annotate(2)
        address = backend.address

        def problem() -> str | None:
            answer = httpx.get(f"{address.url}/ready", auth=(address.user, address.password))
            return answer.text if answer.status_code == 503 else None

        assert "refuses the API key" in wait_until(problem, deadline_s=60, what="503")
    with backend.running(CELLAI_LABEL_STUDIO_API_KEY=label_studio.api_key):
        laboratory.check()

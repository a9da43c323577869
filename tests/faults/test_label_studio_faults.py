"""Label Studio fails, changes under a running job or is hit by many at once: nothing is lost."""

import os
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fault_table import note_seen, note_times
from faulty_proxy import FaultyProxy
from installation import OwnBackend, new_address, run_cellai, wait_until
from laboratory import Laboratory, fault_environment, new_laboratory
from own_label_studio import LabelStudioOnSQLite

from backend.runner_record import read_runner
from converters.backend_client import BackendClient

pytestmark = pytest.mark.label_studio

ANNOTATORS = 8
CROWD_LABELS = 500
# From 250 labels on a worse version is not served, and after few epochs it may well be one.
ENVIRONMENT = {"CELLAI_WORKERS": "2", "CELLAI_EPOCHS": "40", "FAULT_RETRY_SECONDS": "3"}
IMPORT = "import/predictions"
FAULT_DEADLINE_S = 300


@pytest.fixture(scope="module")
def laboratory(
    label_studio: LabelStudioOnSQLite,
    own_backend: OwnBackend,
    proxy: FaultyProxy,
    small_sample: Path,
    fault_file: Path,
) -> Iterator[Laboratory]:
    """Two web processes of eight threads, behind the proxy."""
    backend = replace(own_backend, label_studio_url=proxy.url)
    with (
        backend.running(log=None, **fault_environment(fault_file) | ENVIRONMENT),
        new_laboratory(label_studio, backend, small_sample) as laboratory,
    ):
        yield laboratory


def job_runner(laboratory: Laboratory) -> int:
    """Process id of the job runner."""
    record = read_runner(laboratory.backend.data_dir)
    assert record is not None
    return record.pid


def queue_state(laboratory: Laboratory) -> Any:
    client = BackendClient(laboratory.backend.address)
    try:
        return client.queue_state(laboratory.project_id)
    finally:
        client.close()


# --- answers that fail --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "only"),
    [
        pytest.param("401", "", marks=pytest.mark.faults),
        ("lost", IMPORT),
        pytest.param("lost", "", marks=pytest.mark.faults),
    ],
)
def test_label_studio_answers_badly(
    laboratory: Laboratory, proxy: FaultyProxy, mode: str, only: str
) -> None:
    """Label Studio before the backend: {mode} {only}."""
    with proxy.failing(mode, only=only):
        laboratory.annotate(3)
        wait_until(lambda: proxy.faults > 0, deadline_s=FAULT_DEADLINE_S, what="request that fails")
    note_times(proxy.faults)
    laboratory.check()


@pytest.mark.faults
@pytest.mark.parametrize("mode", ["500", "429", "reset"])
def test_label_studio_fails_all_requests_and_then_each_import(
    laboratory: Laboratory, proxy: FaultyProxy, mode: str
) -> None:
    """Label Studio before the backend: {mode}, first to all requests, then to three imports."""
    with proxy.failing(mode):
        laboratory.annotate(3)
        wait_until(lambda: proxy.faults > 0, deadline_s=FAULT_DEADLINE_S, what="request that fails")
        n_faults = proxy.faults
        proxy.only, proxy.faults = IMPORT, 0
        wait_until(lambda: proxy.faults >= 3, deadline_s=FAULT_DEADLINE_S, what="failing imports")
    note_times(n_faults + proxy.faults)
    laboratory.check()


@pytest.mark.faults
def test_label_studio_is_slow(laboratory: Laboratory, proxy: FaultyProxy) -> None:
    """Label Studio before the backend: each answer 10 s late, then each import until all holds."""
    with proxy.failing("slow"):
        laboratory.annotate(3)
        wait_until(lambda: proxy.faults > 0, deadline_s=FAULT_DEADLINE_S, what="request that waits")
        n_faults = proxy.faults
        proxy.only, proxy.faults = IMPORT, 0
        laboratory.check()
    assert proxy.faults > 0
    note_times(n_faults + proxy.faults)


@pytest.mark.faults
def test_import_that_a_killed_job_runner_left_on_its_way(
    laboratory: Laboratory, proxy: FaultyProxy
) -> None:
    """kill -9 of the job runner while a slow Label Studio still has its import before it."""
    with proxy.failing("held", only=IMPORT):
        laboratory.annotate(2)
        wait_until(lambda: proxy.faults == 1, deadline_s=FAULT_DEADLINE_S, what="import")
        os.kill(job_runner(laboratory), signal.SIGKILL)
        wait_until(lambda: proxy.faults == 2, deadline_s=FAULT_DEADLINE_S, what="second import")
        proxy.release()
    laboratory.check()


@pytest.mark.faults
def test_database_locked(
    label_studio: LabelStudioOnSQLite, laboratory: Laboratory, fault_file: Path
) -> None:
    """Label Studio's database is locked while predictions are imported."""
    with closing(sqlite3.connect(label_studio.database)) as other:
        with laboratory.paused_at("import-begun", fault_file):
            other.execute("BEGIN EXCLUSIVE")
        wait_until(
            lambda: queue_state(laboratory).failures,
            deadline_s=FAULT_DEADLINE_S,
            what="import that failed",
        )
        note_seen(str(queue_state(laboratory).error)[:60])
        other.rollback()
    laboratory.check()


@pytest.mark.faults
def test_proxy_that_finds_nothing_makes_no_project_forgotten(
    laboratory: Laboratory, proxy: FaultyProxy
) -> None:
    """A proxy before Label Studio answers 404 to everything."""
    with proxy.failing("404"):
        laboratory.annotate(2)
        wait_until(lambda: proxy.faults > 1, deadline_s=FAULT_DEADLINE_S, what="request that fails")
    laboratory.check()


# --- webhooks -----------------------------------------------------------------------------------


@contextmanager
def webhooks_through_proxy(laboratory: Laboratory) -> Iterator[FaultyProxy]:
    """What Label Studio tells the backend passes a proxy until the block ends."""
    proxy = FaultyProxy(laboratory.backend.address.url)
    (hook,) = laboratory.connection.get("api/webhooks/", project=laboratory.project_id)
    path = f"api/webhooks/{hook['id']}/"
    kept = {"url", "send_payload", "send_for_all_actions", "headers", "is_active", "actions"}
    original = {name: hook[name] for name in kept}
    laboratory.connection.patch(path, original | {"url": f"{proxy.url}/webhook"})
    try:
        yield proxy
    finally:
        laboratory.connection.patch(path, original)
        proxy.close()


@pytest.mark.faults
@pytest.mark.parametrize("mode", ["reset", "twice"])
def test_webhooks_lost_or_doubled(laboratory: Laboratory, mode: str) -> None:
    """Webhooks on their way to the backend: {mode}."""
    with webhooks_through_proxy(laboratory) as proxy:
        with proxy.failing(mode):
            laboratory.annotate(3)
        assert proxy.faults >= 3
        note_times(proxy.faults)
        laboratory.check()


@pytest.mark.faults
def test_webhooks_late_and_in_another_order(laboratory: Laboratory) -> None:
    """Webhooks come 10 s late, after those that were sent later."""
    with webhooks_through_proxy(laboratory) as proxy:
        with proxy.failing("slow"):
            laboratory.annotate(2)
            proxy.mode = "pass"
            laboratory.annotate(1)
            laboratory.check()
            wait_until(lambda: proxy.late == 2, deadline_s=FAULT_DEADLINE_S, what="late webhooks")
        note_times(2)
        laboratory.check()


def test_webhooks_of_unknown_projects_and_in_bursts(laboratory: Laboratory) -> None:
    """Webhooks in a burst, half of them of an unknown project."""
    address = laboratory.backend.address
    with httpx.Client(base_url=address.url, auth=(address.user, address.password)) as client:
        for project_id in [laboratory.project_id, 999_999] * 20:
            event = {"action": "ANNOTATION_CREATED", "project": {"id": project_id}}
            assert client.post("/webhook", json=event).is_success
    note_times(40)
    laboratory.annotate(1)
    laboratory.check()


# --- changes while a job runs -------------------------------------------------------------------


@pytest.mark.faults
def test_tasks_deleted_while_rescoring(laboratory: Laboratory, fault_file: Path) -> None:
    """Five tasks are deleted while the pool is scored."""
    with laboratory.paused_at("pool-scored", fault_file):
        gone = [task for task in laboratory.truth if task not in laboratory.submitted][:5]
        for task_id in gone:
            laboratory.connection.request("DELETE", f"api/tasks/{task_id}/")
            del laboratory.truth[task_id]
    laboratory.check()


@pytest.mark.faults
def test_tasks_imported_while_rescoring(laboratory: Laboratory, fault_file: Path) -> None:
    """Five tasks are imported while the pool is scored."""
    with laboratory.paused_at("pool-scored", fault_file):
        models = [task for task in laboratory.truth if task not in laboratory.submitted][:5]
        rows = [{"data": laboratory.connection.get(f"api/tasks/{t}/")["data"]} for t in models]
        answer = laboratory.connection.post(
            f"api/projects/{laboratory.project_id}/import", rows, return_task_ids=True
        )
        for task_id, model in zip(answer["task_ids"], models, strict=True):
            laboratory.truth[task_id] = laboratory.truth[model]
    # New tasks are announced by nobody; the backend finds them when it looks at the project.
    wait_until(
        lambda: laboratory.predicted() == laboratory.truth.keys(),
        deadline_s=FAULT_DEADLINE_S,
        what="predictions of the new tasks",
    )
    laboratory.check()


@pytest.mark.faults
def test_classes_changed_while_training(laboratory: Laboratory, fault_file: Path) -> None:
    """A class is added, renamed and removed again, each while a training runs."""
    original = laboratory.project()["label_config"]
    for name in ("blast", "lymphoblast", ""):
        choice = f'<Choice value="{name}" hotkey="9"/></Choices>' if name else "</Choices>"
        with laboratory.paused_at("head-fitted", fault_file):
            laboratory.connection.patch(
                f"api/projects/{laboratory.project_id}/",
                {"label_config": original.replace("</Choices>", choice)},
            )
        laboratory.check()
        laboratory.annotate(1)
        laboratory.check()
        version = laboratory.project()["model_version"]
        newest = next(r for r in laboratory.predictions() if r["model_version"] == version)
        classes = set(newest["result"][0]["meta"]["probabilities"])
        assert classes & {"blast", "lymphoblast"} == ({name} if name else set())
    note_times(3)


@pytest.mark.faults
def test_class_with_labels_renamed_while_training(laboratory: Laboratory, fault_file: Path) -> None:
    """A class that has labels is renamed while a training runs, and later named as before."""
    path = f"api/projects/{laboratory.project_id}/"
    original = laboratory.project()["label_config"]
    name = laboratory.truth[laboratory.submitted[0]]
    with laboratory.paused_at("head-fitted", fault_file):
        renamed = original.replace(f'value="{name}"', f'value="renamed {name}"')
        laboratory.connection.patch(path, {"label_config": renamed})
    n_others = sum(laboratory.truth[task] != name for task in laboratory.submitted)

    def others_sort() -> bool:
        state = queue_state(laboratory)
        return bool(state.is_sorted and state.n_labels == n_others)

    wait_until(others_sort, deadline_s=FAULT_DEADLINE_S, what=f"queue by {n_others} labels")
    note_seen(f"meanwhile its {len(laboratory.submitted) - n_others} labels were left out")
    laboratory.connection.patch(path, {"label_config": original})
    laboratory.annotate(1)
    laboratory.check()


@pytest.mark.faults
def test_project_deleted_while_training(
    laboratory: Laboratory, small_sample: Path, fault_file: Path
) -> None:
    """A project is deleted while it is trained; the other one goes on."""
    with new_laboratory(laboratory.label_studio, laboratory.backend, small_sample) as other:
        with other.paused_at("head-fitted", fault_file):
            other.connection.request("DELETE", f"api/projects/{other.project_id}/")
        wait_until(
            lambda: queue_state(other).stage == "waiting for the backend",
            deadline_s=FAULT_DEADLINE_S,
            what="project that is forgotten",
        )
    laboratory.annotate(2)
    laboratory.check()


@pytest.mark.faults
def test_two_projects_with_the_same_name(laboratory: Laboratory, small_sample: Path) -> None:
    """Two projects of one name at one backend."""
    with new_laboratory(laboratory.label_studio, laboratory.backend, small_sample) as twin:
        assert twin.project()["title"] == laboratory.project()["title"]
        laboratory.annotate(1)
        twin.annotate(3)
        laboratory.check()
        twin.check()


@pytest.mark.faults
def test_predictions_of_another_backend(laboratory: Laboratory) -> None:
    """Predictions of another backend, with better scores, in the project."""
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
    label_studio: LabelStudioOnSQLite,
    laboratory: Laboratory,
    tmp_path: Path,
) -> None:
    """500 labels from 8 annotators as fast as they can, at 2 web processes of 8 threads."""
    source = tmp_path / "crowd.seg"
    answer = run_cellai("sample", source, "--cells", CROWD_LABELS + 50, "--labelled", 1)
    assert answer.returncode == 0, answer.stderr
    with new_laboratory(label_studio, laboratory.backend, source) as crowd:
        crowd.annotate_at_once(CROWD_LABELS - len(crowd.submitted), annotators=ANNOTATORS)
        assert len(crowd.submitted) == CROWD_LABELS
        note_times(CROWD_LABELS)
        crowd.check()


# --- two backends, other tokens -----------------------------------------------------------------


@pytest.mark.faults
def test_second_backend_on_the_data_directory_waits_and_takes_over(
    label_studio: LabelStudioOnSQLite,
    own_backend: OwnBackend,
    small_sample: Path,
    tmp_path: Path,
) -> None:
    """A second backend on one data directory; the first one is killed."""
    first = replace(own_backend, data_dir=tmp_path / "shared", address=new_address())
    second = replace(first, address=new_address())
    log = tmp_path / "second.log"
    with (
        first.running() as process,
        new_laboratory(label_studio, first, small_sample) as laboratory,
        second.running(log=log),
    ):
        assert "another web process keeps the job runner" in log.read_text()
        note_seen("the second says that another keeps the job runner")
        process.kill()
        laboratory.annotate(3)
        wait_until(
            lambda: f"({len(laboratory.submitted)} labels)" in log.read_text(),
            deadline_s=FAULT_DEADLINE_S,
            what="job of the second backend",
        )
        replace(laboratory, backend=second).check()

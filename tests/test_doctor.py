"""`cellai doctor`: healthy on a healthy installation, and every ill state is named with its fix.

The ill states are made in a real Label Studio and a real backend; only what a test machine cannot
be brought to (a full disk, few cores) is judged from the facts the backend would report.
"""

import copy
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from installation import Installation, free_port, run_cellai, wait_until

from backend.jobs import JobStore
from backend.runner_record import READY, write_state
from converters import label_studio_checks, project_checks
from converters.backend_checks import check_backend
from converters.backend_client import BackendClient
from converters.check import Check, Verdict
from converters.doctor import Patient, examine
from converters.label_studio import Connection
from converters.project import BackendAddress, connect_backend

pytestmark = pytest.mark.label_studio

N_CELLS = 12


@pytest.fixture(scope="module")
def project_id(demo: Installation, tmp_path_factory: pytest.TempPathFactory) -> int:
    """A small project of this module's own, sorted by the demo's backend."""
    source = tmp_path_factory.mktemp("doctor") / "cells.seg"
    run_cellai("sample", source, "--cells", N_CELLS)
    answer = run_cellai(
        "import", source, "--no-labels", "--data-dir", demo.data_dir, "--title", "doctor"
    )
    assert answer.returncode == 0, answer.stderr
    number = int(answer.stdout)
    client = BackendClient(demo.connection_file.backend)
    wait_until(lambda: client.queue_state(number).is_sorted, deadline_s=120, what="sorted queue")
    client.close()
    return number


@pytest.fixture
def patient(demo: Installation, project_id: int) -> Patient:
    connection = demo.connection_file
    return Patient(
        label_studio_url=connection.label_studio_url,
        api_key=connection.api_key,
        backend=connection.backend,
        project_id=project_id,
        uses_sqlite=True,
    )


def stored(label_studio: Connection, project_id: int) -> list[Any]:
    """All webhooks, and the project's backends: what a probing request could leave behind."""
    rows = label_studio.get("api/webhooks/") + label_studio.get("api/ml/", project=project_id)
    return [(row["id"], row["project"], row["url"]) for row in rows]


def problems(patient: Patient) -> dict[str, Check]:
    """What is wrong, by name."""
    return {c.name: c for c in examine(patient) if c.verdict is Verdict.PROBLEM}


@contextmanager
def changed_project(demo: Installation, project_id: int, **settings: object) -> Iterator[None]:
    path = f"api/projects/{project_id}/"
    before = demo.label_studio.get(path)
    demo.label_studio.patch(path, settings)
    try:
        yield
    finally:
        demo.label_studio.patch(path, {name: before[name] for name in settings})


def webhook(demo: Installation, project_id: int) -> dict[str, Any]:
    (row,) = demo.label_studio.get("api/webhooks/", project=project_id)
    return dict(row)


@contextmanager
def changed_webhook(demo: Installation, project_id: int, **settings: object) -> Iterator[None]:
    before = webhook(demo, project_id)
    path = f"api/webhooks/{before['id']}/"
    kept = {"url", "send_payload", "send_for_all_actions", "headers", "is_active", "actions"}
    original = {name: before[name] for name in kept}
    demo.label_studio.patch(path, original | settings)
    try:
        yield
    finally:
        demo.label_studio.patch(path, original)


def test_healthy_installation(demo: Installation, project_id: int) -> None:
    before = stored(demo.label_studio, project_id)
    answer = run_cellai("doctor", "--data-dir", demo.data_dir, "--project", project_id)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    lines = answer.stdout.splitlines()
    assert lines[-1] == "healthy"
    names = [line[9:].partition(":")[0] for line in lines[:-1]]
    assert [line for line in lines[:-1] if line[:9] not in {"ok       ", "advice   "}] == []
    for name in (
        "Label Studio",
        "API key",
        "Legacy tokens",
        "Backend address",
        "Webhook address",
        "Sampling",
        "Model version",
        "Webhook",
        "Webhook actions",
        "Webhook answer",
        "Pictures",
        "Database",
        "Machine",
        "Weights",
        "Job runner",
        f"Jobs of project {project_id}",
    ):
        assert names.count(name) == 1, name
    assert names.count("Disk") == 2
    assert demo.connection_file.api_key not in answer.stdout
    assert stored(demo.label_studio, project_id) == before


def test_found_through_the_project_alone(demo: Installation, project_id: int) -> None:
    """Without --backend-url the project says where its backend is."""
    connection = demo.connection_file
    answer = run_cellai(
        "doctor",
        "--url",
        connection.label_studio_url,
        "--project",
        project_id,
        LABEL_STUDIO_API_KEY=connection.api_key,
    )
    assert answer.returncode == 1
    assert f"The backend at {connection.backend_url} answered 401" in answer.stdout
    assert "ok       Sampling" in answer.stdout


def test_sampling(demo: Installation, project_id: int, patient: Patient) -> None:
    with changed_project(demo, project_id, sampling="Sequential sampling"):
        (found,) = problems(patient).values()
    assert found.name == "Sampling"
    assert "Sequential" in found.finding
    assert f"/api/projects/{project_id}/" in found.fix


def test_model_version_of_no_prediction(
    demo: Installation, project_id: int, patient: Patient
) -> None:
    with changed_project(demo, project_id, model_version=""):
        assert "queue is random" in problems(patient)["Model version"].finding


def test_model_version_that_the_backend_does_not_serve(demo: Installation, project_id: int) -> None:
    checks = project_checks.check_project(
        demo.label_studio, project_id, serving="cellai-9999", uses_sqlite=True
    )
    found = next(check for check in checks if check.name == "Model version")
    assert found.verdict is Verdict.PROBLEM
    assert "the backend serves cellai-9999" in found.finding


def test_no_webhook(demo: Installation, project_id: int, patient: Patient) -> None:
    number = webhook(demo, project_id)["id"]
    demo.label_studio.request("DELETE", f"api/webhooks/{number}/")
    assert "does not tell the backend" in problems(patient)["Webhook"].finding
    connect_backend(demo.label_studio, project_id, demo.connection_file.backend)
    assert problems(patient) == {}


@pytest.mark.parametrize(
    ("settings", "name", "words"),
    [
        ({"send_for_all_actions": True}, "Webhook actions", "Every action is sent"),
        ({"actions": ["ANNOTATION_CREATED"]}, "Webhook actions", "ANNOTATIONS_DELETED"),
        ({"headers": {}}, "Webhook answer", "refuses the webhook's password"),
        ({"url": "http://127.0.0.1:9/webhook"}, "Webhook answer", "does not answer"),
    ],
)
def test_webhook(
    demo: Installation, patient: Patient, settings: dict[str, Any], name: str, words: str
) -> None:
    assert patient.project_id is not None
    with changed_webhook(demo, patient.project_id, **settings):
        (found,) = problems(patient).values()
    assert found.name == name
    assert words in found.finding
    assert found.fix


def test_webhook_that_leads_to_another_page(
    demo: Installation, project_id: int, patient: Patient
) -> None:
    url = f"{demo.connection_file.backend_url}/elsewhere/webhook"
    with changed_webhook(demo, project_id, url=url):
        assert "404" in problems(patient)["Webhook answer"].finding


def test_pictures_without_their_storage(
    demo: Installation, project_id: int, patient: Patient
) -> None:
    (storage,) = demo.label_studio.get("api/storages/localfiles/", project=project_id)
    demo.label_studio.request("DELETE", f"api/storages/localfiles/{storage['id']}")
    found = problems(patient)["Pictures"]
    kept = ("project", "path", "title", "use_blob_urls")
    demo.label_studio.post("api/storages/localfiles/", {name: storage[name] for name in kept})
    assert "404" in found.finding
    assert problems(patient) == {}


def test_large_pool_in_sqlite(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(project_checks, "LARGE_POOL", N_CELLS - 1)
    found = {check.name: check for check in examine(patient)}["Database"]
    assert found.verdict is Verdict.ADVICE
    assert "PostgreSQL" in found.fix
    unknown = {c.name: c for c in examine(replace(patient, uses_sqlite=False))}["Database"]
    assert "if it is SQLite" in unknown.finding


def test_untested_version(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_studio_checks, "TESTED_VERSION", "1.0.0")
    found = next(iter(examine(patient)))
    assert found.verdict is Verdict.ADVICE
    assert "runs version 1.23.2" in found.finding


def test_project_that_does_not_exist(patient: Patient) -> None:
    assert list(problems(replace(patient, project_id=987654))) == ["Project 987654"]


def test_label_studio_that_is_down(patient: Patient) -> None:
    found = problems(replace(patient, label_studio_url=f"http://127.0.0.1:{free_port()}"))
    assert list(found) == ["Label Studio"]


def test_wrong_api_key(patient: Patient) -> None:
    (found,) = problems(replace(patient, api_key="0" * 40)).values()
    assert found.name == "API key"
    assert "refuses the legacy token" in found.finding
    assert "0" * 40 not in str(found)


def test_backend_that_is_down(patient: Patient) -> None:
    address = BackendAddress(f"http://127.0.0.1:{free_port()}")
    assert "does not answer" in problems(replace(patient, backend=address))["Backend"].finding


def test_no_backend(guarded_label_studio: Connection, demo: Installation) -> None:
    nobody = Patient(
        label_studio_url=guarded_label_studio.url,
        api_key=demo.connection_file.api_key,
        backend=None,
        project_id=None,
        uses_sqlite=False,
    )
    assert list(problems(nobody)) == ["Backend"]


def test_blocked_addresses(
    guarded_label_studio: Connection, demo: Installation, patient: Patient
) -> None:
    before = stored(guarded_label_studio, demo.project_id)
    found = problems(replace(patient, label_studio_url=guarded_label_studio.url))
    for name in ("Backend address", "Webhook address"):
        assert "private address" in found[name].finding
        assert "USE_DEFAULT_BANNED_SUBNETS=false" in found[name].fix
    assert stored(guarded_label_studio, demo.project_id) == before


def test_legacy_tokens_switched_off(guarded_label_studio: Connection, patient: Patient) -> None:
    personal = guarded_label_studio.post("api/token/", {})["token"]
    guarded = replace(patient, label_studio_url=guarded_label_studio.url)
    by_personal = Connection(guarded_label_studio.url, personal)
    switch = {"api_tokens_enabled": True, "legacy_api_tokens_enabled": False}
    by_personal.post("api/jwt/settings", switch)
    try:
        found = problems(guarded)["API key"]
        lines = {c.name: c.finding for c in examine(replace(guarded, api_key=personal))}
    finally:
        by_personal.post("api/jwt/settings", switch | {"legacy_api_tokens_enabled": True})
        by_personal.close()
    assert "legacy tokens are switched off" in found.finding
    assert lines["API key"].startswith("personal access token of")
    assert lines["Legacy tokens"] == "off (not needed)"


@pytest.fixture(scope="module")
def idle(
    demo: Installation, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, BackendAddress]]:
    """The web part of a backend without its job runner, and with a wrong API key."""
    folder = tmp_path_factory.mktemp("idle")
    port = free_port()
    process = subprocess.Popen(
        [
            Path(sys.executable).with_name("gunicorn"),
            "--bind",
            f"127.0.0.1:{port}",
            "--threads=4",
            "backend._wsgi:app",
        ],
        env=os.environ
        | {
            "CELLAI_LABEL_STUDIO_URL": demo.connection_file.label_studio_url,
            "CELLAI_LABEL_STUDIO_API_KEY": "1" * 40,
            "CELLAI_DATA_DIR": str(folder),
            "CELLAI_FILES_DIR": str(folder / "missing"),
        },
    )
    address = BackendAddress(f"http://127.0.0.1:{port}")
    try:
        wait_until(lambda: _answers(f"{address.url}/health"), deadline_s=60, what="idle backend")
        yield folder, address
    finally:
        process.terminate()
        process.wait(30)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).is_success
    except httpx.HTTPError:
        return False


def test_backend_without_job_runner(idle: tuple[Path, BackendAddress], patient: Patient) -> None:
    data_dir, address = idle
    ill = replace(patient, backend=address)
    loading = {check.name: check for check in examine(ill)}
    assert loading["Weights"].verdict is Verdict.ADVICE
    write_state(data_dir, "No weights of VGG16 were found.")
    found = problems(ill)
    assert found["Weights"].finding == "No weights of VGG16 were found."
    assert "refuses the API key" in found["Backend to Label Studio"].finding
    assert "cannot be written" in found["Disk"].finding
    write_state(data_dir, READY)
    assert "not running" in problems(ill)["Job runner"].finding
    answer = httpx.get(f"{address.url}/ready")
    assert answer.status_code == 503
    assert "refuses the API key" in answer.json()["state"]


def test_jobs_that_are_stuck(
    idle: tuple[Path, BackendAddress],
    patient: Patient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data_dir, address = idle
    ill = replace(patient, backend=address)
    assert patient.project_id is not None
    name = f"Jobs of project {patient.project_id}"
    store = JobStore(data_dir / "jobs.sqlite")
    clock = time.time()
    with monkeypatch.context() as past:
        past.setattr(time, "time", lambda: clock - 3600)
        store.set_up(patient.project_id, extra_params="")
        store.mark(patient.project_id)
    assert "have waited for 60 minutes" in problems(ill)[name].finding

    project = store.project(patient.project_id)
    assert project is not None
    with monkeypatch.context() as past:
        past.setattr(time, "time", lambda: clock - 1800)
        job_id = store.begin(project)
        store.progress(job_id, "training on 40 labels")
    assert "'training on 40 labels' for 30 minutes" in problems(ill)[name].finding

    store.fail(job_id, project, error="The loss is not finite.")
    found = problems(ill)[name]
    assert "The last 1 failed: The loss is not finite." in found.finding


def healthy_facts() -> dict[str, Any]:
    return {
        "label_studio": {"url": "http://label-studio", "problem": ""},
        "runner": {
            "state": READY,
            "trouble": "",
            "is_alive": True,
            "device": "cpu",
            "precision": "bfloat16",
            "trunk_id": "t",
        },
        "machine": {"cores": 4, "memory_bytes": 8e9},
        "disks": [{"folder": "/data", "refusal": "", "free_bytes": 5e10}],
        "projects": [],
    }


def full_disk(facts: dict[str, Any]) -> None:
    facts["disks"][0]["free_bytes"] = 4e8


def filling_disk(facts: dict[str, Any]) -> None:
    facts["disks"][0]["free_bytes"] = 4e9


def one_core(facts: dict[str, Any]) -> None:
    facts["machine"]["cores"] = 1


def trouble(facts: dict[str, Any]) -> None:
    facts["runner"]["trouble"] = "The job runner has too little memory."


def no_bfloat16(facts: dict[str, Any]) -> None:
    facts["runner"]["precision"] = "float32"


@pytest.mark.parametrize(
    ("make_ill", "name", "verdict", "words"),
    [
        (full_disk, "Disk", Verdict.PROBLEM, "Make room"),
        (filling_disk, "Disk", Verdict.ADVICE, "CELLAI_FEATURE_CACHE_GB"),
        (one_core, "Machine", Verdict.ADVICE, "two cores"),
        (no_bfloat16, "Machine", Verdict.ADVICE, "GPU"),
        (trouble, "Job runner", Verdict.PROBLEM, "Remove the cause"),
    ],
)
def test_machine(
    make_ill: Callable[[dict[str, Any]], None], name: str, verdict: Verdict, words: str
) -> None:
    facts = healthy_facts()
    assert {check.verdict for check in check_backend(facts)} == {Verdict.OK}
    ill = copy.deepcopy(facts)
    make_ill(ill)
    found = {check.name: check for check in check_backend(ill)}[name]
    assert found.verdict is verdict
    assert words in found.fix


def test_task_without_prediction(demo: Installation, project_id: int, patient: Patient) -> None:
    """Last in this file: the project is not brought back to order."""
    row = demo.label_studio.get("api/predictions/", project=project_id)[0]
    demo.label_studio.request("DELETE", f"api/predictions/{row['id']}/")
    finding = problems(patient)["Model version"].finding
    assert f"has scored {N_CELLS - 1} of {N_CELLS} tasks" in finding


def test_folder_without_installation(tmp_path: Path) -> None:

    answer = run_cellai("doctor", "--data-dir", tmp_path)
    assert answer.returncode == 2
    assert "has no connection.json" in answer.stderr

"""A sample file becomes a project whose queue follows the scores, and labels retrain it."""

import json
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import numpy as np
import pytest
from installation import Installation, annotate, run_cellai, scores_by_task, wait_until, walk_queue

from converters.label_config import TEMPLATE_PATH
from converters.project import create_project

pytestmark = pytest.mark.label_studio

TASK_KEYS = {
    "phase",
    "amplitude",
    "image",
    "card",
    "source",
    "dataset",
    "index",
    "group",
    "bbox",
    "area_px",
    "flags",
    "crop_id",
}


@pytest.fixture(scope="module")
def demo(demo: Installation, sample_file: Path) -> Iterator[Installation]:
    """The installation, looking at a project that no other test labels."""
    own = demo.new_project(sample_file, "queue")
    wait_until(
        lambda: demo.status(own.project_id).get("model_version"), deadline_s=90, what="cold start"
    )
    wait_until(lambda: own.project()["model_version"], deadline_s=30, what="sorted queue")
    yield own
    own.close()


def test_every_crop_is_one_task_with_all_keys(demo: Installation, sample_labels: list[str]) -> None:
    tasks = demo.tasks()
    assert sorted(task["data"]["index"] for task in tasks) == list(range(len(sample_labels)))
    assert len({task["data"]["crop_id"] for task in tasks}) == len(tasks)
    for task in tasks:
        assert set(task["data"]) >= TASK_KEYS
        assert all(task["data"][key] is not None for key in TASK_KEYS)


def test_pictures_and_cards_are_served_to_the_annotator_only(demo: Installation) -> None:
    task = demo.tasks()[0]["data"]
    for key in ("phase", "amplitude", "card"):
        answer = demo.label_studio.request("GET", task[key].lstrip("/"))
        assert answer.status_code == 200
        assert len(answer.content) > 100
    url = demo.connection_file.label_studio_url + task["phase"]
    assert httpx.get(url).status_code == 401


def test_every_open_task_has_one_prediction_of_the_serving_version(demo: Installation) -> None:
    version = demo.project()["model_version"]
    assert version == demo.status()["model_version"]
    scores = scores_by_task(demo.label_studio, demo.project_id, version)
    assert set(scores) == {task["id"] for task in demo.tasks()}
    assert all(0 <= score <= 1 for score in scores.values())


def test_labels_retrain_and_resort_the_queue_by_themselves(
    demo: Installation, sample_labels: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """30 labels over the API, nothing else: a new version, sorted, with its metrics."""
    cold = demo.project()["model_version"]
    cold_scores = scores_by_task(demo.label_studio, demo.project_id, cold)
    labels = {task["id"]: sample_labels[task["data"]["index"]] for task in demo.tasks()}
    walked = _walk_in_order(demo, n_tasks=12, labels=labels)
    plain_tasks = _project_without_backend(demo)
    submit_s, plain_s = [], []
    others = sorted(labels.keys() - walked, key=cold_scores.__getitem__)[:18]
    for task, plain in zip(others, plain_tasks, strict=True):  # turn by turn: same load
        submit_s.append(annotate(demo.label_studio, task, labels[task]))
        plain_s.append(annotate(demo.label_studio, plain, "rbc"))

    serving = wait_until(
        lambda: version if (version := demo.serving()).get("n_labels") == 30 else {},
        deadline_s=60,
        what="version with 30 labels",
    )
    assert 0 < serving["metrics"]["macro_f1"] <= 1
    assert serving["metrics"]["n_holdout"] > 0
    scores = scores_by_task(demo.label_studio, demo.project_id, serving["version"])
    assert set(scores) == set(cold_scores)
    assert not np.allclose(
        [scores[task] for task in scores], [cold_scores[task] for task in scores]
    )
    assert sum(task["is_labeled"] for task in demo.tasks()) == 30
    _walk_in_order(demo, n_tasks=10, labels=labels)

    with_backend, without = statistics.median(submit_s), statistics.median(plain_s)
    with capsys.disabled():
        print(f"\nmedian submit {with_backend:.3f} s with backend, {without:.3f} s without")
    # A webhook without an answer costs a second; `make test-soak` asks for a tenth, undisturbed.
    assert with_backend <= without + 0.5


def test_predictions_name_a_class_and_all_probabilities(demo: Installation) -> None:
    version = wait_until(
        lambda: demo.serving().get("n_labels") and demo.serving()["version"],
        deadline_s=60,
        what="trained version",
    )
    rows = [
        row
        for row in demo.label_studio.get("api/predictions/", project=demo.project_id)
        if row["model_version"] == version
    ]
    for row in rows:
        (region,) = row["result"]
        probabilities = region["meta"]["probabilities"]
        assert sum(probabilities.values()) == pytest.approx(1, abs=1e-3)
        assert region["value"]["choices"] == [max(probabilities, key=probabilities.__getitem__)]


def test_status_lists_versions_jobs_and_open_tasks(demo: Installation) -> None:
    n_labels = sum(task["is_labeled"] for task in demo.tasks())
    wait_until(  # no version may come between the two looks below
        lambda: demo.serving().get("n_labels") == n_labels, deadline_s=60, what="all labels learned"
    )
    answer = run_cellai("status", "--json", "--data-dir", demo.data_dir)
    assert answer.returncode == 0, answer.stderr
    (project,) = (p for p in json.loads(answer.stdout) if p["project_id"] == demo.project_id)
    assert project["model_version"] == demo.project()["model_version"]
    assert {"version", "n_labels", "metrics", "trunk"} <= set(project["versions"][0])
    assert project["versions"][0]["trunk"] == "vgg16"
    assert project["jobs"][0]["state"] in {"running", "done"}
    assert project["open_tasks"] == sum(not task["is_labeled"] for task in demo.tasks())


def test_start_training_button_makes_a_version(demo: Installation) -> None:
    before = len(demo.status()["versions"])
    (backend,) = demo.label_studio.get("api/ml/", project=demo.project_id)
    demo.label_studio.request("POST", f"api/ml/{backend['id']}/train", payload={})
    wait_until(
        lambda: len(demo.status()["versions"]) > before, deadline_s=60, what="demanded version"
    )


def test_project_parameters_are_checked_and_used(demo: Installation) -> None:
    (backend,) = demo.label_studio.get("api/ml/", project=demo.project_id)
    address = demo.connection_file.backend
    settings = {
        "project": demo.project_id,
        "url": address.url,
        "title": backend["title"],
        "auth_method": "BASIC_AUTH",
        "basic_auth_user": address.user,
        "basic_auth_pass": address.password,
    }
    refused = demo.label_studio.request(
        "PATCH",
        f"api/ml/{backend['id']}",
        payload=settings | {"extra_params": '{"mc_passes": "many"}'},
        accept=(400, 500),
    )
    assert refused.status_code == 400
    assert "mc_passes" in refused.text
    demo.label_studio.patch(
        f"api/ml/{backend['id']}", settings | {"extra_params": '{"acquisition": "entropy"}'}
    )
    wait_until(
        lambda: demo.serving().get("parameters", {}).get("acquisition") == "entropy",
        deadline_s=60,
        what="version with the project's own acquisition",
    )
    demo.label_studio.patch(f"api/ml/{backend['id']}", settings | {"extra_params": ""})


def _walk_in_order(demo: Installation, *, n_tasks: int, labels: Mapping[int, str]) -> set[int]:
    """Label the next tasks, each the first of its queue; returns their ids.

    A version may come at any moment, also while a task is asked for; either's first will do then.
    """
    walked: set[int] = set()
    labelled = {task["id"] for task in demo.tasks() if task["is_labeled"]}
    orders: dict[str, list[int]] = {}

    def first_of_queue() -> int:
        version = demo.project()["model_version"]
        if version not in orders:
            scores = scores_by_task(demo.label_studio, demo.project_id, version)
            assert set(scores) == set(labels)
            orders[version] = sorted(scores, key=scores.__getitem__)
        return next(task for task in orders[version] if task not in labelled | walked)

    for _ in range(n_tasks):
        first = first_of_queue()
        (task,) = walk_queue(demo, n_tasks=1, labels=labels)
        assert task == first or task == first_of_queue()
        walked.add(task)
    return walked


def _project_without_backend(demo: Installation) -> list[int]:
    """18 tasks of a project that no backend is connected to."""
    project_id = create_project(
        demo.label_studio, title="no backend", label_config=TEMPLATE_PATH.read_text()
    )
    keys = dict.fromkeys(TASK_KEYS, "")
    demo.label_studio.post(f"api/projects/{project_id}/import", [{"data": keys}] * 18)
    tasks = demo.label_studio.get("api/tasks/", project=project_id, page_size=18)["tasks"]
    return [task["id"] for task in tasks]

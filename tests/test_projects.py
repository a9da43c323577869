"""Several projects on one backend, each with its own classes, versions and kind of picture."""

import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from installation import Installation, run_cellai, wait_until
from PIL import Image

pytestmark = pytest.mark.label_studio

CLASSES = ("disc", "cross & <b>bar<b>")
N_EACH = 12


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Colour pictures of two shapes in class sub-folders, and one file that is no picture."""
    rng = np.random.default_rng(0)
    rows, columns = np.ogrid[:64, :64]
    disc = (rows - 32) ** 2 + (columns - 32) ** 2 < 200
    cross = (abs(rows - 32) < 5) | (abs(columns - 32) < 5)
    folder = tmp_path / "pictures"
    for name, shape in zip(CLASSES, (disc, cross), strict=True):
        (folder / name).mkdir(parents=True)
        for index in range(N_EACH):
            pixels = rng.integers(0, 60, (64, 64, 3), np.uint8)
            pixels[shape] += 150
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    (folder / "disc" / ".DS_Store.jpg").write_bytes(b"Bud1")
    return folder


def test_folder_of_pictures_with_other_classes(demo: Installation, pictures: Path) -> None:
    connection = demo.connection_file
    names = [folder.name for folder in sorted(pictures.iterdir())]
    answer = run_cellai(
        "import",
        pictures,
        "--data-dir",
        demo.data_dir,
        "--title",
        "shapes",
        "--classes",
        ",".join(names),
    )
    assert answer.returncode == 0, answer.stderr
    assert ".DS_Store" in answer.stderr
    project_id = int(answer.stdout)
    assert project_id != connection.project_id

    status = wait_until(
        lambda: (
            status
            if (status := demo.status(project_id)).get("versions")
            and status["versions"][-1]["n_labels"] == 2 * N_EACH
            and status["model_version"] == status["versions"][-1]["version"]
            else None
        ),
        deadline_s=90,
        what="version of the second project",
    )
    project = demo.label_studio.get(f"api/projects/{project_id}/")
    assert project["model_version"] == status["model_version"]
    assert project["sampling"] == "Uncertainty sampling"
    rows = demo.label_studio.get("api/predictions/", project=project_id)
    chosen = {region["value"]["choices"][0] for row in rows for region in row["result"]}
    assert chosen == set(names)
    tasks = demo.label_studio.get("api/tasks/", project=project_id, page_size=100)["tasks"]
    assert all(task["data"]["image"] and task["data"]["phase"] == "" for task in tasks)


def test_status_of_a_project_that_was_just_deleted(demo: Installation, sample_file: Path) -> None:
    with closing(demo.new_project(sample_file, "soon gone")) as project:
        wait_until(project.status, deadline_s=30, what="project in the backend's status")
        project.label_studio.request("DELETE", f"api/projects/{project.project_id}/")
    answer = run_cellai("status", "--data-dir", demo.data_dir, "--json")
    assert answer.returncode == 0, answer.stderr
    open_tasks = {row["project_id"]: row["open_tasks"] for row in json.loads(answer.stdout)}
    assert open_tasks.get(project.project_id) is None  # forgotten already, or without tasks
    assert open_tasks[demo.project_id] is not None

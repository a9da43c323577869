"""Addresses at which something else answers: one sentence that says so, and nothing half-done."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import cellai, refusal
from stand_in import PAGE, StandIn, stand_in
from typer.testing import Result

from converters.errors import ConfigurationError
from converters.label_config import TEMPLATE_PATH
from converters.sample import write_sample_crops

KEY = "0" * 40
FOREIGN = [
    pytest.param(PAGE, 200, id="page"),
    pytest.param({"status": "UP"}, 200, id="object"),
    pytest.param(["text"], 200, id="list"),
    pytest.param(None, 200, id="null"),
    pytest.param(PAGE, 404, id="404"),
    pytest.param({"detail": "Not found."}, 404, id="404 in JSON"),
    pytest.param({"hint": "none of ours"}, 500, id="500 in JSON"),
    pytest.param(["text"], 500, id="500 with a list"),
]
PROJECT = {
    "id": 7,
    "label_config": TEMPLATE_PATH.read_text(),
    "title": "cells",
    "description": "",
    "model_version": "",
    "task_number": 5,
    "finished_task_number": 0,
}
LABEL_STUDIO = {
    "GET /api/version": {"release": "1.23.2"},
    "GET /api/current-user/whoami": {"email": "a@example.org"},
    "GET /api/jwt/settings": {"legacy_api_tokens_enabled": True},
    "GET /api/projects/7/": PROJECT,
    "PATCH /api/projects/7/": PROJECT,
    "POST /api/projects/": PROJECT,
    "POST /api/projects/7/import": {
        "task_count": 5,
        "annotation_count": 0,
        "task_ids": [1, 2, 3, 4, 5],
    },
    "GET /api/tasks/": {"tasks": [], "total": 0},
    "GET /api/storages/localfiles/": [],
    "GET /api/ml/": [],
    "GET /api/webhooks/": [],
}

BACKEND = {
    "GET /status": [],
    "GET /diagnosis": {
        "label_studio": {"url": "", "problem": ""},
        "runner": {
            "state": "ready",
            "trouble": "",
            "is_alive": True,
            "trunk_id": "vgg16",
            "device": "cpu",
            "precision": "bfloat16",
        },
        "machine": {"cores": 4, "memory_bytes": 10**10},
        "disks": [],
        "projects": [],
    },
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "cells.seg"
    write_sample_crops(path, n_cells=5, seed=0, labelled_share=0)
    return path


@pytest.mark.parametrize(("body", "status"), FOREIGN)
@pytest.mark.parametrize(
    "words",
    [
        "train",
        "models list",
        "models rollback",
        "models promote cellai-0001",
        "models prune --keep 1",
    ],
)
def test_backend_commands_where_something_else_answers(
    words: str, body: object, status: int
) -> None:
    with stand_in(otherwise=body, status=status) as server:
        error = refusal(cellai(*words.split(), "--project", 7, "--backend-url", server.url))
    assert error.exit_code == 1
    assert server.url in error.message
    assert "password" not in error.hint
    if status < 500:
        assert "Is that address the backend's?" in error.hint


@pytest.mark.parametrize(("body", "status"), FOREIGN)
def test_status_and_report_where_something_else_answers(
    body: object, status: int, tmp_path: Path
) -> None:
    target = tmp_path / "report.html"
    with stand_in(otherwise=body, status=status) as other, stand_in(LABEL_STUDIO) as label_studio:
        backend = ["--project", 7, "--backend-url", other.url]
        error = refusal(cellai("status", "--url", label_studio.url, "--api-key", KEY, *backend))
        assert other.url in error.message
        assert other.url in refusal(cellai("report", "--out", target, *backend)).message
    assert not target.exists()


@pytest.mark.parametrize(
    ("answer", "words"), [("unknown project", "knows no project 999"), ("UP", "not the backend's")]
)
def test_training_that_is_not_taken_up_is_no_success(answer: str, words: str) -> None:
    with stand_in({"POST /webhook": {"status": answer}}) as server:
        result = cellai("train", "--project", 999, "--backend-url", server.url)
    assert words in refusal(result).message
    assert "is trained next" not in result.output


def test_training_that_is_taken_up() -> None:
    with stand_in({"POST /webhook": {"status": "marked"}}) as server:
        result = cellai("train", "--project", 7, "--backend-url", server.url)
    assert result.exit_code == 0
    assert "Project 7 is trained next" in result.output


@pytest.mark.parametrize(("body", "status"), FOREIGN)
def test_import_ends_in_a_sentence_after_the_cells(
    body: object, status: int, source: Path, tmp_path: Path
) -> None:
    with stand_in(otherwise=body, status=status) as other:
        result, label_studio = imported(source, tmp_path, "--backend-url", other.url)
    assert other.url in refusal(result).message
    assert "POST /api/projects/7/import" in label_studio.requests
    assert "5 cells imported" in result.output


def imported(source: Path, folder: Path, *arguments: object) -> tuple[Result, StandIn]:
    """An import into a new project, and the Label Studio that it went to."""
    with stand_in(LABEL_STUDIO, otherwise={"id": 1}) as server:
        place = ["--url", server.url, "--api-key", KEY, "--no-labels"]
        files = [] if "--files-dir" in arguments else ["--files-dir", folder / "files"]
        return cellai("import", source, *place, *files, *arguments), server


def missing(folder: Path) -> Path:
    return folder / "missing.seg"


def empty(folder: Path) -> Path:
    (folder / "empty.seg").touch()
    return folder / "empty.seg"


def empty_picture(folder: Path) -> Path:
    (folder / "empty.png").touch()
    return folder / "empty.png"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (missing, "does not exist"),
        (empty, "is empty"),
        (empty_picture, "No cell was found in .*; not a readable picture: skipped: 1"),
    ],
)
def test_source_is_looked_at_before_there_is_a_project(
    make: Callable[[Path], Path], words: str, tmp_path: Path
) -> None:
    result, server = imported(make(tmp_path), tmp_path)
    assert re.search(words, refusal(result).message)
    assert server.requests == []


def test_files_dir_is_looked_at_before_there_is_a_project(source: Path, tmp_path: Path) -> None:
    taken = tmp_path / "file"
    taken.touch()
    result, server = imported(source, tmp_path, "--files-dir", taken)
    assert "cannot be written" in refusal(result).message
    assert server.requests == ["GET /api/current-user/whoami"]


def beside_a_file(folder: Path) -> Path:
    (folder / "file").touch()
    return folder / "file"


def with_a_folder(folder: Path) -> Path:
    (folder / "connection.json").mkdir()
    return folder


def with_a_loop(folder: Path) -> Path:
    (folder / "connection.json").symlink_to("connection.json")
    return folder


@pytest.mark.parametrize("make", [beside_a_file, with_a_folder, with_a_loop])
def test_unreadable_connection_file(make: Callable[[Path], Path], tmp_path: Path) -> None:
    error = refusal(cellai("train", "--data-dir", make(tmp_path)))
    assert isinstance(error, ConfigurationError)
    assert "connection.json cannot be read (" in error.message


@pytest.mark.parametrize(("body", "status"), FOREIGN)
def test_doctor_goes_on_to_the_backend(body: object, status: int) -> None:
    with stand_in(otherwise=body, status=status) as other, stand_in(BACKEND) as backend:
        place = ["--url", other.url, "--api-key", KEY]
        result = cellai("doctor", *place, "--backend-url", backend.url)
    lines = result.output.splitlines()
    assert lines[0].startswith("problem  Label Studio: ")
    assert other.url in lines[0]
    assert "project's number" not in result.output
    assert f"ok       Backend: answers at {backend.url}" in result.output
    assert (result.exit_code, lines[-1]) == (1, "1 problem")


NO_ADDRESSES = [
    "http://localhost:abc",
    "http://[::1",
    "localhost:8080",
    "http://",
    "ftp://localhost",
    "http://localhost:99999",
    "http://local host",
]


@pytest.mark.parametrize("url", NO_ADDRESSES)
@pytest.mark.parametrize("words", ["import --project 7 --no-blind", "doctor", "status"])
def test_address_that_is_none(words: str, url: str) -> None:
    with stand_in(LABEL_STUDIO) as server:
        good = ["--url", server.url, "--api-key", KEY, "--backend-url", server.url]
        for option in ("--url", "--backend-url"):
            error = refusal(cellai(*words.split(), *good, option, url))
            assert isinstance(error, ConfigurationError)
            assert error.message == f"{url!r} is no address."
        assert server.requests == []


def test_other_project_than_the_backend_serves() -> None:
    with stand_in({"GET /status": []}) as backend, stand_in(LABEL_STUDIO) as label_studio:
        place = ["--url", label_studio.url, "--api-key", KEY, "--backend-url", backend.url]
        assert "knows no project 99" in refusal(cellai("status", *place, "--project", 99)).message

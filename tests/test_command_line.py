"""What commands say of paths, options and names that are unusual; none needs a real server."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from command_line import cellai, refusal
from installation import run_cellai
from PIL import Image
from stand_in import stand_in
from typer.testing import Result

from converters.crops import ReadOptions
from converters.errors import CellAIError, ConfigurationError
from converters.label_config import TEMPLATE_PATH
from converters.label_studio import Connection
from converters.problems import Problems
from converters.project import default_title
from converters.reading import iter_crops
from converters.sample import write_sample_crops
from converters.source import fingerprint
from converters.source_record import read_sources

KEY = "0" * 40
LATIN_1 = os.fsdecode(b"Gr\xfcn")  # as an old system wrote it: not UTF-8


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "cells.seg"
    write_sample_crops(path, n_cells=5, seed=0, labelled_share=1)
    return path


def link_in_a_circle(folder: Path) -> Path:
    (folder / "loop.seg").symlink_to("loop.seg")
    return folder / "loop.seg"


def long_name(folder: Path) -> Path:
    return folder / ("x" * 300)


def through_a_file(folder: Path) -> Path:
    (folder / "file").touch()
    return folder / "file" / "cells.seg"


@pytest.mark.parametrize("make", [link_in_a_circle, long_name, through_a_file])
def test_path_that_leads_nowhere(make: Callable[[Path], Path], tmp_path: Path) -> None:
    path = make(tmp_path)
    assert f"{path} cannot be read (" in refusal(cellai("inspect", path)).message


def test_name_that_is_not_utf8(source: Path) -> None:
    path = source.rename(source.with_name(f"{LATIN_1}.seg"))
    error = refusal(cellai("inspect", path))
    assert (error.exit_code, error.message) == (3, f"The name of {path} is not UTF-8.")
    answer = run_cellai("inspect", path)
    assert answer.returncode == 3
    assert "Gr\ufffdn.seg is not UTF-8." in answer.stderr


def test_names_in_a_folder_that_are_not_utf8(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("good", LATIN_1):
        Image.fromarray(np.full((48, 48), 200, np.uint8)).save(folder / f"{name}.png")
    problems = Problems()
    crops = list(iter_crops([folder], options=ReadOptions(), problems=problems))
    assert {crop.source for crop in crops} <= {"good.png"}
    assert "name is not UTF-8: skipped" in [problem.reason for problem in problems]
    assert len(fingerprint(folder)) == 64


@pytest.mark.parametrize(
    ("key", "title"), [("\u00fc" * 40, "cells"), (KEY, f"cells {LATIN_1}")], ids=["key", "title"]
)
def test_what_cannot_be_sent_to_label_studio(key: str, title: str) -> None:
    with stand_in(otherwise={"id": 1}) as server:
        connection = Connection(server.url, key)
        with pytest.raises(CellAIError, match="holds a character that cannot be sent") as caught:
            connection.post("api/projects/", {"title": title})
        connection.close()
    assert key not in str(caught.value)


def test_output_that_has_no_letters_for_a_name(source: Path) -> None:
    path = source.rename(source.with_name("Gr\u00f6\u00dfe \u00b5m.seg"))
    answer = run_cellai("inspect", path, PYTHONIOENCODING="ascii")
    assert answer.returncode == 0, answer.stderr
    assert "Gr??e ?m.seg" in answer.stdout


def test_names_with_square_brackets_are_shown_as_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "a[1]b[/x]"
    path = folder / "cells[old]:smile:.seg"
    result = cellai("sample", path, "--cells", 5)
    assert result.exit_code == 0, result.exception
    assert str(path) in result.output.replace("\n", "")
    with h5py.File(path, "a") as file:
        file["table"] = np.zeros(3, dtype=[("time[min]", "f4"), ("rate[/s]", "f4")])
    shown = cellai("inspect", path)
    assert shown.exit_code == 0, shown.exception
    assert "cells[old]:smile:.seg" in shown.output
    words = "".join(shown.output.split()).replace("\u2502", "")
    assert "time[min]" in words
    assert "rate[/s]" in words


def test_sample_leaves_a_file_of_that_name_alone(tmp_path: Path) -> None:
    path = tmp_path / "cells.seg"
    path.write_bytes(b"somebody's labels")
    result = cellai("sample", path, "--cells", 5)
    assert isinstance(result.exception, ConfigurationError)
    assert "exists already" in result.exception.message
    assert path.read_bytes() == b"somebody's labels"


def test_report_and_export_into_a_folder_with_square_brackets(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out[/x]"
    page = '<body data-project="7" data-version="">'
    with stand_in({"GET /report/7": page}) as server:
        target = folder / "report.html"
        folder.mkdir(parents=True)
        result = cellai("report", "--out", target, "--project", 7, "--backend-url", server.url)
    assert result.exit_code == 0, result.exception
    assert target.read_text(encoding="utf-8") == page
    assert str(target) in result.output.replace("\n", "")
    assert exported(folder / "labels", tmp_path / "none").exit_code == 0


def exported(out_dir: Path, files_dir: Path) -> Result:
    """An export of a project with one labelled cell of an HDF5 file."""
    project = {"title": "cells", "label_config": TEMPLATE_PATH.read_text()}
    value = {"type": "choices", "from_name": "cell_class", "value": {"choices": ["rbc"]}}
    task = {
        "id": 1,
        "data": {
            "source": "cells.seg",
            "dataset": "phase/images",
            "index": 0,
            "bbox": [0, 0, 9, 9],
            "crop_id": "a",
        },
        "annotations": [{"id": 1, "result": [value]}],
    }
    answers = {
        "GET /api/projects/7/": project,
        "GET /api/users/": [],
        "GET /api/projects/7/export": [task],
    }
    with stand_in(answers) as server:
        place = ["--url", server.url, "--api-key", KEY, "--project", 7]
        return cellai("export", *place, "--out", out_dir, "--files-dir", files_dir)


def test_export_without_a_note_of_the_sources_says_so(tmp_path: Path) -> None:
    result = exported(tmp_path / "out", tmp_path / "none")
    assert result.exit_code == 0, result.exception
    assert (tmp_path / "out" / "labels.csv").exists()
    assert f"{tmp_path / 'none' / 'sources' / 'project-7.json'} does not exist" in result.stderr
    assert "--files-dir" in result.stderr


@pytest.mark.parametrize(
    "note",
    [
        "[1]",
        "7",
        '{"a": 1}',
        '{"a": {}}',
        json.dumps({"a": {"path": "a", "sha256": "", "read": {"unknown": 1}}}),
    ],
)
def test_note_of_the_sources_in_another_form(note: str, tmp_path: Path) -> None:
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources" / "project-7.json").write_text(note)
    with pytest.raises(ConfigurationError, match="is damaged, so it is not known"):
        read_sources(tmp_path, 7)


def test_note_of_the_sources_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "sources" / "project-7.json").mkdir(parents=True)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_sources(tmp_path, 7)


def test_title_beside_a_project(source: Path) -> None:
    place = ["--url", "http://127.0.0.1:1", "--api-key", KEY]
    error = refusal(cellai("import", source, *place, "--project", 7, "--title", "new title"))
    assert (error.exit_code, error.message) == (2, "Project 7 has its own title.")


def test_inspections_before_an_error_are_shown(source: Path) -> None:
    result = cellai("inspect", source, source.with_name("missing.seg"))
    assert "does not exist" in refusal(result).message
    assert "5 images, 5 cells" in result.output


def test_inspection_of_an_unreadable_picture(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    result = cellai("inspect", tmp_path / "empty.png")
    assert result.exit_code == 3
    assert "cannot be imported: No cell was found" in result.output


def test_sample_at_a_path_that_cannot_be(tmp_path: Path) -> None:
    error = refusal(cellai("sample", tmp_path / f"{'long' * 80}.seg", "--cells", 5))
    assert "cannot be written" in error.message


def test_up_without_label_studio(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = [str(tmp_path / "label-studio")]
    monkeypatch.setattr("converters.launcher.label_studio_command", lambda _: absent)
    error = refusal(cellai("up", source, "--no-labels", "--data-dir", tmp_path / "new"))
    assert error.message == "Label Studio is not installed beside CellAI."
    assert not (tmp_path / "new").exists()


def test_title_of_the_folder_one_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert default_title(Path()) == f"CellAI: {tmp_path.name}"[:50]


def test_seed_that_no_file_can_hold(tmp_path: Path) -> None:
    result = cellai("sample", tmp_path / "cells.seg", "--cells", 5, "--seed", 2**63)
    assert result.exit_code == 2
    assert result.exception is None or isinstance(result.exception, SystemExit)

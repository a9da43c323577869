"""Labels submitted in Label Studio come back in a copy of the HDF5 source."""

import csv
from contextlib import closing
from pathlib import Path

import h5py
import pytest
from installation import Installation, annotate, run_cellai, wait_until

pytestmark = pytest.mark.label_studio


def test_copy_holds_exactly_the_submitted_labels(
    demo: Installation, sample_file: Path, tmp_path: Path
) -> None:
    before = sample_file.read_bytes()
    open_tasks = [task for task in demo.tasks() if not task["is_labeled"]]
    for task, label in zip(open_tasks, ("wbc", "oof", "plt"), strict=False):
        annotate(demo.label_studio, task["id"], label)
    exported = demo.label_studio.get(f"api/projects/{demo.project_id}/export", exportType="JSON")
    submitted = {
        task["data"]["index"]: task["annotations"][-1]["result"][0]["value"]["choices"][0]
        for task in exported
    }
    assert len(submitted) >= 3

    answer = run_cellai("export", "--data-dir", demo.data_dir, "--out", tmp_path / "out")
    assert answer.returncode == 0, answer.stderr
    with h5py.File(tmp_path / "out" / sample_file.name) as copy, h5py.File(sample_file) as source:
        written = [label.decode() for label in copy["label/ground_truth"][:]]
        assert (copy["phase/images"][:] == source["phase/images"][:]).all()
        kept = [label.decode() for label in source["label/ground_truth"][:]]
    for index, label in enumerate(written):
        assert label == submitted.get(index, kept[index])
    with (tmp_path / "out" / "labels.csv").open(newline="") as table:
        rows = {int(row["index"]): row["label"] for row in csv.DictReader(table)}
    assert rows == submitted
    assert sample_file.read_bytes() == before


def test_files_of_one_name_keep_their_labels_apart(
    demo: Installation, sample_file: Path, tmp_path: Path
) -> None:
    """Each lies in a folder of its day and is imported by a command of its own."""
    chosen = {"day1": "wbc", "day2": "oof"}
    for number, day in enumerate(chosen):
        (tmp_path / day).mkdir()
        with (
            h5py.File(sample_file) as sample,
            h5py.File(tmp_path / day / "M001.seg", "w") as file,
        ):
            for name in ("phase/images", "amplitude/images"):
                file[name] = sample[name][10 * number : 10 * number + 3]
    with closing(demo.new_project(tmp_path / "day1" / "M001.seg", "two days")) as days:
        again = ("import", "--data-dir", demo.data_dir, "--project", days.project_id)
        for source in (tmp_path / "day2" / "M001.seg", tmp_path / "day1" / "M001.seg"):
            answer = run_cellai(*again, source)
            assert answer.returncode == 0, answer.stderr
        assert "0 cells imported" in answer.stderr
        first = {
            task["data"]["source"]: task for task in days.tasks() if task["data"]["index"] == 0
        }
        assert sorted(first) == ["M001.seg", "day2/M001.seg"]
        annotate(days.label_studio, first["M001.seg"]["id"], chosen["day1"])
        annotate(days.label_studio, first["day2/M001.seg"]["id"], chosen["day2"])
    answer = run_cellai(
        *("export", "--data-dir", demo.data_dir, "--project", days.project_id),
        *("--out", tmp_path / "out"),
    )
    assert answer.returncode == 0, answer.stderr
    for name, day in (("M001.seg", "day1"), ("day2/M001.seg", "day2")):
        with (
            h5py.File(tmp_path / "out" / name) as copy,
            h5py.File(tmp_path / day / "M001.seg") as source,
        ):
            assert copy["label/ground_truth"].asstr()[:].tolist() == [chosen[day], "", ""]
            assert (copy["phase/images"][:] == source["phase/images"][:]).all()


def test_labels_that_disagree_follow_one_rule(
    demo: Installation, sample_file: Path, tmp_path: Path
) -> None:
    """A project with three annotations for each cell: ground truth, majority, the latest."""
    with closing(demo.new_project(sample_file, "overlap")) as overlap:
        connection = overlap.label_studio
        connection.patch(f"api/projects/{overlap.project_id}/", {"maximum_annotations": 3})
        by_truth, by_majority, by_time, half_skipped = overlap.tasks()[:4]
        for task, labels in (
            (by_truth, ("rbc", "wbc", "wbc")),
            (by_majority, ("plt", "plt", "rbc")),
            (by_time, ("agg", "oof")),
            (half_skipped, ("wbc",)),
        ):
            for label in labels:
                annotate(connection, task["id"], label)
        (first, *_) = sorted(
            connection.get(f"api/tasks/{by_truth['id']}/annotations/"), key=lambda row: row["id"]
        )
        connection.patch(f"api/annotations/{first['id']}/", {"ground_truth": True})
        connection.post(
            f"api/tasks/{half_skipped['id']}/annotations/", {"result": [], "was_cancelled": True}
        )

        wait_until(
            lambda: overlap.serving().get("n_labels") == 4,
            deadline_s=90,
            what="version of the four cells",
        )
    answer = run_cellai(
        *("export", "--data-dir", demo.data_dir, "--project", overlap.project_id),
        *("--out", tmp_path / "out"),
    )
    assert answer.returncode == 0, answer.stderr
    with (tmp_path / "out" / "labels.csv").open(newline="") as table:
        rows = {int(row["index"]): row["label"] for row in csv.DictReader(table)}
    assert rows == {
        by_truth["data"]["index"]: "rbc",
        by_majority["data"]["index"]: "plt",
        by_time["data"]["index"]: "oof",
        half_skipped["data"]["index"]: "wbc",
    }

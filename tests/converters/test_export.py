"""Exports hold every label at its place, keep the rest of the file, and never half an export."""

import csv
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from file_limit import longest_file
from PIL import Image

from converters.crops import ReadOptions
from converters.errors import ExportError, OutputError, SourceChangedError
from converters.export import ExportReport, ExportSource, export_labels
from converters.exported_cells import ExportTask, export_task
from converters.label_columns import decode_labels
from converters.labels import ChosenLabel
from converters.reading import iter_crops, name_sources
from converters.source import fingerprint

WriteHdf5 = Callable[..., Path]
SharedFile = Callable[[str], Path]
CLASSES = ("rbc", "wbc", "plt")
MONDAY = datetime(2026, 3, 2, 9, tzinfo=UTC)


def label(name: str, **fields: Any) -> ChosenLabel:
    known: dict[str, Any] = {
        "label": name,
        "annotation_id": 5,
        "annotator": "ada@lab.org",
        "labelled_at": MONDAY,
        "is_ground_truth": False,
        "model_version": "v7",
        "n_annotations": 1,
        "n_agreeing": 1,
    }
    return ChosenLabel(**(known | fields))


def tasks_of(
    *paths: Path, labels: dict[int, str], read: ReadOptions | None = None
) -> list[ExportTask]:
    """The tasks an import would make of these sources; `labels` by number of the cell."""
    return [
        ExportTask(
            task_id=100 + number,
            source=crop.source,
            dataset=crop.dataset,
            index=crop.index,
            bbox=crop.bbox,
            crop_id=crop.crop_id,
            group=crop.group,
            chosen=label(labels[number]) if number in labels else None,
        )
        for number, crop in enumerate(iter_crops(paths, options=read or ReadOptions()))
    ]


def sources_of(*paths: Path, read: ReadOptions | None = None) -> dict[str, ExportSource]:
    return {
        named.name: ExportSource(named.path, fingerprint(named.path), read or ReadOptions())
        for named in name_sources(paths)
    }


def export(
    out_dir: Path, *paths: Path, labels: dict[int, str], read: ReadOptions | None = None
) -> ExportReport:
    return export_labels(
        tasks_of(*paths, labels=labels, read=read),
        sources_of(*paths, read=read),
        out_dir=out_dir,
        project="Blood (3)",
        classes=CLASSES,
    )


def column(path: Path, dataset: str) -> list[str | None]:
    with h5py.File(path) as file:
        return list(decode_labels(file[dataset][()]))


def rows_of(report: ExportReport) -> list[dict[str, str]]:
    with report.csv.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def cells(write_hdf5: WriteHdf5, crop_stack: dict[str, Any]) -> Path:
    return write_hdf5("lab/cells.seg", crop_stack)


# --- what is written ---------------------------------------------------------------------------


def test_labels_stand_at_their_index_and_the_rest_is_as_before(
    cells: Path, tmp_path: Path, crop_stack: dict[str, Any]
) -> None:
    before = cells.read_bytes()
    report = export(tmp_path / "out", cells, labels={1: "plt", 4: "wbc"})
    assert cells.read_bytes() == before
    assert report.copies == {"cells.seg": tmp_path / "out" / "cells.seg"}
    assert (report.n_labels, report.csv_only) == (2, {})
    copy = report.copies["cells.seg"]
    assert column(copy, "label/ground_truth") == ["rbc", "plt", None, "rbc", "wbc"]
    assert column(copy, "label/ground_truth_before") == ["rbc", "wbc", None, "rbc", None]
    with h5py.File(copy) as file:
        for name in ("phase/images", "amplitude/images", "mask/images"):
            np.testing.assert_array_equal(file[name], crop_stack[name])


def test_table_and_attributes_say_who_when_and_which_model(cells: Path, tmp_path: Path) -> None:
    report = export(tmp_path / "out", cells, labels={1: "plt", 4: "wbc"})
    with h5py.File(report.copies["cells.seg"]) as file:
        table = file["cellai/cells"][()]
        places = (file["cellai/cells"].attrs, file["label/ground_truth"].attrs)
        attributes = [dict(place) for place in places]
    assert table["index"].tolist() == [1, 4]
    assert table["label"].tolist() == [b"plt", b"wbc"]
    assert table["dataset"].tolist() == [b"phase/images"] * 2
    assert table["annotator"].tolist() == [b"ada@lab.org"] * 2
    assert table["labelled_at"].tolist() == [b"2026-03-02T09:00:00+00:00"] * 2
    assert table["model_version"].tolist() == [b"v7"] * 2
    assert table["task_id"].tolist() == [101, 104]
    for found in attributes:
        assert found["annotators"].tolist() == ["ada@lab.org"]
        assert found["model_versions"].tolist() == ["v7"]
        assert found["labelled_from"] == found["labelled_until"] == MONDAY.isoformat()
        assert found["tool"].startswith("cellai ")
        assert found["project"] == "Blood (3)"
        assert found["source_sha256"] == fingerprint(cells)


def test_csv_holds_the_labels_of_all_sources(
    cells: Path, tmp_path: Path, write_hdf5: WriteHdf5
) -> None:
    generic = write_hdf5("lab/pictures.h5", {"images": np.ones((2, 20, 20, 3), np.uint8)})
    report = export(tmp_path / "out", cells, generic, labels={0: "rbc", 6: "wbc"})
    found = [(row["source"], row["dataset"], row["index"], row["label"]) for row in rows_of(report)]
    assert found == [
        ("cells.seg", "phase/images", "0", "rbc"),
        ("pictures.h5", "images", "1", "wbc"),
    ]
    assert column(report.copies["pictures.h5"], "labels") == [None, "wbc"]


def test_file_without_label_column_gets_one(
    tmp_path: Path, write_hdf5: WriteHdf5, crop_stack: dict[str, Any]
) -> None:
    del crop_stack["label/ground_truth"]
    cells = write_hdf5("cells.seg", crop_stack)
    report = export(tmp_path / "out", cells, labels={3: "wbc"})
    copy = report.copies["cells.seg"]
    assert column(copy, "label/ground_truth") == [None, None, None, "wbc", None]
    with h5py.File(copy) as file:
        assert file["label/ground_truth"][3] == b"wbc"


def test_rtdc_files_get_scores_that_keep_old_ones(tmp_path: Path, write_hdf5: WriteHdf5) -> None:
    image = np.full((3, 30, 40), 100, np.uint8)
    image[:, 10:20, 10:20] = 160
    datasets = {"events/image": image, "events/ml_score_rbc": np.array([0.5, 0.25, np.nan])}
    report = export(tmp_path / "out", write_hdf5("m.rtdc", datasets), labels={0: "rbc", 2: "plt"})
    with h5py.File(report.copies["m.rtdc"]) as file:
        np.testing.assert_array_equal(file["events/ml_score_rbc"], [1, np.nan, 0])
        np.testing.assert_array_equal(file["events/ml_score_wbc"], [0, np.nan, 0])
        np.testing.assert_array_equal(file["events/ml_score_plt"], [0, np.nan, 1])
        np.testing.assert_array_equal(file["cellai/ml_score_rbc_before"], [0.5, 0.25, np.nan])
        assert file["events/ml_score_plt"].attrs["class"] == "plt"
        assert "ml_class" not in file["events"]


def test_cells_of_frames_are_labelled_in_the_table_only(
    tmp_path: Path, write_hdf5: WriteHdf5
) -> None:
    mask = np.zeros((2, 200, 300), np.uint8)
    mask[0, 20:40, 20:40] = mask[0, 100:120, 200:220] = mask[1, 50:80, 50:80] = 1
    datasets = {
        "phase/images": mask.astype(np.float32) * 3,
        "mask/images": mask,
        "label/ground_truth": np.array([b"", b""]),
    }
    frames = write_hdf5("frames.pre", datasets)
    report = export(tmp_path / "out", frames, labels={0: "rbc", 2: "wbc"})
    assert report.n_labels == 2
    copy = report.copies["frames.pre"]
    assert column(copy, "label/ground_truth") == [None, "wbc"]
    with h5py.File(copy) as file:
        table = file["cellai/cells"][()]
    assert table["index"].tolist() == [0, 1]
    assert table[["x", "y", "width", "height"]].tolist() == [(20, 20, 20, 20), (50, 50, 30, 30)]
    limited = ReadOptions(limit=2)
    report = export(tmp_path / "limited", frames, labels={0: "rbc", 1: "wbc"}, read=limited)
    assert report.n_labels == 2
    assert column(report.copies["frames.pre"], "label/ground_truth") == [None, None]


def test_qpimage_series_is_labelled_in_the_table(tmp_path: Path, write_hdf5: WriteHdf5) -> None:
    phase = np.zeros((40, 40), np.float32)
    phase[10:30, 10:30] = 2
    series = {f"qpi_{n}/phase/raw": phase for n in range(3)}
    report = export(tmp_path / "out", write_hdf5("series.h5", series), labels={1: "rbc"})
    with h5py.File(report.copies["series.h5"]) as file:
        assert file["cellai/cells"]["dataset"].tolist() == [b"qpi_1/phase/raw"]
        assert sorted(file) == ["cellai", "qpi_0", "qpi_1", "qpi_2"]


def test_named_label_column_is_the_one_that_is_rewritten(
    tmp_path: Path, write_hdf5: WriteHdf5
) -> None:
    datasets = {
        "raw": np.ones((3, 20, 20), np.uint8),
        "other": np.ones((3, 20, 20), np.uint8),
        "meta/kind": np.array([b"rbc", b"rbc", b"wbc"]),
    }
    read = ReadOptions(images="raw", labels="meta/kind")
    path = write_hdf5("two.h5", datasets)
    report = export(tmp_path / "out", path, labels={0: "thrombocyte"}, read=read)
    assert column(report.copies["two.h5"], "meta/kind") == ["thrombocyte", "rbc", "wbc"]


def test_pictures_are_in_the_csv_only(tmp_path: Path) -> None:
    folder = tmp_path / "png"
    folder.mkdir()
    for colour in ("blue", "red"):
        Image.new("RGB", (40, 40), colour).save(folder / f"{colour}.png")
    report = export(tmp_path / "out", folder, labels={0: "rbc"})
    assert report.copies == {}
    assert report.csv_only == {"blue.png": 1}
    assert [row["source"] for row in rows_of(report)] == ["blue.png"]
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["labels.csv"]


def test_files_in_a_folder_are_copied_too(cells: Path, tmp_path: Path) -> None:
    report = export(tmp_path / "out", cells.parent, labels={1: "plt"})
    copy = tmp_path / "out" / "lab" / "cells.seg"
    assert report.copies == {"lab/cells.seg": copy}
    assert column(copy, "label/ground_truth") == ["rbc", "plt", None, "rbc", None]


def test_equal_names_in_two_folders_and_beside_them(
    tmp_path: Path, write_hdf5: WriteHdf5, crop_stack: dict[str, Any]
) -> None:
    paths = []
    for number, place in enumerate(("day1", "day2", ".")):
        phase = crop_stack["phase/images"] + number
        paths.append(write_hdf5(f"{place}/cells.seg", crop_stack | {"phase/images": phase}))
    sources = (paths[0].parent, paths[1].parent, paths[2])
    report = export(tmp_path / "out", *sources, labels={0: "plt", 6: "plt", 12: "plt"})
    written = {name: column(copy, "label/ground_truth") for name, copy in report.copies.items()}
    assert written == {
        "cells.seg": ["rbc", "wbc", "plt", "rbc", None],
        "day1/cells.seg": ["plt", "wbc", None, "rbc", None],
        "day2/cells.seg": ["rbc", "plt", None, "rbc", None],
    }


def test_copy_beside_the_source_has_another_name(cells: Path) -> None:
    report = export(cells.parent, cells, labels={1: "plt"})
    assert report.copies["cells.seg"].name == "cells-labelled.seg"
    assert column(cells, "label/ground_truth")[1] == "wbc"


def test_copy_does_not_need_the_files_its_source_links_to(
    cells: Path, tmp_path: Path, crop_stack: dict[str, Any]
) -> None:
    shape = crop_stack["phase/images"].shape
    linking = cells.with_name("linking.seg")
    with h5py.File(linking, "w") as file:
        for name in ("amplitude", "mask", "label"):
            file[name] = h5py.ExternalLink("cells.seg", name)
        layout = h5py.VirtualLayout(shape, np.float16)
        layout[:] = h5py.VirtualSource("cells.seg", "phase/images", shape=shape)
        file.create_virtual_dataset("phase/images", layout)
    report = export(tmp_path / "out", linking, labels={1: "plt"})
    cells.rename(cells.with_name("moved.seg"))
    copy = report.copies["linking.seg"]
    assert column(copy, "label/ground_truth") == ["rbc", "plt", None, "rbc", None]
    with h5py.File(copy) as file:
        np.testing.assert_array_equal(file["phase/images"], crop_stack["phase/images"])
        np.testing.assert_array_equal(file["mask/images"], crop_stack["mask/images"])


def test_an_export_can_be_labelled_and_exported_again(cells: Path, tmp_path: Path) -> None:
    first = export(tmp_path / "one", cells, labels={1: "plt"}).copies["cells.seg"]
    second = export(tmp_path / "two", first, labels={2: "wbc"}).copies["cells.seg"]
    assert column(second, "label/ground_truth") == ["rbc", "plt", "wbc", "rbc", None]
    assert column(second, "label/ground_truth_before2") == ["rbc", "plt", None, "rbc", None]
    assert column(second, "label/ground_truth_before") == ["rbc", "wbc", None, "rbc", None]


def test_labels_of_unknown_sources_are_in_the_csv_and_reported(tmp_path: Path) -> None:
    foreign = ExportTask(1, "", "", 0, (0, 0, 0, 0), "", "", label("rbc"))
    report = export_labels([foreign], {}, out_dir=tmp_path / "out", project="", classes=CLASSES)
    assert report.csv_only == {"": 1}
    assert rows_of(report)[0]["label"] == "rbc"


def test_real_file_comes_back_with_its_labels(shared_file: SharedFile, tmp_path: Path) -> None:
    path = shared_file("bccd5.seg")
    tasks = [
        ExportTask(
            task_id=index,
            source=path.name,
            dataset="phase/images",
            index=index,
            bbox=(0, 0, 96, 96),
            crop_id="",
            group="",
            chosen=label("granulocyte") if index % 3 == 0 else None,
        )
        for index in range(2333)
    ]
    report = export_labels(
        tasks, sources_of(path), out_dir=tmp_path, project="", classes=("granulocyte",)
    )
    old = column(path, "label/ground_truth")
    expected = ["granulocyte" if n % 3 == 0 else name for n, name in enumerate(old)]
    assert column(report.copies[path.name], "label/ground_truth") == expected
    assert report.copies[path.name].stat().st_size < path.stat().st_size + 2**20


# --- what is refused ---------------------------------------------------------------------------


def test_changed_source_is_refused(cells: Path, tmp_path: Path) -> None:
    tasks, sources = tasks_of(cells, labels={0: "rbc"}), sources_of(cells)
    with h5py.File(cells, "r+") as file:
        file["phase/images"][0] = 0
    with pytest.raises(SourceChangedError, match="has changed since its import"):
        export_labels(tasks, sources, out_dir=tmp_path / "out", project="", classes=CLASSES)
    cells.unlink()
    with pytest.raises(SourceChangedError, match="no longer is"):
        export_labels(tasks, sources, out_dir=tmp_path / "out", project="", classes=CLASSES)
    assert not (tmp_path / "out").exists()


def test_same_export_again_changes_nothing_another_one_is_refused(
    cells: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    export(out, cells, labels={1: "plt"})
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    export(out, cells, labels={1: "plt"})
    with pytest.raises(OutputError, match=r"already holds another labels\.csv and another cells"):
        export(out, cells, labels={1: "wbc"})
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


def test_foreign_file_in_the_way_is_not_overwritten(cells: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "cells.seg").write_text("my thesis")
    with pytest.raises(OutputError, match=r"already holds another cells\.seg"):
        export(out, cells, labels={1: "plt"})
    assert [file.name for file in out.iterdir()] == ["cells.seg"]
    assert (out / "cells.seg").read_text() == "my thesis"


@pytest.mark.parametrize(
    ("dataset", "index"), [("phase/images", 5), ("phase/images", -1), ("x", 0)]
)
def test_task_without_place_in_its_source_is_refused(
    cells: Path, tmp_path: Path, dataset: str, index: int
) -> None:
    (task, *_) = tasks_of(cells, labels={0: "rbc"})
    wrong = replace(task, dataset=dataset, index=index)
    with pytest.raises(ExportError, match=f"image {index} of '{dataset}'"):
        export_labels([wrong], sources_of(cells), out_dir=tmp_path, project="", classes=CLASSES)
    assert list(tmp_path.glob("*.csv")) == []


def test_task_cannot_name_a_file_outside_its_folder(cells: Path, tmp_path: Path) -> None:
    inside = cells.parent / "inside"
    inside.mkdir()
    (task, *_) = tasks_of(cells, labels={0: "rbc"})
    for name in ("../cells.seg", "inside/../cells.seg"):
        wrong = replace(task, source=name)
        report = export_labels(
            [wrong], sources_of(inside), out_dir=tmp_path / "out", project="", classes=CLASSES
        )
        assert report.copies == {}
        (tmp_path / "out" / "labels.csv").unlink()


def test_folder_that_cannot_be_made_is_one_sentence(cells: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=r"cannot be written to .*Not a directory"):
        export(tmp_path / "file" / "out", cells, labels={1: "plt"})


def test_full_disk_is_foreseen(
    cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(_path: Path) -> Any:
        return type("Usage", (), {"free": 1000})

    monkeypatch.setattr("shutil.disk_usage", no_space)
    with pytest.raises(OutputError, match="The copies need"):
        export(tmp_path / "out", cells, labels={1: "plt"})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("beyond_source", [-1000, 100, 10_000])
def test_disk_that_fills_up_leaves_nothing(cells: Path, tmp_path: Path, beyond_source: int) -> None:
    tasks, sources = tasks_of(cells, labels={1: "plt"}), sources_of(cells)
    with (
        longest_file(cells.stat().st_size + beyond_source),
        pytest.raises(OutputError, match="cannot be written"),
    ):
        export_labels(tasks, sources, out_dir=tmp_path / "out", project="", classes=CLASSES)
    assert not (tmp_path / "out").exists()


# --- tasks of Label Studio ---------------------------------------------------------------------


def exported(**data: Any) -> dict[str, Any]:
    return {
        "id": 7,
        "data": {
            "source": "cells.seg",
            "dataset": "phase/images",
            "index": 3,
            "bbox": [1, 2, 3, 4],
            "crop_id": "abc",
            "group": "f1",
            **data,
        },
        "annotations": [
            {
                "id": 9,
                "completed_by": 4,
                "updated_at": "2026-03-02T09:00:00Z",
                "result": [{"from_name": "cell", "type": "choices", "value": {"choices": ["rbc"]}}],
            }
        ],
    }


def test_task_of_label_studio_is_understood() -> None:
    task = export_task(exported(), from_name="cell", annotators={"4": "ada@lab.org"})
    assert task.bbox == (1, 2, 3, 4)
    assert (task.source, task.dataset, task.index) == ("cells.seg", "phase/images", 3)
    assert task.chosen is not None
    assert (task.chosen.label, task.chosen.annotator) == ("rbc", "ada@lab.org")
    assert export_task(exported(), from_name="other").chosen is None


def test_task_that_no_import_made_has_no_place() -> None:
    task = export_task({"id": 1, "data": {"image": "x.png"}}, from_name="cell")
    assert (task.source, task.dataset, task.bbox) == ("", "", (0, 0, 0, 0))


@pytest.mark.parametrize("data", [{"index": "three"}, {"bbox": [1, 2]}, {"bbox": 5}])
def test_edited_task_is_named(data: dict[str, Any]) -> None:
    with pytest.raises(ExportError, match="Task 7 has index"):
        export_task(exported(**data), from_name="cell")

"""The numbers of the report, on a project small enough to count by hand."""

import base64
import io
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import SecretStr

from backend.cards import render_card
from backend.errors import UnknownProjectError
from backend.gallery import card_picture, confident_errors
from backend.history import History, QueuedCell, VersionRecord
from backend.jobs import JobStore
from backend.label_studio import LabelStudioClient
from backend.metrics import expected_calibration_error, reliability
from backend.prior_predictions import PriorPrediction, PriorPredictions, prior_predictions
from backend.report import (
    ReportReader,
    drawn_per_epoch,
    pool_histograms,
    read_hold_out,
    read_pace,
)
from backend.settings import Settings
from backend.training import BATCH
from converters.label_config import LabelConfig
from converters.labels import annotation_label
from converters.placeholder import render_placeholder

CONFIG = LabelConfig("cell_class", "card", ("a", "b"), ("A", "B"), ())
XML = """<View><HyperText name="card" value="$card"/>
<Choices name="cell_class" toName="card">
<Choice value="A" alias="a"/><Choice value="B" alias="b"/></Choices></View>"""
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
METRICS: dict[str, object] = {
    "n_holdout": 8,
    "macro_f1": 0.7,
    "macro_f1_se": 0.05,
    "confusion": [[3, 1], [2, 2]],
    "precision": [0.6, 2 / 3],
    "recall": [0.75, 0.5],
    "ece": 0.1,
    "brier": 0.3,
    "reliability": [[8.0, 0.9, 0.625]],
}


def record(name: str, n_labels: int, **changes: Any) -> VersionRecord:
    created_at = f"2026-01-{int(name[-2:]):02}T00:00:00+00:00"
    return VersionRecord(name, created_at, CONFIG.classes, n_labels, **{"metrics": {}} | changes)


def annotated(
    task_id: int, label: str, *, shown: dict[str, float] | None = None, **changes: Any
) -> dict[str, Any]:
    """A task of the export whose annotator saw the given probabilities."""

    def region(choice: str) -> dict[str, Any]:
        return {
            "from_name": "cell_class",
            "to_name": "card",
            "type": "choices",
            "value": {"choices": [choice]},
        }

    prediction: dict[str, Any] = {}
    if shown is not None:
        best = max(shown, key=shown.__getitem__)
        prediction = {
            "model_version": "cellai-0001",
            "result": [region(best) | {"meta": {"probabilities": shown}}],
        }
    annotation = {
        "id": task_id,
        "completed_by": 1,
        "created_at": (NOON + timedelta(seconds=10 * task_id)).isoformat(),
        "result": [region(label)],
        "prediction": prediction,
    }
    data = {"phase": f"/data/local-files/?d={task_id}.png", "card": "/data/local-files/?d=c.html"}
    return {"id": task_id, "data": data, "annotations": [annotation | changes]}


class FakeLabelStudio(LabelStudioClient):
    """One project in memory. The real server does this in tests/test_progress_report.py."""

    def __init__(self, tasks: list[dict[str, Any]]) -> None:
        super().__init__("http://label-studio", "token")
        self.rows = tasks
        self.exports: list[list[int]] = []

    def project(self, project_id: int) -> dict[str, Any]:
        return {"title": "Blood", "label_config": XML, "task_number": 9}

    def annotated_tasks(self, project_id: int) -> Iterator[dict[str, Any]]:
        for row in self.rows:
            annotations = [
                {name: value for name, value in annotation.items() if name != "prediction"}
                for annotation in row["annotations"]
            ]
            yield {"id": row["id"], "annotations": annotations}

    def exported_tasks(
        self, project_id: int, *, task_ids: Sequence[int] = ()
    ) -> list[dict[str, Any]]:
        self.exports.append(list(task_ids))
        return [row for row in self.rows if not task_ids or row["id"] in task_ids]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    files = tmp_path / "files"
    files.mkdir()
    return Settings(
        label_studio_url="http://label-studio",
        label_studio_api_key=SecretStr("token"),
        data_dir=tmp_path / "backend",
        files_dir=files,
    )


def card() -> str:
    return render_card(
        cell=np.full((96, 96, 3), 200, np.uint8),
        heat=np.ones((4, 4), np.float32),
        classes=CONFIG.titles,
        probabilities=np.array([0.3, 0.7], np.float32),
        uncertainty=0.5,
        model_version="cellai-0002",
        n_labels=3,
    )


def test_report_gathers_everything_of_a_project(settings: Settings) -> None:
    store = JobStore(settings.data_dir / "jobs.sqlite")
    store.set_up(3, extra_params="")
    store.serve(3, "cellai-02")
    Image.new("RGB", (96, 96), "red").save(settings.files_dir / "5.png")
    (settings.files_dir / "c.html").write_text(card())
    front = tuple(
        QueuedCell(n, f"/data/local-files/?d={n}.png", "/data/local-files/?d=c.html", 0.9, "b", 0.6)
        for n in (1, 5, 6)
    )
    history = History(settings.data_dir / "history")
    history.write(3, record("cellai-01", 2, metrics=METRICS, uncertainty_counts=(0, 4)))
    history.write(
        3, record("cellai-02", 4, metrics=METRICS, uncertainty_counts=(3, 0), front=front)
    )
    tasks = [
        annotated(1, "a", shown={"a": 0.05, "b": 0.95}),
        annotated(2, "a", shown={"a": 0.8, "b": 0.2}),
        annotated(3, "b"),
    ]
    reader = ReportReader(settings, store=store, client=FakeLabelStudio(tasks))
    report = reader.read(3)

    assert (report.title, report.serving_version) == ("Blood", "cellai-02")
    assert (report.n_labels, report.n_tasks, report.label_counts) == (3, 9, (2, 1))
    assert report.drawn_per_epoch == (BATCH / 2, BATCH / 2)
    assert [point.n_labels for point in report.curve] == [2, 4]
    assert report.pool_before is not None
    assert report.pool_before.counts == (0, 4)
    assert report.pool_now is not None
    assert report.pool_now.counts == (3, 0)
    assert [cell.task_id for cell in report.uncertain] == [5, 6]  # 1 has a label by now
    readable, unreadable = report.uncertain
    assert readable.predicted == "B"
    assert decoded(readable.picture).getpixel((0, 0)) == (255, 0, 0)
    assert decoded(readable.heat).format == "JPEG"
    assert unreadable.picture == ""
    (error,) = report.contradicted
    assert (error.task_id, error.label, error.predicted, error.version) == (
        1,
        "A",
        "B",
        "cellai-0001",
    )
    assert report.pace.per_hour == 360
    assert report.progress.is_waiting
    assert report.hold_out is not None
    assert [listed.id for listed in reader.projects()] == [3]


def test_project_that_is_not_connected(settings: Settings) -> None:
    store = JobStore(settings.data_dir / "jobs.sqlite")
    with pytest.raises(UnknownProjectError, match="Project 8"):
        ReportReader(settings, store=store, client=FakeLabelStudio([])).read(8)


def test_project_without_a_version_has_a_report(settings: Settings) -> None:
    store = JobStore(settings.data_dir / "jobs.sqlite")
    store.set_up(3, extra_params="")
    report = ReportReader(settings, store=store, client=FakeLabelStudio([])).read(3)
    assert (report.serving_version, report.hold_out, report.pool_now) == ("", None, None)
    assert report.drawn_per_epoch == (0, 0)
    assert report.pace.per_hour is None
    assert report.advice.verdict == "start"


@pytest.mark.parametrize(("serving", "held_back"), [("cellai-01", "cellai-02"), ("cellai-02", "")])
def test_version_that_was_too_bad_is_named_until_somebody_promotes_it(
    settings: Settings, serving: str, held_back: str
) -> None:
    store = JobStore(settings.data_dir / "jobs.sqlite")
    store.set_up(3, extra_params="")
    store.finish(store.begin(store.projects()[0]), store.projects()[0], changed=True)
    store.serve(3, serving)
    history = History(settings.data_dir / "history")
    history.write(3, record("cellai-01", 2))
    history.write(3, record("cellai-02", 4, promoted=False))
    progress = ReportReader(settings, store=store, client=FakeLabelStudio([])).read(3).progress
    assert progress.held_back == held_back
    assert ("cellai-02 did worse" in progress.sentence) == bool(held_back)


def test_cards_outside_the_shared_folder_are_not_read(settings: Settings) -> None:
    settings.data_dir.mkdir()
    (settings.data_dir / "c.html").write_text(card())
    task = annotated(1, "a", shown={"a": 0.0, "b": 1.0})
    task["data"]["card"] = "/data/local-files/?d=../backend/c.html"
    store = JobStore(settings.data_dir / "jobs.sqlite")
    store.set_up(3, extra_params="")
    (error,) = (
        ReportReader(settings, store=store, client=FakeLabelStudio([task])).read(3).contradicted
    )
    assert (error.picture, error.heat) == ("", "")


def decoded(address: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))


def test_hold_out_with_f1_from_the_counts() -> None:
    hold_out = read_hold_out(record("v-02", 20, metrics=METRICS), CONFIG)
    assert hold_out is not None
    assert list(hold_out.f1) == pytest.approx([6 / 9, 4 / 7])
    assert hold_out.titles == ("A", "B")
    older = {name: value for name, value in METRICS.items() if name != "reliability"}
    without = read_hold_out(record("v-02", 20, metrics=older), CONFIG)
    assert without is not None
    assert without.reliability == ()
    assert read_hold_out(record("v-02", 20), CONFIG) is None


def test_histogram_before_is_that_of_the_first_calibrated_version() -> None:
    cold = record("v-01", 0)
    first = record("v-02", 20, uncertainty_counts=(5, 0))  # too few labels for a temperature
    second, third, last = (
        record(f"v-0{n}", 10 * n, uncertainty_counts=counts, metrics=METRICS)
        for n, counts in enumerate([(0, 4), (1, 3), (4, 0)], start=3)
    )
    before, now = pool_histograms([cold, first, second, third, last], last)
    assert before is not None
    assert now is not None
    assert (before.version, now.version) == ("v-03", "v-05")
    assert pool_histograms([cold, first, second], second)[0] is None
    assert pool_histograms([cold], cold) == (None, None)


@pytest.mark.parametrize(
    ("counts", "drawn"),
    [
        ((0, 0, 0), (0, 0, 0)),
        ((10, 1, 0), (32, 32, 0)),
        ((70, 10, 16), (128 / 3, 128 / 3, 128 / 3)),
    ],
)
def test_sampler_draws_every_labelled_class_alike(
    counts: tuple[int, ...], drawn: tuple[float, ...]
) -> None:
    assert drawn_per_epoch(counts) == pytest.approx(drawn)


def test_pace_leaves_breaks_out_and_annotators_apart() -> None:
    def at(*seconds: int, who: str = "1") -> list[tuple[str, datetime]]:
        return [(who, NOON + timedelta(seconds=s)) for s in seconds]

    pace = read_pace([*at(0, 10, 20, 4000, 4010), *at(5, who="2")])
    assert pace.per_hour == pytest.approx(360)
    assert pace.hours == ((NOON, 4), (NOON + timedelta(hours=1), 2))
    assert read_pace(at(0)).per_hour is None
    assert read_pace([]).hours == ()


def test_errors_are_confident_contradictions_only() -> None:
    tasks = [
        annotated(1, "a", shown={"a": 0.2, "b": 0.8}),
        annotated(2, "a", shown={"a": 0.1, "b": 0.9}),
        annotated(3, "a", shown={"a": 0.4, "b": 0.6}),  # a guess
        annotated(4, "b", shown={"a": 0.1, "b": 0.9}),  # agreed
        annotated(5, "a"),  # saw no prediction
        annotated(6, "a", shown={"a": 0.0, "b": 1.0}, was_cancelled=True),
    ]
    labels = {
        task["id"]: label
        for task in tasks
        if (label := annotation_label(task["annotations"][0], from_name="cell_class"))
    }
    prior: dict[int, PriorPrediction | None] = {}
    for task in tasks:
        prior |= prior_predictions(task, from_name="cell_class")
    errors = confident_errors(tasks, labels, prior, from_name="cell_class")
    assert [error.task_id for error in errors] == [2, 1]


def test_each_annotation_is_exported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Label Studio keeps a file of each export, and the page is loaded at each new version."""
    label_studio = FakeLabelStudio([annotated(n, "a", shown={"b": 0.9}) for n in (1, 2)])
    known = PriorPredictions(label_studio)

    def read() -> list[int]:
        tasks = label_studio.annotated_tasks(3)
        return sorted(known.of(3, tasks, from_name="cell_class"))

    assert read() == read() == [1, 2]
    assert label_studio.exports == [[1, 2]]
    label_studio.rows.append(annotated(3, "a"))
    assert read() == [1, 2, 3]
    assert label_studio.exports == [[1, 2], [3]]
    monkeypatch.setattr("backend.prior_predictions.MOST_IN_ADDRESS", 1)
    label_studio.rows += [annotated(4, "a"), annotated(5, "a")]
    assert read() == [1, 2, 3, 4, 5]
    assert label_studio.exports == [[1, 2], [3], []]


def test_card_gives_its_grad_cam_and_a_placeholder_none() -> None:
    assert card_picture(card()).startswith("data:image/jpeg;base64,")
    assert decoded(card_picture(card())).size == (144, 144)
    assert card_picture(render_placeholder("The model has not seen this cell yet.")) == ""


def test_reliability_by_hand() -> None:
    probabilities = np.array([[0.95, 0.05], [0.91, 0.09], [0.4, 0.6], [0.0, 1.0]], np.float32)
    labels = np.array([0, 1, 1, 1])
    assert reliability(probabilities, labels) == [
        [1.0, pytest.approx(0.6), 1.0],
        [3.0, pytest.approx(2.86 / 3), pytest.approx(2 / 3)],
    ]
    expected = (0.4 + 3 * (2.86 / 3 - 2 / 3)) / 4
    assert expected_calibration_error(probabilities, labels) == pytest.approx(expected)

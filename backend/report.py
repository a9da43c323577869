"""The numbers of a project's progress report; `report_page` makes a page of them.

In: versions and their records, jobs, and what Label Studio holds (classes, annotations). Out:
one frozen `Report`. Nothing is trained or predicted here: all was measured when a version was made.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from backend.advice import Advice, ClassState, Gain, advise, recent_gain
from backend.errors import UnknownProjectError
from backend.gallery import Gallery, GalleryCell, title_of
from backend.history import History, VersionRecord
from backend.images import picture_reader
from backend.jobs import Job, JobStore, Project
from backend.label_studio import LabelStudioClient
from backend.prior_predictions import PriorPredictions
from backend.registry import Registry
from backend.settings import Settings
from backend.training import BATCH, sampling_chances
from converters.label_config import LabelConfig, read_label_config
from converters.labels import annotation_label, chosen_label

HOURS_SHOWN = 24
JOBS_SHOWN = 6
# A longer gap between two labels of one person is a break.
BREAK_S = 300


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One version on the learning curve; F1 and its standard error are None without a hold-out."""

    version: str
    created_at: str
    n_labels: int
    n_holdout: int
    macro_f1: float | None
    macro_f1_se: float | None
    promoted: bool


@dataclass(frozen=True, slots=True)
class HoldOut:
    """What the hold-out of one version says; per class in class order, None where undefined."""

    version: str
    titles: tuple[str, ...]
    n_holdout: int
    macro_f1: float
    macro_f1_se: float
    confusion: tuple[tuple[int, ...], ...]  # rows: label, columns: prediction
    precision: tuple[float | None, ...]
    recall: tuple[float | None, ...]
    f1: tuple[float | None, ...]
    ece: float
    brier: float
    reliability: tuple[tuple[float, float, float], ...]  # crops, mean confidence, accuracy


@dataclass(frozen=True, slots=True)
class PoolHistogram:
    """Open cells in equal bins of uncertainty over [0, 1]."""

    version: str
    n_labels: int
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Pace:
    """When labels were given, imported ones left out.

    Attributes:
        hours: start of the hour (UTC) and labels given in it, for the last hours with any.
        per_hour: labels per hour of work, breaks left out; None with too few labels.
    """

    hours: tuple[tuple[datetime, int], ...]
    per_hour: float | None


@dataclass(frozen=True, slots=True)
class Progress:
    """What the job runner does for the project now.

    Attributes:
        jobs: the last ones, newest first.
        is_waiting: labels or tasks wait for the next job.
        new_labels: labels announced since the last job began.
        held_back: the newest version, if it was too bad to be served; '' if it is served.
    """

    jobs: tuple[Job, ...]
    is_waiting: bool
    new_labels: int
    held_back: str = ""

    @property
    def sentence(self) -> str:
        """What goes on now, in words."""
        newest = self.jobs[0] if self.jobs else None
        if newest is not None and newest.state == "running":
            return f"Working: {newest.stage or 'starting'}."
        if newest is not None and newest.state == "failed":
            return f"The last job failed and is tried again: {newest.error}"
        if self.is_waiting:
            return f"{self.new_labels} new labels wait for the next version."
        if self.held_back:
            return (
                f"{self.held_back} did worse on its held-out cells than the version in service,"
                " which goes on sorting the queue."
            )
        return "The queue is up to date."


@dataclass(frozen=True, slots=True)
class Report:
    """Everything the page shows of one project."""

    project_id: int
    title: str
    written_at: datetime
    serving_version: str
    n_tasks: int
    n_labels: int
    titles: tuple[str, ...]
    label_counts: tuple[int, ...]
    drawn_per_epoch: tuple[float, ...]
    curve: tuple[CurvePoint, ...]
    hold_out: HoldOut | None
    pool_before: PoolHistogram | None
    pool_now: PoolHistogram | None
    pace: Pace
    uncertain: tuple[GalleryCell, ...]
    contradicted: tuple[GalleryCell, ...]
    progress: Progress
    advice: Advice
    gain: Gain | None


class ReportReader:
    """Gathers reports from the backend's own files and from Label Studio.

    Args:
        settings: of the backend.
        store: projects and jobs.
        client: of the Label Studio whose projects they are.
    """

    def __init__(self, settings: Settings, *, store: JobStore, client: LabelStudioClient) -> None:
        self._store = store
        self._client = client
        self._registry = Registry(settings.data_dir / "models")
        self._history = History(settings.data_dir / "history")
        self._gallery = Gallery(picture_reader(settings, client))
        self._prior = PriorPredictions(client)

    def projects(self) -> list[Project]:
        """The connected projects, ascending by id."""
        return sorted(self._store.projects(), key=lambda project: project.id)

    def latest(self, project: Project) -> VersionRecord | None:
        """The version in service; None before the first."""
        return _serving(self._records(project.id), project.serving_version)

    def read(self, project_id: int) -> Report:
        """The report of a project.

        Raises:
            UnknownProjectError: the backend is not connected to it.
            LabelStudioError: Label Studio does not answer, or no longer has the project.
        """
        project = self._store.project(project_id)
        if project is None:
            raise UnknownProjectError(
                f"Project {project_id} is not connected to this backend.",
                hint="/report lists the projects that are.",
            )
        described = self._client.project(project_id)
        config = read_label_config(described["label_config"])
        tasks = list(self._client.annotated_tasks(project_id))
        labels = _labels(tasks, config)
        prior = self._prior.of(project_id, tasks, from_name=config.from_name)
        counts = Counter(labels.values())
        label_counts = tuple(counts[name] for name in config.classes)
        records = self._records(project_id)
        serving = _serving(records, project.serving_version)
        hold_out = None if serving is None else read_hold_out(serving, config)
        judged = [record for record in records if record.promoted]
        before, now = pool_histograms(records, serving)
        return Report(
            project_id=project_id,
            title=str(described["title"]),
            written_at=datetime.now(UTC),
            serving_version=project.serving_version or "",
            n_tasks=int(described["task_number"]),
            n_labels=len(labels),
            titles=config.titles,
            label_counts=label_counts,
            drawn_per_epoch=drawn_per_epoch(label_counts),
            curve=tuple(_curve_point(record) for record in records),
            hold_out=hold_out,
            pool_before=before,
            pool_now=now,
            pace=read_pace(_given_labels(tasks, config)),
            uncertain=self._gallery.uncertain(serving, labels, config),
            contradicted=self._gallery.contradicted(tasks, labels, prior, config),
            progress=self._progress(project, records),
            advice=advise(judged, _class_states(config, label_counts, hold_out)),
            gain=recent_gain(judged) if judged else None,
        )

    def _records(self, project_id: int) -> list[VersionRecord]:
        return self._history.records(project_id, versions=self._registry.versions(project_id))

    def _progress(self, project: Project, records: Sequence[VersionRecord]) -> Progress:
        held_back = [record.version for record in records[-1:] if not record.promoted]
        return Progress(
            jobs=tuple(self._store.jobs(project.id, limit=JOBS_SHOWN)),
            is_waiting=project.events != project.handled,
            new_labels=project.new_labels,
            held_back="" if project.serving_version in held_back else "".join(held_back),
        )


def read_hold_out(record: VersionRecord, config: LabelConfig) -> HoldOut | None:
    """The hold-out of a version; None where it had none."""
    metrics: Mapping[str, Any] = record.metrics
    if "confusion" not in metrics:
        return None
    confusion = np.array(metrics["confusion"])
    hits, totals = np.diag(confusion), confusion.sum(axis=0) + confusion.sum(axis=1)
    return HoldOut(
        version=record.version,
        titles=tuple(title_of(name, config) for name in record.classes),
        n_holdout=int(metrics["n_holdout"]),
        macro_f1=float(metrics["macro_f1"]),
        macro_f1_se=float(metrics["macro_f1_se"]),
        confusion=tuple(tuple(int(count) for count in row) for row in confusion),
        precision=tuple(metrics["precision"]),
        recall=tuple(metrics["recall"]),
        f1=tuple(
            float(2 * hit / total) if support else None
            for hit, total, support in zip(hits, totals, confusion.sum(axis=1), strict=True)
        ),
        ece=float(metrics["ece"]),
        brier=float(metrics["brier"]),
        reliability=tuple(
            (float(n), float(confidence), float(accuracy))
            for n, confidence, accuracy in metrics.get("reliability", ())
        ),
    )


def pool_histograms(
    records: Sequence[VersionRecord], serving: VersionRecord | None
) -> tuple[PoolHistogram | None, PoolHistogram | None]:
    """The pool's uncertainty under the first version that was calibrated, and the serving one."""
    if serving is None or not serving.uncertainty_counts:
        return None, None
    calibrated = (
        record
        for record in records
        if record.uncertainty_counts and "macro_f1" in record.metrics and record is not serving
    )
    first = next(calibrated, None)
    return None if first is None else _histogram(first), _histogram(serving)


def drawn_per_epoch(label_counts: Sequence[int]) -> tuple[float, ...]:
    """Crops of each class that the balanced sampler draws in one pass over the labels.

    Args:
        label_counts: labels of each class.

    Returns:
        Expected number for each class; their sum is that of the whole batches of an epoch.
    """
    labels = np.repeat(np.arange(len(label_counts)), label_counts)
    if not len(labels):
        return (0.0,) * len(label_counts)
    drawn = BATCH * math.ceil(len(labels) / BATCH)
    shares = np.bincount(labels, weights=sampling_chances(labels), minlength=len(label_counts))
    return tuple(float(share * drawn) for share in shares)


def read_pace(given: Iterable[tuple[str, datetime]]) -> Pace:
    """Labels per hour.

    Args:
        given: annotator and time of each label.
    """
    by_annotator: dict[str, list[datetime]] = {}
    hours: Counter[datetime] = Counter()
    for annotator, moment in given:
        by_annotator.setdefault(annotator, []).append(moment)
        hours[moment.replace(minute=0, second=0, microsecond=0)] += 1
    gaps = [
        (later - earlier).total_seconds()
        for moments in by_annotator.values()
        for earlier, later in zip(sorted(moments), sorted(moments)[1:], strict=False)
    ]
    work = [gap for gap in gaps if gap <= BREAK_S]
    per_hour = 3600 * len(work) / math.fsum(work) if math.fsum(work) > 0 else None
    return Pace(tuple(sorted(hours.items())[-HOURS_SHOWN:]), per_hour)


def _serving(records: Iterable[VersionRecord], name: str | None) -> VersionRecord | None:
    return next((record for record in records if record.version == name), None)


def _labels(tasks: Iterable[Mapping[str, Any]], config: LabelConfig) -> dict[int, str]:
    """Label by task id, by the rule that training follows."""
    labels = {}
    for task in tasks:
        chosen = chosen_label(task["annotations"], from_name=config.from_name)
        if chosen is not None and chosen.label in config.classes:
            labels[int(task["id"])] = chosen.label
    return labels


def _given_labels(
    tasks: Iterable[Mapping[str, Any]], config: LabelConfig
) -> Iterable[tuple[str, datetime]]:
    """Annotator and time of each label that a person gave; ground truth came with the source."""
    for task in tasks:
        for annotation in task["annotations"]:
            if (
                annotation.get("ground_truth")
                or annotation_label(annotation, from_name=config.from_name) is None
            ):
                continue
            moment = datetime.fromisoformat(str(annotation["created_at"]))
            yield str(annotation.get("completed_by")), moment.astimezone(UTC)


def _curve_point(record: VersionRecord) -> CurvePoint:
    metrics: Mapping[str, Any] = record.metrics
    return CurvePoint(
        version=record.version,
        created_at=record.created_at,
        n_labels=record.n_labels,
        n_holdout=int(metrics.get("n_holdout", 0)),
        macro_f1=metrics.get("macro_f1"),
        macro_f1_se=metrics.get("macro_f1_se"),
        promoted=record.promoted,
    )


def _histogram(record: VersionRecord) -> PoolHistogram:
    return PoolHistogram(record.version, record.n_labels, record.uncertainty_counts)


def _class_states(
    config: LabelConfig, label_counts: Sequence[int], hold_out: HoldOut | None
) -> list[ClassState]:
    f1 = {} if hold_out is None else dict(zip(hold_out.titles, hold_out.f1, strict=True))
    return [
        ClassState(title, count, f1.get(title))
        for title, count in zip(config.titles, label_counts, strict=True)
    ]

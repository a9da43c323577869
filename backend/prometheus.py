"""The backend's state in the Prometheus text format, version 0.0.4.

Written by hand: a dozen gauges that are read from the job store at each scrape need no client
library, whose counters live in one process while the backend has several.

Source: https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format
"""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from backend.jobs import JobStore, Project
from backend.registry import Registry, Version
from backend.runner_record import read_runner
from backend.settings import Settings

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

HELP = {
    "cellai_jobs": "Jobs by state, since the job store was made.",
    "cellai_waiting": "1 while changes of a project wait for a job.",
    "cellai_pool_tasks": "Tasks of a project when a job last read it.",
    "cellai_labels": "Labelled tasks of a project when a job last read it.",
    "cellai_learned_labels": "Labels that the serving version was trained on.",
    "cellai_versions": "Stored model versions of a project.",
    "cellai_serving_version_age_seconds": "Time since the serving version was made.",
    "cellai_macro_f1": "Hold-out macro-F1 of the serving version.",
    "cellai_stage_seconds": "Duration of each kind of stage of the last finished job.",
    "cellai_runner_up": "1 while the job runner has its model and runs.",
    "cellai_disk_free_bytes": "Free space on the disk of a folder.",
}


@dataclass(frozen=True, slots=True)
class Sample:
    """One value of one metric."""

    name: str
    value: float
    labels: Mapping[str, str] = field(default_factory=dict)


def render_metrics(settings: Settings, store: JobStore, registry: Registry) -> str:
    """All metrics of this backend, each with its HELP and TYPE lines."""
    samples = list(_samples(settings, store, registry))
    lines = []
    for name, text in HELP.items():
        lines += [f"# HELP {name} {text}", f"# TYPE {name} gauge"]
        lines += [_line(sample) for sample in samples if sample.name == name]
    return "\n".join(lines) + "\n"


def _samples(settings: Settings, store: JobStore, registry: Registry) -> Iterator[Sample]:
    for (project_id, state), n_jobs in store.job_counts().items():
        yield Sample("cellai_jobs", n_jobs, {"project": str(project_id), "state": state})
    for project in store.projects():
        yield from _project_samples(project, registry.versions(project.id))
        yield from _stage_samples(project, store)
    runner = read_runner(settings.data_dir)
    yield Sample("cellai_runner_up", float(runner is not None and runner.is_alive))
    for folder in (settings.data_dir, settings.files_dir):
        if folder.exists():
            free = shutil.disk_usage(folder).free
            yield Sample("cellai_disk_free_bytes", free, {"folder": str(folder)})


def _project_samples(project: Project, versions: list[Version]) -> Iterator[Sample]:
    labels = {"project": str(project.id)}
    yield Sample("cellai_waiting", float(project.events != project.handled), labels)
    yield Sample("cellai_pool_tasks", project.n_tasks or 0, labels)
    yield Sample("cellai_labels", project.n_labels or 0, labels)
    yield Sample("cellai_versions", len(versions), labels)
    serving = next((v for v in versions if v.version == project.serving_version), None)
    if serving is None:
        return
    labels = labels | {"version": serving.version}
    age = datetime.now(UTC) - datetime.fromisoformat(serving.created_at)
    yield Sample("cellai_serving_version_age_seconds", age.total_seconds(), labels)
    yield Sample("cellai_learned_labels", serving.n_labels, labels)
    macro_f1 = serving.metrics.get("macro_f1")
    if isinstance(macro_f1, float):
        yield Sample("cellai_macro_f1", macro_f1, labels)


def _stage_samples(project: Project, store: JobStore) -> Iterator[Sample]:
    done = next((job for job in store.jobs(project.id) if job.state == "done"), None)
    for stage, seconds in (done.stage_seconds if done else {}).items():
        yield Sample("cellai_stage_seconds", seconds, {"project": str(project.id), "stage": stage})


def _line(sample: Sample) -> str:
    labels = ",".join(f'{name}="{_escaped(value)}"' for name, value in sample.labels.items())
    braces = f"{{{labels}}}" if labels else ""
    return f"{sample.name}{braces} {sample.value:.15g}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")

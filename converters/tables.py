"""What commands print: tables of problems, of the status, of an inspected source."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from converters.inspection import Inspection
from converters.problems import Problems
from converters.terminal import plain

NO_JOB = {"state": "none", "stage": "", "error": None}


def problem_table(problems: Problems) -> Table:
    """What an import left out or changed, with counts."""
    table = Table("source", "what", "count", "first at", title="Left out or changed")
    for problem in problems:
        table.add_row(
            plain(problem.source),
            plain(problem.reason),
            str(problem.count),
            plain(problem.example),
        )
    return table


def status_table(projects: Sequence[dict[str, Any]]) -> Table:
    """One line per project of `cellai status`."""
    table = Table("project", "version", "labels", "macro-F1", "open tasks", "job")
    for project in projects:
        serving: dict[str, Any] = next(
            (v for v in project["versions"] if v["version"] == project["model_version"]),
            {"metrics": {}},
        )
        macro_f1 = serving["metrics"].get("macro_f1")
        job = project["jobs"][0] if project["jobs"] else NO_JOB
        table.add_row(
            str(project["project_id"]),
            plain(project["model_version"] or "none yet"),
            str(serving.get("n_labels", 0)),
            "-" if macro_f1 is None else f"{macro_f1:.3f}",
            "gone" if project["open_tasks"] is None else str(project["open_tasks"]),
            plain(_told(job)),
        )
    return table


def _told(job: dict[str, Any]) -> str:
    """State and stage of a job, and the first sentence of what it failed of."""
    error = re.split(r"(?<=\.)\s", job["error"] or "", maxsplit=1)[0]
    return f"{job['state']} {job['stage']}".strip() + (f": {error}" if error else "")


def version_table(project: dict[str, Any]) -> Table:
    """One line per stored version of `cellai models list`, the serving one marked."""
    table = Table("version", "labels", "macro-F1", "made", "note")
    for version in project["versions"]:
        macro_f1 = version["metrics"].get("macro_f1")
        notes = {
            "serving": version["version"] == project["model_version"],
            "wanted": version["version"] == project["wanted_version"],
            "kept back: worse than the one before": not version["promoted"],
        }
        table.add_row(
            plain(version["version"]),
            str(version["n_labels"]),
            "-" if macro_f1 is None else f"{macro_f1:.3f}",
            version["created_at"][:16].replace("T", " "),
            ", ".join(note for note, holds in notes.items() if holds),
        )
    return table


def inspection_parts(inspection: Inspection) -> Iterator[RenderableType]:
    """A source as `cellai inspect` shows it."""
    yield f"[bold]{plain(inspection.source)}[/]"
    if inspection.datasets:
        yield _dataset_table(inspection)
    if inspection.layout:
        yield f"layout: {inspection.layout}"
    for layout, reason in inspection.reasons.items():
        yield plain(f"  not {layout}: {reason}")
    if inspection.error:
        yield f"[bold red]cannot be imported:[/] {plain(inspection.error)}"
    if inspection.plan is not None:
        about = "" if inspection.plan.exact else "about "
        yield f"{inspection.plan.images} images, {about}{inspection.plan.cells} cells"
    for values in inspection.ranges:
        yield plain(
            f"{values.channel}: {values.minimum:g} .. {values.maximum:g},"
            f" {values.n_nan} of {values.n_values} values missing"
        )
    for label, count in sorted(inspection.labels.items()):
        yield plain(f"label {label}: {count}")
    if inspection.n_unlabelled:
        yield f"unlabelled: {inspection.n_unlabelled}"
    if len(inspection.problems):
        yield problem_table(inspection.problems)


def _dataset_table(inspection: Inspection) -> Table:
    table = Table()
    for column in ("dataset", "shape", "type", "chunks", "compression", "problem"):
        table.add_column(column, overflow="fold")
    for dataset in inspection.datasets:
        table.add_row(
            plain(dataset.path),
            "" if dataset.shape is None else " x ".join(map(str, dataset.shape)),
            plain(dataset.dtype),
            "" if dataset.chunks is None else " x ".join(map(str, dataset.chunks)),
            plain(dataset.compression),
            plain(dataset.problem),
        )
    return table

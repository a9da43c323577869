"""A report as one HTML page without external assets, to be looked at live or kept as a file.

The template escapes every text; the page's own security policy lets no script run but the one
written here. Tables are offered as CSV in data addresses, so that a saved page has them too.
"""

import base64
import csv
import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from backend import charts
from backend.advice import AGREEMENT_RULE
from backend.report import HoldOut, PoolHistogram, Report

Row = Sequence[object]


@dataclass(frozen=True, slots=True)
class Figure:
    """One chart with its table.

    Attributes:
        key: names the downloaded files.
        title: heading.
        caption: how to read it.
        svg: the chart; '' where there is nothing to draw yet, which `caption` then explains.
        csv: the table, as CSV text.
    """

    key: str
    title: str
    caption: str
    svg: str = ""
    csv: str = ""


@dataclass(frozen=True, slots=True)
class ListedProject:
    """One line of the list of projects."""

    project_id: int
    version: str
    n_labels: int
    macro_f1: float | None


def render_report(report: Report, *, is_live: bool) -> str:
    """The page of one project.

    Args:
        report: its numbers.
        is_live: follow the backend and load again when there is something new.
    """
    return _render(
        "report.html",
        report=report,
        figures=figures(report),
        rule=AGREEMENT_RULE,
        is_live=is_live,
    )


def render_list(projects: Iterable[ListedProject]) -> str:
    """The page that lists the projects."""
    return _render("reports.html", projects=list(projects))


def figures(report: Report) -> list[Figure]:
    """All charts of a report, in the order of the page."""
    return [
        _learning_curve(report),
        _calibration(report.hold_out),
        _confusion(report.hold_out),
        _class_quality(report.hold_out),
        _class_labels(report),
        _uncertainty(report.pool_now, report.pool_before),
        _pace(report),
    ]


def _learning_curve(report: Report) -> Figure:
    points = sorted(
        (point.n_labels, point.macro_f1, point.macro_f1_se)
        for point in report.curve
        if point.macro_f1 is not None and point.macro_f1_se is not None
    )
    header = ("version", "created_at", "labels", "holdout", "macro_f1", "macro_f1_se", "promoted")
    rows = [
        (p.version, p.created_at, p.n_labels, p.n_holdout, p.macro_f1, p.macro_f1_se, p.promoted)
        for p in report.curve
    ]
    return Figure(
        "learning-curve",
        "Learning curve",
        "Each point is a version, measured on about a fifth of the labels, kept out of training."
        " The queue asks for difficult cells, so on all cells the model is rather better."
        if points
        else "No version has a hold-out yet: it begins with 25 labels, of at least two frames.",
        charts.learning_curve(points) if points else "",
        _csv(header, rows),
    )


def _confusion(hold_out: HoldOut | None) -> Figure:
    key, title = "confusion", "Confusion matrix"
    if hold_out is None:
        return Figure(key, title, "Shown once a version has a hold-out.")
    rows = [
        (name, *counts) for name, counts in zip(hold_out.titles, hold_out.confusion, strict=True)
    ]
    return Figure(
        key,
        title,
        f"{hold_out.n_holdout} held-out cells of {hold_out.version}: rows are what the annotator"
        " said, columns what the model said; darker is a larger share of the row.",
        charts.confusion_matrix(hold_out.titles, hold_out.confusion),
        _csv(("label \\ prediction", *hold_out.titles), rows),
    )


def _class_quality(hold_out: HoldOut | None) -> Figure:
    key, title = "precision-recall", "Precision and recall"
    if hold_out is None:
        return Figure(key, title, "Shown once a version has a hold-out.")
    rows = list(zip(hold_out.titles, hold_out.precision, hold_out.recall, strict=True))
    return Figure(
        key,
        title,
        "Precision: how often the model is right when it names the class. Recall: how many cells"
        " of the class it finds. n/a: no held-out cell to tell.",
        charts.paired_bars(
            rows,
            names=("precision", "recall"),
            title="Precision and recall of each class",
            text=lambda value: f"{value:.2f}",
            limit=1,
        ),
        _csv(("class", "precision", "recall"), rows),
    )


def _class_labels(report: Report) -> Figure:
    rows = list(zip(report.titles, report.label_counts, report.drawn_per_epoch, strict=True))
    return Figure(
        "labels",
        "Labels and what training draws of them",
        "The balanced sampler draws every labelled class equally often in each pass over the"
        " labels, whatever their numbers.",
        charts.paired_bars(
            [(name, float(count), drawn) for name, count, drawn in rows],
            names=("labels", "drawn per pass"),
            title="Labels of each class and crops drawn per pass",
            text=lambda value: f"{value:.0f}",
        ),
        _csv(("class", "labels", "drawn_per_pass"), rows),
    )


def _uncertainty(now: PoolHistogram | None, before: PoolHistogram | None) -> Figure:
    key, title = "uncertainty", "Uncertainty of the open cells"
    if now is None:
        return Figure(key, title, "Shown once a version predicts classes.")
    earlier = before.counts if before else ()
    n_bins = len(now.counts)
    rows = [
        (index / n_bins, (index + 1) / n_bins, count, earlier[index] if earlier else "")
        for index, count in enumerate(now.counts)
    ]
    return Figure(
        key,
        title,
        "Predictive entropy, 0 = sure, 1 = guessing. Dashed: the first version whose probabilities"
        " were calibrated; it had more open cells.",
        charts.uncertainty_histogram(
            now.counts, earlier, names=(_named(now), _named(before) if before else "")
        ),
        _csv(("from", "to", "cells_now", "cells_before"), rows),
    )


def _calibration(hold_out: HoldOut | None) -> Figure:
    key, title = "calibration", "Calibration"
    if hold_out is None or not hold_out.reliability:
        return Figure(key, title, "Shown once a version has a hold-out.")
    return Figure(
        key,
        title,
        f"Expected calibration error {hold_out.ece:.3f}, Brier score {hold_out.brier:.3f}. Below"
        " the diagonal the model is surer than it should be. Its temperature was chosen on the same"
        " cells, which flatters this.",
        charts.reliability_diagram(hold_out.reliability),
        _csv(("cells", "confidence", "accuracy"), hold_out.reliability),
    )


def _pace(report: Report) -> Figure:
    key, title = "labels-per-hour", "Labels per hour"
    hours = [(f"{hour:%d %b %H}h", count) for hour, count in report.pace.hours]
    if not hours:
        return Figure(key, title, "No label was given by a person yet.")
    rate = report.pace.per_hour
    worked = f"{rate:.0f} labels per hour of work, breaks over 5 minutes left out." if rate else ""
    return Figure(
        key,
        title,
        f"{worked} The last hours in which somebody labelled; imported labels do not count.",
        charts.hour_bars(hours),
        _csv(("hour_utc", "labels"), [(hour.isoformat(), n) for hour, n in report.pace.hours]),
    )


def _named(histogram: PoolHistogram) -> str:
    return f"{histogram.version} ({histogram.n_labels} labels)"


def _csv(header: Row, rows: Iterable[Row]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(header)
    writer.writerows(rows)
    return buffer.getvalue()


def _render(template: str, **content: Any) -> str:
    script = _asset("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return (
        _environment()
        .get_template(template)
        .render(
            style=Markup(_asset("report.css")),  # noqa: S704 - our own file
            script=Markup(script),  # noqa: S704 - our own file
            script_hash=f"sha256-{digest}",
            **content,
        )
    )


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("backend"), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["data_csv"] = _data_csv
    environment.filters["picture"] = Markup  # of `charts`, which escapes
    environment.filters["moment"] = _moment
    return environment


def _asset(name: str) -> str:
    return (files("backend") / "templates" / name).read_text(encoding="utf-8")


def _data_csv(text: str) -> str:
    return f"data:text/csv;charset=utf-8;base64,{base64.b64encode(text.encode()).decode('ascii')}"


def _moment(value: datetime | float) -> str:
    """A time, or unix seconds, in UTC to the minute."""
    moment = value if isinstance(value, datetime) else datetime.fromtimestamp(value, UTC)
    return f"{moment.astimezone(UTC):%d %b %Y, %H:%M}"

"""The page of a report: no name becomes markup, nothing is fetched, every table is there."""

import base64
import csv
import hashlib
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from made_up_report import report_of

from backend.report import Pace, Progress
from backend.report_page import ListedProject, figures, render_list, render_report

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>'


class Tags(HTMLParser):
    """Names and attributes of all tags."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def shape(html: str) -> list[tuple[str, list[str]]]:
    """Tags with the names of their attributes: the page without its texts."""
    return [(tag, sorted(attributes)) for tag, attributes in Tags(html).found]


def test_names_with_markup_leave_the_page_as_it_is() -> None:
    plain = [tag for tag in shape(render_report(report_of(), is_live=True)) if tag[0] != "title"]
    hostile = render_report(report_of(HOSTILE), is_live=True)
    # Long names carry a <title> with their whole text.
    assert [tag for tag in shape(hostile) if tag[0] != "title"] == plain
    assert "<script>alert" not in hostile
    assert "onerror=alert(2)>" not in hostile.replace("&gt;", "")
    assert "&lt;script&gt;alert(1)" in hostile


def test_list_escapes_versions() -> None:
    html = render_list([ListedProject(3, HOSTILE, 4, None)])
    assert "<script" not in html
    assert 'href="report/3"' in html


def test_nothing_is_fetched_from_anywhere() -> None:
    for html in (render_report(report_of(), is_live=True), render_list([])):
        for tag, attributes in Tags(html).found:
            for name in ("src", "href", "srcset", "action", "data"):
                address = attributes.get(name)
                assert address is None or address.startswith(("data:", "report/")), (tag, address)
        assert "@import" not in html
        assert "url(" not in html
        assert "default-src 'none'" in html


def test_only_the_live_page_follows_the_backend() -> None:
    assert "data-live" in dict(Tags(render_report(report_of(), is_live=True)).found)["body"]
    assert "data-live" not in dict(Tags(render_report(report_of(), is_live=False)).found)["body"]


def test_policy_names_the_script_that_is_there() -> None:
    html = render_report(report_of(), is_live=True)
    (script,) = re.findall(r"<script>(.*?)</script>", html, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html.replace("&#39;", "'")


def test_every_figure_has_a_chart_and_a_table() -> None:
    made = figures(report_of())
    assert [figure.key for figure in made] == [
        "learning-curve",
        "calibration",
        "confusion",
        "precision-recall",
        "labels",
        "uncertainty",
        "labels-per-hour",
    ]
    assert all(figure.svg.startswith("<svg") for figure in made)
    tables = {figure.key: list(csv.reader(io.StringIO(figure.csv))) for figure in made}
    assert tables["confusion"] == [
        ["label \\ prediction", "Platelet", "B"],
        ["Platelet", "3", "1"],
        ["B", "2", "2"],
    ]
    assert tables["precision-recall"][1:] == [["Platelet", "0.6", "0.75"], ["B", "", "0.5"]]
    assert tables["uncertainty"][1:] == [["0.0", "0.5", "5", "0"], ["0.5", "1.0", "0", "5"]]
    assert tables["labels"][1] == ["Platelet", "3", "32.0"]
    assert tables["labels-per-hour"][1] == ["2026-03-01T12:00:00+00:00", "4"]


def test_tables_can_be_downloaded_from_the_page_itself() -> None:
    links = [
        attributes
        for tag, attributes in Tags(render_report(report_of(), is_live=False)).found
        if tag == "a" and "download" in attributes
    ]
    assert len(links) == 7
    address = next(link["href"] for link in links if link["download"] == "labels.csv") or ""
    assert base64.b64decode(address.partition(",")[2]).decode().startswith("class,labels,")


def test_report_of_a_new_project_says_what_is_missing() -> None:
    empty = replace(
        report_of(),
        serving_version="",
        n_labels=0,
        label_counts=(0, 0),
        drawn_per_epoch=(0.0, 0.0),
        curve=(),
        hold_out=None,
        pool_before=None,
        pool_now=None,
        pace=Pace((), None),
        uncertain=(),
        contradicted=(),
        progress=Progress((), is_waiting=False, new_labels=0),
    )
    html = render_report(empty, is_live=True)
    assert html.count("Shown once") == 4
    assert "no model yet" in html
    assert [figure.key for figure in figures(empty) if figure.svg] == ["labels"]


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        ("running", "Working: training on 4 labels."),
        ("failed", "The last job failed and is tried again: no answer"),
        ("done", "2 new labels wait for the next version."),
    ],
)
def test_state_in_a_sentence(state: str, sentence: str) -> None:
    (job,) = report_of().progress.jobs
    newest = replace(job, state=state, stage="training on 4 labels", error="no answer")
    assert Progress((newest,), is_waiting=True, new_labels=2).sentence == sentence

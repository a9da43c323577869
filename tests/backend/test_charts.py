"""Charts: where each number lands, and that no text becomes markup."""

import xml.etree.ElementTree as ET
from collections.abc import Callable
from xml.etree.ElementTree import Element

import pytest

from backend import charts
from backend.charts import BOTTOM, HEIGHT, LEFT, NAME_WIDTH, RIGHT, TOP, WIDTH

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = '<script>alert("x")</script>'


def parsed(svg: str) -> Element:
    return ET.fromstring(svg)  # noqa: S314 - our own


def of(svg: Element, tag: str, kind: str) -> list[Element]:
    return [e for e in svg.iter(SVG + tag) if kind in (e.get("class") or "").split()]


def texts(svg: Element) -> list[str]:
    return ["".join(e.itertext()) for e in svg.iter(SVG + "text")]


def path(element: Element) -> list[tuple[float, float]]:
    return [
        (float(x), float(y))
        for x, y in (point.split(",") for point in (element.get("points") or "").split())
    ]


def test_learning_curve_places_points_and_interval() -> None:
    svg = parsed(charts.learning_curve([(50, 0.5, 0.1), (100, 1.0, 0.1)]))
    plot_width, plot_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    (line,) = of(svg, "polyline", "line")
    assert path(line) == [
        (LEFT + plot_width / 2, TOP + plot_height / 2),
        (LEFT + plot_width, TOP),
    ]
    (band,) = of(svg, "polygon", "band")
    upper, clipped, lower_last, lower = path(band)
    assert upper[1] == pytest.approx(HEIGHT - BOTTOM - plot_height * 0.696, abs=0.06)
    assert clipped[1] == TOP
    assert lower_last[1] == pytest.approx(HEIGHT - BOTTOM - plot_height * 0.804, abs=0.06)
    assert lower[1] == pytest.approx(HEIGHT - BOTTOM - plot_height * 0.304, abs=0.06)
    assert "50 labels: macro-F1 0.500 ± 0.196" in ["".join(t.itertext()) for t in svg.iter()]


def test_single_version_shows_its_interval_as_a_line() -> None:
    svg = parsed(charts.learning_curve([(40, 0.5, 0.1)]))
    (whisker,) = of(svg, "line", "first")
    assert whisker.get("x1") == whisker.get("x2")
    assert float(whisker.get("y1") or 0) > float(whisker.get("y2") or 0)


def test_histogram_bars_are_as_high_as_their_counts() -> None:
    svg = parsed(charts.uncertainty_histogram([10, 5, 0], [0, 5, 10], names=("now", "then")))
    *bars, _legend = of(svg, "rect", "first")
    assert [float(bar.get("height") or 0) for bar in bars] == [
        HEIGHT - TOP - BOTTOM,
        (HEIGHT - TOP - BOTTOM) / 2,
        0,
    ]
    (before,) = of(svg, "polyline", "dashed")
    assert next(y for _, y in path(before)) == HEIGHT - BOTTOM
    assert [y for _, y in path(before)][-1] == TOP
    assert {"now", "then"} <= set(texts(svg))


def test_histogram_without_a_before_has_no_outline() -> None:
    svg = parsed(charts.uncertainty_histogram([1, 2], [], names=("now", "")))
    assert of(svg, "polyline", "dashed") == []
    assert "" not in texts(svg)


def test_reliability_dots_lie_at_confidence_and_accuracy() -> None:
    svg = parsed(charts.reliability_diagram([(1, 0.5, 0.0), (4, 1.0, 1.0)]))
    low, high = of(svg, "circle", "first")
    assert (float(low.get("cx") or 0), float(low.get("cy") or 0)) == (
        (LEFT + WIDTH - RIGHT) / 2,
        HEIGHT - BOTTOM,
    )
    assert (float(high.get("cx") or 0), float(high.get("cy") or 0)) == (WIDTH - RIGHT, TOP)
    assert (low.get("r"), high.get("r")) == ("6.5", "10.0")


def test_paired_bars_scale_to_the_limit_and_mark_the_undefined() -> None:
    svg = parsed(
        charts.paired_bars(
            [("rbc", 1.0, 0.5), ("wbc", None, 0.0)],
            names=("precision", "recall"),
            title="quality",
            text=lambda value: f"{value:.2f}",
            limit=1,
        )
    )
    first = [bar for bar in of(svg, "rect", "first") if bar.get("x") == f"{NAME_WIDTH:.1f}"][:-1]
    second = [bar for bar in of(svg, "rect", "second") if bar.get("x") == f"{NAME_WIDTH:.1f}"]
    longest = float(first[0].get("width") or 0)
    assert [float(bar.get("width") or 0) for bar in first] == [longest, 0]
    assert [float(bar.get("width") or 0) for bar in second] == [longest / 2, 0]
    assert {"1.00", "0.50", "n/a", "0.00"} <= set(texts(svg))


def test_confusion_matrix_writes_every_count_and_shades_by_row() -> None:
    svg = parsed(charts.confusion_matrix(["a", "b"], [[3, 1], [0, 8]]))
    boxes = of(svg, "rect", "cell")
    assert [box.get("fill-opacity") for box in boxes] == ["0.76", "0.29", "0.06", "1.00"]
    assert [text for text in texts(svg) if text.isdigit()] == ["3", "1", "0", "8"]
    assert boxes[1][0].text == "a taken for b: 1"


def test_confusion_matrix_of_many_classes_keeps_within_the_picture() -> None:
    n = 35
    svg = parsed(charts.confusion_matrix([f"class {i}" for i in range(n)], [[1] * n] * n))
    right = max(
        float(box.get("x") or 0) + float(box.get("width") or 0) for box in of(svg, "rect", "cell")
    )
    assert right <= WIDTH
    assert not any(text.isdigit() for text in texts(svg))


def test_hours_are_named_as_far_as_there_is_room() -> None:
    few = parsed(charts.hour_bars([("9h", 4), ("10h", 2)]))
    assert {"9h", "10h", "4", "2"} <= set(texts(few))
    many = parsed(charts.hour_bars([(f"hour {i}", 1) for i in range(24)]))
    assert sum(text.startswith("hour ") for text in texts(many)) == 6


@pytest.mark.parametrize(
    ("maximum", "ticks"),
    [
        (1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (5, [0, 1, 2, 3, 4, 5]),
        (80, [0, 20, 40, 60, 80]),
        (1500, [0, 500, 1000, 1500]),
    ],
)
def test_ticks_are_round_and_few(maximum: float, ticks: list[float]) -> None:
    assert charts._ticks(maximum) == pytest.approx(ticks)


@pytest.mark.parametrize(("count", "end"), [(0, 5), (1, 5), (7, 8), (220, 250), (1001, 1500)])
def test_axes_of_counts_end_on_a_tick_above(count: int, end: float) -> None:
    assert charts._ceiling(count) == end


@pytest.mark.parametrize(
    "draw",
    [
        lambda: charts.confusion_matrix([HOSTILE, "b"], [[1, 0], [0, 1]]),
        lambda: charts.hour_bars([(HOSTILE, 1)]),
        lambda: charts.uncertainty_histogram([1], [1], names=(HOSTILE, HOSTILE)),
        lambda: charts.paired_bars(
            [(HOSTILE, 1.0, 1.0)], names=(HOSTILE, HOSTILE), title=HOSTILE, text=str
        ),
    ],
)
def test_names_with_markup_stay_text(draw: Callable[[], str]) -> None:
    svg = draw()
    assert "<script" not in svg
    assert not list(parsed(svg).iter(SVG + "script"))
    assert "&lt;script&gt;" in svg

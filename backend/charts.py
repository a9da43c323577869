"""Numbers to SVG charts, each a self-contained picture of 560 px width.

Pure functions. Colours come from the page's style sheet by class name (`ink`, `grid`, `first`,
`second`, …), so that one picture fits light, dark and paper; every series differs by shape or
position too, not by colour alone. Text goes through ElementTree, which escapes it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element, SubElement, tostring

WIDTH = 560
HEIGHT = 300
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 34, 48
ROW = 46
NAME_WIDTH = 150
LONGEST_NAME = 20
# Normal quantile of a two-sided 95 % interval.
Z95 = 1.96

Format = Callable[[float], str]


@dataclass(frozen=True, slots=True)
class Axes:
    """A plot area with linear scales from 0 to a maximum on both sides."""

    x_max: float
    y_max: float
    height: int = HEIGHT

    def x(self, value: float) -> float:
        """Horizontal position in px."""
        return LEFT + (WIDTH - LEFT - RIGHT) * value / self.x_max

    def y(self, value: float) -> float:
        """Vertical position in px."""
        return self.height - BOTTOM - (self.height - TOP - BOTTOM) * value / self.y_max


def learning_curve(points: Sequence[tuple[int, float, float]]) -> str:
    """Macro-F1 with its 95 % interval against the number of labels.

    Args:
        points: labels, macro-F1 and its standard error of each version, labels ascending.
    """
    axes = Axes(_ceiling(max(n for n, *_ in points)), 1.0)
    svg = _canvas("Learning curve: macro-F1 against the number of labels")
    _draw_axes(svg, axes, x_name="labels", y_name="macro-F1", y_text=_decimals)
    upper = [(n, min(1.0, f1 + Z95 * se)) for n, f1, se in points]
    lower = [(n, max(0.0, f1 - Z95 * se)) for n, f1, se in points]
    outline = upper + lower[::-1]
    SubElement(svg, "polygon", {"class": "band", "points": _path(axes, outline)})
    if len(points) == 1:
        _line(svg, "first", _at(axes, *lower[0]), _at(axes, *upper[0]))
    line = [(n, f1) for n, f1, _ in points]
    SubElement(svg, "polyline", {"class": "first line", "points": _path(axes, line)})
    for n, f1, se in points:
        dot = _dot(svg, "first", _at(axes, n, f1))
        _tooltip(dot, f"{n} labels: macro-F1 {f1:.3f} ± {Z95 * se:.3f}")
    _legend(svg, (("first", "macro-F1"), ("band", "95 % interval")))
    return _svg(svg)


def uncertainty_histogram(
    now: Sequence[int], before: Sequence[int], *, names: tuple[str, str]
) -> str:
    """Open cells by uncertainty: bars now, a stepped outline before.

    Args:
        now: cells in equal bins of [0, 1].
        before: likewise, or empty.
        names: of the two series, now first.
    """
    axes = Axes(1.0, _ceiling(max([1, *now, *before])))
    svg = _canvas("Uncertainty of the open cells")
    _draw_axes(svg, axes, x_name="uncertainty", y_name="open cells", x_text=_decimals)
    for index, count in enumerate(now):
        low, high = axes.x(index / len(now)) + 1, axes.x((index + 1) / len(now)) - 1
        bar = _bar(svg, "first", (low, axes.y(count), high - low, axes.y(0) - axes.y(count)))
        _tooltip(bar, f"{index / len(now):.2f} to {(index + 1) / len(now):.2f}: {count}")
    steps = [(edge / len(before), count) for i, count in enumerate(before) for edge in (i, i + 1)]
    if before:
        SubElement(svg, "polyline", {"class": "second line dashed", "points": _path(axes, steps)})
    series = (("first", names[0]), ("second line dashed", names[1]))
    _legend(svg, series if before else series[:1])
    return _svg(svg)


def reliability_diagram(rows: Sequence[tuple[float, float, float]]) -> str:
    """Accuracy against confidence; on the diagonal the probabilities mean what they say.

    Args:
        rows: number of cells, mean confidence and accuracy of each bin.
    """
    axes = Axes(1.0, 1.0)
    svg = _canvas("Calibration: accuracy against confidence on the hold-out")
    _draw_axes(
        svg, axes, x_name="confidence", y_name="accuracy", x_text=_decimals, y_text=_decimals
    )
    _line(svg, "second line dashed", _at(axes, 0, 0), _at(axes, 1, 1))
    line = [(confidence, accuracy) for _, confidence, accuracy in rows]
    SubElement(svg, "polyline", {"class": "first line", "points": _path(axes, line)})
    largest = max(n for n, *_ in rows)
    for n, confidence, accuracy in rows:
        radius = 3 + 7 * math.sqrt(n / largest)
        dot = _dot(svg, "first", _at(axes, confidence, accuracy), radius=radius)
        _tooltip(dot, f"{n:.0f} cells: confidence {confidence:.2f}, accuracy {accuracy:.2f}")
    _legend(svg, (("first", "bins (area: number of cells)"), ("second line dashed", "calibrated")))
    return _svg(svg)


def hour_bars(hours: Sequence[tuple[str, int]]) -> str:
    """Labels in each hour of work.

    Args:
        hours: name of the hour and labels given in it, in order.
    """
    axes = Axes(float(len(hours)), _ceiling(max(count for _, count in hours)))
    svg = _canvas("Labels per hour")
    _draw_axes(svg, axes, x_name="hour (UTC)", y_name="labels", with_x_ticks=False)
    pitch = (WIDTH - LEFT - RIGHT) / len(hours)
    every = math.ceil(len(hours) * 90 / (WIDTH - LEFT - RIGHT))
    for index, (name, count) in enumerate(hours):
        width = min(pitch * 0.8, 60)
        left = axes.x(index + 0.5) - width / 2
        bar = _bar(svg, "first", (left, axes.y(count), width, axes.y(0) - axes.y(count)))
        _tooltip(bar, f"{name}: {count} labels")
        if index % every == 0:
            _text(svg, name, axes.x(index + 0.5), axes.y(0) + 17, anchor="middle")
        if pitch >= 24:
            _text(svg, str(count), axes.x(index + 0.5), axes.y(count) - 5, anchor="middle")
    return _svg(svg)


def paired_bars(
    rows: Sequence[tuple[str, float | None, float | None]],
    *,
    names: tuple[str, str],
    title: str,
    text: Format,
    limit: float | None = None,
) -> str:
    """Two horizontal bars for each class, with their values.

    Args:
        rows: class, first and second value; None where a value is not defined.
        names: of the two values.
        title: what the picture shows.
        text: writes a value.
        limit: value of the longest possible bar; None: the largest value.
    """
    values = [value for _, *pair in rows for value in pair if value is not None]
    longest = limit or max([1e-9, *values])
    room = WIDTH - NAME_WIDTH - 76
    svg = _canvas(title, height=TOP + ROW * len(rows) + 6)
    for index, (name, *pair) in enumerate(rows):
        top = TOP + ROW * index
        _text(svg, name, NAME_WIDTH - 10, top + 23, anchor="end")
        for at, (kind, value) in enumerate(zip(("first", "second"), pair, strict=True)):
            width = room * (value or 0) / longest
            _bar(svg, kind, (NAME_WIDTH, top + 3 + 17 * at, width, 14))
            written = "n/a" if value is None else text(value)
            _text(svg, written, NAME_WIDTH + width + 6, top + 15 + 17 * at)
    _line(svg, "axis", (NAME_WIDTH, TOP), (NAME_WIDTH, TOP + ROW * len(rows)))
    _legend(svg, (("first", names[0]), ("second", names[1])), left=NAME_WIDTH)
    return _svg(svg)


def confusion_matrix(titles: Sequence[str], confusion: Sequence[Sequence[int]]) -> str:
    """Counts of label against prediction; the shade is the share of the label's row.

    Args:
        titles: of K classes.
        confusion: (K, K), rows: label, columns: prediction.
    """
    side = min(48.0, 390 / len(titles))
    left, top = NAME_WIDTH + 8, 108
    height = int(top + side * len(titles) + 14)
    svg = _canvas("Confusion matrix of the hold-out", height=height)
    _text(svg, "annotator ↓", left - 10, top - 8, anchor="end", kind="name")
    _text(svg, "model →", left, 16, kind="name")
    for row, (title, counts) in enumerate(zip(titles, confusion, strict=True)):
        middle = top + side * (row + 0.5)
        _text(svg, title, left - 10, middle + 4, anchor="end")
        name = _text(svg, title, 0, 0)
        name.set("transform", f"translate({left + side * (row + 0.5):.1f} {top - 8}) rotate(-35)")
        for column, count in enumerate(counts):
            share = count / max(1, sum(counts))
            box = _bar(svg, "cell", (left + side * column, top + side * row, side - 2, side - 2))
            box.set("fill-opacity", f"{0.06 + 0.94 * share:.2f}")
            _tooltip(box, f"{title} taken for {titles[column]}: {count}")
            if side >= 16:
                kind = "count dark" if share > 0.45 else "count" if count else "name"
                middle_x = left + side * (column + 0.5) - 1
                _text(svg, str(count), middle_x, middle + 4, anchor="middle", kind=kind)
    return _svg(svg)


def _canvas(title: str, *, height: int = HEIGHT) -> Element:
    return Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"0 0 {WIDTH} {height}",
            "width": str(WIDTH),
            "height": str(height),
            "class": "chart",
            "role": "img",
            "aria-label": title,
        },
    )


def _draw_axes(
    svg: Element,
    axes: Axes,
    *,
    x_name: str,
    y_name: str,
    x_text: Format = lambda value: f"{value:.0f}",
    y_text: Format = lambda value: f"{value:.0f}",
    with_x_ticks: bool = True,
) -> None:
    for value in _ticks(axes.y_max):
        _line(svg, "grid", _at(axes, 0, value), _at(axes, axes.x_max, value))
        _text(svg, y_text(value), LEFT - 8, axes.y(value) + 4, anchor="end")
    if with_x_ticks:
        for value in _ticks(axes.x_max):
            _text(svg, x_text(value), axes.x(value), axes.y(0) + 17, anchor="middle")
    _line(svg, "axis", _at(axes, 0, 0), _at(axes, axes.x_max, 0))
    middle = (LEFT + WIDTH - RIGHT) / 2
    _text(svg, x_name, middle, axes.height - 10, anchor="middle", kind="name")
    name = _text(svg, y_name, 0, 0, anchor="middle", kind="name")
    name.set("transform", f"translate(14 {(TOP + axes.height - BOTTOM) / 2:.1f}) rotate(-90)")


def _legend(svg: Element, series: Sequence[tuple[str, str]], *, left: float = LEFT) -> None:
    for kind, name in series:
        if "line" in kind:
            _line(svg, kind, (left, 14), (left + 18, 14))
        else:
            _bar(svg, kind, (left, 8, 18, 12))
        _text(svg, name, left + 24, 18, longest=40)
        left += 44 + 7 * len(name)


def _bar(svg: Element, kind: str, box: tuple[float, float, float, float]) -> Element:
    """A rectangle; `box` is left, top, width, height in px."""
    sides = zip(("x", "y", "width", "height"), box, strict=True)
    return SubElement(svg, "rect", {"class": kind} | {key: f"{side:.1f}" for key, side in sides})


def _line(svg: Element, kind: str, start: tuple[float, float], end: tuple[float, float]) -> Element:
    ends = {"x1": start[0], "y1": start[1], "x2": end[0], "y2": end[1]}
    return SubElement(
        svg, "line", {"class": kind} | {key: f"{value:.1f}" for key, value in ends.items()}
    )


def _dot(svg: Element, kind: str, at: tuple[float, float], *, radius: float = 4) -> Element:
    place = {"cx": f"{at[0]:.1f}", "cy": f"{at[1]:.1f}", "r": f"{radius:.1f}"}
    return SubElement(svg, "circle", {"class": kind} | place)


def _text(
    svg: Element,
    text: str,
    x: float,
    y: float,
    *,
    anchor: str = "start",
    kind: str = "ink",
    longest: int = LONGEST_NAME,
) -> Element:
    place = {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor, "class": kind}
    element = SubElement(svg, "text", place)
    if len(text) > longest:
        _tooltip(element, text)
        element[0].tail = text[: longest - 1] + "…"
    else:
        element.text = text
    return element


def _tooltip(element: Element, text: str) -> None:
    SubElement(element, "title").text = text


def _at(axes: Axes, x: float, y: float) -> tuple[float, float]:
    return axes.x(x), axes.y(y)


def _path(axes: Axes, points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in points)


def _ticks(maximum: float) -> list[float]:
    """Round values from 0 to the maximum, at most six of them."""
    step = _step(maximum)
    return [step * index for index in range(round(maximum / step) + 1)]


def _ceiling(count: float) -> float:
    """End of an axis of counts: the next multiple of its tick step."""
    step = _step(max(count, 5))
    return step * math.ceil(max(count, 5) / step)


def _step(maximum: float) -> float:
    """Distance of ticks: 1, 2 or 5 times a power of ten, at most five of them to the maximum."""
    power: float = 10.0 ** math.floor(math.log10(maximum / 5))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power * 5 >= maximum)


def _decimals(value: float) -> str:
    return f"{value:.1f}"


def _svg(svg: Element) -> str:
    return tostring(svg, encoding="unicode")

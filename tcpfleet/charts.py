"""Charts as inline SVG: series of numbers in, one ``<svg>`` out that needs no script and no network.

Drawn by pygal, whose script (for tooltips, linked from the net) is taken out; the browser's own tooltips serve
instead. Colours are CSS variables of the page (``--series-1`` ...), so one drawing fits light, dark and print.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

Point = tuple[float, float | None]

COLOURS = 6  # --series-N of the page
MAX_POINTS = 400  # per series; more cannot be told apart on a screen and would make the page heavy
_TIME_STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 43200, 86400)


def thin(points: Sequence[Point], limit: int = MAX_POINTS) -> list[Point]:
    """At most about `limit` of the points, keeping the lowest and the highest of every stretch.

    So a dip or a spike of one second is still seen in a run of two hours. First and last stay.
    """
    if len(points) <= limit:
        return list(points)
    size = -(-len(points) * 2 // limit)
    kept: list[Point] = [points[0]]
    for start in range(0, len(points), size):
        known = [point for point in points[start : start + size] if point[1] is not None]
        if not known:
            kept.append(points[start])
            continue
        ends = {min(known, key=lambda p: p[1] or 0), max(known, key=lambda p: p[1] or 0)}
        kept.extend(sorted(ends))
    kept.append(points[-1])
    return [point for index, point in enumerate(kept) if index == 0 or point != kept[index - 1]]


def number(value: float | None) -> str:
    """A number as every part of a report prints it: thousands separated, at most three decimals.

    >>> number(200000), number(0.98765), number(12.0), number(None), number(math.nan)
    ('200,000', '0.988', '12', '–', '–')
    """
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, int) or float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:,.3f}".rstrip("0").rstrip(".")


def seconds_label(value: float) -> str:
    """A point in time on an axis or in a tooltip.

    >>> seconds_label(42.5), seconds_label(1200), seconds_label(200), seconds_label(4800)
    ('42.5 s', '20 min', '3:20 min', '1:20 h')
    """
    if value < 120:
        return f"{number(round(value, 1))} s"
    whole = round(value)
    size, unit = (60, "min") if whole < 3600 else (3600, "h")
    rest = whole % size * 60 // size
    return f"{whole // size}{f':{rest:02d}' if rest else ''} {unit}"


def ticks(highest: float) -> list[float]:
    """Round values for an axis from 0 to at least `highest`, four to seven of them.

    >>> ticks(198766)
    [0, 50000, 100000, 150000, 200000]
    """
    if highest <= 0:
        return [0, 1]
    power = 10.0 ** math.floor(math.log10(highest))
    step = next(size * power for size in (0.2, 0.25, 0.5, 1, 2) if size * power * 6 >= highest)
    if step.is_integer():
        step = int(step)
    return [step * number for number in range(math.ceil(highest / step) + 1)]


def time_ticks(last: float) -> list[float]:
    """Points in time for an axis from 0 to at most `last` seconds, on whole seconds, minutes or hours.

    >>> time_ticks(7200)
    [0, 1200, 2400, 3600, 4800, 6000, 7200]
    """
    step = next((size for size in _TIME_STEPS if size * 6 >= last), None) or math.ceil(last / 6 / 86400) * 86400
    return [round(step * number, 3) for number in range(int(last / step + 1e-9) + 1)]


def time_chart(
    name: str, title: str, unit: str, series: Mapping[str, Sequence[Point]], *, logarithmic: bool = False
) -> Markup | None:
    """Lines over time.

    :param name: unique on the page; becomes the id.
    :param title: what a screen reader says.
    :param unit: of the vertical axis.
    :param series: legend -> (seconds since the start, value or None for a gap).
    :param logarithmic: of the vertical axis; values of 0 or below cannot be drawn then and are gaps.
    :returns: None when there is no point to draw.
    """
    if logarithmic:
        series = {legend: [(t, _log(value)) for t, value in points] for legend, points in series.items()}
    if not any(value is not None for points in series.values() for _, value in points):
        return None
    import pygal

    longest = max(len(points) for points in series.values())
    chart = pygal.XY(**_options(len(series), unit, show_dots=longest <= 60, allow_interruptions=True))
    chart.x_value_formatter = seconds_label
    known = [value for points in series.values() for _, value in points if value is not None]
    if logarithmic:
        chart.y_labels, chart.value_formatter = _powers(known), _power
    else:
        chart.y_labels = ticks(max(known))
    chart.x_labels = time_ticks(max(t for points in series.values() for t, _ in points))
    for legend, points in series.items():
        chart.add(legend, thin(points))
    return _svg(chart, name, title)


def percentile_chart(
    name: str, title: str, unit: str, labels: Sequence[str], series: Mapping[str, Sequence[float | None]]
) -> Markup | None:
    """Lines over percentile names, on a logarithmic axis; values of 0 or below cannot be drawn and are gaps.

    :returns: None when there is no point to draw.
    """
    drawable = {
        legend: [value if value is not None and value > 0 else None for value in values]
        for legend, values in series.items()
    }
    if not any(value is not None for values in drawable.values() for value in values):
        return None
    import pygal

    chart = pygal.Line(**_options(len(series), unit, show_dots=True, logarithmic=True))
    chart.x_labels = list(labels)
    known = [value for values in drawable.values() for value in values if value is not None]
    chart.y_labels = [10.0 ** (power - _MOVED) for power in _powers([_log(value) or 0 for value in known])]
    for legend, values in drawable.items():
        chart.add(legend, values)
    return _svg(chart, name, title)


def spectrum_chart(
    name: str, title: str, x_unit: str, y_unit: str, series: Mapping[str, Sequence[tuple[float, int]]]
) -> Markup | None:
    """How often what was measured: lines over values, both axes logarithmic.

    :param series: legend -> (value, how often); what never happened is a gap.
    :returns: None when there is nothing to draw.
    """
    known = [(value, count) for points in series.values() for value, count in points if count > 0 and value > 0]
    if not known:
        return None
    import pygal

    chart = pygal.XY(**_options(len(series), y_unit, show_dots=True, allow_interruptions=True))
    chart.x_title = x_unit
    chart.x_value_formatter = chart.value_formatter = _power
    chart.x_labels = _powers([_log(value) or 0 for value, _ in known])
    chart.y_labels = _powers([_log(count) or 0 for _, count in known])
    for legend, points in series.items():
        chart.add(legend, [(_log(value), _log(count)) for value, count in points if value > 0])
    return _svg(chart, name, title)


# pygal's own logarithmic XY chart has two logarithmic axes and draws beyond them, so it is given powers of ten,
# moved away from 0, where it draws an axis.
_MOVED = 50


def _log(value: float | None) -> float | None:
    return math.log10(value) + _MOVED if value is not None and value > 0 else None


def _power(power: float) -> str:
    """What `_log` made of a value, as an axis or a tooltip shows the value."""
    return number(float(f"{10 ** (power - _MOVED):.3g}"))


def _powers(known: Sequence[float]) -> list[int]:
    """Whole powers around the known ones: the marks of a logarithmic axis."""
    first, last = math.floor(min(known)), math.ceil(max(known))
    return list(range(first, max(last, first + 1) + 1))


def colour(position: int) -> int:
    """The N of --series-N for a chart's line; position counts from 1."""
    return (position - 1) % COLOURS + 1


def _options(lines: int, unit: str, **more: Any) -> dict[str, Any]:
    from pygal.style import Style

    colours = tuple(f"var(--series-{colour(place)})" for place in range(1, lines + 1))
    style = Style(
        background="transparent",
        plot_background="transparent",
        foreground="var(--muted)",
        foreground_strong="var(--text)",
        foreground_subtle="var(--line)",
        guide_stroke_color="var(--line)",
        major_guide_stroke_color="var(--line)",
        colors=colours,
        value_colors=("var(--text)",) * len(colours),
        font_family="system-ui, sans-serif",
        label_font_size=14,
        major_label_font_size=14,
        legend_font_size=14,
        title_font_size=14,
        stroke_width="2",
        stroke_opacity="1",
        transition="0s",
    )
    return {
        "style": style,
        "js": [],
        "width": 620,
        "height": 300,
        "margin": 6,
        "margin_right": 22,  # the last label is wider than the axis
        "truncate_label": -1,
        "y_title": unit,
        "value_formatter": number,
        "show_legend": False,  # the page has its own, in text that does not shrink with the drawing
        "dots_size": 3,
        "max_scale": 6,
        **more,
    }


def _svg(chart: Any, name: str, title: str) -> Markup:
    chart.uuid = name  # else random: the same run must give the same page
    chart.add_xml_filter(_without_script)
    chart.add_xml_filter(_named(title))
    return Markup(chart.render(is_unicode=True, disable_xml_declaration=True))  # noqa: S704 (pygal escapes text)


def _without_script(root: Any) -> Any:
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag == "script" or not isinstance(child.tag, str):  # a comment with a link to pygal's site
                parent.remove(child)
    return root


def _named(title: str) -> Callable[[Any], Any]:
    """Adds a name for screen readers, and to each dot a tooltip the browser shows without a script."""

    def apply(root: Any) -> Any:
        root.set("role", "img")
        root.set("aria-label", title)
        for group in root.iter("g"):
            values = [child for child in group if child.tag == "desc" and child.get("class") == "value"]
            labels = [child for child in group if child.tag == "desc" and child.get("class") == "x_label"]
            if values:
                tip = group.makeelement("title", {})
                tip.text = ": ".join(str(one.text) for one in labels[:1] + values[:1])
                group.insert(0, tip)
            for child in list(group):
                if child.tag == "desc":
                    group.remove(child)  # only the script that was taken out reads them
        return root

    return apply

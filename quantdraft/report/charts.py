"""Charts as inline SVG: no scripts, no outside files, colours from the page's style sheet.

Every chart has a title and a description that a screen reader speaks; the tables beside the
charts hold the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from itertools import count, pairwise

from quantdraft.report.blocks import Bars, Dumbbell, Forest, Lines, Series, Span
from quantdraft.report.wording import MINUS, percent

WIDTH, HEIGHT = 520.0, 270.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 96.0, 14.0, 42.0
MARK_WIDTH, MARK_HEIGHT = 150.0, 20.0
ROW_HEIGHT = 30.0
_ids = count(1)


def bars(chart: Bars) -> str:
    """Grouped bars from 0 to 100 %, with the value over each bar while there is room."""
    right = 12.0
    scale = _Scale(0.0, 1.0, HEIGHT - BOTTOM, TOP + 16)
    step = (WIDTH - LEFT - right) / max(1, len(chart.groups))
    bar = min(34.0, step * 0.38)
    body = _y_axis(scale, [0, 0.25, 0.5, 0.75, 1.0], "%", 100, WIDTH - right)
    for at, group in enumerate(chart.groups):
        middle = LEFT + step * (at + 0.5)
        body += _text(middle, HEIGHT - BOTTOM + 17, group, "tick middle")
        for arm_at, (_, arm, values) in enumerate(chart.series):
            if at < len(values):
                x = middle + (arm_at - len(chart.series) / 2) * bar
                body += _bar(x, bar, scale, values[at], arm=arm, has_label=len(chart.groups) <= 6)
    body += _text((LEFT + WIDTH - right) / 2, HEIGHT - 6, chart.x_title, "axis middle")
    legend = [(name, arm) for name, arm, _ in chart.series]
    return _svg((WIDTH, HEIGHT), chart, body + _legend(legend, right))


def _bar(x: float, width: float, scale: _Scale, value: float, *, arm: str, has_label: bool) -> str:
    top = scale.at(value)
    drawn = (
        f'<rect class="bar {arm}" x="{x + 1:.1f}" y="{top:.1f}" width="{width - 2:.1f}" '
        f'height="{scale.at(0) - top:.1f}"><title>{escape(arm)}: {percent(value)}</title></rect>'
    )
    if not has_label:
        return drawn
    return drawn + _text(x + width / 2, top - 4, f"{100 * value:.0f}", "value middle")


def _legend(names: Sequence[tuple[str, str]], right: float) -> str:
    x = WIDTH - right - 92.0 * len(names)
    body = ""
    for name, arm in names:
        body += f'<rect class="bar {arm}" x="{x:.1f}" y="3" width="10" height="10"/>'
        body += _text(x + 15, 12, name, "tick")
        x += 92
    return body


def lines(chart: Lines) -> str:
    """Lines over k with their names at the right end; a ring marks each series' best point."""
    drawn = [series for series in chart.series if series.points]
    xs = [x for series in drawn for x, _ in series.points]
    ys = [y for series in drawn for _, y in series.points]
    ys += [end for series in drawn for ends in series.ends for end in ends]
    if not xs:
        return ""
    ticks = nice_ticks(min(ys + _some(chart.reference)), max(ys + _some(chart.reference)))
    y_scale = _Scale(ticks[0], ticks[-1], HEIGHT - BOTTOM, TOP)
    x_scale = _Scale(min(xs), max(xs), LEFT + 12, WIDTH - RIGHT - 4)
    body = _y_axis(y_scale, ticks, chart.unit, 1, WIDTH - RIGHT)
    body += _x_ticks(x_scale, sorted(set(xs)))
    body += _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, chart.x_title, "axis middle")
    if chart.reference is not None:
        body += _reference(y_scale, chart)
    for at, series in enumerate(drawn):
        body += _line(series, x_scale, y_scale, at)
    body += _end_labels(drawn, y_scale)
    return _svg((WIDTH, HEIGHT), chart, body)


def _line(series: Series, x_scale: _Scale, y_scale: _Scale, at: int) -> str:
    kind = _series_class(series, at)
    where = " ".join(f"{x_scale.at(x):.1f},{y_scale.at(y):.1f}" for x, y in series.points)
    body = f'<polyline class="line {kind}" points="{where}"/>'
    for (x, _), (low, high) in zip(series.points, series.ends, strict=False):
        body += _error_bar(x_scale.at(x), y_scale.at(low), y_scale.at(high), kind)
    for x, y in series.points:
        spot = f'cx="{x_scale.at(x):.1f}" cy="{y_scale.at(y):.1f}"'
        body += (
            f'<circle class="dot {kind}" {spot} r="2.6">'
            f"<title>{escape(series.name)}, k = {x:g}: {y:.3f}</title></circle>"
        )
        if x == series.marked_x:
            body += f'<circle class="ring {kind}" {spot} r="7"/>'
    return body


def _error_bar(x: float, low: float, high: float, kind: str) -> str:
    return (
        f'<path class="line thin {kind}" d="M{x:.1f} {low:.1f}V{high:.1f}'
        f'M{x - 4:.1f} {low:.1f}h8M{x - 4:.1f} {high:.1f}h8"/>'
    )


def _series_class(series: Series, at: int) -> str:
    return series.arm if series.arm != "plain" else f"hue{at % 8}"


def _end_labels(drawn: list[Series], scale: _Scale) -> str:
    """Names at the line ends, moved apart where they would touch."""
    ends = sorted((scale.at(s.points[-1][1]), at, s) for at, s in enumerate(drawn))
    body, last = "", -math.inf
    room = HEIGHT - BOTTOM - 13.0 * len(ends)
    for place, (y, at, series) in enumerate(ends):
        last = max(min(y + 4, room + 13.0 * (place + 1)), last + 13)
        label = series.name if len(series.name) <= 15 else series.name[:14] + "…"
        body += _text(WIDTH - RIGHT + 8, last, label, f"name {_series_class(series, at)}")
    return body


def _reference(scale: _Scale, chart: Lines) -> str:
    y = scale.at(chart.reference or 0.0)
    rule = f'<line class="limit" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return rule + _text(LEFT + 6, y - 5, chart.reference_name, "tick")


def forest(chart: Forest) -> str:
    """One interval a row, the limits as vertical rules, the numbers at the right."""
    spans = [span for _, span, _ in chart.rows if span]
    if not spans:
        return ""
    width, left, right = 900.0, 170.0, 210.0
    height = ROW_HEIGHT * len(chart.rows) + 56
    levels = [level for level, _ in chart.limits]
    ticks = nice_ticks(
        min([s.low for s in spans] + levels), max([s.high for s in spans] + levels), 7
    )
    scale = _Scale(ticks[0], ticks[-1], left, width - right)
    bottom = height - 30
    body = ""
    for tick in ticks:
        x = scale.at(tick)
        body += f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="22" y2="{bottom:.1f}"/>'
        body += _text(x, bottom + 18, f"{_tick(tick, ticks)}×", "tick middle")
    for at, (level, name) in enumerate(sorted(chart.limits)):
        x = scale.at(level)
        body += f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="18" y2="{bottom:.1f}"/>'
        is_last = at == len(chart.limits) - 1
        side = "start" if is_last else "end"
        body += _text(x + (4 if is_last else -4), 12, name, f"tick {side}")
    for at, (name, span, words) in enumerate(chart.rows):
        y = 22 + ROW_HEIGHT * (at + 0.5)
        body += _text(left - 14, y + 4, name, "row end")
        body += _text(width - right + 14, y + 4, words, "row number")
        if span:
            body += _whisker(span, scale, y, 5)
    return _svg((width, height), chart, body, "wide")


def mark(value: Span | Dumbbell | None, rows: tuple[Span | Dumbbell | None, ...]) -> str:
    """The small drawing of one table row. Dumbbells share one scale, spans have their own."""
    if value is None:
        return ""
    if isinstance(value, Span):
        return _span_mark(value)
    shared = [v for row in rows if isinstance(row, Dumbbell) for v in (row.baseline, row.candidate)]
    return _dumbbell_mark(value, min(shared), max(shared))


def _span_mark(span: Span) -> str:
    values = [span.low, span.high, span.value, *_some(span.limit)]
    scale = _Scale(min(values), max(values) + 1e-9, 8, MARK_WIDTH - 8)
    body, y = "", MARK_HEIGHT / 2
    if span.limit is not None:
        x = scale.at(span.limit)
        body += f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="1" y2="{MARK_HEIGHT - 1}"/>'
    return _small(body + _whisker(span, scale, y, 4), "interval and limit")


def _dumbbell_mark(row: Dumbbell, low: float, high: float) -> str:
    scale, y = _Scale(low, high + 1e-9, 8, MARK_WIDTH - 8), MARK_HEIGHT / 2
    a, b = scale.at(row.baseline), scale.at(row.candidate)
    body = f'<line class="bond" x1="{a:.1f}" x2="{b:.1f}" y1="{y}" y2="{y}"/>'
    body += f'<circle class="dot hollow baseline" cx="{a:.1f}" cy="{y}" r="4.2"/>'
    body += f'<circle class="dot candidate" cx="{b:.1f}" cy="{y}" r="4.2"/>'
    words = f"baseline {percent(row.baseline)}, candidate {percent(row.candidate)}"
    return _small(body, words)


def _whisker(span: Span, scale: _Scale, y: float, radius: float) -> str:
    a, b, middle = scale.at(span.low), scale.at(span.high), scale.at(span.value)
    ends = "".join(
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y - 4:.1f}" y2="{y + 4:.1f}"/>' for x in (a, b)
    )
    return (
        f'<g class="whisker {span.tone}"><line x1="{a:.1f}" x2="{b:.1f}" y1="{y:.1f}" '
        f'y2="{y:.1f}"/>{ends}<circle cx="{middle:.1f}" cy="{y:.1f}" r="{radius}"/></g>'
    )


class _Scale:
    """A value's place between two ends, in SVG units; one value alone lies in the middle."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.high, self.start, self.end = low, high, start, end

    def at(self, value: float) -> float:
        """Where the value lies."""
        if self.high == self.low:
            return (self.start + self.end) / 2
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def nice_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round levels from below `low` to above `high`, about that many."""
    span = (high - low) or abs(high) or 1.0
    rough = span / about
    power = 10 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * at, 12) for at in range(first, max(last, first + 1) + 1)]


def _y_axis(scale: _Scale, ticks: list[float], unit: str, factor: int, right: float) -> str:
    body = ""
    for tick in ticks:
        y = scale.at(tick)
        body += f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        label = _tick(tick * factor, [t * factor for t in ticks])
        body += _text(LEFT - 7, y + 4, f"{label}{' %' if unit == '%' else unit}", "tick end")
    return body


def _x_ticks(scale: _Scale, values: list[float]) -> str:
    return "".join(
        _text(scale.at(x), HEIGHT - BOTTOM + 17, f"{x:g}", "tick middle") for x in values
    )


def _tick(value: float, ticks: list[float]) -> str:
    step = min(b - a for a, b in pairwise(ticks))
    digits = next(d for d in range(12) if abs(round(step, d) - step) < 1e-9 * max(1.0, step))
    return f"{value:.{digits}f}".replace("-", MINUS)


def _some(value: float | None) -> list[float]:
    return [] if value is None else [value]


def _text(x: float, y: float, words: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(words)}</text>'


def _small(body: str, words: str) -> str:
    return (
        f'<svg class="mark" role="img" aria-label="{escape(words)}" '
        f'viewBox="0 0 {MARK_WIDTH:g} {MARK_HEIGHT:g}">{body}</svg>'
    )


def _svg(size: tuple[float, float], chart: Bars | Lines | Forest, body: str, kind: str = "") -> str:
    at = next(_ids)
    return (
        f'<svg class="chart {kind}" role="img" aria-labelledby="t{at} d{at}" '
        f'viewBox="0 0 {size[0]:g} {size[1]:g}"><title id="t{at}">{escape(chart.title)}</title>'
        f'<desc id="d{at}">{escape(chart.description)}</desc>{body}</svg>'
    )

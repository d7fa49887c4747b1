"""Charts as inline SVG. Every number that is drawn stands beside it as text too, so that a chart is never the only
source."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape


@dataclass(frozen=True, slots=True)
class Bar:
    """One row of a chart.

    Attributes:
        label: what it is.
        value: 0 to 1.
        low, high: its interval; None: none is drawn.
        kind: `candidate`, `baseline` or another class of the style sheet.
        told: the number as text.
    """

    label: str
    value: float
    kind: str
    told: str
    low: float | None = None
    high: float | None = None


_LABEL, _PLOT, _TOLD, _ROW = 172, 230, 150, 26


def bars(rows: Sequence[Bar], *, axis: bool = True) -> Markup:
    """Horizontal bars from 0 to 100%, each with its interval as a whisker."""
    if not rows:
        return Markup("")
    height = len(rows) * _ROW + (22 if axis else 4)
    width = _LABEL + _PLOT + _TOLD
    out = [f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="bars">']
    if axis:
        out += [_grid(share, len(rows) * _ROW) for share in (0, 0.25, 0.5, 0.75, 1)]
    for i, row in enumerate(rows):
        out.append(_bar(row, i * _ROW))
    return Markup("".join(out) + "</svg>")  # every text inside was escaped where it was put in  # noqa: S704


def _x(share: float) -> float:
    return _LABEL + max(0.0, min(1.0, share)) * _PLOT


def _grid(share: float, height: int) -> str:
    x = _x(share)
    return (
        f'<line class="grid" x1="{x:.1f}" y1="0" x2="{x:.1f}" y2="{height}"/>'
        f'<text class="tick" x="{x:.1f}" y="{height + 15}" text-anchor="middle">{share:.0%}</text>'
    )


def _bar(row: Bar, top: int) -> str:
    middle = top + _ROW / 2
    label = f"{escape(_short(row.label))}<title>{escape(row.label)}</title>"
    length = max(_x(row.value) - _LABEL, 1.5)
    place = f'x="{_LABEL}" y="{middle - 7:.1f}" width="{length:.1f}" height="14" rx="3"'
    parts = [
        f'<text class="label" x="{_LABEL - 10}" y="{middle + 4:.1f}" text-anchor="end">{label}</text>',
        f'<rect class="bar {escape(row.kind)}" {place}/>',
    ]
    if row.low is not None and row.high is not None:
        low, high = _x(row.low), _x(row.high)
        parts.append(
            f'<path class="whisker" d="M{low:.1f} {middle:.1f}H{high:.1f}M{low:.1f} {middle - 4:.1f}v8'
            f'M{high:.1f} {middle - 4:.1f}v8"/>'
        )
    parts.append(f'<text class="told" x="{_LABEL + _PLOT + 12}" y="{middle + 4:.1f}">{escape(row.told)}</text>')
    return "".join(parts)


def _short(text: str, most: int = 24) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


@dataclass(frozen=True, slots=True)
class Line:
    """A line of values from 0 to 1 over 1, 2, 3, ..."""

    label: str
    kind: str
    values: Sequence[float]


def lines(series: Sequence[Line], *, x_name: str) -> Markup:
    """Lines over k, each point with its value."""
    most = max((len(line.values) for line in series), default=0)
    if most < 2:
        return Markup("")
    width, height, left, bottom, top = 440, 220, 44, 34, 14
    step = (width - left - 40) / (most - 1)

    def place(k: int, value: float) -> tuple[float, float]:
        return left + 12 + k * step, top + (1 - value) * (height - bottom - top)

    out = [f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="lines">']
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = place(0, share)[1]
        out.append(f'<line class="grid" x1="{left}" y1="{y:.1f}" x2="{width - 8}" y2="{y:.1f}"/>')
        out.append(f'<text class="tick" x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{share:.0%}</text>')
    out += [
        f'<text class="tick" x="{place(k, 0)[0]:.1f}" y="{height - 14}" text-anchor="middle">{k + 1}</text>'
        for k in range(most)
    ]
    out.append(f'<text class="tick" x="{width - 8}" y="{height - 2}" text-anchor="end">{escape(x_name)}</text>')
    for line in series:
        points = [place(k, v) for k, v in enumerate(line.values)]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        out.append(f'<path class="line {escape(line.kind)}" d="{path}"/>')
        for (x, y), value in zip(points, line.values, strict=True):
            out.append(f'<circle class="dot {escape(line.kind)}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>')
            out.append(f'<text class="point" x="{x:.1f}" y="{y - 8:.1f}" text-anchor="middle">{value:.0%}</text>')
    return Markup("".join(out) + "</svg>")  # every text inside was escaped where it was put in  # noqa: S704


def difference(value: float, low: float, high: float, margin: float) -> Markup:
    """Where the difference lies: from -100 to +100 points, with its interval, zero, and the margin that is allowed."""
    width, height, pad = 660, 74, 26
    span = min(1.0, math.ceil(max(0.12, 1.2 * max(abs(low), abs(high), abs(margin))) * 10) / 10)

    def x(points: float) -> float:
        return pad + (max(-span, min(span, points)) + span) / (2 * span) * (width - 2 * pad)

    kind = "good" if low > 0 else "bad" if high < 0 else "even"
    out = [
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="difference">',
        f'<line class="axis" x1="{pad}" y1="34" x2="{width - pad}" y2="34"/>',
        f'<line class="zero" x1="{x(0):.1f}" y1="12" x2="{x(0):.1f}" y2="52"/>',
        f'<line class="margin" x1="{x(margin):.1f}" y1="16" x2="{x(margin):.1f}" y2="52"/>',
        f'<line class="range {kind}" x1="{x(low):.1f}" y1="34" x2="{x(high):.1f}" y2="34"/>',
        f'<circle class="{kind}" cx="{x(value):.1f}" cy="34" r="6.5"/>',
        f'<text class="tick" x="{x(0):.1f}" y="68" text-anchor="middle">0</text>',
    ]
    if abs(x(margin) - x(0)) > 24:
        # Above its line: below, the ends of the scale may be as near.
        out.append(f'<text class="tick" x="{x(margin):.1f}" y="11" text-anchor="middle">{100 * margin:+.0f}</text>')
    for end, anchor in ((-span, "start"), (span, "end")):
        out.append(f'<text class="tick" x="{x(end):.1f}" y="68" text-anchor="{anchor}">{100 * end:+.0f} points</text>')
    return Markup("".join(out) + "</svg>")  # numbers only  # noqa: S704


def squares(verdicts: Sequence[bool | None]) -> Markup:
    """A small square per trial: passed, failed, not scored."""
    size, gap = 11, 3
    width = max(1, len(verdicts)) * (size + gap)
    names = {True: "good", False: "bad", None: "none"}
    cells = "".join(
        f'<rect class="{names[v]}" x="{i * (size + gap)}" y="1" width="{size}" height="{size}" rx="2"/>'
        for i, v in enumerate(verdicts)
    )
    return Markup(f'<svg class="squares" width="{width}" height="13" aria-hidden="true">{cells}</svg>')  # noqa: S704

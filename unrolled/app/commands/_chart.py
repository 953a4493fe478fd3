"""SVG of lines over steps, with names at their ends, in the colours of a light or dark page."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np

from unrolled import plots
from unrolled.app.studies import Overview

_DASHES = {"-": "", "--": "7 4", ":": "2 4", "-.": "7 3 2 3"}
_TICKS = 7  # the most ticks of an axis


class _Form(NamedTuple):
    """Sizes in pixels. A narrow screen has a separate drawing, so that words keep their size."""

    name: str  # the class of the figure in the page
    width: int
    height: int
    font: int
    line: int  # height of a line of text
    longest: int  # characters in a line of a name


_FORMS = (_Form("broad", 1000, 440, 15, 19, 30), _Form("narrow", 360, 420, 13, 16, 14))
# Widths of characters, in sizes of the font: above those of the widest usual fonts.
_CAPITAL, _SMALL = 0.78, 0.6
_STROKE = 20  # width for the strokes between lines and names
# The left margin holds "0.001" in the widest fonts.
_LEFT, _TOP, _BOTTOM = 58, 30, 42


def chart(overview: Overview) -> str:
    """The figure of an overview, once for a broad and once for a narrow screen."""
    return "".join(_drawn(overview, form) for form in _FORMS)


def _drawn(overview: Overview, form: _Form) -> str:
    height = {n: _heights(line, overview.log) for n, line in overview.lines.items()}
    low, high = _limits([height[name] for name in overview.shown])
    steps = max(len(line) for line in height.values()) - 1
    labels = {name: _label(overview, name, form) for name in overview.shown}
    right = _STROKE + max((_wide(row, form) for rows in labels.values() for row in rows), default=0)
    width, tall = form.width - _LEFT - right, form.height - _TOP - _BOTTOM

    def x(k: float) -> float:
        return round(_LEFT + width * k / max(1, steps), 1)

    def y(value: float) -> float:
        return round(_TOP + tall * (high - value) / (high - low), 1)

    parts = [f'<text x="0" y="{form.font}">{escape(overview.ylabel)}</text>']
    for value in _ticks(low, high, overview.log):
        label = _power(value) if overview.log else f"{value:g}".replace("-", "\u2212")
        parts.append(f'<path class="grid" d="M{_LEFT} {y(value)}H{_LEFT + width}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 6}" y="{y(value) + 5}">{label}</text>')
    for k in _ticks(0, steps, False, (1, 2, 4, 5, 10)):
        parts.append(f'<text class="mid" x="{x(k)}" y="{_TOP + tall + 20}">{k:g}</text>')
    parts.append(f'<text class="mid" x="{x(steps / 2)}" y="{form.height - 3}">step</text>')
    looks = plots.styles({name: overview.kinds.get(name, (name, "")) for name in height})
    # An inner drawing clips the lines at its borders.
    parts.append(f'<svg x="{_LEFT}" y="{_TOP}" width="{width + 2}" height="{tall}">')
    order = sorted(height, key=lambda name: (name in overview.shown, name == overview.best))
    for name in order:
        points = [(x(k) - _LEFT, y(v) - _TOP) for k, v in enumerate(height[name]) if np.isfinite(v)]
        parts.append(_line(points, looks[name], name in overview.shown, name == overview.best))
    parts.append("</svg>")
    parts += _names(overview, labels, height, looks, form, right, x, y)
    words = escape(f"{overview.caption} {overview.sentence}", quote=True)
    return (
        f'<svg class="{form.name}" viewBox="0 0 {form.width} {form.height}" role="img" '
        f'font-size="{form.font}" aria-label="{words}">{"".join(parts)}</svg>'
    )


def _line(points: Sequence[tuple], look: Mapping[str, Any], shown: bool, best: bool) -> str:
    drawn = " ".join(f"{x:g},{y:g}" for x, y in points)
    if not shown:
        return f'<polyline class="faint" points="{drawn}"/>'
    dash = _DASHES[look["linestyle"]]
    return (
        f'<polyline points="{drawn}" stroke="{look["color"]}" stroke-width="{3.5 if best else 2}"'
        + (f' stroke-dasharray="{dash}"' if dash else "")
        + "/>"
    )


def _label(overview: Overview, name: str, form: _Form) -> list[str]:
    """The name and the last value of a line, in lines of text."""
    value = overview.lines[name][-1]
    number = f"{value:.2g}" if overview.log else f"{value:.0f}".replace("-", "\u2212")
    return textwrap.wrap(f"{name} {number}", form.longest)


def _wide(text: str, form: _Form) -> int:
    """A bound on the width of a text."""
    sizes = (_CAPITAL if c.isupper() or c in "mw" else _SMALL for c in text)
    return math.ceil(form.font * sum(sizes))


def _names(
    overview: Overview,
    labels: Mapping[str, list[str]],
    height: Any,
    looks: Any,
    form: _Form,
    right: int,
    x: Any,
    y: Any,
) -> list[str]:
    """The names at the ends of the lines, moved apart; a stroke joins each line to its name."""
    ends = {name: (len(height[name]) - 1, y(height[name][-1])) for name in overview.shown}
    lines = max(map(len, labels.values()), default=1)
    apart, half = form.line * lines + 3, form.line * lines / 2
    low, high = _TOP + half, form.height - _BOTTOM
    places = _apart([at for _, at in ends.values()], apart, low, high)
    parts = []
    for (name, (k, at)), place in zip(ends.items(), places):
        left, begin, rows = form.width - right + _STROKE, x(k) + 3, labels[name]
        colour = looks[name]["color"]
        weight = ' font-weight="700"' if name == overview.best else ""
        parts.append(f'<path d="M{begin} {at}L{left - 4} {place}" stroke="{colour}"/>')
        for i, row in enumerate(rows):
            below = place + form.font / 3 + (i - (len(rows) - 1) / 2) * form.line
            parts.append(f'<text x="{left}" y="{below:.1f}"{weight}>{escape(row)}</text>')
    return parts


def _apart(heights: Sequence[float], apart: float, low: float, high: float) -> list[float]:
    """Heights at least `apart` from each other, moved from `heights` by one pass each way."""
    order = np.argsort(heights, kind="stable")
    places, at = np.empty(len(heights)), low - apart
    for i in order:
        places[i] = at = max(heights[i], at + apart)
    at = high + apart
    for i in order[::-1]:
        places[i] = at = min(places[i], at - apart)
    return [round(float(place), 1) for place in places]


def _heights(line: np.ndarray, log: bool) -> np.ndarray:
    line = np.asarray(line, float)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(line > 0, np.log10(line), np.nan) if log else line


def _limits(lines: Sequence[np.ndarray]) -> tuple[float, float]:
    values = np.concatenate([np.zeros(0), *(line[np.isfinite(line)] for line in lines)])
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    margin = 0.03 * (high - low) or 0.5
    return low - margin, high + margin


def _ticks(low: float, high: float, log: bool, sizes: Sequence[int] = (1, 2, 5, 10)) -> list[float]:
    """Round numbers within the limits; whole numbers on an axis of powers."""
    least = (high - low) / _TICKS
    size = 10.0 ** math.floor(math.log10(least)) if least > 0 else 1.0
    size = next(size * m for m in sizes if size * m >= least)
    size = max(1.0, math.ceil(size)) if log else size
    return [k * size for k in range(math.ceil(low / size), math.floor(high / size) + 1)]


def _power(exponent: float) -> str:
    if -4 < exponent < 4:
        return f"{10.0**exponent:g}"
    power = f"{exponent:.0f}".replace("-", "\u2212")
    return f'10<tspan dy="-5" font-size="75%">{power}</tspan>'

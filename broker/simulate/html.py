"""The report of a simulation as one page that needs nothing else: figures and three plots.

What belongs here: HTML and SVG.  What does not: figures (broker.simulate.report).  The page loads
nothing, runs nothing, and follows the reader's choice of light or dark.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from broker.simulate import Outcome
from broker.simulate.report import CENTER_HEADER, TENANT_HEADER, Report, figures, group_cells

WIDTH, HEIGHT = 880, 260
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 12, 34
POINTS = 400
"""Points of a curve over time; each is the mean over its share of the span."""

COLOURS = 6
"""Curves of one plot that have a colour of their own; further centers are drawn as their mean."""

Change = tuple[int, float]
"""(second, by how much a quantity changes then)."""

STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5d6878; --line: #d5dbe3; --page: #ffffff;
  --c0: #1f6fb2; --c1: #c2571a; --c2: #2f8f5b; --c3: #8a4fb0; --c4: #b0902a; --c5: #b03a5b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --soft: #9aa5b4; --line: #39424f;
  --page: #14181f;
  --c0: #63b0f0; --c1: #f0955c; --c2: #6fcf97; --c3: #c39be0; --c4: #e0c565; --c5: #f0829f; } }
body { margin: 2rem auto; max-width: 60rem; padding: 0 1rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; margin-bottom: 0; } h2 { font-size: 1.05rem; margin: 2rem 0 .4rem; }
p { margin: .3rem 0; color: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem .25rem 0; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th { font-weight: 600; } th:first-child, td:first-child { text-align: left; }
svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--soft); font-size: 12px; } .grid { stroke: var(--line); }
.curve { fill: none; stroke-width: 1.6; }
""" + "\n".join(f".c{i} {{ stroke: var(--c{i}); }} .k{i} {{ color: var(--c{i}); }}" for i in range(COLOURS))


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of a plot: points in units of its axes."""

    name: str
    points: Sequence[tuple[float, float]]


def page(outcome: Outcome, told: Report) -> str:
    """The whole page."""
    first_s, last_s = told.span_s
    queue = Curve("jobs waiting", _over_time(_queue(outcome), first_s, last_s))
    waits = sorted(record.waited_s for record in outcome.jobs if record.end_s is not None)
    wait_curve = Curve("jobs", [(math.log10(1 + s), share) for s, share in _distribution(waits)])
    days = (last_s - first_s) / 86400
    body = [
        "<h1>Simulation of a trace</h1>",
        f"<p>{escape(told.label)}</p>",
        *(f"<p>Note: {escape(note)}.</p>" for note in told.notes),
        _table(("figure", "value"), [(name, text) for name, text in figures(told)]),
        "<h2>Jobs waiting, over days</h2>",
        _plot(
            [queue],
            x_ticks=_ticks(days),
            right=days,
            y_ticks=_ticks(max((y for _, y in queue.points), default=0)),
        ),
        "<h2>Accelerators in use by center, over days (share)</h2>",
        _plot(_usage(outcome, first_s, last_s), x_ticks=_ticks(days), right=days, y_ticks=_percents()),
        "<h2>Share of jobs by wait</h2>",
        _plot([wait_curve], x_ticks=_wait_ticks(waits), y_ticks=_percents()),
        "<h2>Centers</h2>",
        _table(CENTER_HEADER, [group_cells(group) for group in told.centers]),
        "<h2>Tenants</h2>",
        _table(TENANT_HEADER, [group_cells(group) for group in told.tenants]),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Simulation: {escape(told.label)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


# ---------------------------------------------------------------- curves


def _queue(outcome: Outcome) -> list[Change]:
    changes: list[Change] = []
    for record in outcome.jobs:
        for since, to in record.queue:
            changes += [(since, 1), (to, -1)]
        if record.end_s is None:  # it waits to the end
            changes.append((record.queued_s, 1))
    return changes


def _usage(outcome: Outcome, first_s: int, last_s: int) -> list[Curve]:
    """A curve for each of the largest centers, and one for the others together."""
    largest = sorted(outcome.cards, key=lambda center: (-outcome.cards[center], center))
    largest = [center for center in largest if outcome.cards[center]]
    shown = largest if len(largest) <= COLOURS else largest[: COLOURS - 1]
    groups = [(center, {center}) for center in sorted(shown)]
    if len(shown) < len(largest):
        groups.append(("the others", set(largest) - set(shown)))
    curves = []
    for name, centers in groups:
        total = sum(outcome.cards[center] for center in centers)
        changes: list[Change] = []
        for held in outcome.segments:
            if held.center in centers:
                changes += [(held.start_s, held.cards / total), (held.end_s, -held.cards / total)]
        curves.append(Curve(name, _over_time(changes, first_s, last_s)))
    return curves


def _over_time(changes: Sequence[Change], first_s: int, last_s: int) -> list[tuple[float, float]]:
    """(days since the first submission, mean level) of POINTS equal parts of the span."""
    width = max(last_s - first_s, 1) / POINTS
    area = [0.0] * POINTS
    ordered = sorted(changes)
    level = 0.0
    for (at, by), (until, _) in itertools.pairwise([*ordered, (last_s, 0.0)]):
        level += by
        since, to = float(max(at, first_s)), min(until, last_s)
        part = int((since - first_s) / width)
        while since < to and part < POINTS:
            edge = min(to, first_s + (part + 1) * width)
            area[part] += level * max(0.0, edge - since)
            since, part = max(since, edge), part + 1
    return [((i + 0.5) * width / 86400, max(0.0, a / width)) for i, a in enumerate(area)]


def _distribution(waits: Sequence[int]) -> list[tuple[int, float]]:
    """(wait, share of jobs that wait no longer), at every POINTS-th part of the jobs."""
    if not waits:
        return []
    step = max(1, len(waits) // POINTS)
    at = [*range(step - 1, len(waits), step), len(waits) - 1]
    return [(waits[i], (i + 1) / len(waits)) for i in at]


# ---------------------------------------------------------------- axes


def _ticks(highest: float) -> list[tuple[float, str]]:
    """Round values from 0 to just above `highest`."""
    highest = max(highest, 1e-9)
    step = 10.0 ** math.floor(math.log10(highest / 4))
    step *= next(m for m in (1, 2, 5, 10) if highest / (step * m) <= 5)
    count = math.ceil(highest / step - 1e-9)
    return [(i * step, f"{i * step:,.10g}") for i in range(count + 1)]


def _percents() -> list[tuple[float, str]]:
    return [(i / 4, f"{25 * i} %") for i in range(5)]


def _wait_ticks(waits: Sequence[int]) -> list[tuple[float, str]]:
    """Waits on a logarithmic axis of 1 + seconds."""
    names = ((0, "0"), (60, "1 min"), (3600, "1 h"), (86_400, "1 d"), (864_000, "10 d"), (8_640_000, "100 d"))
    longest = max(waits, default=0)
    shown = [n for i, n in enumerate(names) if i == 0 or names[i - 1][0] < longest] + (
        [] if longest else [names[1]]
    )
    return [(math.log10(1 + s), name) for s, name in shown]


# ---------------------------------------------------------------- HTML and SVG


def _plot(
    curves: Sequence[Curve],
    *,
    x_ticks: list[tuple[float, str]],
    y_ticks: list[tuple[float, str]],
    right: float | None = None,
) -> str:
    """Curves on axes from zero; `right` is where the x axis ends, by default its last tick."""
    right, top = right or x_ticks[-1][0] or 1.0, y_ticks[-1][0] or 1.0

    def x(value: float) -> float:
        return round(LEFT + value / right * (WIDTH - LEFT - RIGHT), 1)

    def y(value: float) -> float:
        return round(HEIGHT - BOTTOM - min(value / top, 1.0) * (HEIGHT - TOP - BOTTOM), 1)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">']
    for value, name in y_ticks:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value)}" y2="{y(value)}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y(value) + 4}" text-anchor="end">{escape(name)}</text>')
    for value, name in (tick for tick in x_ticks if tick[0] <= right):
        anchor = "end" if x(value) > WIDTH - 2 * RIGHT else "middle"
        parts.append(f'<text x="{x(value)}" y="{HEIGHT - 12}" text-anchor="{anchor}">{escape(name)}</text>')
    for number, curve in enumerate(curves):
        points = " ".join(f"{x(a)},{y(b)}" for a, b in curve.points)
        parts.append(f'<polyline class="curve c{number}" points="{points}"/>')
    parts.append("</svg>")
    if len(curves) > 1:
        keys = (f'<span class="k{i}">&#9632;</span> {escape(c.name)}' for i, c in enumerate(curves))
        parts.append(f"<p>{' &nbsp; '.join(keys)}</p>")
    return "\n".join(parts)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    lines = ["<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>" for row in rows]
    return (
        f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n'
        + "\n".join(lines)
        + "\n</tbody></table></div>"
    )

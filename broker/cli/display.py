"""What people see of the broker's answers: tables, durations, money and the progress of jobs.

What belongs here: text for a terminal.  What does not: asking the broker (broker.client) and
deciding what to ask.  Plain text of the standard library: a table is never cut to the width of a
terminal, so that it can be searched and piped.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from broker.client.answers import JobDetail, Resources


def clean(value: Any) -> str:
    """A value as one line of printable text: what others wrote must not steer the terminal."""
    text = "" if value is None else str(value)
    return "".join(char if char.isprintable() else " " for char in text)


def json_lines(document: Any) -> str:
    """A document as JSON in lines, in which no text steers the terminal: what is not printable is escaped."""
    text = json.dumps(document, ensure_ascii=False, indent=2)
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


def width(text: str) -> int:
    """Columns of a terminal that `text` takes: two for East Asian wide characters."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1
        for char in text
    )


def table(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Aligned columns under `headings`; numbers stand to the right."""
    headings = [clean(heading) for heading in headings]
    body = [list(row) for row in rows]
    cells = [[clean(value) for value in row] for row in body]
    numeric = [
        bool(body) and all(isinstance(row[i], int | float) or row[i] in (None, "") for row in body)
        for i in range(len(headings))
    ]
    widths = [max([width(h), *(width(row[i]) for row in cells)]) for i, h in enumerate(headings)]

    def line(row: Sequence[str]) -> str:
        placed = (
            " " * (widths[i] - width(text)) + text if numeric[i] else text + " " * (widths[i] - width(text))
            for i, text in enumerate(row)
        )
        return "  ".join(placed).rstrip()

    return "\n".join([line(headings), *map(line, cells)])


def fields(pairs: Iterable[tuple[str, Any]], *, indent: str = "") -> str:
    """`name: value` lines with aligned values; what is empty is left out."""
    known = [(clean(name), clean(value)) for name, value in pairs if value not in (None, "", [], {})]
    longest = max((len(name) for name, _ in known), default=0)
    return "\n".join(f"{indent}{name + ':':<{longest + 1}} {value}" for name, value in known)


def duration(seconds: float) -> str:
    """`8 s`, `3 min 05 s`, `2 h 10 min`, `3 d 4 h`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def power(flops: int) -> str:
    """FLOPS with three digits and a unit: `1.25 PFLOPS`."""
    for exponent, unit in ((18, "E"), (15, "P"), (12, "T"), (9, "G")):
        if flops >= 10**exponent:
            return f"{flops / 10**exponent:.3g} {unit}FLOPS"
    return f"{flops} FLOPS"


def cards(resources: Resources) -> str:
    """The accelerators of a resource: `8 x Nvidia/GPU/A800 80 GiB`, "" for none."""
    processor = resources["processor"]
    if not processor["count"]:
        return ""
    memory = f" {processor['memory']} GiB" if processor["memory"] else ""
    return f"{processor['count']} x {processor['name']}{memory}"


# ---------------------------------------------------------------- a job in words


def place_of(job: JobDetail) -> str:
    """The center of the newest run that has one."""
    for run in job.get("runs", [])[::-1]:
        if center := run.get("centerId"):
            return center
    return ""


def outcome(job: JobDetail) -> str:
    """How an ended job ended, in one line."""
    where = f" at {place_of(job)}" if place_of(job) else ""
    why = f": {job['message']}" if job.get("message") else ""
    return clean(f"{job['id']} ({job['name']}) {job['status']}{where}{why}")


class Progress:
    """Where awaited jobs are, on stderr: one live line on a terminal, a line per change elsewhere."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._since = time.monotonic()
        self._told: dict[str, tuple[str, str, str]] = {}

    def show(self, job: JobDetail, why: str = "") -> None:
        """Tell the state of one job; `why` is what it waits for."""
        state = (job["status"], place_of(job), why)
        changed = self._told.get(job["id"]) != state
        self._told[job["id"]] = state
        where = f" at {state[1]}" if state[1] else ""
        reason = f": {why}" if why else ""
        if self._live:
            elapsed = duration(time.monotonic() - self._since)
            if len(self._told) == 1:
                self._redraw(clean(f"{job['name']} {job['status']}{where}, {elapsed}{reason}"))
            else:
                counts = Counter(status for status, _, _ in self._told.values())
                states = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
                self._redraw(f"{len(self._told)} jobs: {states}, {elapsed}")
        elif changed:
            self._say(clean(f"{job['id']} ({job['name']}) {job['status']}{where}{reason}"))

    def end(self, job: JobDetail) -> None:
        """Tell the outcome of one job; it is not waited for any more."""
        self._told.pop(job["id"], None)
        self.say(outcome(job))

    def say(self, text: str) -> None:
        """A line that stays, above the live one."""
        if self._live:
            self._stream.write("\r\x1b[2K")
        self._say(text)

    def close(self) -> None:
        """Leave the terminal with a clean line."""
        if self._live:
            self._stream.write("\r\x1b[2K")
            self._stream.flush()

    def _say(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()

    def _redraw(self, text: str) -> None:
        room = shutil.get_terminal_size().columns - 1
        kept = ""
        for char in text:
            if width(kept + char) > room:
                break
            kept += char
        self._stream.write(f"\r\x1b[2K{kept}")
        self._stream.flush()

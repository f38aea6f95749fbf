"""Trace files and centers files of the simulator, read strictly.

What belongs here: the two CSV formats, plain or gzip, and what a row must be.  What does not: what
becomes of the rows (broker.simulate.world).

A trace has one row per job: `job_id,submit_s,duration_s,nodes,gpus_per_node,gpu_model,cpus_per_node,
mem_gib_per_node,priority,tenant,center`.  A centers file has one row per shape of node:
`center,gpu_model,gpus_per_node,cpus_per_node,mem_gib_per_node`, then node counts (`node_count` and others
whose name begins so), and optionally `price_cny_per_hour` (of one card, or one core without cards)
and `basis` (a remark).
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TextIO

from broker.core.model import MICRO, Tier

JOB_COLUMNS = (
    "job_id",
    "submit_s",
    "duration_s",
    "nodes",
    "gpus_per_node",
    "gpu_model",
    "cpus_per_node",
    "mem_gib_per_node",
    "priority",
    "tenant",
    "center",
)
CENTER_COLUMNS = ("center", "gpu_model", "gpus_per_node", "cpus_per_node", "mem_gib_per_node")
CENTER_EXTRAS = ("price_cny_per_hour", "basis")
NODE_COUNT = "node_count"
"""The default column of node counts; further ones begin with it."""

TIERS = {0: Tier.LOW, 1: Tier.NORMAL, 2: Tier.HIGH}


class TraceError(Exception):
    """A file that is not what it must be; the text is `FILE:LINE: reason`."""

    def __init__(self, file: Path, line: int, reason: str) -> None:
        super().__init__(f"{file}:{line}: {reason}")


@dataclass(frozen=True, slots=True)
class TraceJob:
    """A job as it was: `nodes` times so much per node.  Times are seconds from the file's own zero.

    `cards` is per node; `fraction` is the stated share of one card where it is not a whole number
    (then `cards` is 1).  `models` empty: any product.
    """

    id: str
    submit_s: int
    duration_s: int
    nodes: int
    cards: int
    fraction: Decimal | None
    models: tuple[str, ...]
    cores: int
    memory_gib: int
    tier: Tier
    tenant: str
    center: str


@dataclass(frozen=True, slots=True)
class CenterRow:
    """`nodes` nodes of one shape at a center.  `memory_gib` None: not stated."""

    center: str
    model: str
    cards: int
    cores: int
    memory_gib: int | None
    nodes: int
    price_micro: int | None


@dataclass(frozen=True, slots=True)
class _Row:
    """One line, with readers that say what is wrong with a field."""

    file: Path
    line: int
    values: dict[str, str]

    def error(self, column: str, wanted: str) -> TraceError:
        return TraceError(self.file, self.line, f"{column} must be {wanted}, not {self.values[column]!r}")

    def text(self, column: str) -> str:
        value = self.values[column].strip()
        if not value:
            raise self.error(column, "given")
        return value

    def number(self, column: str, *, least: int, wanted: str) -> Decimal:
        try:
            value = Decimal(self.values[column].strip())
        except InvalidOperation as error:
            raise self.error(column, wanted) from error
        if not value.is_finite() or value < least:
            raise self.error(column, wanted)
        return value

    def whole(self, column: str, *, least: int) -> int:
        wanted = f"a whole number of at least {least}"
        value = self.number(column, least=least, wanted=wanted)
        if value != int(value):
            raise self.error(column, wanted)
        return int(value)

    def rounded_up(self, column: str) -> int:
        return math.ceil(self.number(column, least=0, wanted="a number of at least 0"))


def read_jobs(file: Path) -> tuple[TraceJob, ...]:
    """The jobs of a trace in order of submission; jobs of one second in order of the file.

    Raises TraceError for the first row that is wrong, OSError where the file cannot be read.
    """
    jobs: list[TraceJob] = []
    lines: dict[str, int] = {}
    for row in _rows(file, required=JOB_COLUMNS, known=JOB_COLUMNS):
        job = _job(row)
        first = lines.setdefault(job.id, row.line)
        if first != row.line:
            raise TraceError(file, row.line, f"job_id {job.id!r} is that of line {first} already")
        jobs.append(job)
    if not jobs:
        raise TraceError(file, 1, "the trace has no jobs")
    return tuple(sorted(jobs, key=lambda job: job.submit_s))


def _job(row: _Row) -> TraceJob:
    cards = row.number("gpus_per_node", least=0, wanted="a number of at least 0")
    fraction = None if cards == int(cards) else cards
    if fraction is not None and fraction > 1:
        raise row.error("gpus_per_node", "whole, or a share of one card")
    priority = row.whole("priority", least=0)
    if priority not in TIERS:
        raise row.error("priority", "0, 1 or 2")
    models = tuple(sorted({m.strip() for m in row.values["gpu_model"].split("|")} - {""}))
    job = TraceJob(
        id=row.text("job_id"),
        submit_s=row.whole("submit_s", least=0),
        duration_s=row.whole("duration_s", least=1),
        nodes=row.whole("nodes", least=1),
        cards=math.ceil(cards),
        fraction=fraction,
        models=models,
        cores=row.rounded_up("cpus_per_node"),
        memory_gib=row.rounded_up("mem_gib_per_node"),
        tier=TIERS[priority],
        tenant=row.text("tenant"),
        center=row.text("center"),
    )
    if not job.cards and not job.cores:
        raise row.error("cpus_per_node", "at least 1 where gpus_per_node is 0")
    return job


def read_centers(file: Path, nodes_column: str = NODE_COUNT) -> tuple[CenterRow, ...]:
    """The shapes of a centers file, in its order; rows of no nodes are left out.

    `nodes_column` is the column to count nodes by.  Raises TraceError for the first row that is
    wrong, OSError where the file cannot be read.
    """
    rows: list[CenterRow] = []
    required = (*CENTER_COLUMNS, nodes_column)
    for row in _rows(file, required=required, known=(*CENTER_COLUMNS, *CENTER_EXTRAS), counts=True):
        cards, model = row.whole("gpus_per_node", least=0), row.values["gpu_model"].strip()
        if not cards and model:
            raise row.error("gpu_model", "empty where gpus_per_node is 0")
        memory = row.values["mem_gib_per_node"].strip()
        price = row.values.get("price_cny_per_hour", "").strip()
        shape = CenterRow(
            center=row.text("center"),
            model=model,
            cards=cards,
            cores=row.whole("cpus_per_node", least=0 if cards else 1),
            memory_gib=row.whole("mem_gib_per_node", least=0) if memory else None,
            nodes=row.whole(nodes_column, least=0),
            price_micro=_price(row) if price else None,
        )
        rows += [shape] if shape.nodes else []
    if not rows:
        raise TraceError(file, 1, f"no center has nodes by {nodes_column}")
    return tuple(rows)


def _price(row: _Row) -> int:
    wanted = "an amount in CNY of at most six decimal places"
    micro = row.number("price_cny_per_hour", least=0, wanted=wanted) * MICRO
    if micro != int(micro):
        raise row.error("price_cny_per_hour", wanted)
    return int(micro)


# ---------------------------------------------------------------- rows of a file


def _rows(
    file: Path, *, required: Sequence[str], known: Sequence[str], counts: bool = False
) -> Iterator[_Row]:
    """Every row with a value for each column.  `counts`: columns of node counts are known too."""
    with _open(file) as text:
        reader = csv.reader(text, strict=True)
        line = 1
        try:
            header = [name.strip() for name in next(reader, [])]
            _check_header(file, header, required=required, known=known, counts=counts)
            for line, values in enumerate(reader, start=2):
                if len(values) != len(header):
                    raise TraceError(file, line, f"{len(values)} values for {len(header)} columns")
                yield _Row(file, line, dict(zip(header, values, strict=True)))
        except (csv.Error, UnicodeDecodeError, EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise TraceError(file, line, f"cannot be read: {error}") from error


def _check_header(
    file: Path, header: list[str], *, required: Sequence[str], known: Sequence[str], counts: bool
) -> None:
    missing = [name for name in required if name not in header]
    if missing:
        raise TraceError(
            file, 1, f"column {missing[0]!r} is missing; there are {', '.join(header) or 'none'}"
        )
    for name in header:
        if name not in known and not (counts and name.startswith(NODE_COUNT)):
            raise TraceError(file, 1, f"unknown column {name!r}; known are {', '.join(known)}")
        if header.count(name) > 1:
            raise TraceError(file, 1, f"column {name!r} occurs twice")


@contextmanager
def _open(file: Path) -> Iterator[TextIO]:
    with file.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        data = gzip.GzipFile(fileobj=raw) if packed else raw
        with io.TextIOWrapper(data, encoding="utf-8", newline="") as text:
            yield text

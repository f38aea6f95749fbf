"""Structured logs and the numbers of /metrics.

Every log line has a stable `action`; fields are named like the queue API's.  Secrets never get here:
whoever logs a request logs its path without the query string.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, TextIO, cast

import structlog
from prometheus_client import Counter, Gauge, Histogram


class Lines:
    """A stream of log lines.  One that cannot be written (the disk under it is full) is counted and lost:
    what the daemon does goes before what it tells."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, line: str) -> None:
        try:
            self._stream.write(line)
            self._stream.flush()
        except OSError:
            LOG_LINES_LOST.inc()

    def flush(self) -> None:
        """Every line is flushed when it is written."""


def configure(level: str = "info", *, json: bool = False) -> None:
    """Logs go to stderr, as key=value lines or as JSON documents, one a line."""
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if json
        else structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "action"])
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.EventRenamer("action"),
            structlog.processors.format_exc_info,
            _printable,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, Lines(sys.stderr))),
        cache_logger_on_first_use=False,
    )


def _printable(_logger: Any, _method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """What others wrote must neither begin a line of its own nor steer the terminal that shows it."""
    for name, value in line.items():
        if isinstance(value, str) and not value.isprintable():
            line[name] = "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in value)
    return line


log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

REQUESTS = Histogram(
    "broker_http_request_seconds", "Time to answer", ["method", "route", "status"], unit="seconds"
)
ROUND = Histogram("broker_round_seconds", "Time of a placement round", ["part"])
ROUNDS = Counter("broker_rounds", "Placement rounds", ["solver"])
GAP = Gauge("broker_round_gap", "Share of the last round's objective that a better plan could save at most")
OBJECTIVE = Gauge(
    "broker_round_objective", "Micro-CNY: costs of what the last round started and worths of what waits"
)
BOUND = Gauge("broker_round_bound", "Micro-CNY: no plan of the last round has a lower objective")
QUEUED = Gauge("broker_jobs_queued", "Jobs that wait for a placement")
LIVE = Gauge("broker_runs_live", "Live runs", ["state"])
PLACED = Counter("broker_placements", "Placements that rounds decided", ["center"])
CALLS = Histogram("broker_center_call_seconds", "Time of a call to a center", ["center", "call", "outcome"])
CENTER_UP = Gauge("broker_center_up", "1 while the center answers its polls", ["center"])
LOOP_ERRORS = Counter("broker_loop_errors", "Passes of a loop that failed", ["loop"])
FORECAST_ERROR = Gauge(
    "broker_forecast_error_seconds",
    "Median distance of jobs' starts from their forecast, where they started",
    ["center", "spec"],
)
FORECAST_COVERAGE = Gauge(
    "broker_forecast_p90_coverage",
    "Share of jobs that had started by their forecast's p90",
    ["center", "spec"],
)
COMMITS = Counter("broker_store_commits", "Transactions that the writer has committed")
STORE_WRITABLE = Gauge("broker_store_writable", "1 unless the last transaction was refused by the database")
STORE_WRITABLE.set(1)
LOG_LINES_LOST = Counter("broker_log_lines_lost", "Log lines that could not be written")
CLOCK_JUMPS = Counter("broker_clock_jumps", "Times that the wall clock was set by more than some seconds")
CONNECTIONS_REFUSED = Counter("broker_connections_refused", "Connections beyond limits.connections")
CONNECTIONS_CUT = Counter("broker_connections_cut", "Connections whose client took nothing of its answer")
LEADS = Gauge("broker_leader", "1 while this daemon schedules and talks to centers, 0 on a standby")
WRITER_BACKLOG = Gauge("broker_store_backlog", "Writes that wait for the writer")
SERVICE_REQUESTS = Gauge("broker_service_requests", "Requests on their way to online services")
DEBTS = Gauge("broker_debts", "Stops and deletions owed to centers that are due")

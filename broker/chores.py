"""Calendar work: what is forgotten after its retention, and slow gauges.

APScheduler keeps the calendar, with a misfire grace of None (by default it drops jobs that are a
second late) and one instance of each chore at a time.  Core loops are not here: a loop must be
supervised, a chore may fail and come again tomorrow.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

from apscheduler.events import EVENT_JOB_ERROR, JobExecutionEvent
from apscheduler.schedulers.asyncio import AsyncIOScheduler

from broker.config import StoreSettings
from broker.files import DataDirectory
from broker.interpreter import collect_and_keep
from broker.leader import Lease
from broker.store import Store, accounts, copies, forecasts, keys, learned, retention, runs
from broker.telemetry import FORECAST_COVERAGE, FORECAST_ERROR, LIVE, LOOP_ERRORS, WRITER_BACKLOG, log

DAY_MS = 86_400_000
TOKEN_GRACE_MS = 30 * DAY_MS
"""An expired token or API key is told from an unknown one (0102, 0101) for so long."""

RUNS_PER_PASS = 1000
ORPHAN_AGE_S = 86_400
"""Files are recorded at once when they are whole; such old ones never will be."""


class Chores:
    """`start()`, then `stop()`; each chore is a method that tests call by hand."""

    def __init__(self, *, store: Store, lease: Lease, files: DataDirectory, settings: StoreSettings) -> None:
        self._store = store
        self._lease = lease
        self._files = files
        self.settings = settings
        self._running: set[asyncio.Task[None]] = set()
        self._calendar = AsyncIOScheduler(
            timezone="UTC",
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
        )
        self._calendar.add_listener(self._failed, EVENT_JOB_ERROR)

    def start(self) -> None:
        """Put the chores on the calendar; needs a running loop."""
        every = self._calendar.add_job
        every(self._tracked(self.gauges), "interval", seconds=15, id="gauges")
        every(self._tracked(self.measure_forecasts), "interval", seconds=60, id="measure_forecasts")
        every(self._tracked(self.sweep_tokens), "cron", minute=7, id="sweep_tokens")
        every(self._tracked(self.forget), "cron", hour=3, minute=23, id="forget")
        every(self._tracked(self.release_runs), "cron", minute=41, id="release_runs")
        soon = datetime.now(UTC) + timedelta(seconds=60)  # the first rounds have been made
        every(self._tracked(self.collect_garbage), "interval", hours=1, next_run_time=soon, id="garbage")
        every(self._tracked(self.sweep_datasets), "cron", minute=53, id="sweep_datasets")
        self._calendar.start()

    async def stop(self) -> None:
        """Take no more; wait for a chore under way (APScheduler's own shutdown does not)."""
        if self._calendar.running:
            self._calendar.shutdown(wait=False)
        if self._running:
            await asyncio.wait(set(self._running))

    def _tracked(self, chore: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
        async def run() -> None:
            task = asyncio.ensure_future(chore())
            self._running.add(task)
            task.add_done_callback(self._running.discard)
            await asyncio.shield(task)

        return run

    def _failed(self, event: JobExecutionEvent) -> None:
        LOOP_ERRORS.labels(event.job_id).inc()
        log.error("chore_failed", chore=event.job_id, error=repr(event.exception))

    async def gauges(self) -> None:
        """Numbers that cost a query."""
        WRITER_BACKLOG.set(self._store.backlog)
        for state, count in (await self._store.read(runs.live_by_state)).items():
            LIVE.labels(state).set(count)

    async def measure_forecasts(self) -> None:
        """How far forecasts were off, per center and spec."""
        FORECAST_ERROR.clear()
        FORECAST_COVERAGE.clear()
        for error in await self._store.read(forecasts.errors):
            if not error.center:
                continue
            FORECAST_ERROR.labels(error.center, error.spec).set(error.median_s)
            if error.p90_coverage is not None:
                FORECAST_COVERAGE.labels(error.center, error.spec).set(error.p90_coverage)

    async def collect_garbage(self) -> None:
        """Cycles of garbage among what lives long; see broker/interpreter.py."""
        log.info("garbage_collected", objects=await asyncio.to_thread(collect_and_keep))

    async def sweep_tokens(self) -> None:
        before = self._store.clock() - TOKEN_GRACE_MS
        swept = await self._store.write(accounts.sweep_tokens, before)
        ended = await self._store.write(keys.sweep_keys, before)
        log.info("tokens_swept", tokens=swept, keys=ended)

    async def forget(self) -> None:
        """Events, rounds, forecasts, learned run times and idempotency keys past their retention."""
        now = self._store.clock()
        events = await self._store.write(
            retention.forget_events, now - self.settings.event_retention_days * DAY_MS
        )
        repeats = await self._store.write(
            retention.forget_keys, now - self.settings.idempotency_retention_days * DAY_MS
        )
        made = await self._store.write(
            retention.forget_rounds, now - self.settings.event_retention_days * DAY_MS
        )
        forecast = await self._store.write(
            forecasts.forget, now - self.settings.event_retention_days * DAY_MS
        )
        histories = await self._store.write(learned.forget)
        log.info(
            "forgotten",
            events=events,
            idempotency_keys=repeats,
            rounds=made,
            forecasts=forecast,
            run_histories=histories,
        )

    async def sweep_datasets(self) -> None:
        """Files of data sets that nobody recorded: a daemon died between storing and recording them."""
        known = await self._store.read(copies.stored_here)
        before_s = self._store.clock() / 1000 - ORPHAN_AGE_S
        swept = await asyncio.to_thread(self._files.sweep_datasets, known, before_s)
        if swept:
            log.warning("orphan_datasets_removed", datasets=swept)

    async def release_runs(self) -> None:
        """Logs and results past their retention, here and at the centers."""
        before = self._store.clock() - self.settings.log_retention_days * DAY_MS
        released = await self._store.write(retention.release_ended, before, RUNS_PER_PASS)
        for run in released:
            await asyncio.to_thread(self._files.remove_run, run)
        if released:
            log.info("runs_released", runs=len(released))

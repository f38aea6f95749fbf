"""The state checker: what is wrong in the store, in the data directory and between store and centers.

What belongs here: opening the store without changing it, and asking centers.  What does not: invariants of
rows (broker.store.checks) and how findings are shown (broker.cli.fsck).  Nothing is repaired and nothing
is stopped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from broker.adapter import (
    Adapter,
    AdapterError,
    AdapterFactory,
    Lookup,
    RemoteState,
    RunRef,
    Sighting,
    runs_of,
)
from broker.config import Settings
from broker.connections import Connections
from broker.core.model import CenterId, RemoteId, RunId, RunState
from broker.files import DataDirectory
from broker.store import checks, copies
from broker.store.checks import Finding, Known
from broker.store.read_only import look
from broker.store.store import now_ms
from broker.track import still_there

ANSWER_S = 60
"""A center that has not answered a call by then could not be asked."""
RECENT_MS = 7 * 86_400_000
"""Runs that ended longer ago are not looked for: platforms forget them."""


@dataclass(frozen=True, slots=True)
class Report:
    """`asked` are the centers that answered, `silent` those that could not be asked, each with why."""

    findings: tuple[Finding, ...]
    asked: tuple[CenterId, ...] = ()
    silent: tuple[tuple[CenterId, str], ...] = ()


def check_store(settings: Settings) -> Report:
    """Everything that is wrong in the store and in the data directory.

    Raises StoreUnavailable when it cannot be read, or is not at this program's schema.
    """
    url = settings.store.url
    findings = look(url, lambda session: checks.check(session, now_ms()))
    stored = look(url, copies.stored_here)
    files = DataDirectory(settings.store.data_dir)
    advice = "upload it again, or delete it; jobs that wait for it cannot start"
    for dataset in sorted(stored):
        if not files.dataset(dataset).exists():
            lost = f"its files are not at {files.dataset(dataset)}"
            findings.append(Finding("data-set-without-files", dataset, lost, advice))
    return Report(tuple(findings))


async def check_centers(settings: Settings, factories: Mapping[str, AdapterFactory]) -> Report:
    """What centers and store say differently of runs.

    The store is read before and after a center is asked, and only what both pictures have is told: a
    daemon at work changes both meanwhile.  Raises StoreUnavailable.
    """
    url = settings.store.url
    connections = Connections(factories, prefix=settings.server.name)
    await connections.configure(settings.centers)
    findings: list[Finding] = []
    asked, silent = [], []
    try:
        for center in settings.centers:
            before = await asyncio.to_thread(_known, url, center.id)
            try:
                adapter = await connections.adapter(center.id)
                async with asyncio.timeout(ANSWER_S):
                    told = await _ask(adapter, before)
            except (AdapterError, TimeoutError) as error:
                silent.append((center.id, str(error) or f"no answer within {ANSWER_S} s"))
                continue
            after = await asyncio.to_thread(_known, url, center.id)
            listed = told.living is not None
            everywhere = await asyncio.to_thread(look, url, checks.every_run) if listed else ()
            asked.append(center.id)
            findings += _differences(center.id, before, after, told, everywhere)
    finally:
        await connections.aclose()
    return Report(tuple(findings), tuple(asked), tuple(silent))


@dataclass(frozen=True, slots=True)
class Told:
    """What a center says: of the runs that it was asked for, those that it found by name, and the names
    of all that live there, None where it does not list them."""

    asked_ms: int
    seen: Mapping[RunId, Sighting]
    found: Mapping[RunId, RemoteId]
    living: Collection[RunId] | None


async def _ask(adapter: Adapter, known: Mapping[RunId, Known]) -> Told:
    asked_ms = now_ms()
    refs = [RunRef(each.run, each.job, each.remote, each.nodes) for each in known.values() if each.remote]
    seen: dict[RunId, Sighting] = {}
    for first in range(0, len(refs), adapter.traits.max_batch):
        seen |= await adapter.observe(refs[first : first + adapter.traits.max_batch])
    found: dict[RunId, RemoteId] = {}
    if adapter.traits.lookup is not Lookup.NEITHER:
        for each in known.values():
            if each.remote is None and each.state is not RunState.SUBMITTING:
                remote = await adapter.find(each.run)
                if remote is not None:
                    found[each.run] = remote
    listing = runs_of(adapter)
    return Told(asked_ms, seen, found, None if listing is None else await listing())


def _differences(
    center: CenterId,
    before: Mapping[RunId, Known],
    after: Mapping[RunId, Known],
    told: Told,
    everywhere: Collection[RunId],
) -> list[Finding]:
    findings = []
    for run, now in after.items():
        then = before.get(run)
        if then is None or then.state is not now.state or then.remote != now.remote:
            continue
        seen = told.seen[run].state if run in told.seen else RemoteState.UNKNOWN
        here = f"job {now.job}: {now.state} here"
        if seen is RemoteState.GONE and now.state in (RunState.PENDING, RunState.RUNNING):
            detail = f"{here}, and center {center} does not know {now.remote}"
            advice = "the broker sees it, too, and makes it LOST; then: broker resolve JOB --ended …"
            findings.append(Finding("run-unknown-there", run, detail, advice))
        there = seen is not RemoteState.UNKNOWN and still_there(
            seen, told.asked_ms, not_after_ms=now.not_after_ms, lookup_lag_s=now.lookup_lag_s
        )
        if there and not now.state.live and not now.stop_owed:
            detail = f"{here}, and {seen} at center {center} as {now.remote}, with no stop owed"
            findings.append(Finding("orphan", run, detail, "stop it at the center's own console"))
        if run in told.found and not now.state.live:
            detail = f"{here} without a remote id, and center {center} has it as {told.found[run]}"
            advice = "the broker looks for such runs for a day and stops them; later, stop it at its center"
            findings.append(Finding("orphan", run, detail, advice))
    for run in sorted(set(told.living or ()) - set(everywhere)):
        detail = f"it lives at center {center}, and the store does not know it"
        advice = "stop it at the center's own console, unless the store is an old backup or another broker's"
        findings.append(Finding("orphan", run, detail, advice))
    return findings


def _known(url: str, center: CenterId) -> Mapping[RunId, Known]:
    return look(url, lambda session: checks.known(session, center, now_ms() - RECENT_MS))


def text_lines(report: Report) -> Sequence[str]:
    """For a terminal: a line of what is wrong and one of what to do, for each finding."""
    lines = []
    for each in report.findings:
        lines += [f"{each.id} {each.subject}: {each.detail}", f"    {each.advice}"]
    lines += [f"center {center} could not be asked: {why}" for center, why in report.silent]
    return lines

"""What must be true of the store at any moment, and what is not.

What belongs here: invariants over rows, each a query that returns what breaks it.  What does not: centers
(broker.fsck) and any repair: nothing here writes.  The queries are SQL that SQLite and PostgreSQL both
read, and one transaction sees all of them, so they hold beside a daemon at work.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import inspect, text
from sqlmodel import Session, SQLModel, col, select

from broker.adapter import CopyState
from broker.core.model import CenterId, JobId, JobState, RemoteId, RunId, RunState
from broker.tables import Run
from broker.tables.jobs import run_lives

SHOWN = 50
"""Findings of one invariant that are told one by one."""
QUIET_MS = 600_000
"""A leader that has just taken over settles the claims of the one before within so long."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that breaks an invariant: `id` of the invariant, `subject` of the row, what is wrong and
    what an operator does about it."""

    id: str
    subject: str
    detail: str
    advice: str


@dataclass(frozen=True, slots=True)
class Invariant:
    """`query` selects subject and detail of what breaks it; it may use :quiet_before_ms."""

    id: str
    advice: str
    query: str


def _words(states: Iterable[str]) -> str:
    return "(" + ", ".join(f"'{state}'" for state in sorted(states)) + ")"


LIVE = _words(state.value for state in RunState if state.live)
OVER = _words(state.value for state in RunState if not state.live)
JOB_OVER = _words(state.value for state in JobState if state.ended)

RESTORE = (
    "keep a copy of the database and report it: the broker never writes this; restore a backup if jobs"
    " stand still"
)
RESTART = "restart the daemon, which settles this at its start; if it stays, report it"
INTACT = "restore the last good backup: the file is damaged"

INVARIANTS = (
    # ------------------------------------------------------------ jobs and runs
    Invariant(
        "one-live-run",
        "stop the daemon at once and report it: a job may run twice",
        f"""SELECT job_id, count(*) || ' live runs' FROM run WHERE state IN {LIVE}
        GROUP BY job_id HAVING count(*) > 1""",
    ),
    Invariant(
        "job-without-run",
        RESTORE,
        f"""SELECT j.id, j.state || ' without a live run' FROM job j WHERE j.state NOT IN {JOB_OVER}
        AND NOT EXISTS (SELECT 1 FROM run r WHERE r.job_id = j.id AND r.state IN {LIVE})""",
    ),
    Invariant(
        "ended-job-lives",
        "broker resolve JOB says what became of the run; its center may still work on it",
        f"""SELECT j.id, j.state || ', and run ' || r.id || ' is ' || r.state FROM job j
        JOIN run r ON r.job_id = j.id
        WHERE j.state IN {JOB_OVER} AND r.state IN {LIVE}""",
    ),
    Invariant(
        "queued-job-placed",
        RESTORE,
        f"""SELECT j.id, j.state || ', and its run ' || r.id || ' is ' || r.state FROM job j
        JOIN run r ON r.job_id = j.id
        WHERE r.state IN {LIVE} AND j.state NOT IN {JOB_OVER}
        AND (j.state = 'QUEUED') <> (r.state = 'NEW')""",
    ),
    Invariant(
        "run-without-center",
        RESTORE,
        f"""SELECT r.id, r.state || ' without a center' FROM run r LEFT JOIN center c ON c.id = r.center_id
        WHERE r.state IN {LIVE} AND r.state <> 'NEW' AND c.id IS NULL""",
    ),
    Invariant(
        "run-without-remote",
        "broker resolve JOB --remote or --never-ran, by what the center's own console shows",
        """SELECT id, state || ' without a remote id' FROM run WHERE state IN ('PENDING', 'RUNNING')
        AND remote_id IS NULL""",
    ),
    Invariant(
        "unknown-state",
        RESTORE,
        f"""SELECT id, 'run in state ' || state FROM run WHERE state NOT IN {_words(RunState)}
        UNION ALL SELECT id, 'job in state ' || state FROM job WHERE state NOT IN {_words(JobState)}
        UNION ALL SELECT dataset_id, 'copy in state ' || state FROM copy
        WHERE state NOT IN {_words(CopyState)}""",
    ),
    Invariant(
        "end-without-time",
        RESTORE,
        f"""SELECT id, 'run ' || state || ' and ended_ms is '
        || coalesce(CAST(ended_ms AS TEXT), 'empty') FROM run
        WHERE (state IN {OVER}) <> (ended_ms IS NOT NULL)
        UNION ALL SELECT id, 'job ' || state || ' and ended_ms is '
        || coalesce(CAST(ended_ms AS TEXT), 'empty')
        FROM job WHERE (state IN {JOB_OVER}) <> (ended_ms IS NOT NULL)""",
    ),
    Invariant(
        "status-differs",
        RESTORE,
        f"""SELECT id, 'state ' || state || ', shown as ' || status FROM job
        WHERE state IN {JOB_OVER} AND status <> state""",
    ),
    Invariant(
        "attempts-differ",
        RESTORE,
        """SELECT j.id, 'attempts is ' || j.attempts || ', the last run is ' || max(r.attempt)
        || ' of ' || count(r.id)
        FROM job j JOIN run r ON r.job_id = j.id GROUP BY j.id, j.attempts
        HAVING j.attempts <> max(r.attempt) OR max(r.attempt) <> count(r.id)""",
    ),
    # ------------------------------------------------------------ intents and their outcomes
    Invariant(
        "submission-without-intent",
        RESTART,
        """SELECT r.id, 'SUBMITTING without a call in the outbox' FROM run r WHERE r.state = 'SUBMITTING'
        AND NOT EXISTS (SELECT 1 FROM outbox o WHERE o.run_id = r.id AND o.action = 'submit')""",
    ),
    Invariant(
        "intent-without-submission",
        RESTORE,
        """SELECT r.id, 'a call to submit it waits, and it is ' || r.state FROM outbox o
        JOIN run r ON r.id = o.run_id
        WHERE o.action = 'submit' AND r.state <> 'SUBMITTING'""",
    ),
    Invariant(
        "claim-forgotten",
        RESTART,
        """SELECT o.run_id, 'claimed in epoch ' || o.epoch || ', and epoch ' || l.epoch || ' leads'
        FROM outbox o
        JOIN lease l ON l.name = 'leader' WHERE o.claimed_ms IS NOT NULL AND o.epoch <> l.epoch
        AND l.holder <> '' AND o.claimed_ms < :quiet_before_ms""",
    ),
    Invariant(
        "start-unexplained",
        RESTORE,
        """SELECT r.id, 'it was sent to ' || r.center_id || ', and no event says so' FROM run r
        WHERE r.submitted_ms IS NOT NULL AND r.created_ms >= (SELECT min(at_ms) FROM event)
        AND NOT EXISTS (SELECT 1 FROM event e WHERE e.job_id = r.job_id AND e.run_id = r.id
        AND e.kind = 'run.changed')""",
    ),
    # ------------------------------------------------------------ obligations
    Invariant(
        "stop-not-owed",
        "broker stop JOB asks again; report it",
        """SELECT id, state || ', asked to stop (' || stop_reason || '), and no stop is owed' FROM run
        WHERE state IN ('PENDING', 'RUNNING') AND stop_reason IS NOT NULL AND remote_id IS NOT NULL
        AND stop_owed_ms IS NULL""",
    ),
    Invariant(
        "debt-without-try",
        RESTORE,
        """SELECT id, 'something is owed to its center and no next try is planned' FROM run
        WHERE remote_id IS NOT NULL AND owed_next_ms IS NULL
        AND (stop_owed_ms IS NOT NULL OR collect_owed_ms IS NOT NULL OR delete_owed_ms IS NOT NULL)""",
    ),
    Invariant(
        "try-without-debt",
        RESTORE,
        """SELECT id, 'a next try is planned and nothing is owed' FROM run WHERE owed_next_ms IS NOT NULL
        AND stop_owed_ms IS NULL AND collect_owed_ms IS NULL AND delete_owed_ms IS NULL""",
    ),
    Invariant(
        "victim-of-nobody",
        RESTORE,
        f"""SELECT v.id, 'it is to end for run ' || v.stop_for || ', which '
        || CASE WHEN p.id IS NULL THEN 'does not exist' ELSE 'is ' || p.state END
        FROM run v LEFT JOIN run p ON p.id = v.stop_for
        WHERE v.stop_for IS NOT NULL
        AND (p.id IS NULL OR p.state IN {OVER} OR p.state IN ('NEW', 'RUNNING'))""",
    ),
    Invariant(
        "archived-center-lives",
        'put the center back into the configuration, with state = "drain"',
        f"""SELECT r.id, r.state || ' at ' || c.id || ', which is archived' FROM run r
        JOIN center c ON c.id = r.center_id
        WHERE c.archived_ms IS NOT NULL AND (r.state IN {LIVE} OR r.owed_next_ms IS NOT NULL)""",
    ),
    # ------------------------------------------------------------ capacity, data
    Invariant(
        "reservation-without-wait",
        RESTORE,
        """SELECT j.id, 'it is ' || j.state || ', and ' || h.nodes || ' nodes of ' || h.pool_id
        || ' are held for it'
        FROM reservation h JOIN job j ON j.id = h.job_id WHERE j.state <> 'QUEUED'""",
    ),
    Invariant(
        "copy-overfull",
        "remove the data set's copy and let the next job bring it again; report it",
        """SELECT dataset_id, 'READY at ' || center_id || ' with ' || bytes_done || ' of ' || bytes
        || ' bytes' FROM copy
        WHERE state = 'READY' AND bytes_done > bytes""",
    ),
    # ------------------------------------------------------------ money
    Invariant(
        "run-not-metered",
        "its cost is not counted; report it",
        f"""SELECT r.id, r.state || ' without a metering row' FROM run r WHERE r.state IN {OVER}
        AND r.center_id IS NOT NULL AND r.ended_ms > (SELECT min(m.ended_ms) FROM meter m)
        AND NOT EXISTS (SELECT 1 FROM meter m WHERE m.run_id = r.id)""",
    ),
    Invariant(
        "metered-alive",
        RESTORE,
        f"""SELECT r.id, 'metered, and it is ' || r.state FROM meter m
        JOIN run r ON r.id = m.run_id WHERE r.state IN {LIVE}""",
    ),
    Invariant(
        "bill-differs",
        "correct the tenant's balance with an entry of its ledger; report it",
        """SELECT m.run_id, 'it is to be billed, and there is no line' FROM meter m WHERE m.billed
        AND NOT EXISTS (SELECT 1 FROM bill b WHERE b.run_id = m.run_id AND b.kind = 'run')
        UNION ALL SELECT b.id, 'a line of a run that is not to be billed' FROM bill b
        WHERE b.kind = 'run' AND NOT EXISTS (SELECT 1 FROM meter m WHERE m.run_id = b.run_id AND m.billed)""",
    ),
    Invariant(
        "spent-differs",
        "correct the tenant's balance with an entry of its ledger; report it",
        """SELECT p.tenant_id, 'spent is ' || p.spent_micro || ' micro-CNY, the lines come to '
        || coalesce((SELECT sum(b.amount_micro) FROM bill b WHERE b.tenant_id = p.tenant_id), 0) FROM purse p
        WHERE p.spent_micro <> coalesce((SELECT sum(b.amount_micro) FROM bill b
        WHERE b.tenant_id = p.tenant_id), 0)
        UNION ALL SELECT b.tenant_id, 'lines and no purse' FROM bill b
        WHERE NOT EXISTS (SELECT 1 FROM purse p WHERE p.tenant_id = b.tenant_id) GROUP BY b.tenant_id""",
    ),
    # ------------------------------------------------------------ events and repeats
    Invariant(
        "events-with-gaps",
        "replicas and streams may have missed something: restart every daemon; report it",
        """SELECT CAST(e.seq AS TEXT), 'event ' || (e.seq - 1) || ' is missing' FROM event e
        WHERE e.seq > (SELECT min(seq) FROM event) AND NOT EXISTS (SELECT 1 FROM event b
        WHERE b.seq = e.seq - 1)""",
    ),
    Invariant(
        "events-misnumbered",
        RESTORE,
        """SELECT 'events', 'the counter says ' || coalesce(CAST(c.value AS TEXT), 'nothing')
        || ', the newest event is ' || (SELECT coalesce(max(seq), 0) FROM event)
        FROM (SELECT 'events' AS name) asked LEFT JOIN counter c ON c.name = asked.name
        WHERE c.value IS NULL OR c.value <> (SELECT coalesce(max(seq), 0) FROM event)""",
    ),
    Invariant(
        "repeat-without-job",
        "a repeated create would be answered with a job that is not there: report it",
        """SELECT i.key, 'of account ' || i.account_id || ', names job ' || i.job_id FROM idempotency i
        LEFT JOIN job j ON j.id = i.job_id WHERE j.id IS NULL OR j.account_id <> i.account_id""",
    ),
)


def check(session: Session, now_ms: int) -> list[Finding]:
    """Everything that breaks an invariant; at most SHOWN of each.  Of a damaged file nothing else is read."""
    if damaged := _file(session):
        return damaged
    found = [*_indexes(session), *_foreign_keys(session)]
    values = {"quiet_before_ms": now_ms - QUIET_MS}
    for each in INVARIANTS:
        query = text(each.query)
        rows = session.execute(query, {key: values[key] for key in values if f":{key}" in each.query})
        found += _limited(each.id, each.advice, ((str(r[0]), str(r[1])) for r in rows))
    return found


def _limited(id: str, advice: str, rows: Iterable[tuple[str, str]]) -> list[Finding]:
    findings = [Finding(id, subject, detail, advice) for subject, detail in rows]
    if len(findings) > SHOWN:
        rest = Finding(id, "…", f"and {len(findings) - SHOWN} more", advice)
        return [*findings[:SHOWN], rest]
    return findings


def _file(session: Session) -> list[Finding]:
    """SQLite's own look at its pages and indexes."""
    if session.get_bind().dialect.name != "sqlite":
        return []
    told = [str(row[0]) for row in session.execute(text("PRAGMA quick_check")).all()]
    return _limited("file-damaged", INTACT, (("database", line) for line in told if line != "ok"))


def _indexes(session: Session) -> list[Finding]:
    """Indexes that keep promises (one live run per job, unique names) and are not there."""
    there = inspect(session.connection())
    missing = []
    for name, table in SQLModel.metadata.tables.items():
        if not there.has_table(name):
            continue
        known = {index["name"] for index in there.get_indexes(name)}
        missing += [
            (str(index.name), f"not on table {name}") for index in table.indexes if index.name not in known
        ]
    return _limited(
        "index-missing", "restore the last good backup, or make the index anew; report it", missing
    )


def _foreign_keys(session: Session) -> list[Finding]:
    """Rows that name a row that is not there."""
    found = []
    for name, table in SQLModel.metadata.tables.items():
        for key in table.foreign_keys:
            column, target = key.parent.name, key.column
            query = (
                f"SELECT DISTINCT a.{column} FROM {name} a LEFT JOIN {target.table.name} b"
                f" ON b.{target.name} = a.{column} WHERE a.{column} IS NOT NULL AND b.{target.name} IS NULL"
            )
            for (value,) in session.execute(text(query)).all():
                found.append(
                    (str(value), f"{name}.{column} names it, and {target.table.name} has no such row")
                )
    return _limited("row-missing", RESTORE, found)


# ---------------------------------------------------------------- what is compared with centers


@dataclass(frozen=True, slots=True)
class Known:
    """A run as the store has it."""

    run: RunId
    job: JobId
    state: RunState
    remote: RemoteId | None
    nodes: int
    stop_owed: bool
    not_after_ms: int
    lookup_lag_s: int


def known(session: Session, center: CenterId, ended_after_ms: int) -> dict[RunId, Known]:
    """The runs of a center that live or ended after a moment."""
    here = select(Run).where(Run.center_id == center)
    # Two queries, each with an index of its own: with one, all runs that ever were would be looked through.
    living = session.exec(here.where(run_lives())).all()
    rows = [*living, *session.exec(here.where(col(Run.ended_ms) > ended_after_ms)).all()]
    return {
        RunId(row.id): Known(
            run=RunId(row.id),
            job=JobId(row.job_id),
            state=RunState(row.state),
            remote=RemoteId(row.remote_id) if row.remote_id else None,
            nodes=row.nodes,
            stop_owed=row.stop_owed_ms is not None,
            not_after_ms=row.not_after_ms,
            lookup_lag_s=row.lookup_lag_s,
        )
        for row in rows
    }


def every_run(session: Session) -> set[RunId]:
    return {RunId(run) for run in session.exec(select(Run.id)).all()}

"""Centers: what the configuration says of them, what the last poll reported, what a round reads."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import delete, func, update
from sqlalchemy import select as columns_of
from sqlmodel import Session, col, select

from broker.adapter import Image, Inventory, PoolReport
from broker.core import resources
from broker.core.model import (
    Accuracy,
    CenterFacts,
    CenterId,
    CenterState,
    Health,
    NodeShape,
    Pool,
    PoolId,
    Price,
    RunState,
)
from broker.store import codec, copies
from broker.store.writer import Rejected, Tx
from broker.tables import Center, Reservation, Run
from broker.tables import Image as ImageRow
from broker.tables import Pool as PoolRow
from broker.tables.columns import table
from broker.tables.jobs import run_lives

RESTRICTION = {CenterState.ACTIVE: 0, CenterState.DRAIN: 1, CenterState.INACTIVE: 2}


class NoSuchCenter(Rejected):
    """No center of that id."""


class AdapterChanged(Rejected):
    """A center's platform or account cannot change while runs of ours live there."""


@dataclass(frozen=True, slots=True)
class CenterEntry:
    """A center as the configuration names it; `account` is what must not change under live runs."""

    id: CenterId
    name: str
    province: str
    city: str
    desc: str
    adapter: str
    account: str
    state: CenterState
    max_in_flight: int


@dataclass(frozen=True, slots=True)
class CenterView:
    """A center as shown: `connected` is the standard's word, `state` the effective one."""

    id: CenterId
    name: str
    province: str
    city: str
    desc: str
    adapter: str
    state: CenterState
    health: Health
    error: str
    created_ms: int
    ok_ms: int | None
    queue_length: int | None
    quarantined: tuple[tuple[str, str], ...]
    in_flight: int
    max_in_flight: int
    running: int
    pools: tuple[Pool, ...]

    @property
    def connected(self) -> bool:
        return self.health in (Health.FRESH, Health.SUSPECT)


def configure(tx: Tx, entries: Sequence[CenterEntry]) -> None:
    """Bring the rows in line with the configuration.

    A center gone from the file drains, and is archived once nothing lives or is owed there.  Raises
    AdapterChanged.
    """
    rows = {row.id: row for row in tx.session.exec(select(Center)).all()}
    for entry in entries:
        account = rows[entry.id].traits.get("account") if entry.id in rows else None
        if account not in (None, entry.account) and _obligations(tx, entry.id):
            raise AdapterChanged(
                f"center {entry.id!r} has live runs under {account!r}; its adapter or account cannot"
                f" become {entry.account!r} before they have ended"
            )
    for entry in entries:
        row = rows.pop(entry.id, None) or Center(id=entry.id, created_ms=tx.now_ms)
        row.name, row.province, row.city, row.desc = entry.name, entry.province, entry.city, entry.desc
        row.adapter, row.file_state = entry.adapter, entry.state.value
        row.max_in_flight = entry.max_in_flight
        row.traits = {**row.traits, "account": entry.account}
        row.archived_ms = None
        tx.session.add(row)
    for gone in rows.values():
        gone.file_state = CenterState.DRAIN.value
        if gone.archived_ms is None and not _obligations(tx, gone.id):
            gone.archived_ms = tx.now_ms
            tx.session.execute(delete(PoolRow).where(col(PoolRow.center_id) == gone.id))
            tx.session.execute(delete(ImageRow).where(col(ImageRow.center_id) == gone.id))
            copies.forget_center(tx, gone.id)
        tx.session.add(gone)
    tx.wake("cycle")


def _obligations(tx: Tx, center: str) -> bool:
    live = [s.value for s in RunState if s.live]
    query = select(Run.id).where(Run.center_id == center)
    query = query.where(col(Run.state).in_(live) | col(Run.owed_next_ms).is_not(None))
    return tx.session.exec(query.limit(1)).first() is not None


def obliged(session: Session) -> list[CenterId]:
    """Centers where runs live or something is owed, by id."""
    live = [s.value for s in RunState if s.live]
    query = select(Run.center_id).where(col(Run.center_id).is_not(None)).distinct()
    query = query.where(col(Run.state).in_(live) | col(Run.owed_next_ms).is_not(None))
    return sorted(CenterId(center) for center in session.exec(query).all() if center)


def set_operator_state(tx: Tx, center: CenterId, state: CenterState | None, *, actor: str) -> None:
    """An operator's drain, or resume (None).  It lasts until resume.  Raises NoSuchCenter."""
    row = tx.session.get(Center, center)
    if row is None or row.archived_ms is not None:
        raise NoSuchCenter(f"there is no center {center!r}")
    row.operator_state = state.value if state else None
    tx.session.add(row)
    tx.event("center.state", center=center, actor=actor, data={"state": state})
    tx.wake("cycle")


def record_call(tx: Tx, center: CenterId, kind: str, *, actor: str, data: dict[str, Any]) -> None:
    """The audit of what an operator asks of a center directly."""
    tx.event(kind, center=center, actor=actor, data=data)


def record_inventory(
    tx: Tx,
    center: CenterId,
    inventory: Inventory,
    *,
    epoch: int,
    traits: dict[str, Any],
    prices: Sequence[tuple[PoolReport, tuple[Price, ...]]],
) -> None:
    """A whole report replaces the last one.  `prices` has each pool with the price in force there."""
    tx.fence(epoch)
    row = tx.session.get_one(Center, center)
    was = row.health
    if was != Health.FRESH:
        _extend_reservations(tx)
    row.health, row.failures, row.error = Health.FRESH.value, 0, ""
    row.ok_ms = row.tried_ms = tx.now_ms
    row.queue_length = inventory.queue_length
    row.quarantined = [list(pair) for pair in inventory.quarantined]
    row.traits = {**row.traits, **traits}
    tx.session.add(row)
    rows = {r.id: r for r in tx.session.exec(select(PoolRow).where(PoolRow.center_id == center)).all()}
    ids = _pool_ids(center, [report for report, _ in prices], rows)
    changed = was != row.health
    for pool_id, (report, priced) in zip(ids, prices, strict=True):
        changed |= _record_pool(tx, center, pool_id, rows.pop(pool_id, None), inventory, report, priced)
    for gone in rows.values():
        tx.session.delete(gone)
        changed = True
    if was != row.health:
        tx.event("center.health", center=center, data={"health": row.health})
    if changed:
        tx.wake("cycle", "desk")


def _extend_reservations(tx: Tx) -> None:
    """Reservations do not expire while no center answers (law 7): add the time of the silence."""
    rows = tx.session.exec(select(Center.health, Center.ok_ms)).all()
    answered = [ok_ms for _, ok_ms in rows if ok_ms is not None]
    if not answered or any(health == Health.FRESH for health, _ in rows):
        return
    silence_ms = tx.now_ms - max(answered)
    extended = {"expires_ms": col(Reservation.expires_ms) + silence_ms}
    tx.session.execute(update(Reservation).values(**extended))


def _pool_ids(center: str, reports: Sequence[PoolReport], rows: Mapping[str, PoolRow]) -> list[str]:
    """An id for each pool of a report, whatever its order.

    One native unit may have nodes of several shapes: a pool keeps the id under which its shape is
    known, because live runs hold capacity under it; then ids of the unit that no shape claims are
    used, then new ones.
    """
    known = {(row.native, _shape(row)): id for id, row in rows.items()}
    found = [known.pop((report.native, report.shape), None) for report in reports]
    taken = {id for id in found if id is not None}
    ids = []
    for report, id in zip(reports, found, strict=True):
        if id is None:
            name = f"{center}/{report.native}"
            names = itertools.chain((name,), (f"{name}#{number}" for number in itertools.count(1)))
            id = next(n for n in names if n not in taken)
            taken.add(id)
        ids.append(id)
    return ids


def _record_pool(
    tx: Tx,
    center: str,
    pool_id: str,
    row: PoolRow | None,
    inventory: Inventory,
    report: PoolReport,
    prices: tuple[Price, ...],
) -> bool:
    """Write one pool; True when a round could decide differently for it."""
    row = row or PoolRow(id=pool_id, center_id=center, native=report.native, nodes=0, **asdict(report.shape))
    free = codec.free_to_json(report.free)
    accuracy = (report.accuracy or inventory.accuracy).value
    changed = (row.free, row.nodes, row.accuracy) != (free, report.nodes, accuracy)
    for name, value in asdict(report.shape).items():
        setattr(row, name, value)
    row.native, row.nodes, row.free = report.native, report.nodes, free
    row.specs = [codec.spec_to_json(spec) for spec in report.specs]
    row.prices = [codec.price_to_json(price) for price in prices]
    row.as_of_ms, row.accuracy = inventory.as_of_ms, accuracy
    tx.session.add(row)
    return bool(changed)


def record_silence(tx: Tx, center: CenterId, error: str, *, epoch: int, down_after: int) -> Health:
    """A poll failed; after `down_after` in a row, or before any success, the center is down."""
    tx.fence(epoch)
    row = tx.session.get_one(Center, center)
    was = row.health
    row.failures += 1
    down = row.failures >= down_after or row.ok_ms is None
    row.health = (Health.DOWN if down else Health.SUSPECT).value
    row.error, row.tried_ms = error, tx.now_ms
    tx.session.add(row)
    if was != row.health:
        tx.event("center.health", center=center, data={"health": row.health, "error": error})
        tx.wake("cycle")
    return Health(row.health)


def record_images(tx: Tx, center: CenterId, images: Sequence[Image], *, epoch: int) -> None:
    """What a center offers now replaces what it offered."""
    tx.fence(epoch)
    known = {
        row.id: row for row in tx.session.exec(select(ImageRow).where(ImageRow.center_id == center)).all()
    }
    for image in images:
        row = known.pop(image.id, None)
        if row is None:
            row = ImageRow(center_id=center, id=image.id, native=image.native, created_ms=tx.now_ms)
        values = asdict(image)
        for name in ("native", "name", "desc", "arch", "processor", "os", "framework"):
            setattr(row, name, values[name])
        row.installed_lib = list(image.installed_lib)
        tx.session.add(row)
    for gone in known.values():
        tx.session.delete(gone)


WAIT_HALF_LIFE_S = 3600
"""What a pool was learned to make runs wait counts half after so long without a new start there."""


_POOLS = columns_of(table(PoolRow)).order_by(col(PoolRow.id))
_PRESENT = columns_of(table(Center)).where(col(Center.archived_ms).is_(None)).order_by(col(Center.id))


def pools(session: Session, center: CenterId | None = None, *, now_ms: int | None = None) -> list[Pool]:
    """Pools by id.  With `now_ms`, the learned wait is aged to that moment: else a pool that once was
    slow would be avoided for good, and nothing would ever be learned there again."""
    query = _POOLS if center is None else _POOLS.where(col(PoolRow.center_id) == center)
    return [pool_of(row, now_ms) for row in session.connection().execute(query).all()]


def _shape(row: Any) -> NodeShape:
    """`row` is a PoolRow, or a plain row with its columns."""
    return NodeShape(
        arch=row.arch,
        cores=row.cores,
        memory_gib=row.memory_gib,
        accelerator=row.accelerator,
        accelerators=row.accelerators,
        accelerator_memory_gib=row.accelerator_memory_gib,
        card_permille=row.card_permille,
        split_permille=row.split_permille,
    )


def tariff(session: Session, pool: PoolId, shape: NodeShape, nodes: int) -> list[dict[str, Any]]:
    """The prices of a run in a pool with their windows, for its row; empty where there are no windows."""
    row = session.get(PoolRow, pool)
    prices = () if row is None else tuple(codec.price_from_json(price) for price in row.prices)
    if row is None or all(price == Price(price.micro_per_hour) for price in prices):
        return []
    return [codec.price_to_json(price) for price in resources.tariff(prices, _shape(row), shape, nodes)]


def pool_of(row: Any, now_ms: int | None = None) -> Pool:
    """See `pools`; `row` has the columns of one."""
    specs = [codec.spec_from_json(spec) for spec in row.specs]
    # Whole half-lives only: the figure, and with it the pool's cost, changes once an hour.
    half_lives = 0 if now_ms is None else max(0, now_ms - row.wait_at_ms) // (WAIT_HALF_LIFE_S * 1000)
    return Pool(
        id=PoolId(row.id),
        center=CenterId(row.center_id),
        native=row.native,
        shape=_shape(row),
        nodes=row.nodes,
        free=codec.free_from_json(row.free),
        as_of_ms=row.as_of_ms,
        accuracy=Accuracy(row.accuracy),
        specs=tuple(spec for spec in specs if spec is not None),
        prices=tuple(codec.price_from_json(price) for price in row.prices),
        expected_wait_s=row.wait_s >> half_lives,
    )


def effective_state(row: Any) -> CenterState:
    """The more restrictive of the file's word and an operator's command."""
    states = [CenterState(row.file_state)]
    if row.operator_state:
        states.append(CenterState(row.operator_state))
    return max(states, key=RESTRICTION.__getitem__)


def center_facts(session: Session) -> list[CenterFacts]:
    """What a round knows of every center, by id."""
    in_flight = _in_flight(session)
    images: dict[str, set[str]] = {}
    for center_id, image_id in session.exec(select(ImageRow.center_id, ImageRow.id)).all():
        images.setdefault(center_id, set()).add(image_id)
    rows = session.exec(select(Center).where(col(Center.archived_ms).is_(None)).order_by(Center.id))
    return [
        CenterFacts(
            id=CenterId(row.id),
            name=row.name,
            state=effective_state(row),
            health=Health(row.health),
            max_in_flight=row.max_in_flight,
            in_flight=in_flight.get(row.id, 0),
            report_lag_s=row.traits.get("report_lag_s", 0),
            gang=row.traits.get("gang", False),
            services=row.traits.get("services", False),
            max_run_time_s=row.traits.get("max_run_time_s"),
            images=frozenset(images.get(row.id, ())),
            any_image_url=row.traits.get("any_image_url", True),
            node_hold=row.traits.get("node_hold", False),
            vip_kill=row.traits.get("vip_kill", False),
            vip_first=row.traits.get("vip_first", False),
        )
        for row in rows.all()
    ]


def _in_flight(session: Session) -> dict[str, int]:
    """Runs per center that are submitted, or about to be, and not yet running."""
    states = [s.value for s in (RunState.SUBMITTING, RunState.DOUBT, RunState.PENDING)]
    return _count_runs(session, states)


def _count_runs(session: Session, states: list[str]) -> dict[str, int]:
    """Runs per center in some of the states of live runs."""
    query = (
        select(Run.center_id, func.count())
        .where(run_lives(), col(Run.state).in_(states))
        .where(col(Run.center_id).is_not(None))
        .group_by(col(Run.center_id))
    )
    return {str(center): int(count) for center, count in session.exec(query).all()}


def list_centers(session: Session, *, counts: bool = True) -> list[CenterView]:
    """Every center that is not archived, by id, with its pools; without `counts` runs are not counted, but
    0."""
    in_flight = _in_flight(session) if counts else {}
    running = _count_runs(session, [RunState.RUNNING.value]) if counts else {}
    by_center: dict[str, list[Pool]] = {}
    for pool in pools(session):
        by_center.setdefault(pool.center, []).append(pool)
    return [
        view_of(
            row,
            by_center.get(row.id, ()),
            in_flight=in_flight.get(row.id, 0),
            running=running.get(row.id, 0),
        )
        for row in session.connection().execute(_PRESENT).all()
    ]


def view_of(row: Any, pools: Sequence[Pool], *, in_flight: int = 0, running: int = 0) -> CenterView:
    """`row` has the columns of a center."""
    return CenterView(
        id=CenterId(row.id),
        name=row.name,
        province=row.province,
        city=row.city,
        desc=row.desc,
        adapter=row.adapter,
        state=effective_state(row),
        health=Health(row.health),
        error=row.error,
        created_ms=row.created_ms,
        ok_ms=row.ok_ms,
        queue_length=row.queue_length,
        quarantined=tuple((name, reason) for name, reason in row.quarantined),
        in_flight=in_flight,
        max_in_flight=row.max_in_flight,
        running=running,
        pools=tuple(pools),
    )


@dataclass(frozen=True, slots=True)
class ImageView:
    """A logical image and the centers that offer it; what is told of it is the first center's word."""

    image: Image
    created_ms: int
    centers: tuple[str, ...]


def list_images(session: Session, center: CenterId | None = None) -> list[ImageView]:
    """Every logical image once, by id; those of one center, as that center tells of them."""
    query = (
        select(ImageRow)
        .join(Center, col(Center.id) == col(ImageRow.center_id))
        .where(col(Center.archived_ms).is_(None))
        .order_by(col(ImageRow.id), col(ImageRow.center_id))
    )
    found = []
    for id, group in itertools.groupby(session.exec(query).all(), key=lambda row: row.id):
        rows = list(group)
        offered = tuple(row.center_id for row in rows)
        rows = [row for row in rows if center in (None, row.center_id)]
        if not rows:
            continue
        told = rows[0]
        names = ("native", "name", "desc", "arch", "processor", "os", "framework")
        image = Image(
            id=id,
            installed_lib=tuple(told.installed_lib),
            **{name: getattr(told, name) for name in names},
        )
        found.append(ImageView(image, min(row.created_ms for row in rows), offered))
    return found


def image_centers(session: Session, image: str) -> dict[CenterId, str]:
    """The centers that offer a logical image, with their own ids of it."""
    query = select(ImageRow.center_id, ImageRow.native).where(ImageRow.id == image)
    return {CenterId(center): native for center, native in session.exec(query).all()}

"""The simulated centers: what trace and centers files become in the core's terms, and who is on which node.

What belongs here: pools, requests, and each center's own choice of nodes.  What does not: time
(broker.simulate) and files (broker.simulate.trace).

A job that one product can serve asks for a spec of exactly its cards, cores and memory.  A job that
several products of the centers can serve asks for power instead, since a spec names one product; it
then gets the smallest slice with as many cards, and that slice's cores and memory.  A center of
several products is several centers to the scheduler, one per product, since a request can list
centers and not products.  A share of a card is rounded up to the whole card.  A simulated card of
any product has the same power: a trace says nothing of how a job would do on another one.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from broker.core.model import (
    Accelerator,
    Accuracy,
    CenterFacts,
    CenterId,
    CenterState,
    FreeNodes,
    Health,
    JobId,
    JobRequest,
    NodeShape,
    Pool,
    PoolId,
    Price,
    Reservation,
    RunId,
    RunTime,
)
from broker.core.resources import Catalogue, make_spec
from broker.core.snapshot import units
from broker.simulate.trace import CenterRow, TraceJob

ARCH = "X86"
CARD_GFLOPS = 1000
UNSTATED_GIB = 1 << 20
"""Memory of a node whose memory is not stated: more than any job asks for."""

_State = tuple[int, int, int, int]
"""(units, cards, cores, GiB) free on a node: sorts from the fullest node to the emptiest."""


class Nodes:
    """The nodes of one pool as their center knows them: who holds what, exactly.

    The center's rule: a node of a job goes to the fullest node that holds it, of equal ones to the
    first, a further node of it to a further node; where these run out, nodes of one job share.
    """

    def __init__(self, shape: NodeShape, count: int) -> None:
        self.shape = shape
        whole = self._state(shape.accelerators, shape.cores, shape.memory_gib)
        self._node = [whole] * count
        self._at: dict[_State, list[int]] = {whole: list(range(count))}  # ascending

    def _state(self, cards: int, cores: int, memory_gib: int) -> _State:
        return (units(self.shape, FreeNodes(cores, memory_gib, cards, 1)), cards, cores, memory_gib)

    def free(self) -> tuple[FreeNodes, ...]:
        """The histogram that an exact report holds, fullest first."""
        return tuple(
            FreeNodes(cores=cores, memory_gib=memory, accelerators=cards, nodes=len(at))
            for (_, cards, cores, memory), at in sorted(self._at.items())
            if (cards, cores, memory) != (0, 0, 0)
        )

    def holding(self, shape: NodeShape) -> list[_State]:
        """What is free on nodes that hold `shape`, fullest first."""
        wanted = (shape.accelerators, shape.cores, shape.memory_gib)
        return sorted(s for s in self._at if s[1] >= wanted[0] and s[2] >= wanted[1] and s[3] >= wanted[2])

    def fits(self, shape: NodeShape, nodes: int) -> bool:
        """Whether so many nodes of the pool hold `shape` each."""
        return sum(len(self._at[state]) for state in self.holding(shape)) >= nodes

    def take(self, shape: NodeShape, nodes: int) -> tuple[int, ...] | None:
        """The nodes that a run of `nodes` times `shape` gets; None: there is no room."""
        taken: list[int] = []
        while len(taken) < nodes:
            before = len(taken)
            for state in self.holding(shape):
                at = self._at[state][: nodes - len(taken)]
                for node in at:
                    self._change(node, shape, -1)
                taken += at
            if len(taken) == before:
                self.give_back(taken, shape)
                return None
        return tuple(taken)

    def give_back(self, taken: Sequence[int], shape: NodeShape) -> None:
        for node in taken:
            self._change(node, shape, 1)

    def _change(self, node: int, shape: NodeShape, sign: int) -> None:
        state = self._node[node]
        same = self._at[state]
        same.remove(node)
        if not same:
            del self._at[state]
        _, cards, cores, memory = state
        after = self._state(
            cards + sign * shape.accelerators, cores + sign * shape.cores, memory + sign * shape.memory_gib
        )
        self._node[node] = after
        insort(self._at.setdefault(after, []), node)


@dataclass(frozen=True, slots=True)
class World:
    """The centers of a simulation.  `home` is the center of the file that a scheduler's center is of."""

    centers: tuple[CenterFacts, ...]
    pools: tuple[Pool, ...]
    home: Mapping[CenterId, str]
    products: Mapping[CenterId, str]
    accelerators: Mapping[str, Accelerator]
    canonical: Mapping[str, str] = field(default_factory=dict)  # a trace's word for a product → its name

    def request(self, job: TraceJob, *, estimate_s: int | None, stays_home: bool) -> JobRequest:
        """What a job of the trace asks the broker for."""
        near = [c.id for c in self.centers if not stays_home or self.home[c.id] == job.center]
        allowed = [c for c in near if self.may(job, c, stays_home=stays_home)]
        products = sorted({self.products[c] for c in allowed})
        listed = allowed or near or [CenterId(job.center)]
        spec = None
        # Without a product that could serve it the job asks for one that no pool has.
        product = (products or ["Trace/GPU/none"])[0] if job.cards else ""
        if len(products) <= 1 or not job.cards:
            spec = make_spec(NodeShape(ARCH, job.cores, job.memory_gib, product, job.cards))
        return JobRequest(
            centers=() if len(listed) == len(self.centers) else tuple(listed),
            spec=spec,
            min_gflops=0 if spec is not None else job.cards * CARD_GFLOPS,
            nodes=job.nodes,
            tier=job.tier,
            estimated_run_time_s=estimate_s,
        )

    def may(self, job: TraceJob, center: CenterId, *, stays_home: bool) -> bool:
        """Whether the job may run at a center, room aside."""
        if stays_home and self.home[center] != job.center:
            return False
        if not job.cards:
            return not self.products[center]
        wanted = {self.canonical.get(model, model) for model in job.models}
        return bool(self.products[center]) and (not wanted or self.products[center] in wanted)


def build_world(
    rows: Sequence[CenterRow], jobs: Sequence[TraceJob], *, catalogue: Catalogue, now_ms: int
) -> World:
    """Centers that are always there, report exactly and take as many runs as there are jobs.

    A product that the catalogue does not know is called `Trace/GPU/<its word in the file>`.
    """
    words = {row.model for row in rows if row.cards} | {model for job in jobs for model in job.models}
    canonical = {word: catalogue.canonical(word) or f"Trace/GPU/{word or 'any'}" for word in words}
    product_of = [canonical[row.model] if row.cards else "" for row in rows]
    several = {
        center
        for center in {row.center for row in rows}
        if len({p for p, row in zip(product_of, rows, strict=True) if row.center == center}) > 1
    }
    home: dict[CenterId, str] = {}
    products: dict[CenterId, str] = {}
    pools = []
    for number, (row, product) in enumerate(zip(rows, product_of, strict=True)):
        part = product.split("/")[-1] or "cpu"
        center = CenterId(f"{row.center}:{part}" if row.center in several else row.center)
        home[center], products[center] = row.center, product
        pools.append(_pool(row, PoolId(f"{center}/{number:03}"), center, product=product, now_ms=now_ms))
    return World(
        centers=tuple(
            CenterFacts(
                id=center,
                name=home[center],
                state=CenterState.ACTIVE,
                health=Health.FRESH,
                max_in_flight=len(jobs),
            )
            for center in sorted(home)
        ),
        pools=tuple(pools),
        home=home,
        products=products,
        accelerators={
            name: Accelerator(name=name, memory_gib=(), fp16_gflops=CARD_GFLOPS, factor_permille=1000)
            for name in sorted(set(products.values()) - {""})
        },
        canonical=canonical,
    )


def _pool(row: CenterRow, id: PoolId, center: CenterId, *, product: str, now_ms: int) -> Pool:
    memory = UNSTATED_GIB if row.memory_gib is None else row.memory_gib
    shape = NodeShape(ARCH, row.cores, memory, product, row.cards)
    return Pool(
        id=id,
        center=center,
        native=id.split("/")[-1],
        shape=shape,
        nodes=row.nodes,
        free=(FreeNodes(shape.cores, shape.memory_gib, shape.accelerators, row.nodes),),
        as_of_ms=now_ms,
        accuracy=Accuracy.EXACT,
        prices=() if row.price_micro is None else (Price(row.price_micro),),
    )


# ---------------------------------------------------------------- decisions


@dataclass(frozen=True, slots=True)
class Start:
    """One job that starts now: `nodes` times `shape` in a pool, at so many micro-CNY per hour.

    `estimate_s` is its planned run time, None of a baseline that plans none.
    """

    job: JobId
    pool: PoolId
    shape: NodeShape
    nodes: int
    rate_micro: int = 0
    class_key: str = ""
    request: JobRequest | None = None
    estimate_s: int | None = None
    learned: RunTime | None = None


@dataclass(frozen=True, slots=True)
class Round:
    """What one decision was: what starts, which runs stop, what is held."""

    starts: tuple[Start, ...] = ()
    stops: tuple[RunId, ...] = ()
    reservations: tuple[Reservation, ...] = ()

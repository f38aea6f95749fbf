"""Claims with columns: made at once and changed step by step they are the same."""

from __future__ import annotations

from dataclasses import fields, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from broker.core.claims import NOT_STARTED, ClaimColumns, Claims
from broker.core.memory import Memory
from broker.core.model import Claim, PoolId, RunId, RunState, TenantId, Tier
from tests.builders import NOW_MS, claim, request, snapshot


def told(claims: Claims) -> list[tuple[object, ...]]:
    """Every claim with what its columns say, names instead of their numbers."""
    c = claims.columns
    plain = [f.name for f in fields(ClaimColumns) if f.name not in ("pool", "tenant", "class_key")]
    columns = [getattr(c, name).tolist() for name in plain]
    names = (
        [claims.pools[i] for i in c.pool.tolist()],
        [claims.tenants[i] for i in c.tenant.tolist()],
        [claims.class_keys[i] for i in c.class_key.tolist()],
    )
    return list(zip(claims, *columns, *names, strict=True))


def test_columns_are_what_the_claims_say() -> None:
    preemptible = request(2, resumable=True, checkpoint_interval_s=60)
    one = claim("b", nodes=3, started_ms=NOW_MS)
    one = replace(one, request=preemptible, tenant=TenantId("t"), class_key="k")
    other = replace(claim("a"), started_ms=None, stopping=True)
    made = Claims.of([one, other])
    c = made.columns
    assert [x.run for x in made] == ["a", "b"]
    assert c.able.tolist() == [0, 1]
    assert c.stopping.tolist() == [1, 0]
    assert c.started_ms.tolist() == [NOT_STARTED, NOW_MS]
    assert c.interval_s.tolist() == [0, 60]
    assert c.nodes.tolist() == [other.nodes, 3]
    assert [made.class_keys[i] for i in c.class_key.tolist()] == ["", "k"]
    assert made.pool_rows({one.pool: 7}).tolist() == [7, 7]
    assert made.pool_rows({PoolId("elsewhere"): 7}).tolist() == [-1, -1]


def test_who_may_be_stopped() -> None:
    able = replace(claim("a"), request=request(1))
    cases = [
        able,
        replace(able, run=RunId("b"), state=RunState.PENDING),
        replace(able, run=RunId("c"), stopping=True),
        replace(able, run=RunId("d"), tier=Tier.VIP),
        replace(able, run=RunId("e"), request=None),
        replace(able, run=RunId("f"), request=request(1, preemptible=False)),
    ]
    assert Claims.of(cases).columns.able.tolist() == [1, 0, 0, 0, 0, 0]


_runs = st.integers(0, 60)
_facts = st.tuples(_runs, st.integers(0, 2), st.booleans())


def _claim(facts: tuple[int, int, bool]) -> Claim:
    run, kind, started = facts
    return replace(
        claim(f"r{run:02}", nodes=kind + 1),
        started_ms=NOW_MS if started else None,
        pool=PoolId(f"p{kind}"),
        tenant=TenantId(f"t{kind}"),
        class_key=f"k{run % 4}",
    )


@settings(deadline=None)
@given(
    st.lists(_facts, max_size=60, unique_by=lambda f: f[0]),
    st.lists(
        st.tuples(st.sets(_runs, max_size=4), st.lists(_facts, max_size=4, unique_by=lambda f: f[0])),
        max_size=5,
    ),
)
def test_changed_is_made_anew(
    first: list[tuple[int, int, bool]],
    changes: list[tuple[set[int], list[tuple[int, int, bool]]]],
) -> None:
    made = Claims.of(map(_claim, first))
    now = {c.run: c for c in made}
    for gone, come in changes:
        leave, new = {RunId(f"r{i:02}") for i in gone}, [_claim(f) for f in come]
        made = made.changed(leave, new)
        now = {run: c for run, c in now.items() if run not in leave} | {c.run: c for c in new}
        assert told(made) == told(Claims.of(now.values()))


def test_a_memory_takes_columns_as_they_come_and_makes_them_once() -> None:
    memory, plain = Memory(), replace(snapshot(), claims=(claim("b"), claim("a")))
    made = memory.claims(plain)
    assert [c.run for c in made] == ["a", "b"]
    assert memory.claims(plain) is made
    brought = replace(plain, claims=Claims.of(plain.claims))
    assert memory.claims(brought) is brought.claims

"""Ports of online services at a local center: whose they are, and that no two share one."""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path

import pytest

from adapters import local_ports
from adapters.local import Local
from broker.adapter import RemoteState, RunSpec
from tests.test_local import DEADLINE_S, adapter, end_of, local, log_of, ref, spec

__all__ = ["adapter"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def address_of(adapter: Local, run: RunSpec) -> str:
    """Where the run serves, once it runs."""
    deadline = time.monotonic() + DEADLINE_S
    while (seen := (await adapter.observe([ref(run)]))[run.id]).state is not RemoteState.RUNNING:
        assert time.monotonic() < deadline, f"still {seen}"
        await asyncio.sleep(0.02)
    return seen.address


async def test_a_service_gets_the_port_it_wants_and_no_two_share_one(adapter: Local, tmp_path: Path) -> None:
    wanted = free_port()
    first, second = (
        spec("echo $BROKER_PORT; sleep 600", name=f"bk000000000{i}", port=wanted) for i in (1, 2)
    )
    other = await local(tmp_path / "other")  # another center on the same machine
    third = spec("sleep 600", name="bk0000000003", port=wanted)
    for at, run in ((adapter, first), (adapter, second), (other, third)):
        await at.submit(run)
    found = [
        await address_of(adapter, first),
        await address_of(adapter, second),
        await address_of(other, third),
    ]
    assert found[0] == f"http://127.0.0.1:{wanted}"
    ports = [int(address.rpartition(":")[2]) for address in found]
    assert len(set(ports)) == 3
    assert all(port in local_ports.RANGE for port in ports[1:])
    await until_log(adapter, second, f"{ports[1]}\n")
    await other.stop(ref(third), grace_s=0)
    await end_of(other, third)
    await other.aclose()


async def until_log(adapter: Local, run: RunSpec, text: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while await log_of(adapter, run) != text:
        assert time.monotonic() < deadline, await log_of(adapter, run)
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
async def test_a_port_where_somebody_listens_is_not_given(
    adapter: Local, family: socket.AddressFamily
) -> None:
    with socket.socket(family) as there:
        there.bind(("127.0.0.1" if family is socket.AF_INET else "::1", 0))
        there.listen()
        run = spec("sleep 600", port=int(there.getsockname()[1]))
        await adapter.submit(run)
        assert not (await address_of(adapter, run)).endswith(f":{there.getsockname()[1]}")


async def test_a_port_of_the_system_is_not_given(adapter: Local) -> None:
    run = spec("sleep 600", port=80)
    await adapter.submit(run)
    assert int((await address_of(adapter, run)).rpartition(":")[2]) in local_ports.RANGE


async def test_a_port_is_free_again_after_its_run_and_kept_over_a_restart(tmp_path: Path) -> None:
    wanted, work = free_port(), tmp_path / "work"
    here = await local(work)
    runs = [spec("sleep 600", name=f"bk000000000{i}", port=wanted) for i in range(3)]
    await here.submit(runs[0])
    assert (await address_of(here, runs[0])).endswith(f":{wanted}")
    await here.stop(ref(runs[0]), grace_s=0)
    await end_of(here, runs[0])
    await here.submit(runs[1])
    assert (await address_of(here, runs[1])).endswith(f":{wanted}")
    await here.aclose()
    here = await local(work)
    await here.probe()  # looks at the run that has ended, which had the port before
    await here.submit(runs[2])
    assert (await address_of(here, runs[1])).endswith(f":{wanted}")
    assert not (await address_of(here, runs[2])).endswith(f":{wanted}")
    for run in runs[1:]:
        await here.stop(ref(run), grace_s=0)
        await end_of(here, run)
    await here.aclose()

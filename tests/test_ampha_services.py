"""Jobs of the queue as online services of an emulated Ampha center (spec 8, 15.4)."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from adapters import ampha
from adapters.ampha_services import address_of, sighting
from broker.adapter import AdapterError, Refused, RemoteState, RunSpec, Unavailable, Unsupported
from broker.core.model import Kind, RemoteId, RunId
from tests.ampha_center import NODE, center_and_adapter, run, submit
from tests.emulators.ampha import Ampha, group, nodes
from tests.emulators.faults import Fault
from tests.test_ampha import SLOW, see

ON: dict[str, Any] = {"online_services": "models"}
MODEL = ("AMPHA_MODEL", "DeepSeek-14B/master")


def service(
    name: str = "bkaaaaaaaaaa", *, env: tuple[tuple[str, str], ...] = (MODEL,), **more: Any
) -> RunSpec:
    return run(name, env=env, kind=Kind.ONLINE, **more)


def the_room(center: Ampha) -> Any:
    (room,) = center.rooms.services.values()
    return room


def free_cards(center: Ampha) -> list[float]:
    return [node.free()[2] for node in center.world.groups[0].nodes]


@pytest.mark.parametrize("gateway", ["", "http://10.0.0.9:30080"])
async def test_a_service_lives(gateway: str) -> None:
    options = {**ON, **({"service_gateway": gateway} if gateway else {})}
    async with center_and_adapter(**options) as (center, adapter):
        assert (adapter.traits.services, adapter.traits.address) == (True, True)
        shape = replace(NODE, cores=16, memory_gib=64, accelerators=2)
        ref = await submit(adapter, service(shape=shape, nodes=2))
        assert await adapter.find(ref.id) == ref.remote
        seen = await see(adapter, ref, RemoteState.RUNNING)
        room = the_room(center)
        assert seen.address == f"{gateway or f'http://model-{room.id}.example.com'}/{room.id}"
        asked = room.body["modelServerVersions"][0]
        assert [asked[name] for name in ("cpu", "memory", "gpu", "predictMinReplicas")] == [16, 64, 2, 2]
        assert sum(free_cards(center)) == 12, "it has what was asked for"
        log = b"".join([chunk async for chunk in adapter.logs(ref, 0, 0)])
        assert b"status 1" in log
        assert b"".join([chunk async for chunk in adapter.logs(ref, 0, 3)]) == log[3:]
        assert [chunk async for chunk in adapter.logs(ref, 1, 0)] == []
        with pytest.raises(Unavailable, match="is running, expected an ended one"):
            await adapter.delete(ref)
        await adapter.stop(ref, grace_s=5)
        seen = await see(adapter, ref, RemoteState.STOPPED)
        assert seen.address == ""
        assert sum(free_cards(center)) == 16
        await adapter.stop(ref, grace_s=5)  # of what has ended: nothing is sent
        assert center.count("stop_service") == 1
        await adapter.delete(ref)
        await adapter.delete(ref)
        assert center.count("delete_service") == 1
        assert (await adapter.observe([ref]))[ref.id].state is RemoteState.GONE
        assert await adapter.find(ref.id) is None
        await adapter.stop(ref, grace_s=5)


async def test_deployments_and_the_model_s_type() -> None:
    async with center_and_adapter(**ON) as (center, adapter):
        env = (MODEL, ("AMPHA_DEPLOYMENT", "fastchat"), ("AMPHA_MODEL_FLOAT", "float16"))
        await adapter.submit(service(env=env))
        room = the_room(center)
        version = room.body["modelServerVersions"][0]
        said = [version[n] for n in ("deploymentMode", "framework", "customImageFlag", "modelFloat")]
        assert (room.body["modelServer"]["isLargeModel"], *said) == (1, 1, 12, 12, "float16")


async def test_a_service_waits_for_its_nodes() -> None:
    async with center_and_adapter(groups=[group(nodes(1))], **ON) as (_, adapter):
        first = await submit(adapter, service())
        await see(adapter, first, RemoteState.RUNNING)
        second = await submit(adapter, service("bkbbbbbbbbbb"))
        assert (await see(adapter, second, RemoteState.PENDING)).raw == "to be created"
        await adapter.stop(first, grace_s=5)
        await see(adapter, second, RemoteState.RUNNING)


@pytest.mark.parametrize(
    ("env", "error", "text"),
    [
        ((), Unsupported, "AMPHA_MODEL is not set, expected name/version"),
        ((("AMPHA_MODEL", "other/master"),), Refused, "'other/master', which the center does not list"),
        ((("AMPHA_MODEL", "DeepSeek-14B"),), Refused, "as name/version"),
        ((MODEL, ("AMPHA_DEPLOYMENT", "vllm")), Refused, "expected one of sglang, fastchat"),
        ((MODEL, ("AMPHA_MODEL_FLOAT", "int8")), Refused, "expected float16 or nothing"),
    ],
)
async def test_what_cannot_be_a_service_is_refused_before_it_is_sent(
    env: tuple[tuple[str, str], ...], error: type[AdapterError], text: str
) -> None:
    async with center_and_adapter(**ON) as (center, adapter):
        with pytest.raises(error, match=text):
            await adapter.submit(service(env=env))
        assert center.count("create_service") == center.count("create_a") == 0


async def test_parts_of_cards_and_data_sets_are_not_documented_for_services() -> None:
    async with center_and_adapter(groups=[group(nodes(1), share="vgpu")], **ON) as (_, adapter):
        with pytest.raises(Refused, match="whole cards only"):
            await adapter.submit(service())
    async with center_and_adapter(**ON) as (_, adapter):
        with pytest.raises(Refused, match="datasetIds"):
            await adapter.submit(service(datasets=(("ds", "1|2|a|v|/p"),)))


async def test_a_center_that_is_not_set_up_for_services() -> None:
    async with center_and_adapter() as (center, adapter):
        assert not adapter.traits.services
        with pytest.raises(Unsupported, match="online_services"):
            await adapter.submit(service())
        assert center.count("create_a") == 0, "it is no training instead"


@pytest.mark.parametrize(
    ("fault", "made"), [(Fault.LOST_REPLY, 1), (Fault.GARBAGE, 1), (Fault.DROPPED, 0), (Fault.HTML_500, 0)]
)
async def test_a_create_without_an_answer_is_settled_by_looking(fault: Fault, made: int) -> None:
    async with center_and_adapter(settings=SLOW, **ON) as (center, adapter):
        await adapter.probe()
        center.faults.plan("create_service", fault)
        with pytest.raises(Unavailable):
            await adapter.submit(service())
        found = await adapter.find(RunId("bkaaaaaaaaaa"))
        assert (found is not None, len(center.rooms.services)) == (bool(made), made)
        again = await asyncio.gather(adapter.submit(service()), return_exceptions=True)
        assert (again[0] == found) if made else isinstance(again[0], Unavailable)
        assert len(center.rooms.services) == made, "it is never made twice"


async def test_a_name_that_is_taken_is_ours() -> None:
    async with center_and_adapter(**ON) as (center, adapter):
        center.faults.plan("create_service", Fault.DUPLICATE_NAME)
        with pytest.raises(Unavailable, match="sent already"):
            await adapter.submit(service())


@pytest.mark.parametrize("fault", [Fault.LOST_REPLY, Fault.DROPPED, Fault.STOP_REFUSED])
async def test_a_stop_is_owed_until_it_is_taken(fault: Fault) -> None:
    async with center_and_adapter(**ON) as (center, adapter):
        ref = await submit(adapter, service())
        await see(adapter, ref, RemoteState.RUNNING)
        center.faults.plan("stop_service", fault)
        with pytest.raises(Unavailable):
            await adapter.stop(ref, grace_s=5)
        await adapter.stop(ref, grace_s=5)
        await see(adapter, ref, RemoteState.STOPPED)


async def test_another_one_s_service_is_not_deleted() -> None:
    async with center_and_adapter(**ON) as (center, adapter):
        ref = await submit(adapter, service())
        await see(adapter, ref, RemoteState.RUNNING)
        await adapter.stop(ref, grace_s=5)
        await see(adapter, ref, RemoteState.STOPPED)
        with pytest.raises(Refused, match="it is not deleted"):
            await adapter.delete(replace(ref, id=RunId("bkcccccccccc")))
        assert len(center.rooms.services) == 1


# ---------------------------------------------------------------- words and addresses


@pytest.mark.parametrize(
    ("service_word", "version", "state"),
    [
        ("1", {"status": 1}, RemoteState.RUNNING),
        ("1", {"status": "2"}, RemoteState.PENDING),  # the version's wins
        ("3", {"status": 3, "replica": 0}, RemoteState.PENDING),
        ("3", {"status": 3, "replica": "1"}, RemoteState.RUNNING),
        ("4", {"status": 4}, RemoteState.FAILED),
        ("0", {"status": 0}, RemoteState.FAILED),
        ("5", {"status": 5}, RemoteState.RUNNING),
        ("6", {"status": 6}, RemoteState.STOPPED),
        ("7", {"status": 7}, RemoteState.PENDING),
        ("10", {"status": 10}, RemoteState.RUNNING),
        ("11", {"status": 11}, RemoteState.RUNNING),
        ("8", {"status": 8}, RemoteState.UNKNOWN),
        ("1", {"status": None}, RemoteState.UNKNOWN),
    ],
)
def test_words_of_a_service(service_word: str, version: dict[str, Any], state: RemoteState) -> None:
    assert sighting({"status": service_word, "modelServerVersions": [version]}, "").state is state


@pytest.mark.parametrize(
    ("path", "gateway", "address"),
    [
        ("/33D3/v1/chat/completions", "", "http://model-1.example.com/33D3"),
        ("/FxfG/v1/models/model-1:predict", "http://10.0.0.9", "http://10.0.0.9/FxfG"),
        ("", "http://10.0.0.9", ""),
        ("--", "", ""),
    ],
)
def test_addresses(path: str, gateway: str, address: str) -> None:
    assert address_of({"url": "model-1.example.com", "predictUrl": path}, gateway) == address


async def test_what_an_operator_gave_as_a_remote_id() -> None:
    async with center_and_adapter(**ON) as (_, adapter):
        assert isinstance(adapter, ampha.Ampha)
        ref = replace(await submit(adapter, service()), remote=RemoteId("svc:nothing"))
        assert (await adapter.observe([ref]))[ref.id].state is RemoteState.GONE

"""What an Ampha platform asks of its operator: proof, questions, answers, and a whole creation."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from adapters import ampha_operations
from adapters.ampha_operations import FEE, MISSING, UNKNOWN, UNLIMITED, USER, Operations
from broker.adapter import Connection, PlatformRequest, Standing
from broker.core.model import CenterId, NodeShape
from tests.ampha_center import CREDENTIALS, beside_a_daemon, center_and_adapter, run, submit
from tests.daemon_process import DaemonProcess, daemon, eventually
from tests.emulators.ampha import Ampha
from tests.emulators.ampha.operations import Operations as Asking

KEYS = {
    "callback_access_key": "accessKeyTest",
    "callback_secret_key": "Test@123",
    "signature_key": "0123456789abcdef",
}
SIGNATURE = "1D9129D821E532A1839E02369924393C"  # the vector of the platform's contract
HEADERS = {"AccessKeyId": "accessKeyTest", "Signature": SIGNATURE}
GPU_SPEC = "2abfc822be2d448d95dd2178d1421f9b"


@dataclass
class Desk:
    """A desk that knows what a test says."""

    users: dict[str, Standing] = field(default_factory=dict)
    rates: dict[int, int] = field(default_factory=lambda: {2: 25_000_000, 0: 333_333})
    later: dict[str, Standing] = field(default_factory=dict)  # what it knows after the next look
    hangs: bool = False
    looks: int = 0

    async def look(self) -> None:
        self.looks += 1
        if self.hangs:
            await asyncio.Event().wait()
        self.users |= self.later

    def standing(self, center: CenterId, user: str) -> Standing | None:
        assert center == "c"
        return self.users.get(user)

    def rate_micro(self, center: CenterId, shape: NodeShape) -> int | None:
        return self.rates.get(shape.accelerators)


def operations(desk: Desk | None = None, **credentials: str) -> Operations:
    made = Operations(Connection(CenterId("c"), "bk", {}, {**KEYS, **credentials}, desk=desk or Desk()))
    made.specs = {
        "s-gpu": NodeShape("", 8, 32, "Nvidia/A800-PCIE-80GB", 2),
        "s-cpu": NodeShape("", 1, 1),
        "s-odd": NodeShape("", 1, 1, "X", 7),
    }
    made.nodes = [NodeShape("X86", 128, 1024, "A800-PCIE-80GB", 8, 80), NodeShape("X86", 64, 256)]
    return made


def question(user: Any = "5", *products: tuple[Any, Any]) -> dict[str, Any]:
    rows = [{"specId": spec, "instanceNum": count} for spec, count in products or (("s-gpu", 1),)]
    return {"tenantId": "101", "userId": user, "products": rows}


def request(body: Any, headers: dict[str, str] | None = None) -> PlatformRequest:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return PlatformRequest({}, HEADERS if headers is None else headers, content)


async def ask(made: Operations, path: str, body: Any) -> Any:
    answer = await {FEE: made.fee, USER: made.user}[path](request(body))
    assert answer is not None
    assert answer.status == 200
    return json.loads(answer.body)


# ---------------------------------------------------------------- proof


@pytest.mark.parametrize(
    ("headers", "proven"),
    [
        (HEADERS, True),
        ({"accesskeyid": "accessKeyTest", "SIGNATURE": SIGNATURE.lower()}, True),
        ({**HEADERS, "AccessKeyId": "accessKeyTes"}, False),
        ({**HEADERS, "Signature": SIGNATURE[:-1] + "0"}, False),
        ({**HEADERS, "Signature": "Test@123"}, False),
        ({**HEADERS, "Signature": "签名"}, False),
        ({"AccessKeyId": "accessKeyTest"}, False),
        ({"Signature": SIGNATURE}, False),
        ({}, False),
    ],
)
async def test_only_its_own_center_is_answered(headers: dict[str, str], proven: bool) -> None:
    made = operations()
    for asked in (made.fee, made.user):
        assert (await asked(request(question(), headers)) is not None) is proven


async def test_without_a_signature_key_the_secret_itself_is_sent() -> None:
    made = operations(signature_key="")
    assert await made.fee(request(question(), {**HEADERS, "Signature": "Test@123"})) is not None
    assert await made.fee(request(question())) is None


def test_keys_that_cannot_be_meant() -> None:
    with pytest.raises(ValueError, match="signature_key has 5 bytes"):
        operations(signature_key="short")
    with pytest.raises(ValueError, match="signature_iv has 3 bytes"):
        operations(signature_iv="abc")
    assert operations(signature_iv="hex:" + "00" * 16).callbacks()
    assert Operations(Connection(CenterId("c"), "bk", {}, {}, desk=Desk())).callbacks() == ()


# ---------------------------------------------------------------- fees


async def test_what_products_cost() -> None:
    answer = await ask(operations(), FEE, question("5", ("s-gpu", 2), ("s-cpu", 3)))
    assert answer == {
        "code": 200,
        "success": True,
        "message": "success",
        "data": {
            "productFee": "51.00元/小时",
            "products": [
                {"specId": "s-gpu", "orderId": "s-gpu", "instanceNum": 2, "presetSpecFee": "25元/小时"},
                {"specId": "s-cpu", "orderId": "s-cpu", "instanceNum": 3, "presetSpecFee": "0.333333元/小时"},
            ],
        },
    }


@pytest.mark.parametrize("spec", ["nothing", "s-odd"])
async def test_a_spec_that_nobody_knows(spec: str) -> None:
    answer = await ask(operations(), FEE, question("5", (spec, 1)))
    assert answer == {"code": UNKNOWN, "success": False, "message": "该规格套餐不存在", "data": None}


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b"", "tenantId"),
        (b"{", "tenantId"),
        (b"\xff", "tenantId"),
        (b"[" * 100_000, "tenantId"),
        ([], "tenantId"),
        ({}, "tenantId"),
        ({**question(), "tenantId": ""}, "tenantId"),
        ({**question(), "userId": None}, "userId"),
        ({**question(), "userId": True}, "userId"),
        ({**question(), "products": []}, "products"),
        ({**question(), "products": {"specId": "s"}}, "products"),
        ({**question(), "products": ["s"]}, "products"),
        (question("5", (None, 1)), "specId"),
        (question("5", ("s-gpu", 0)), "instanceNum"),
        (question("5", ("s-gpu", -1)), "instanceNum"),
        (question("5", ("s-gpu", "1")), "instanceNum"),
        (question("5", ("s-gpu", True)), "instanceNum"),
        (question("5", ("s-gpu", 10**30)), "instanceNum"),
        (question("5", ("s-gpu", 1.5)), "instanceNum"),
    ],
)
@pytest.mark.parametrize("path", [FEE, USER])
async def test_bad_questions(path: str, body: Any, name: str) -> None:
    answer = await ask(operations(), path, body)
    assert answer == {"code": MISSING, "success": False, "message": f"参数（{name}）不能为空", "data": None}


# ---------------------------------------------------------------- users


async def may(made: Operations, user: str) -> tuple[bool, str]:
    data = (await ask(made, USER, question(user)))["data"]
    return data["createPermission4Ai"], data["accountBalance"]


async def test_how_users_stand() -> None:
    desk = Desk(
        {"5": Standing(True, 1_000_000_000), "6": Standing(False, -5_000_000), "8": Standing(True, None)}
    )
    made = operations(desk)
    assert await may(made, "5") == (True, "1000.00元")
    assert await may(made, "6") == (False, "-5.00元")
    assert await may(made, "8") == (True, UNLIMITED)
    answer = await ask(made, USER, question("9"))
    assert (answer["code"], answer["message"]) == (UNKNOWN, "该账户不存在")


async def test_what_the_broker_creates_itself_is_always_permitted() -> None:
    made = operations(Desk({"6": Standing(False, 0)}))
    assert await may(made, "6") == (False, "0.00元")
    async with made.creating("6"):
        assert await may(made, "6") == (True, "0.00元")
        async with made.creating("7"):
            assert await may(made, "7") == (True, UNLIMITED)
    assert await may(made, "6") == (False, "0.00元")
    assert await may(made, "7") == (True, UNLIMITED)  # our own user: perhaps a creation without an answer


async def test_who_is_not_known_is_looked_for_once() -> None:
    desk = Desk(later={"5": Standing(True, None)})
    assert await may(operations(desk), "5") == (True, UNLIMITED)
    assert desk.looks == 1


async def test_an_answer_does_not_wait_for_a_store_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ampha_operations, "LOOK_S", 0.01)
    answer = await ask(operations(Desk(hangs=True)), USER, question())
    assert (answer["code"], answer["success"]) == (1003, False)


async def test_the_platform_asks_while_it_creates() -> None:
    """The creation waits for the answer, and the answer for nothing."""
    desk = Desk({"6": Standing(False, 0)})
    settings = {"preset": True}
    credentials = {**CREDENTIALS, **KEYS}
    async with center_and_adapter(
        settings=settings, spec_mode="preset", credentials=credentials, desk=desk
    ) as (center, adapter):
        assert [(c.method, c.path) for c in adapter.callbacks] == [("POST", FEE), ("POST", USER)]
        await adapter.catalogue()
        asked = {c.path: c.answer for c in adapter.callbacks}

        class Loop(Asking):
            async def ask(self, path: str, question: dict[str, Any]) -> Any:
                answer = await asked[path](request(question))
                assert answer is not None
                self.answers.append((path, question, json.loads(answer.body)))
                return json.loads(answer.body)["data"]

        center.operations = Loop("", "accessKeyTest", SIGNATURE)
        (spec,) = (await adapter.probe()).pools[0].specs
        await submit(adapter, run(shape=spec.shape))
        (user, _, stands), (fee, _, costs) = center.operations.answers
        assert (user, stands["data"]["createPermission4Ai"]) == (USER, True)
        assert (fee, costs["data"]["productFee"]) == (FEE, "25.00元/小时")
        # Nothing of ours is being created now: the exhausted tenant is told no.
        refused = await asked[USER](request(question("6")))
        assert refused is not None
        assert json.loads(refused.body)["data"]["createPermission4Ai"] is False


# ---------------------------------------------------------------- a real daemon


@pytest.fixture
def center() -> Iterator[Ampha]:
    with beside_a_daemon(preset=True) as emulator:
        yield emulator


@pytest.fixture
def broker(tmp_path: Path, center: Ampha) -> Iterator[DaemonProcess]:
    text = f"""
[[centers]]
id = "hz-1"
adapter = "ampha"
poll_interval_s = 1
[centers.connection]
base_url = "{center.url}"
requests_per_s = 200
lookup_lag_s = 1
spec_mode = "preset"
[centers.credentials]
username = "sbb"
password = "pw-user"
callback_access_key = "accessKeyTest"
callback_secret_key = "Test@123"
signature_key = "0123456789abcdef"
[[centers.prices]]
accelerator = "Nvidia/GPU/A800"
price = 12.5
"""
    with daemon(tmp_path, text) as running:
        yield running


def post(broker: DaemonProcess, path: str, body: Any, headers: dict[str, str]) -> tuple[int, Any]:
    sent = urllib.request.Request(broker.url + path, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(sent, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_a_center_that_asks_before_it_creates(broker: DaemonProcess, center: Ampha) -> None:
    center.operations = Asking(broker.url, "accessKeyTest", SIGNATURE)
    root, alice = broker.client("root"), broker.client("alice")
    spec = eventually("specs", lambda: alice.specs()["resourceSpecs"])[0]["resourceSpecId"]
    eventually("images", lambda: center.count("image_items"))
    eventually("preset specs", lambda: center.count("specs") > 1)
    # 1. a job of the broker's own is created although the user there is linked to a tenant without money
    root.link_user("alice", "hz-1", "6")
    # 4 s: the platform tells times in whole seconds
    config = {"specId": spec, "imageId": "ai-common:v1.0.0", "command": "sleep 80; exit 0"}
    job = str(alice.create_job({"jobName": "one", "config": config})["metadata"]["id"])
    eventually("it has succeeded", lambda: alice.job(job)["status"] == "SUCCEEDED")
    asked = {path: answer for path, _, answer in center.operations.answers}
    assert asked[USER]["data"]["createPermission4Ai"] is True
    assert asked[FEE]["data"]["productFee"] == "25.00元/小时"
    # 2. the account's own tasks there are refused when its tenant has nothing left
    question = {"tenantId": "1", "userId": "6", "products": [{"specId": GPU_SPEC, "instanceNum": 3}]}
    assert post(broker, FEE, question, HEADERS)[1]["data"]["productFee"] == "75.00元/小时"
    status, free = post(broker, USER, question, HEADERS)
    assert (status, free["data"]["createPermission4Ai"]) == (200, True)
    tenant = alice.me()["tenant"]
    root.add_to_balance(tenant, Decimal(-5))
    told = eventually(
        "the desk knows",
        lambda: (
            (got := post(broker, USER, question, HEADERS)[1]["data"])["createPermission4Ai"] is False and got
        ),
    )
    assert told["accountBalance"] == "-5.00元"
    # 3. the job of an exhausted tenant waits, and says why
    second = str(alice.create_job({"jobName": "two", "config": config})["metadata"]["id"])
    why = eventually("a reason", lambda: alice.explain(second)["reasons"])
    assert (why[0]["code"], why[0]["have"]) == ("budget", 0)
    # 4. what the platform metered is in the job's costs
    run_costs = eventually(
        "the record is there",
        lambda: (costs := alice.job(job)["runs"][0]["costs"])["center"] is not None and costs,
        within_s=240,  # looks for it come after 15 s, 30 s, 60 s and 120 s more
    )
    assert run_costs["billed"] == run_costs["center"]
    # 5. whoever cannot sign is nobody
    for headers in ({}, {**HEADERS, "Signature": "0" * 32}, {**HEADERS, "AccessKeyId": "other"}):
        status, refused = post(broker, USER, question, headers)
        assert (status, refused["errorCode"]) == (401, "0101")
    assert "Test@123" not in broker.log.read_text()
    assert SIGNATURE not in broker.log.read_text()

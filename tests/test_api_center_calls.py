"""What operators ask of one center directly: over the API, and with the commands as a user types them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import Session, col, select

from adapters.fake import Fake
from broker.adapter import (
    Adapter,
    AdapterError,
    Argument,
    ArgumentKind,
    Callback,
    Check,
    Denied,
    Inventory,
    PlatformRequest,
    RawAnswer,
    Refused,
    Throttled,
    Unavailable,
    Unsupported,
    VendorCommand,
)
from broker.api.center_calls import MAX_ANSWER_BYTES
from broker.core.model import Accuracy, CenterId
from broker.store import centers
from broker.store.centers import CenterEntry
from broker.tables import Event
from tests.api_fixtures import ENTRIES, World, close_world, open_world, token_of
from tests.cli_stub import Terminal

PATH = "/the3rdPlatform/api/notify"


class Vendor(Fake):
    """A scripted center whose platform has an interface of its own."""

    def __init__(self, name: str) -> None:
        super().__init__(CenterId(name), lambda: 0, pools=())
        self.asked: list[Any] = []
        self.error: Exception | None = None
        self.result: Any = [{"id": 1, "price": Decimal("12.50"), "ok": True}, {"id": Decimal(2), "名": "二"}]
        self.commands: tuple[VendorCommand, ...] = (
            VendorCommand(
                "workflow-runs",
                "Lists 100 % of the runs of a workflow.",
                self.run,
                (
                    Argument("workflow", "Its id.", ArgumentKind.WHOLE, required=True),
                    Argument("state", "Only these.", choices=("running", "ended"), many=True),
                    Argument("quote", "A quote.", ArgumentKind.FILE),
                    Argument("pin", "Of the account.", secret=True),
                    Argument("all", "Those of others too.", ArgumentKind.FLAG),
                ),
                timeout_s=1,
            ),
            VendorCommand("refresh", "Does something.", self.run),
        )
        self.callbacks = (Callback("POST", PATH, self.notified),)

    async def run(self, arguments: Mapping[str, Any]) -> Any:
        self.asked.append(dict(arguments))
        if self.error is not None:
            raise self.error
        return self.result

    async def call(self, method: str, path: str, body: bytes | None) -> RawAnswer:
        self.asked.append((method, path, body))
        if self.error is not None:
            raise self.error
        return RawAnswer(418, json.dumps({"path": path, "茶": 1}).encode())

    async def checks(self) -> AsyncIterator[Check]:
        yield Check("login", True, "as u")
        yield Check("clusters", not self.error, "two of them" if not self.error else "none")
        if self.error is not None:
            raise self.error

    async def notified(self, request: PlatformRequest) -> RawAnswer | None:
        if request.headers.get("X-Key") != self.center:
            return None
        return RawAnswer(200, request.body + b" " + self.center.encode())


@pytest.fixture
def vendor() -> Vendor:
    return Vendor("sz-1")


@pytest.fixture
async def world(tmp_path: Path, vendor: Vendor) -> AsyncIterator[World]:
    async def adapter(center: CenterId) -> Adapter:
        if center != vendor.center:
            raise Unavailable("no route to it")
        return vendor

    others = Vendor("gz-2")
    opened = await open_world(
        tmp_path,
        adapter=adapter,
        open_adapters=lambda: [others, vendor],
        platform_paths=(("POST", PATH),),
    )
    yield opened
    await close_world(opened)


async def audited(world: World) -> list[tuple[str, str, str, Any]]:
    kinds = [f"center.{what}{end}" for what in ("call", "doctor", "command") for end in ("", ".ended")]

    def rows(session: Session) -> list[tuple[str, str, str, Any]]:
        found = session.exec(select(Event).where(col(Event.kind).in_(kinds)).order_by(col(Event.seq)))
        return [(row.kind, row.center_id or "", row.actor, row.data) for row in found.all()]

    return await world.store.read(rows)


# ---------------------------------------------------------------- who may


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "call", {"method": "GET", "path": "/x"}),
        ("POST", "doctor", None),
        ("GET", "commands", None),
        ("POST", "commands/refresh", {}),
    ],
)
async def test_operators_only_and_known_centers_only(
    world: World, vendor: Vendor, method: str, path: str, body: Any
) -> None:
    for who in ("alice", "carol"):
        status, code, detail = await world.refused(method, f"/broker/v1/centers/sz-1/{path}", body, as_=who)
        assert (status, code) == (400, "0202")
        assert "operator" in detail
    answer = await world.call(method, f"/broker/v1/centers/sz-1/{path}", body, as_=None)
    assert answer.status == 401
    for center in ("nowhere", "a%2Fb"):
        refused = await world.call(method, f"/broker/v1/centers/{center}/{path}", body, as_="root")
        data = await refused.json()
        assert data["errorCode"] == "0210", data
    assert vendor.asked == []
    assert [row for row in await audited(world) if row[1] == "sz-1"] == []


# ---------------------------------------------------------------- a raw call


async def test_a_raw_call_is_made_once_and_audited(world: World, vendor: Vendor) -> None:
    call = {"method": "POST", "path": "/api/x?token=t1", "body": '{"a": 1}'}
    found = await world.ok("POST", "/broker/v1/centers/sz-1/call", call, as_="root")
    assert found == {
        "centerId": "sz-1",
        "status": 418,
        "contentType": "application/json",
        "body": '{"path": "/api/x?token=t1", "\\u8336": 1}',
        "truncated": False,
    }
    assert vendor.asked == [("POST", "/api/x?token=t1", b'{"a": 1}')]
    asked = {"method": "POST", "path": "/api/x", "bodyBytes": 8}
    assert await audited(world) == [
        ("center.call", "sz-1", "root", asked),
        ("center.call.ended", "sz-1", "root", {**asked, "outcome": "ok"}),
    ]


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (Unavailable("no answer"), 500, "0101"),
        (Denied("wrong password"), 500, "0101"),
        (Throttled("slow down", retry_after_s=3), 500, "0101"),
        (Refused("path is bad"), 400, "0202"),
        (Unsupported("no such thing"), 400, "0202"),
        (RuntimeError("a defect"), 500, "0100"),
    ],
)
async def test_what_a_center_refuses(
    world: World, vendor: Vendor, error: Exception, status: int, code: str
) -> None:
    vendor.error = error
    for path, body in (("call", {"method": "GET", "path": "/x"}), ("commands/refresh", {})):
        found = await world.refused("POST", f"/broker/v1/centers/sz-1/{path}", body, as_="root")
        assert found[:2] == (status, code)
        assert (str(error) in found[2]) is isinstance(error, AdapterError)
    assert [row[3].get("outcome") for row in await audited(world)] == [
        None,
        type(error).__name__,
    ] * 2
    found = await world.refused(
        "POST", "/broker/v1/centers/gz-2/call", {"method": "GET", "path": "/x"}, as_="root"
    )
    assert "no route to it" in found[2]


async def test_the_words_of_a_call_are_checked(world: World, vendor: Vendor) -> None:
    for body, code in (
        ({"method": "BREW", "path": "/x"}, "0202"),
        ({"method": "GET"}, "0203"),
        ({"method": "GET", "path": "/x", "headers": {}}, "0202"),
    ):
        assert (await world.refused("POST", "/broker/v1/centers/sz-1/call", body, as_="root"))[1] == code
    assert vendor.asked == []


# ---------------------------------------------------------------- doctor


async def test_doctor_tells_what_of_the_last_report_is_not_used(world: World, vendor: Vendor) -> None:
    reason = "nodes is -1, expected a whole number from 0 to 1000000"
    report = Inventory(world.clock(), Accuracy.EXACT, (), quarantined=(("odd", reason),))
    await world.store.write(
        centers.record_inventory, CenterId("sz-1"), report, epoch=world.epoch, traits={}, prices=[]
    )
    answer = await world.call("POST", "/broker/v1/centers/sz-1/doctor", as_="root")
    told = json.loads((await answer.text()).splitlines()[0])
    assert told == {"name": "pool odd", "ok": False, "detail": f"not used: {reason}"}


async def test_doctor_tells_each_check(world: World, vendor: Vendor) -> None:
    async def lines(center: str) -> list[tuple[str, bool, str]]:
        answer = await world.call("POST", f"/broker/v1/centers/{center}/doctor", as_="root")
        assert answer.content_type == "application/x-ndjson"
        found = [json.loads(line) for line in (await answer.text()).splitlines()]
        return [(check["name"], check["ok"], check["detail"]) for check in found]

    first = ("adapter", True, "its options are usable")
    login = ("login", True, "as u")
    assert await lines("sz-1") == [first, login, ("clusters", True, "two of them")]
    vendor.error = Denied("who are you")
    assert await lines("sz-1") == [
        first,
        login,
        ("clusters", False, "none"),
        ("doctor", False, "Denied: who are you"),
    ]
    assert await lines("gz-2") == [("doctor", False, "Unavailable: no route to it")]


# ---------------------------------------------------------------- vendor commands


async def test_commands_are_listed_with_their_arguments(world: World) -> None:
    found = await world.ok("GET", "/broker/v1/centers/sz-1/commands", as_="root")
    assert [each["name"] for each in found["commands"]] == ["workflow-runs", "refresh"]
    runs = found["commands"][0]
    assert runs["timeoutS"] == 1
    assert runs["arguments"][1] == {
        "name": "state",
        "help": "Only these.",
        "kind": "text",
        "required": False,
        "many": True,
        "secret": False,
        "choices": ["running", "ended"],
    }


async def test_a_command_gets_checked_arguments(world: World, vendor: Vendor) -> None:
    given = {"workflow": 7, "state": ["ended"], "quote": "abc", "pin": "1234"}
    path = "/broker/v1/centers/sz-1/commands/workflow-runs"
    found = await world.ok("POST", path, {"arguments": given}, as_="root")
    assert found == {
        "centerId": "sz-1",
        "result": [{"id": 1, "price": "12.50", "ok": True}, {"id": 2, "名": "二"}],
        "truncated": False,
    }
    assert vendor.asked == [{**given, "state": ("ended",), "all": False}]
    kept = {"workflow": 7, "state": ["ended"], "quote": "3 characters", "pin": "***", "all": False}
    asked = {"command": "workflow-runs", "arguments": kept}
    assert [row[3] for row in await audited(world)] == [asked, {**asked, "outcome": "ok"}]


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        ({}, "0203", "workflow"),
        ({"workflow": "7"}, "0201", "workflow"),
        ({"workflow": True}, "0201", "workflow"),
        ({"workflow": 7, "state": "ended"}, "0201", "state"),
        ({"workflow": 7, "state": ["lost"]}, "0202", "running, ended"),
        ({"workflow": 7, "all": "yes"}, "0201", "all"),
        ({"workflow": 7, "stat": ["ended"]}, "0202", "nearest known one is state"),
    ],
)
async def test_wrong_arguments_never_reach_the_center(
    world: World, vendor: Vendor, arguments: dict[str, Any], code: str, named: str
) -> None:
    path = "/broker/v1/centers/sz-1/commands/workflow-runs"
    found = await world.refused("POST", path, {"arguments": arguments}, as_="root")
    assert found[:2] == (400, code)
    assert named in found[2]
    assert vendor.asked == []


async def test_a_command_that_there_is_not(world: World) -> None:
    found = await world.refused("POST", "/broker/v1/centers/sz-1/commands/fly", {}, as_="root")
    assert "refresh, workflow-runs" in found[2]


async def test_a_long_answer_is_cut(world: World, vendor: Vendor) -> None:
    vendor.result = ["汉" * 1000] * 1000
    found = await world.ok("POST", "/broker/v1/centers/sz-1/commands/refresh", {}, as_="root")
    assert found["truncated"] is True
    assert len(found["result"].encode()) <= MAX_ANSWER_BYTES


async def test_a_command_that_hangs_ends_with_its_own_deadline(world: World, vendor: Vendor) -> None:
    async def hang(_arguments: Mapping[str, Any]) -> Any:
        await asyncio.Event().wait()

    vendor.commands = (VendorCommand("hang", "Hangs.", hang, timeout_s=0),)
    found = await world.refused("POST", "/broker/v1/centers/sz-1/commands/hang", {}, as_="root")
    assert found[:2] == (500, "0101")
    assert "unknown" in found[2]


# ---------------------------------------------------------------- what platforms call


async def test_a_platform_calls_back_without_a_token(world: World) -> None:
    for center in ("gz-2", "sz-1"):
        answer = await world.call("POST", PATH, b"hello", as_=None, headers={"X-Key": center})
        assert (answer.status, await answer.text()) == (200, f"hello {center}")
    status, code, detail = await world.refused("POST", PATH, b"hello", as_=None)
    assert (status, code) == (401, "0101")
    assert "no center" in detail
    assert (await world.call("GET", PATH, as_=None)).status == 405


# ---------------------------------------------------------------- on the command line


@pytest.fixture
async def terminal(world: World, tmp_path: Path) -> Terminal:
    changed = [
        CenterEntry(
            **{name: getattr(e, name) for name in CenterEntry.__slots__}
            | {"adapter": "aihub" if e.id == "sz-1" else e.adapter}
        )
        for e in ENTRIES
    ]
    await world.store.write(centers.configure, changed)
    home = tmp_path / "home"
    home.mkdir()
    return Terminal(home, str(world.client.make_url("")).rstrip("/"), token_of("root"))


async def ran(terminal: Terminal, *words: str, stdin: str = "") -> tuple[int, str, str]:
    done = await asyncio.to_thread(terminal.run, *words, stdin=stdin)
    return done.returncode, done.stdout, done.stderr


async def test_broker_call(terminal: Terminal, vendor: Vendor, tmp_path: Path) -> None:
    body = tmp_path / "body.json"
    body.write_text('{"a": "二"}')
    code, out, err = await ran(terminal, "call", "sz-1", "post", "/api/x?page=1", "--body", str(body))
    assert (code, json.loads(out)) == (1, {"path": "/api/x?page=1", "茶": 1})
    assert "HTTP 418" in err
    assert vendor.asked == [("POST", "/api/x?page=1", '{"a": "二"}'.encode())]
    code, out, _ = await ran(terminal, "call", "sz-1", "GET", "/y", "--body", "-", "--json", stdin="{}")
    assert (code, json.loads(out)["status"]) == (1, 418)
    assert vendor.asked[1] == ("GET", "/y", b"{}")
    assert (await ran(terminal, "call", "sz-1", "BREW", "/y"))[0] == 2


async def test_broker_doctor(terminal: Terminal, vendor: Vendor) -> None:
    code, out, _ = await ran(terminal, "doctor", "sz-1")
    assert (code, out.splitlines()[1:]) == (0, ["ok    login: as u", "ok    clusters: two of them"])
    vendor.error = Denied("who are you")
    code, out, err = await ran(terminal, "doctor", "sz-1", "--json")
    assert code == 1
    assert json.loads(out)["ok"] is False
    assert "2 of 4 checks failed" in err


async def test_a_vendor_command_by_its_word(terminal: Terminal, vendor: Vendor, tmp_path: Path) -> None:
    quote = tmp_path / "quote"
    quote.write_text("q")
    words = (
        "workflow-runs",
        "--workflow",
        "7",
        "--state",
        "ended",
        "--state",
        "running",
        "--quote",
        str(quote),
    )
    code, out, err = await ran(terminal, "aihub", *words)
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert lines == [["ID", "PRICE", "OK", "名"], ["1", "12.50", "true"], ["2", "二"]]
    assert vendor.asked == [{"workflow": 7, "state": ("ended", "running"), "quote": "q", "all": False}]
    for json_words in (("--json", "--center", "sz-1", "refresh"), ("refresh", "--json", "--center", "sz-1")):
        code, out, _ = await ran(terminal, "aihub", *json_words)
        assert code == 0
        assert json.loads(out)["result"][1] == {"id": 2, "名": "二"}


async def test_help_and_wrong_words(terminal: Terminal, vendor: Vendor) -> None:
    for words in (("--help",), ("--center", "sz-1"), ()):
        code, out, _ = await ran(terminal, "aihub", *words)
        assert code == 0
        assert "workflow-runs" in out
        assert "100 % of the runs" in " ".join(out.split())
    code, out, _ = await ran(terminal, "aihub", "workflow-runs", "--help")
    assert code == 0
    assert "running|ended" in out
    for wrong in (
        ("fly",),
        ("workflow-runs",),
        ("workflow-runs", "--workflow", "x"),
        ("refresh", "--x", "1"),
    ):
        code, out, err = await ran(terminal, "aihub", *wrong)
        assert (code, out) == (2, "")
        assert "usage: broker aihub" in err
    code, _, err = await ran(terminal, "ampha", "refresh")
    assert code == 2
    assert "there is no Ampha center" in err
    code, _, err = await ran(terminal, "ampha", "--center", "sz-1", "refresh")
    assert code == 2
    assert "its adapter is aihub" in err
    code, out, _ = await ran(Terminal(terminal.home, "http://127.0.0.1:1"), "aihub", "--help")
    assert code == 0
    assert "--center" in out
    assert (await ran(Terminal(terminal.home, "http://127.0.0.1:1"), "aihub", "refresh"))[0] == 3
    assert vendor.asked == []

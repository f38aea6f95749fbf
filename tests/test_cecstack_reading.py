"""What a CECSTACK writes and what it means: envelopes, pages, packages, statuses, the signature."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import replace
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from adapters.cecstack import Cecstack as Adapter
from adapters.cecstack_packages import PackageRules, Project, gib, gpus
from adapters.cecstack_tasks import parted, sighting, word
from adapters.cecstack_wire import NotThere, hmac_sha256, payload, uncertain
from broker.adapter import Check, Denied, Refused, RemoteState, StatedPool, Unavailable
from broker.core.model import Accuracy, FreeNodes, NodeShape, Price, RemoteId
from broker.core.resources import make_spec
from tests.cecstack_center import PACKAGE, SERVICE, center, connect, there
from tests.emulators.cecstack import Cecstack, Site

__all__ = ["there"]

ZONE = ZoneInfo("Asia/Shanghai")
NOW_MS = 1_720_000_000_000
RAW = NodeShape("X86", 50, 200, "H800", 2)

# ---------------------------------------------------------------- envelopes

OK: dict[str, Any] = {"requestId": "1", "code": "Success", "message": "成功"}


@pytest.mark.parametrize(
    ("status", "document", "expected"),
    [
        (
            200,
            {**OK, "data": {"code": "", "message": "success", "result": {"id": 5}, "status": 0}},
            {"id": 5},
        ),
        (200, {**OK, "data": {"code": "", "result": {}, "status": "0"}}, {}),
        (200, {**OK, "data": True}, True),
        (200, {**OK, "data": "221189662184701952"}, "221189662184701952"),
        (200, {**OK, "data": 0}, 0),
        (200, {**OK, "data": {}}, {}),
        (200, {**OK, "data": {"size": 10, "list": []}}, {"size": 10, "list": []}),
        (200, {"code": "Success", "data": "", "message": "再次点击"}, ""),
        (
            200,
            {"message": "success", "result": {"count": 0, "data": []}, "status": 0},
            {"count": 0, "data": []},
        ),
        (500, {**OK, "data": True}, True),  # trap 13
    ],
)
def test_the_five_envelopes(status: int, document: Any, expected: Any) -> None:
    """Trap 12: one reader for all of them."""
    assert payload(status, document) == expected


@pytest.mark.parametrize(
    ("status", "document", "error"),
    [
        (200, {"code": "InvalidParameter", "message": "no", "data": None}, Refused),
        (200, {**OK, "data": False}, Refused),
        (200, {**OK, "data": {"code": "", "message": "broken", "result": {}, "status": 1}}, Refused),
        (200, {"message": "broken", "result": {}, "status": -1}, Refused),
        (422, {"message": "broken", "result": {}, "status": 1}, Refused),
        (404, {"message": "Not found", "result": {}, "status": 1}, NotThere),
        (200, {"message": "任务不存在", "result": {}, "status": -1}, NotThere),
        (500, {"message": "broken", "result": {}, "status": 1}, Unavailable),
        (503, {"code": "Busy", "message": "later", "data": None}, Unavailable),
        (403, {"code": "Forbidden", "message": "no", "data": None}, Denied),
        (400, {"code": "SignatureDoesNotMatch", "message": "no", "data": None}, Denied),
        (200, ["no object"], Unavailable),
        (200, {"unknown": 1}, Unavailable),
    ],
)
def test_failures(status: int, document: Any, error: type[Exception]) -> None:
    """The document shows none; these forms are those of its relatives."""
    with pytest.raises(error) as raised:
        payload(status, document)
    assert type(raised.value) is error
    if isinstance(document, dict) and "message" in document and error is not Unavailable:
        assert str(document["message"]) in str(raised.value) or document.get("data") is not None


def test_a_start_is_not_taken_for_undone_too_easily() -> None:
    minus_one = {"message": "argo is down", "result": {}, "status": -1}
    with pytest.raises(Unavailable, match="argo is down"):
        uncertain(200, minus_one)
    with pytest.raises(Refused):
        uncertain(422, {**minus_one, "status": 1})
    with pytest.raises(NotThere):
        uncertain(404, {"message": "Not found", "result": {}, "status": 1})
    assert uncertain(200, {"message": "success", "result": {}, "status": 0}) == {}


def test_the_signature_of_a_request() -> None:
    """Fixed by this vector, so that a gateway can be set up to check it."""
    sign = hmac_sha256("AK-1", "secret", clock=lambda: 1_700_000_000.9)
    headers = sign("POST", "/api/aidp/v1/x", [("b", "2 &"), ("a", "一")], b'{"k": 1}')
    text = "\n".join(
        (
            "POST",
            "/api/aidp/v1/x",
            "a=%E4%B8%80&b=2%20%26",
            "1700000000",
            hashlib.sha256(b'{"k": 1}').hexdigest(),
        )
    )
    signature = hmac.new(b"secret", text.encode(), hashlib.sha256).hexdigest()
    assert headers == {"x-access-key": "AK-1", "x-timestamp": "1700000000", "x-signature": signature}
    assert signature == "1cfc35fb0de6731d10e6fe0128f45d04eefdc835324fc442875fa49ed570dde9"


# ---------------------------------------------------------------- statuses


@pytest.mark.parametrize(
    ("status", "final", "expected"),
    [
        ("", "", RemoteState.CREATED),
        ("", None, RemoteState.CREATED),
        ("", '<svg t="1"><path d="M0"></path></svg>&nbsp;&nbsp;未知', RemoteState.CREATED),
        ("", "<b>Running</b>", RemoteState.RUNNING),
        ("Pending", "x", RemoteState.PENDING),
        ("waiting", "", RemoteState.PENDING),
        ("Created", "", RemoteState.PENDING),
        ("RUNNING", "", RemoteState.RUNNING),
        ("Succeeded", "", RemoteState.SUCCEEDED),
        ("Failed", "", RemoteState.FAILED),
        ("Error", "", RemoteState.FAILED),
        ("Terminated", "", RemoteState.STOPPED),
        ("Stopped", "", RemoteState.STOPPED),
        ("Evaporated", "", RemoteState.UNKNOWN),
    ],
)
def test_statuses(status: str, final: Any, expected: RemoteState) -> None:
    assert sighting({"status": status, "final_status": final}, ZONE).state is expected


def test_times_are_local_to_the_platform() -> None:
    """Trap 31."""
    row = {"status": "Failed", "last_run_time": "2024-07-11 22:29:12", "changed_on": "2024-07-11T22:30:00"}
    seen = sighting(row, ZONE)
    assert (seen.started_ms, seen.ended_ms) == (1_720_708_152_000, 1_720_708_200_000)
    for blank in ("未知", "--", ""):
        assert sighting({**row, "last_run_time": blank}, ZONE).started_ms is None
    earlier = sighting({**row, "changed_on": "2024-07-11T20:00:00.957932"}, ZONE)
    assert earlier.ended_ms is None, "a record that changed before its run began tells no end"
    with pytest.raises(Unavailable, match="last_run_time is '15 days ago'"):
        sighting({**row, "last_run_time": "15 days ago"}, ZONE)


def test_remote_ids() -> None:
    assert parted(RemoteId("slm:44")) == ("slm", 44)
    assert [parted(RemoteId(text)) for text in ("44", "slm:", "slm:-1", "slm:٤")] == [None] * 4
    assert word({"status": None, "final_status": "&nbsp;"}) == ""


# ---------------------------------------------------------------- packages


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", (0, "")),
        ("1", (1, "")),
        ("2(H800)", (2, "H800")),
        ("4 (T4) ", (4, "T4")),
        ("", (0, "")),
        (None, (0, "")),
    ],
)
def test_cards(text: Any, expected: tuple[int, str]) -> None:
    assert gpus(text, "specGpu") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("200G", 200), ("200", 200), ("4", 4), (4, 4), ("1.5GB", 1), ("", None), ("--", None)],
)
def test_memory(text: Any, expected: int | None) -> None:
    assert gib(text, "specMemory") == expected


def test_what_is_neither_is_told() -> None:
    with pytest.raises(Unavailable, match=r"specGpu is 'two', expected cards such as \"2\(H800\)\""):
        gpus("two", "specGpu")
    with pytest.raises(Unavailable, match="specMemory is '200T'"):
        gib("200T", "specMemory")


ROW: dict[str, Any] = {
    "id": 78,
    "resourceId": "AIDP-1",
    "name": "p1",
    "specCPU": "50",
    "specGpu": "2(H800)",
    "specMemory": "200G",
    "restCPU": "50",
    "restGpu": "2(H800)",
    "restMemory": "200G",
    "resourceState": 1,
    "delete": 0,
    "projectName": "broker",
    "perPrice": 7_200_000,
    "cycleType": "Month",
    "totalAmount": 100,
    "usedAmount": 0,
    "restAmount": 100,
    "endTime": "2099-01-01 00:00:00",
}
PROJECT = Project(36, "broker", frozenset())
RULES = PackageRules((), {}, "X86", ZONE)


def read(row: dict[str, Any], rules: PackageRules = RULES, project: Project | None = PROJECT) -> Any:
    (package,) = rules.read([row], project, NOW_MS)
    return package


def test_a_package_is_a_pool_of_whole_nodes() -> None:
    package = read(ROW)
    assert (package.native, package.shape, package.nodes, package.free) == ("AIDP-1", RAW, 1, 1)
    pool = package.pool()
    assert pool.free == (FreeNodes(50, 200, 2, 1),)
    assert pool.specs == (make_spec(RAW),)
    assert pool.accuracy is Accuracy.EXACT


def test_the_price_is_of_the_whole_package() -> None:
    """Trap 19: 72,000 CNY a month for two cards, whatever totalAmount says."""
    assert read(ROW).prices == (Price(7_200_000 * 10_000 // 720 // 2),)
    assert read({**ROW, "cycleType": "Fortnight"}).prices == ()
    cpu = {**ROW, "specGpu": "0", "restGpu": "0", "perPrice": 1}
    assert read(cpu).prices == (Price(0),)
    assert read({**cpu, "perPrice": 1000}).prices == (Price(278),)  # 10 CNY: 277.8 micro per core-hour


@pytest.mark.parametrize(
    ("changes", "free", "accuracy"),
    [
        ({"usedAmount": 0, "restAmount": 100}, 1, Accuracy.ESTIMATED),
        ({"usedAmount": 100, "restAmount": 0}, 0, Accuracy.ESTIMATED),
        ({"usedAmount": 40, "restAmount": 60}, None, Accuracy.UNKNOWN),
    ],
)
def test_blank_rests_are_neither_full_nor_nought(
    changes: dict[str, Any], free: int | None, accuracy: Accuracy
) -> None:
    """Trap 18."""
    package = read({**ROW, "restCPU": "", "restGpu": "", "restMemory": "", **changes})
    assert (package.free, package.accuracy) == (free, accuracy)
    assert "rest* are blank" in package.hint
    assert package.pool().accuracy is accuracy


def test_what_is_left_is_the_scarcest_part() -> None:
    assert read({**ROW, "restMemory": "100G"}).free == 0
    assert read({**ROW, "restGpu": "0"}).free == 0
    full = read({**ROW, "restCPU": "0", "restGpu": "0", "restMemory": "0"})
    assert (full.free, full.pool().free) == (0, (FreeNodes(0, 0, 0, 1),))


def test_stated_pools_say_what_the_platform_does_not() -> None:
    shape = NodeShape("ARM", 50, 200, "Huawei/NPU/Ascend910B", 2, 64)
    rules = replace(RULES, stated={"AIDP-1": StatedPool("AIDP-1", shape, 4)}, arch="")
    rest = {"restCPU": "150", "restGpu": "6(H800)", "restMemory": "600G"}
    package = read({**ROW, **rest}, rules)
    assert (package.shape, package.nodes, package.free) == (shape, 4, 3)
    disagrees = read({**ROW, "specGpu": "4(H800)"}, rules)
    assert disagrees.trouble == "accelerators is stated as 2, the platform says 4"
    without = read({**ROW, **rest})
    assert (without.nodes, without.free) == (1, 1)
    assert "state nodes = 3 in [[centers.pools]]" in without.hint


@pytest.mark.parametrize(
    ("changes", "trouble"),
    [
        ({"resourceState": 3, "resourceStateName": "已冻结"}, "resourceState is 3 (已冻结), not 1"),
        ({"delete": 1}, "it is deleted"),
        ({"endTime": "2024-01-01 00:00:00"}, "it ended at 2024-01-01 00:00:00"),
        ({"projectName": "other"}, "it is not associated with project 36 (broker)"),
        ({"specGpu": "many"}, "specGpu is 'many', expected cards such as \"2(H800)\""),
        ({"specGpu": "2"}, "specGpu is '2' without a product: state the pool"),
        ({"specCPU": ""}, "no specCPU or specMemory is told: state the pool in [[centers.pools]]"),
    ],
)
def test_a_package_that_cannot_be_used(changes: dict[str, Any], trouble: str) -> None:
    """Traps 7, 20 and 29: each with its reason, and none hides the others."""
    found = RULES.read([{**ROW, **changes}, {**ROW, "resourceId": "AIDP-2"}], PROJECT, NOW_MS)
    assert [package.trouble for package in found] == [trouble, ""]


def test_a_package_of_the_project_by_its_name() -> None:
    project = replace(PROJECT, packages=frozenset({"p1"}))
    assert read({**ROW, "projectName": ""}, project=project).trouble == ""
    assert read(ROW, project=None).trouble == "no project to use it with: set project_id"
    assert read(ROW, replace(RULES, arch="")).trouble.startswith("its architecture is not known")


def test_packages_that_are_named() -> None:
    rules = replace(RULES, wanted=("AIDP-2", "AIDP-3"))
    found = rules.read([ROW, {**ROW, "resourceId": "AIDP-2"}], PROJECT, NOW_MS)
    assert [(p.native, p.trouble) for p in found] == [
        ("AIDP-2", ""),
        ("AIDP-3", "the platform lists no package of this resourceId"),
    ]


def test_a_package_without_a_resource_id() -> None:
    """Trap 7: the table of the list lacks it, and nothing else can name a package."""
    row = {name: value for name, value in ROW.items() if name != "resourceId"}
    assert "does not tell its resourceId" in read(row).trouble


def test_a_project_as_it_is_listed() -> None:
    row = {"id": 41, "name": "test", "completeResource": "useradmin-2705, useradmin-2706"}
    assert Project.read(row) == Project(41, "test", frozenset({"useradmin-2705", "useradmin-2706"}))
    with pytest.raises(Unavailable, match="a project has no id"):
        Project.read({"name": "x"})


# ---------------------------------------------------------------- over the platform


async def test_a_probe_is_whole_over_all_pages(there: tuple[Cecstack, Adapter]) -> None:
    platform, adapter = there
    for number in range(250):
        platform.add(f"AIDP-{number:032d}", cpu=4, memory_gib=8)
    platform.packages.add("AIDP-elsewhere", cpu=4, memory_gib=8)
    inventory = await adapter.probe()
    assert len(inventory.pools) == 251
    assert [native for native, _ in inventory.quarantined] == ["AIDP-elsewhere"]
    assert inventory.accuracy is adapter.traits.idle is Accuracy.EXACT
    lists = [seen for seen in platform.seen if seen.operation == "resource.list"]
    assert [seen.body["pageNum"] for seen in lists] == [1, 2, 3]
    assert platform.packages.orders == []  # trap 22: the list is not the purchase


async def test_a_list_without_resource_ids_is_quarantined(there: tuple[Cecstack, Adapter]) -> None:
    platform, adapter = there
    platform.packages.without_resource_id = True
    inventory = await adapter.probe()
    assert inventory.pools == ()
    assert "does not tell its resourceId" in inventory.quarantined[0][1]


async def test_public_data_sets_are_listed(there: tuple[Cecstack, Adapter]) -> None:
    platform, adapter = there
    given = {"name": "corpus", "version": "v2", "describe": "d", "sourceType": "text", "projectId": 49}
    platform.records.add_dataset({**given, "isPublic": True})
    platform.records.add_dataset({**given, "name": "secret"})
    (found,) = (await adapter.catalogue()).datasets
    assert (found.title, found.desc, found.labels, found.remote) == ("corpus:v2", "d", "text", "")


async def test_images(there: tuple[Cecstack, Adapter]) -> None:
    platform, adapter = there
    platform.records.add_image("opencompass:v2.2.2", "nvidia", "大模型基础评估")
    platform.records.add_image("pt-ascend:1", "ascend", "PyTorch")
    platform.records.add_image("odd:1", "iluvatar_infer", "")
    images = (await adapter.catalogue()).images
    assert [(i.id, i.native, i.name, i.processor) for i in images] == [
        ("opencompass:v2.2.2", "image.cestc.cn/iaas_pub/opencompass:v2.2.2", "大模型基础评估", "GPU"),
        ("pt-ascend:1", "image.cestc.cn/iaas_pub/pt-ascend:1", "PyTorch", "NPU"),
        ("odd:1", "image.cestc.cn/iaas_pub/odd:1", "", ""),
    ]


async def test_a_redirect_is_not_followed(there: tuple[Cecstack, Adapter]) -> None:
    """Trap 11: collections have their slash; a redirect would turn a POST into a GET."""
    platform, adapter = there
    with pytest.raises(Unavailable, match="HTTP 308, a redirect"):
        await adapter.wire.call("images", "GET", "/alpha/images_modelview/api", effect=False)
    assert [c for c in platform.complaints if "slash" in c]
    platform.complaints.clear()


async def test_the_accounts_only_project_is_taken(tmp_path: Path) -> None:
    async with center(tmp_path, project_id=None) as (platform, adapter):
        assert len((await adapter.probe()).pools) == 1
        platform.records.add_project("second")
        assert (await adapter.probe()).quarantined == (
            (PACKAGE, "no project to use it with: set project_id"),
        )
        wrong = await connect(platform, project_id=999)
        with pytest.raises(Refused, match="project_id is 999, the account sees"):
            await wrong.probe()
        await wrong.aclose()


# ---------------------------------------------------------------- the doctor


async def checked(adapter: Adapter) -> dict[str, Check]:
    return {check.name: check async for check in adapter.checks()}


async def test_a_healthy_center(there: tuple[Cecstack, Adapter]) -> None:
    _, adapter = there
    found = await checked(adapter)
    assert [check for check in found.values() if not check.ok] == []
    assert found[f"package {PACKAGE}"].detail == "1 nodes of 50 cores, 200 GiB, 2 x H800; 1 free"
    assert "found by its name" in found["task list"].detail
    assert "unavailable" in found["output"].detail


async def test_what_the_doctor_says_of_each_ambiguity(tmp_path: Path) -> None:
    site = Site(slm_list=False, service_list=False)
    async with center(tmp_path, site=site, **SERVICE) as (platform, adapter):
        found = await checked(adapter)
        assert (found["task list"].ok, found["services"].ok) == (False, False)
        assert "until `broker resolve`" in found["task list"].detail
        platform.packages.all[PACKAGE].blank = True
        platform.packages.all[PACKAGE].ends = platform.clock() + 3600
        package = (await checked(adapter))[f"package {PACKAGE}"]
        assert not package.ok
        assert "rest* are blank" in package.detail
        assert "it ends in" in package.detail
        platform.packages.all[PACKAGE].projects.clear()
        assert "not associated" in (await checked(adapter))[f"package {PACKAGE}"].detail


async def test_the_doctor_tells_what_to_check_when_nothing_works(tmp_path: Path) -> None:
    async with center(tmp_path) as (platform, adapter):
        platform.site.region = "region9"
        (check,) = (await checked(adapter)).values()
        assert (check.name, check.ok) == ("login", False)
        assert "check endpoint, ca_file, region, signature" in check.detail
        assert all("region" in complaint for complaint in platform.complaints)
        platform.complaints.clear()


async def test_an_operators_raw_call(there: tuple[Cecstack, Adapter]) -> None:
    platform, adapter = there
    path = '/api/aidp/v1/project/page?form_data={"page":0,"page_size":5,"str_relate":1,"filters":[]}'
    answer = await adapter.call("GET", path, None)
    assert answer.status == 200
    assert b'"broker"' in answer.body
    assert platform.seen[-1].query["requestInfo"] == "region1", "it is added where it is not given"
    await adapter.call("GET", f"{path}&requestInfo=other", None)
    assert platform.seen[-1].query["requestInfo"] == "other"
    assert [complaint.partition(": ")[2] for complaint in platform.complaints] == ["requestInfo is 'other'"]
    platform.complaints.clear()
    with pytest.raises(Refused, match="expected an absolute path"):
        await adapter.call("GET", "https://elsewhere.example/", None)

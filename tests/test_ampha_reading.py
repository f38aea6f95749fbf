"""What an Ampha platform writes, read: envelopes, words, numbers, times, names (spec 1, 15, 16)."""

from __future__ import annotations

from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from adapters.ampha_capacity import layout, read_groups, read_quota
from adapters.ampha_specs import Preset, read_specs, same_product
from adapters.ampha_tasks import Kind, Remote, named, read_pod, read_task, remote_of, sighting
from adapters.ampha_wire import (
    NotRouted,
    PlatformRefused,
    Settings,
    life_s,
    maybe_json,
    payload,
    rows_of,
    sealed,
    total_of,
)
from adapters.session import SessionExpired
from adapters.values import parse_json
from broker.adapter import Connection, Denied, RemoteState, Unavailable
from broker.core.model import CenterId, RemoteId
from tests.emulators.ampha.wire import Account, jwt

ZONE = ZoneInfo("Asia/Shanghai")


def settings(**options: Any) -> Settings:
    return Settings.read(Connection(CenterId("c"), "bk", {"base_url": "https://a", **options}))


# ---------------------------------------------------------------- envelopes (1.3, T5)


@pytest.mark.parametrize(
    ("document", "found"),
    [
        ({"code": 200, "msg": "操作成功", "token": "t"}, {"code": 200, "msg": "操作成功", "token": "t"}),
        ({"code": 200, "success": True, "message": "success", "data": [1]}, [1]),
        (
            {"code": 0, "data": "文件上传中，请等待", "message": "success", "success": True},
            "文件上传中，请等待",
        ),
        ({"success": True, "errorCode": 200, "message": "删除成功", "result": {"a": 1}}, {"a": 1}),
        ({"success": True, "returnCode": 0, "message": "", "data": {}}, {}),
        ({"success": "true", "returnCode": "200", "message": "success"}, None),
        ({"status": 200, "data": {"result": []}, "message": "x", "success": True}, {"result": []}),
        (
            {"code": 200, "success": True, "message": "输出目录无checkpoint文件,无法恢复", "data": False},
            False,
        ),
        ({"success": True, "returnCode": 200, "message": "success", "data": None}, None),
    ],
)
def test_success_in_every_envelope(document: dict[str, Any], found: Any) -> None:
    if found is None and "data" not in document:
        assert payload(200, document) == document, "an answer without a payload is the payload"
    else:
        assert payload(200, document) == found


@pytest.mark.parametrize(
    ("status", "document", "error"),
    [
        (200, {"code": 500, "msg": "fail"}, PlatformRefused),
        (
            200,
            {"success": False, "errorCode": 500, "message": "参数错误", "result": None},
            PlatformRefused,
        ),
        (200, {"success": False, "returnCode": 500, "message": "x", "data": "error"}, PlatformRefused),
        (200, {"success": False, "errorCode": 400, "message": "参数错误"}, PlatformRefused),
        (500, {"success": True, "code": 200, "data": 1}, PlatformRefused),
        (
            200,
            {"msg": "请求访问：/prod-api/getInfo，认证失败，无法访问系统资源", "code": 401},
            SessionExpired,
        ),
        (200, {"code": 500, "msg": "没有权限访问用户数据！"}, Denied),
        (200, {"code": 404, "msg": "Not Found"}, NotRouted),
        (404, {"timestamp": "x", "error": "Not Found", "path": "/a"}, NotRouted),
        (200, {}, PlatformRefused),
    ],
)
def test_failures_in_every_envelope(status: int, document: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        payload(status, document)


@pytest.mark.parametrize("document", [None, "error", [], 7])
def test_what_is_no_envelope(document: Any) -> None:
    with pytest.raises(Unavailable, match="expected an object"):
        payload(200, document)


def test_a_rejection_by_the_gateway_proves_that_nothing_was_done() -> None:
    with pytest.raises(SessionExpired) as gateway:
        payload(200, {"msg": "请求访问：/a，认证失败，无法访问系统资源", "code": 401})
    with pytest.raises(SessionExpired) as other:
        payload(200, {"success": False, "code": 401, "message": "token expired"})
    assert (gateway.value.no_effect, other.value.no_effect) == (True, False)


# ---------------------------------------------------------------- rows and documents in texts (T3, T19)


@pytest.mark.parametrize(
    ("found", "rows", "total"),
    [
        ({"rows": [{"a": 1}], "total": 1, "pageNum": 1}, [{"a": 1}], 1),
        ({"items": [{"a": 1}], "total": "3"}, [{"a": 1}], 3),
        ({"records": [], "total": 0}, [], 0),
        ({"result": [{"a": 1}], "pageInfo": {"totalNum": 9}}, [{"a": 1}], 9),
        ({"total": 2, "rows": [[{"a": 1}], [{"a": 2}]]}, [{"a": 1}, {"a": 2}], 2),
        ([{"a": 1}], [{"a": 1}], None),
    ],
)
def test_pages_in_every_dialect(found: Any, rows: list[Any], total: int | None) -> None:
    assert rows_of(found, "list") == rows
    assert total_of(found, "total") == total


@pytest.mark.parametrize("found", [None, {}, {"rows": None}, {"rows": ["x"]}, "[]"])
def test_an_answer_without_rows_is_no_empty_list(found: Any) -> None:
    with pytest.raises(Unavailable, match="no list of rows"):
        rows_of(found, "list")


def test_documents_in_texts() -> None:
    assert maybe_json('{"uid":"af22"}') == {"uid": "af22"}
    assert maybe_json("[1]") == [1]
    assert maybe_json("{broken") == "{broken"
    assert maybe_json("vgpu") == "vgpu"
    assert maybe_json({"a": 1}) == {"a": 1}


# ---------------------------------------------------------------- words of state (15.1)


@pytest.mark.parametrize(
    ("word", "state"),
    [
        ("Succeeded", RemoteState.SUCCEEDED),
        ("成功", RemoteState.SUCCEEDED),
        ("Failed", RemoteState.FAILED),
        ("失败", RemoteState.FAILED),
        ("Terminated", RemoteState.STOPPED),
        ("已终止", RemoteState.STOPPED),
        ("运行中", RemoteState.RUNNING),
        ("RUNNING", RemoteState.RUNNING),
        ("Stopping", RemoteState.RUNNING),
        ("Terminating", RemoteState.RUNNING),
        (" Pending ", RemoteState.PENDING),
        ("Inqueue", RemoteState.PENDING),
        ("创建中", RemoteState.PENDING),
        ("Suspended", RemoteState.UNKNOWN),
        ("", RemoteState.UNKNOWN),
    ],
)
def test_words_of_state(word: str, state: RemoteState) -> None:
    task = read_task({"id": "1", "name": "a", "status": word, "createTime": None}, Kind.OPERATOR, ZONE)
    assert task.state is state


def test_rows_of_both_stores() -> None:
    """A says name and B taskName; createTime is text or milliseconds (1.5, T18)."""
    one = {"id": "1", "name": "a", "status": "Failed", "createTime": "2024-06-25 16:37:08"}
    two = {"id": "2", "taskName": "a", "status": "Failed", "createTime": 1719304628000}
    first, second = read_task(one, Kind.OPERATOR, ZONE), read_task(two, Kind.FINE_TUNE, ZONE)
    assert first.created_ms == second.created_ms == 1719304628000
    assert (first.remote.text, second.remote.text) == ("to:1", "llm:2")
    defined = read_task({**one, "createWay": "userDefined"}, Kind.OPERATOR, ZONE)
    assert defined.remote.text == "ct:1", "the calls that made it also end it (T8)"
    with pytest.raises(Unavailable, match="without name, id or status"):
        read_task({"id": "1", "name": "a"}, Kind.OPERATOR, ZONE)


def test_remote_ids() -> None:
    assert remote_of(RemoteId("llm:x:y")) == Remote(Kind.FINE_TUNE, "x:y")
    assert remote_of(RemoteId("bkaaaaaaaaaa")) == Remote(Kind.NAME, "bkaaaaaaaaaa")
    assert remote_of(RemoteId("slm:44")) == Remote(Kind.NAME, "slm:44")
    for kind in Kind:
        assert remote_of(Remote(kind, "1").text) == Remote(kind, "1")


def test_names_are_exact_or_with_the_platform_s_suffix() -> None:
    def task(name: str, word: str = "Running") -> Any:
        return read_task({"id": name, "name": name, "status": word, "createTime": None}, Kind.OPERATOR, ZONE)

    assert named([task("bk12"), task("bk1"), task("bk1-abcdefgh")], "bk1") == task("bk1")
    assert named([task("bk12"), task("bk1-abcdefgh")], "bk1") == task("bk1-abcdefgh")
    assert named([task("bk1-abcdefg"), task("bk1-ABCDEFGH"), task("bk1-abcdefghi")], "bk1") is None
    assert named([], "bk1") is None


# ---------------------------------------------------------------- pods (15.3)


def pod(**more: Any) -> Any:
    row = {"id": "1", "name": "to-x-worker-0", "status": 1, "startTime": "2025-02-10 15:54:52", **more}
    return read_pod(row, ZONE)


def test_a_pod_s_times_are_those_of_china() -> None:
    assert pod().started_ms == 1739174092000, "the pair that the document itself gives (1.5)"


def test_pods_are_in_the_order_of_nodes() -> None:
    names = ["to-x-worker-10", "to-x-worker-2", "to-x-master-0", "to-x-worker-1"]
    pods = sorted(
        (pod(name=n, type="master" if "master" in n else "worker") for n in names), key=lambda p: p.order
    )
    assert [p.name for p in pods] == ["to-x-master-0", "to-x-worker-1", "to-x-worker-2", "to-x-worker-10"]


def test_only_what_is_certain_of_pods_decides_for_an_unknown_word() -> None:
    task = read_task({"id": "1", "name": "a", "status": "Parked"}, Kind.OPERATOR, ZONE)
    ended = pod(status=2, endTime="2025-02-10 15:55:12")
    failed = pod(status=3, endTime="2025-02-10 15:55:12", reason="Error")
    assert sighting(task, [], ()).state is RemoteState.UNKNOWN
    assert sighting(task, [ended, pod()], ()).state is RemoteState.RUNNING
    assert (
        sighting(task, [ended, pod(status=9, endTime="2025-02-10 15:55:12")], ()).state is RemoteState.UNKNOWN
    )
    assert sighting(task, [ended, ended], ()).state is RemoteState.SUCCEEDED
    assert sighting(task, [ended, failed], ()).state is RemoteState.FAILED


# ---------------------------------------------------------------- capacity, quotas, specs

SAMPLE = """{"success":true,"errorCode":200,"message":"获取资源组成功","result":[{
 "id":"3131612391d6e2130191d9aed54c0000","name":"test1","resourceGroupKey":"resourceGroupOOcTMKK7942urtxy",
 "gpuShare":"mig","gpuType":"nvidia","cpuTotal":48,"cpuSurplus":40,"memTotal":251.53,"memSurplus":238.13,
 "gpuTotal":10,"gpuSurplus":8,"queuePodNum":1,"status":1,"rockParaIsOk":1,"osArch":"X86","nodeList":[{
 "nodeName":"gpu44","nodeIp":"10.99.232.180","cpu":"48","cpuSurplus":40,"memory":"251.53","memSurplus":238.13,
 "gpuTotalOne":4,"gpuAvailNum":4,"gpuTotal":10,"gpuSurplus":8,"nodeStatus":1,
 "gpuInfo":[{"gpuProduct":"A800-PCIE-80GB","gpuMemory":81920,"gpuCount":4}],"gpuShare":"[
 {\\"type\\":\\"NVIDIA A800 80GB PCIe\\",\\"migId\\":4,\\"name\\":\\"GPU_0\\",
  \\"config\\":{\\"1g.10gb\\":\\"4\\",\\"3g.40gb\\":\\"1\\"}},
 {\\"migId\\":-1,\\"name\\":\\"GPU_3\\",\\"config\\":{}}]"}]}]}""".replace("\n ", "").replace("\n  ", "")


def test_the_document_s_own_sample_of_capacity() -> None:
    """Numbers as text, fractions, M of memory, a document in a text (T3, T4, T14)."""
    (found,) = read_groups(payload(200, parse_json(SAMPLE.encode())), ())
    assert (found.key, found.queue, found.share) == ("resourceGroupOOcTMKK7942urtxy", 1, "mig")
    assert [(n.profile, n.shape.accelerators, n.room[0]) for n in found.nodes] == [
        ("", 1, 1),
        ("1g.10gb", 4, 4),
        ("3g.40gb", 1, 1),
    ]
    assert {n.shape.accelerator_memory_gib for n in found.nodes} == {80, 10, 40}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"gpuInfo": [], "gpuType": None}, "expected one"),
        ({"gpuInfo": [{"gpuProduct": "A", "gpuMemory": None}]}, "memory of a card"),
        ({"cpuSurplus": "many"}, "cpuSurplus is 'many'"),
        ({"gpuShare": "vgpu"}, "how the cards are split"),
        ({"gpuShare": '[{"config": {"whatever": "1"}}]'}, "MIG profile is 'whatever'"),
    ],
)
def test_a_node_that_cannot_be_read_is_set_aside_with_the_reason(change: dict[str, Any], reason: str) -> None:
    document = parse_json(SAMPLE.encode())
    document["result"][0]["nodeList"][0].update(change)
    (found,) = read_groups(payload(200, document), ())
    ((name, why),) = found.odd
    assert (found.nodes, name) == ((), "test1/gpu44")
    assert reason in why


def test_quotas_count_where_they_are_set_up() -> None:
    remains = {
        "remainCpu": 100,
        "remainMemory": "110",
        "remainGpu": Decimal("10.0"),
        "remainJobNum": 1,
        "remainMig": None,
    }
    assert read_quota({**remains, "isInitConfig": False}).cards is None
    quota = read_quota({**remains, "isInitConfig": "true"})
    assert (quota.cores, quota.memory_gib, quota.cards, quota.jobs, quota.instances) == (
        100,
        110,
        10,
        1,
        None,
    )


ROW = {"specId": "1", "gpuShare": "none", "cpuCoresNumber": 5, "memorySize": 8, "numberOfGpus": 3}


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        (
            {"gpuModel": None, "specName": "GPU：3*Nvidia/A100-PCIE-80GB | CPU：5核 8GB"},
            Preset("1", "GPU：3*Nvidia/A100-PCIE-80GB | CPU：5核 8GB", 5, 8, 3, "Nvidia/A100-PCIE-80GB"),
        ),
        ({"gpuModel": "Nvidia/A100"}, Preset("1", "", 5, 8, 3, "Nvidia/A100")),
        ({"numberOfGpus": 0}, Preset("1", "", 5, 8, 0)),
        (
            {
                "gpuShare": "mig",
                "migType": "1g.10gb",
                "specName": "GPU：Nvidia/A800 3*1g.10gb | CPU：5核 8GB",
            },
            Preset(
                *("1", "GPU：Nvidia/A800 3*1g.10gb | CPU：5核 8GB", 5, 8, 3, "Nvidia/A800", "mig", "1g.10gb")
            ),
        ),
        (
            {"gpuShare": "vgpu", "gpuModel": "A", "gpuMemory": 32302, "computility": "10"},
            Preset("1", "", 5, 8, 3, "A", "vgpu", percent=10, mib=32302),
        ),
        ({"gpuShare": "mig"}, None),
        ({"gpuShare": "vgpu", "gpuMemory": 32302}, None),
        ({"gpuShare": "vgpu", "gpuMemory": 1, "computility": 0}, None),
        ({"gpuShare": "other"}, None),
        ({"cpuCoresNumber": None}, None),
    ],
)
def test_preset_specs_as_they_are_listed(changes: dict[str, Any], found: Preset | None) -> None:
    """The model is told by the name alone in every sample (3.3); what is unclear is left out."""
    assert read_specs({"gpuSpecList": [{**ROW, **changes}]}) == ([found] if found else [])


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Nvidia/A100-PCIE-80GB", "A100-PCIE-80GB", True),
        ("Nvidia A100-PCIE-80GB", "NVIDIA A100 80GB PCIe", True),
        ("A100-PCIE-80GB", "A100-PCIE-40GB", False),
        ("A100", "A100-PCIE-80GB", False),
    ],
)
def test_spellings_of_one_product(one: str, other: str, same: bool) -> None:
    """T16: by all of their words, and never by how they begin."""
    assert same_product(one, other) is same


def test_layouts() -> None:
    assert layout('[{"config": {"1g.10gb": "4"}}, {"config": {}}]') == [{"1g.10gb": 4}, {}]
    assert layout("vgpu") == layout(None) == []


# ---------------------------------------------------------------- passwords and options (1.8, T26)


def test_the_vector_of_a_sealed_password() -> None:
    cbc = settings(password_mode="aes-cbc", password_key="0123456789abcdef")
    assert sealed("Test@123", cbc) == "1D9129D821E532A1839E02369924393C"
    assert sealed("Test@123", settings()) == "Test@123"
    hexed = settings(password_mode="aes-cbc", password_key="hex:" + b"0123456789abcdef".hex())
    assert sealed("Test@123", hexed) == sealed("Test@123", cbc)
    other_iv = settings(password_mode="aes-cbc", password_key="0123456789abcdef", password_iv="1" * 16)
    assert sealed("Test@123", other_iv) != sealed("Test@123", cbc)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"base_url": ""}, "base_url is missing"),
        ({"password_mode": "aes-cbc"}, "password_key has 0 bytes, expected 16 or 24 or 32"),
        ({"password_mode": "aes-ecb", "password_key": "short"}, "password_key has 5 bytes"),
        ({"password_mode": "aes-ecb", "password_key": "hex:zz"}, "password_key has 0 bytes"),
        (
            {"password_mode": "aes-cbc", "password_key": "0" * 16, "password_iv": "1"},
            "password_iv has 1 bytes, expected 16",
        ),
        ({"task_api": "other"}, "other"),
        ({"extra_inputs": "/more"}, "extra_inputs is '/more', expected an absolute path with {key}"),
        (
            {"extra_inputs": "/more/{key}", "task_api": "fineTune"},
            "extra_inputs needs task_api = 'trainOperator'",
        ),
    ],
)
def test_options_that_cannot_be_meant(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        settings(**options)


def test_a_token_tells_how_long_it_lives() -> None:
    """By its own word, so that a new login comes before its end (2.1)."""
    account = Account(6, "sbb", "x", "4007")
    told = life_s(jwt(account, 3600, 1))
    assert told is not None
    assert 3500 < told <= 3601
    for token in (jwt(account, -5, 1), "no.token", "", "a.b.c", "a.e30.c"):
        assert life_s(token) is None


def test_numbers_keep_their_digits() -> None:
    assert parse_json(b'{"memTotal": 251.53}') == {"memTotal": Decimal("251.53")}

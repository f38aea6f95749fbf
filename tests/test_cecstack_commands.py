"""Online services, and what operators do at a CECSTACK by `broker cecstack …`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from adapters.cecstack import Cecstack as Adapter
from broker.adapter import Refused, RemoteState, RunRef, Unavailable, commands_of
from broker.core.model import RemoteId, RunId
from tests.cecstack_center import PACKAGE, SERVICE, Center, center, ref, run_spec
from tests.emulators.cecstack import Cecstack
from tests.emulators.faults import Fault

QUOTE: Mapping[str, Any] = {
    "queryPriceResult": {
        "showPriceSwitch": "on",
        "totalPrice": {"price": 7_200_000, "discount": 0, "total": 7_200_000, "displayPrice": 72_000},
    },
    "ratingKey": "ByHours",
    "specCode": "standardCpu",
    "cycleCount": 1,
    "cycleType": "Month",
    "amount": 1,
    "tenantId": "184",
    "departmentId": "184",
    "name": "bk-1",
    "azId": "AZ1",
    "billingMode": "ByCycle",
    "bizType": "Create",
    "regionId": "region1",
}
REFUND: Mapping[str, Any] = {"queryPriceResult": {"remainFee": 194, "totalFee": 200, "usedFee": 6}}


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[Center]:
    async with center(tmp_path, **SERVICE) as found:
        yield found


async def give(adapter: Adapter, word: str, /, **arguments: Any) -> Any:
    """What the daemon does with an operator's words; a hyphen is written as _."""
    (command,) = [each for each in commands_of(adapter) if each.name == word]
    given = {name.replace("_", "-"): value for name, value in arguments.items()}
    known = {argument.name for argument in command.arguments}
    assert given.keys() <= known, f"{word} takes {known}"
    assert {a.name for a in command.arguments if a.required} <= given.keys()
    return await command.run(given)


def sent(platform: Cecstack, operation: str) -> int:
    return sum(seen.operation == operation for seen in platform.seen)


# ---------------------------------------------------------------- money


async def test_a_package_is_bought_once_from_a_quote(there: Center) -> None:
    """Trap 21: the answer is an order; the package comes later.  The quote passes as it is (trap 23)."""
    platform, adapter = there
    text = json.dumps(QUOTE, indent=3)
    bought = await give(adapter, "buy-package", quote=text, at_most_fen=7_200_000)
    ((order, _),) = platform.packages.orders
    assert bought == {"order": order}
    (request,) = [seen for seen in platform.seen if seen.operation == "resource.buy"]
    assert request.text == text
    with pytest.raises(Refused, match="yet"):
        await give(adapter, "order", order=order)
    platform.packages.all[f"AIDP-{order:0>32}"].appears = 0
    (package,) = await give(adapter, "order", order=order)
    assert package["orderId"] == order


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "quote is no JSON"),
        ("{}", "quote has no queryPriceResult"),
        (json.dumps({"queryPriceResult": {}}), "so its price is not known"),
        (json.dumps(QUOTE), "the quote is 7200000 fen, at-most-fen is 100: nothing was bought"),
    ],
)
async def test_a_quote_that_is_none_buys_nothing(there: Center, text: str, match: str) -> None:
    platform, adapter = there
    with pytest.raises(Refused, match=match):
        await give(adapter, "buy-package", quote=text, at_most_fen=100)
    assert sent(platform, "resource.buy") == 0


@pytest.mark.parametrize("fault", [Fault.LOST_REPLY, Fault.HTML_502, Fault.DROPPED, Fault.GARBAGE])
async def test_a_purchase_without_an_answer_is_not_repeated(there: Center, fault: Fault) -> None:
    platform, adapter = there
    platform.faults.plan("resource.buy", fault)
    with pytest.raises(Unavailable):
        await give(adapter, "buy-package", quote=json.dumps(QUOTE), at_most_fen=10**9)
    assert sent(platform, "resource.buy") == 1


async def test_storage_is_bought_and_packages_are_returned(there: Center) -> None:
    platform, adapter = there
    await give(adapter, "buy-storage", quote=json.dumps(QUOTE), at_most_fen=10**9)
    assert [row["name"] for row in await give(adapter, "storages", name="bk-1")] == ["bk-1"]
    assert await give(adapter, "return-package", package=PACKAGE, quote=json.dumps(REFUND))
    assert platform.packages.returned == [PACKAGE]
    assert (await adapter.probe()).pools == ()
    with pytest.raises(Refused, match="expected letters, digits"):
        await give(adapter, "return-package", package="../x", quote=json.dumps(REFUND))


async def test_packages_as_the_platform_tells_them(there: Center) -> None:
    _, adapter = there
    (package,) = await give(adapter, "packages")
    assert (package["resourceId"], package["restGpu"], package["perPrice"]) == (PACKAGE, "2(H800)", 7_200_000)


# ---------------------------------------------------------------- projects


async def test_projects_are_created_bound_and_deleted(there: Center) -> None:
    """Traps 13, 14 and 28: no id in the answer, numbers as text, HTTP 500 that says Success."""
    platform, adapter = there
    project = (await give(adapter, "project-create", name="second"))["id"]
    with pytest.raises(Refused, match="'second' already"):
        await give(adapter, "project-create", name="second")
    assert await give(adapter, "project-bind", project=project, package=(PACKAGE,)) == {"changed": 1}
    assert await give(adapter, "project-bind", project=project, package=(PACKAGE,)) == {"changed": 0}
    listed = {each["id"]: each for each in await give(adapter, "projects")}
    assert listed[project] == {"id": project, "name": "second", "packages": ["gpus"]}
    assert await give(adapter, "project-unbind", project=project, package=(PACKAGE,)) == {"changed": 1}
    assert await give(adapter, "project-delete", id=project) == {"deleted": project}
    assert set(platform.records.projects) == {platform.project}


# ---------------------------------------------------------------- data sets and images


async def test_data_sets_are_registered(there: Center) -> None:
    platform, adapter = there
    given = {"project": platform.project, "name": "aa11", "version": "v2"}
    found = await give(adapter, "dataset-register", **given)
    assert found["path"] == f"/mnt/{platform.project}/aa11/v2"
    assert [row["name"] for row in await give(adapter, "datasets")] == ["aa11"]
    await give(adapter, "dataset-delete", id=found["id"])
    assert await give(adapter, "datasets") == []


async def test_images_are_built_and_deleted(there: Center) -> None:
    platform, adapter = there
    built = await give(
        adapter,
        "image-build",
        project=platform.project,
        package=PACKAGE,
        base="image.cestc.cn/a:1",
        target="ccr/b:1",
        volume="/mnt/184",
        spec_code="standardCpu",
        cpu="2",
        memory="4",
    )
    assert await give(adapter, "image-delete", id=built["id"]) == {"deleted": built["id"]}


async def test_a_file_of_a_data_set_is_registered(there: Center) -> None:
    platform, adapter = there
    found = await give(adapter, "dataset-register", project=platform.project, name="aa11", version="v2")
    given = {"path": f"{found['path']}/oa3", "upload": "a2ff35d0", "file": "oaast.json"}
    assert await give(adapter, "dataset-file", **given) == {"registered": f"{found['path']}/oa3/oaast.json"}
    assert platform.records.files == [
        {
            "namespace": "ccos-aidp",
            "dstpath": f"{found['path']}/oa3",
            "uploadId": "a2ff35d0",
            "filename": "oaast.json",
        }
    ]
    with pytest.raises(Refused, match="below no data set"):
        await give(adapter, "dataset-file", **{**given, "path": "/mnt/1/other"})


@pytest.mark.parametrize("long_push", [False, True])
async def test_an_image_is_uploaded_and_pushed(there: Center, long_push: bool) -> None:
    """Trap 10: text and sample have different paths; a path without a route has no effect."""
    platform, adapter = there
    platform.site.long_push = long_push
    begun = await give(adapter, "image-upload", image="test:v1")
    assert begun == {"instance": "ccr-unws3g1ctn", "registryProject": "library"}
    given = {"instance": begun["instance"], "image": "test:v1", "upload": "77e9f31c"}
    assert await give(adapter, "image-push", **given) == {"status": "Pushing"}
    expected = {"hash_md5": "", "image_name": "test:v1", "upload_id": "77e9f31c"}
    assert platform.records.pushed == [expected]
    with pytest.raises(Refused, match="no upload"):
        await give(adapter, "image-push", **{**given, "image": "other:v1"})
    with pytest.raises(Refused, match="expected letters, digits and '-'"):
        await give(adapter, "image-push", **{**given, "instance": "../x"})


async def test_a_push_without_an_answer_is_not_repeated(there: Center) -> None:
    platform, adapter = there
    instance = (await give(adapter, "image-upload", image="test:v1"))["instance"]
    platform.faults.plan("image.push", Fault.LOST_REPLY)
    with pytest.raises(Unavailable):
        await give(adapter, "image-push", instance=instance, image="test:v1", upload="77e9")
    assert (sent(platform, "image.push"), len(platform.records.pushed)) == (1, 1)


async def test_the_life_of_a_lab(there: Center) -> None:
    platform, adapter = there
    id = (await give(adapter, "lab-create", project=platform.project, name="lab-1"))["id"]
    assert await give(adapter, "lab-delete", id=id) == {"deleted": id}
    assert await give(adapter, "lab-delete", id=id) == {"deleted": None}


# ---------------------------------------------------------------- notebooks


async def test_the_life_of_a_notebook(there: Center) -> None:
    platform, adapter = there
    shape = {"name": "nb1", "package": PACKAGE, "image": "i/vscode:1", "cpu": "16", "memory": "100"}
    id = (await give(adapter, "notebook-create", project=platform.project, gpu="1(H800)", **shape))["id"]
    notebook = platform.records.notebooks[id]
    assert (notebook["resource_gpu"], notebook["expand"]) == ("1(H800)", "{}")
    await give(adapter, "notebook-edit", id=id, **{**shape, "cpu": "8"})
    assert platform.records.notebooks[id]["resource_cpu"] == "8"
    await give(adapter, "notebook-stop", id=id)
    assert platform.records.notebooks[id]["status"] == "Stopped"
    await give(adapter, "notebook-reset", id=id)
    assert platform.records.notebooks[id]["status"] == "Running"
    assert await give(adapter, "notebook-delete", id=id) == {"deleted": id}
    assert await give(adapter, "notebook-delete", id=id) == {"deleted": None}


@pytest.mark.parametrize("command", ["notebook-stop", "notebook-reset"])
async def test_a_notebooks_get_with_an_effect_arrives_once(there: Center, command: str) -> None:
    """Trap 1."""
    platform, adapter = there
    shape = {"name": "nb1", "package": PACKAGE, "image": "i/vscode:1", "cpu": "16", "memory": "100"}
    id = (await give(adapter, "notebook-create", project=platform.project, **shape))["id"]
    operation = command.replace("-", ".")
    platform.faults.plan(operation, Fault.LOST_REPLY)
    with pytest.raises(Unavailable):
        await give(adapter, command, id=id)
    assert sent(platform, operation) == 1


# ---------------------------------------------------------------- evaluations


@pytest.mark.parametrize("method", ["POST", "GET"])
async def test_the_life_of_an_evaluation(there: Center, method: str) -> None:
    """Trap 16: text and sample name different methods; both kinds of installation are met."""
    platform, adapter = there
    platform.site.evaluation_start = method
    texts = (
        *("name", "storage_type", "spec_type", "datasetName", "specCode", "specCPU", "specGpu"),
        *("specMemory", "task_specCPU", "task_specGpu", "task_specMemory", "task_specCode"),
        *("resource_id", "service_resource_id"),
    )
    body = {
        **dict.fromkeys(texts, "x"),
        **dict.fromkeys(("type", "datasetId", "aihub", "projectId"), 1),
        "evalStandardConf": {"evalMode": "manual", "evaluationDimension": []},
    }
    assert await give(adapter, "evaluation-create", body=json.dumps(body)) == {"created": "x"}
    (id,) = platform.records.evaluations
    await give(adapter, "evaluation-start", id=id)
    assert (await give(adapter, "evaluation-show", id=id))["state"] == "Running"
    await give(adapter, "evaluation-stop", id=id)
    assert platform.records.evaluations[id]["state"] == "Stopped"
    await give(adapter, "evaluation-delete", id=id)
    assert platform.records.evaluations == {}
    with pytest.raises(Refused, match="Not found"):
        await give(adapter, "evaluation-show", id=id)
    for text in ("[", "[]"):
        with pytest.raises(Refused, match="body is no"):
            await give(adapter, "evaluation-create", body=text)


# ---------------------------------------------------------------- online services


async def until(adapter: Adapter, run: RunRef, state: RemoteState) -> Any:
    async with asyncio.timeout(20):
        while (seen := (await adapter.observe([run]))[run.id]).state is not state:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return seen


async def test_the_life_of_a_service(there: Center) -> None:
    """Trap 14: its create answers without an id, so it is found by its name."""
    platform, adapter = there
    assert adapter.traits.services
    spec = run_spec(port=8080, command="serve --port 8080")
    run = ref(spec, await adapter.submit(spec))
    body = platform.records.services[int(run.remote.partition(":")[2])].body
    assert (body["images"], body["command"], body["ports"]) == (spec.image, spec.command, "8080")
    assert "GREETING=hello" in body["env"].splitlines()
    assert (await adapter.observe([run]))[run.id].state is RemoteState.CREATED
    assert await adapter.find(spec.id) == run.remote
    await adapter.start(run)
    seen = await until(adapter, run, RemoteState.RUNNING)
    assert seen.address == "http://10.252.128.161:8080"
    await adapter.stop(run, grace_s=1)
    await until(adapter, run, RemoteState.CREATED)
    await adapter.delete(run)
    assert (await adapter.observe([run]))[run.id].state is RemoteState.GONE
    assert platform.records.services == {}


async def test_a_service_is_debugged_once_it_is_prepared(there: Center) -> None:
    """§3.6: the first answer has no address."""
    _, adapter = there
    spec = run_spec(port=8080)
    id = int((await adapter.submit(spec)).partition(":")[2])
    assert await give(adapter, "service-debug", id=id) == {"url": None, "hint": "being prepared: ask again"}
    found = await give(adapter, "service-debug", id=id)
    assert found == {"url": "http://10.252.128.161:8080/debug", "hint": ""}


async def test_a_service_that_lacks_its_second_half_is_never_found(there: Center) -> None:
    """It would run something else than its owner asked for; it was never published."""
    platform, adapter = there
    platform.faults.plan("service.edit", Fault.DROPPED)
    spec = run_spec(port=8080)
    with pytest.raises(Unavailable):
        await adapter.submit(spec)
    assert len(platform.records.services) == 1
    assert await adapter.find(spec.id) is None
    platform.faults.plan("service.edit", Fault.LOST_REPLY)
    second = run_spec(2, port=8080)
    with pytest.raises(Unavailable):
        await adapter.submit(second)
    assert await adapter.find(second.id) is not None


async def test_another_ones_service_is_not_deleted(there: Center) -> None:
    platform, adapter = there
    spec = run_spec(port=80)
    remote = await adapter.submit(spec)
    with pytest.raises(Refused, match="nothing was deleted"):
        await adapter.delete(RunRef(RunId("bk9999999999"), spec.job, RemoteId(remote), 1))
    assert len(platform.records.services) == 1

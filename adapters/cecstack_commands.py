"""What only a CECSTACK can do, for operators: `broker cecstack …`.  The scheduler never uses it.

Here: packages bought and returned, projects, the debugging of services, notebooks and evaluations
(chapters 2 to 9).  Not here: what is stored there (cecstack_assets.py), runs.

Money is spent once: a purchase is one request, never repeated, from a quote that the operator has from
the platform's console, because no call gives one; what came of it is looked up by its order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, Protocol

from adapters.cecstack_assets import (
    DESCRIPTION,
    ID,
    NAME,
    PACKAGE,
    PROJECT,
    Given,
    assets,
    deleting,
    either,
    number_of,
    segment,
)
from adapters.cecstack_packages import Package, Project
from adapters.cecstack_wire import Wire
from adapters.values import parse_json, whole
from broker.adapter import Argument, ArgumentKind, Refused, Unavailable, VendorCommand

NOTEBOOK_TYPE: Final = 1
"""`type` of deleteInstance (§2.6)."""
PURCHASE_TIMEOUT_S: Final = 120

_CAP = Argument("at-most-fen", "refuse a quote above this price, in fen", ArgumentKind.WHOLE, required=True)


class Center(Protocol):
    """What of the adapter the commands use."""

    wire: Wire

    async def projects(self) -> list[Project]: ...
    async def packages(self) -> tuple[Project | None, list[Package]]: ...


def commands_of(center: Center) -> tuple[VendorCommand, ...]:
    """The table of one center."""
    return (
        *_packages(center),
        *_purchases(center.wire),
        *_projects(center),
        *assets(center.wire),
        *_services(center.wire),
        *_notebooks(center.wire),
        *_evaluations(center.wire),
    )


# ---------------------------------------------------------------- packages


def _packages(center: Center) -> tuple[VendorCommand, ...]:
    async def show_all(_given: Given) -> Any:
        return [_told(row) async for row in center.wire.packages()]

    async def order(given: Given) -> Any:
        rows = [_told(r) async for r in center.wire.packages() if str(r.get("orderId")) == given["order"]]
        if not rows:
            raise Refused(f"no package has order {given['order']!r} yet: it appears some time after it")
        return rows

    async def storages(given: Given) -> Any:
        """§5.3; its list is /list, whatever the sample says (trap 22)."""
        body = {"pageSize": 100, "pageNum": 1, "name": given["name"]}
        path = "/v1/storage/resource/list"
        found = await center.wire.call("storage.list", "POST", path, effect=False, document=body)
        return found.get("list") if isinstance(found, dict) else found

    number = Argument("order", "what a purchase answered", required=True)
    return (
        VendorCommand("packages", "the account's packages, with what is left of them", show_all),
        VendorCommand("order", "the package that an order became", order, (number,)),
        VendorCommand("storages", "storage that was bought under a name", storages, (NAME,)),
    )


def _told(row: Mapping[str, Any]) -> dict[str, Any]:
    """Of a package what an operator needs; the platform's words."""
    fields = (
        *("resourceId", "name", "orderId", "project", "projectName", "specCPU", "specGpu", "specMemory"),
        *("restCPU", "restGpu", "restMemory", "resourceStateName", "endTime", "perPrice", "cycleType"),
    )
    return {field: row[field] for field in fields if field in row}


def _purchases(wire: Wire) -> tuple[VendorCommand, ...]:
    def buy(path: str, operation: str) -> Any:
        async def once(given: Given) -> Any:
            text, body = _quote(given["quote"])
            _within(body, given["at-most-fen"])
            found = await wire.call(operation, "POST", path, effect=True, text=text)
            return {"order": _order(found, operation)}

        return once

    async def give_back(given: Given) -> Any:
        text, _ = _quote(given["quote"])
        path = f"/v1/resource/{segment(given['package'])}"
        found = await wire.call("resource.giveback", "DELETE", path, effect=True, text=text)
        return {"order": _order(found, "resource.giveback")}

    quote = Argument(
        "quote",
        "file with the whole body of the purchase, queryPriceResult included, as the console sends it",
        ArgumentKind.FILE,
        required=True,
    )
    refund = Argument(
        "quote", "file with the refund's body, as the console sends it", ArgumentKind.FILE, required=True
    )
    help = "buy a package or a dedicated pool, once, from a quote (spends money)"
    return (
        VendorCommand(
            "buy-package", help, buy("/v1/resource", "resource.buy"), (quote, _CAP), PURCHASE_TIMEOUT_S
        ),
        VendorCommand(
            "buy-storage",
            "buy storage, once, from a quote (spends money)",
            buy("/v1/storage/resource", "storage.buy"),
            (quote, _CAP),
            PURCHASE_TIMEOUT_S,
        ),
        VendorCommand(
            "return-package",
            "return a package or a dedicated pool, from a refund's quote",
            give_back,
            (PACKAGE, refund),
            PURCHASE_TIMEOUT_S,
        ),
    )


def _quote(text: str) -> tuple[str, dict[str, Any]]:
    """A quote passes through as it is; it is read only to see that it is one.  Raises Refused."""
    try:
        body = parse_json(text.encode())
    except ValueError as error:
        raise Refused(f"quote is no JSON: {error}") from None
    if not isinstance(body, dict) or not isinstance(body.get("queryPriceResult"), dict):
        raise Refused("quote has no queryPriceResult, expected the body of the console's own request")
    return text, body


def _within(body: Mapping[str, Any], most_fen: int) -> None:
    """Raises Refused for a quote above the cap, or one that does not tell its total."""
    total = body["queryPriceResult"].get("totalPrice")
    fen = whole(total.get("total"), "totalPrice.total") if isinstance(total, dict) else None
    if fen is None:
        raise Refused("quote has no queryPriceResult.totalPrice.total, so its price is not known")
    if fen > most_fen:
        raise Refused(f"the quote is {fen} fen, at-most-fen is {most_fen}: nothing was bought")


def _order(found: Any, operation: str) -> str:
    if not isinstance(found, str | int) or isinstance(found, bool) or not str(found):
        raise Unavailable(f"{operation}: expected an order, got {str(found)[:200]}: look at the packages")
    return str(found)


# ---------------------------------------------------------------- projects


def _projects(center: Center) -> tuple[VendorCommand, ...]:
    wire = center.wire

    async def show_all(_given: Given) -> Any:
        found = await center.projects()
        return [{"id": p.id, "name": p.name, "packages": sorted(p.packages)} for p in found]

    async def create(given: Given) -> Any:
        """§9.1 answers without an id: it is looked up by its name (trap 14)."""
        if any(project.name == given["name"] for project in await center.projects()):
            raise Refused(f"there is a project {given['name']!r} already")
        body = {"name": given["name"], "Describe": given.get("description", "")}
        await wire.call("project.insert", "POST", "/v1/project/insert", effect=True, document=body)
        for project in await center.projects():
            if project.name == given["name"]:
                return {"id": project.id}
        raise Unavailable("the project was created and is not in the list yet: see `projects`")

    def bind(word: str) -> Any:
        async def change(given: Given) -> Any:
            """§9.2 and §9.4: the number as text, the answer how many changed (trap 28)."""
            body = {"projectId": str(given["project"]), "resourceIds": list(given["package"])}
            path = f"/v1/resource/project/{word}"
            changed = await wire.call(f"project.{word}", "POST", path, effect=True, document=body)
            return {"changed": whole(changed, "data")}

        return change

    async def delete(given: Given) -> Any:
        """§9.3 answers HTTP 500 with Success: what counts is that it is gone (trap 13)."""
        query = {"id": given["id"]}
        await wire.call("project.delete", "DELETE", "/v1/project/delete", effect=True, query=query)
        if any(project.id == given["id"] for project in await center.projects()):
            raise Unavailable(f"project {given['id']} is still listed")
        return {"deleted": given["id"]}

    packages = Argument("package", "resourceId of a package, AIDP-…", required=True, many=True)
    return (
        VendorCommand("projects", "the account's projects, with their packages", show_all),
        VendorCommand("project-create", "create a project", create, (NAME, DESCRIPTION)),
        VendorCommand("project-bind", "let a project use packages", bind("related"), (PROJECT, packages)),
        VendorCommand(
            "project-unbind", "take packages from a project", bind("unRelated"), (PROJECT, packages)
        ),
        VendorCommand("project-delete", "delete a project", delete, (ID,)),
    )


# ---------------------------------------------------------------- online services


def _services(wire: Wire) -> tuple[VendorCommand, ...]:
    async def debug(given: Given) -> Any:
        """§3.6, a GET that prepares a debugging task; until it is ready the answer has no address."""
        path = f"/alpha/inferenceservice_modelview/deploy/debug/restful/{given['id']}"
        url = await wire.call("service.debug", "GET", path, effect=True)
        ready = isinstance(url, str) and bool(url)
        return {"url": url if ready else None, "hint": "" if ready else "being prepared: ask again"}

    help = "debug an online service: asked again until it tells an address"
    return (VendorCommand("service-debug", help, debug, (ID,)),)


# ---------------------------------------------------------------- notebooks


def _notebooks(wire: Wire) -> tuple[VendorCommand, ...]:
    async def create(given: Given) -> Any:
        body = {
            **_notebook(given),
            "project": given["project"],
            "imageGpuType": given.get("image-gpu-type", "nvidia"),
            "vpcEnabled": False,
        }
        found = await wire.call(
            "notebook.create", "POST", "/v1/notebook_modelview", effect=True, document=body
        )
        return {"id": number_of(found)}

    async def edit(given: Given) -> Any:
        path = f"/v1/notebook_modelview/api/{given['id']}"
        await wire.call("notebook.edit", "PUT", path, effect=True, document=_notebook(given))
        return {"id": given["id"]}

    async def stop(given: Given) -> Any:
        query = {"instanceId": given["id"]}
        await wire.call("notebook.stop", "GET", "/v1/resource/stopInstance", effect=True, query=query)
        return {"stopped": given["id"]}

    async def reset(given: Given) -> Any:
        path = f"/alpha/notebook_modelview/api/reset/restful/{given['id']}"
        console = await wire.call("notebook.reset", "GET", path, effect=True)
        return {"id": given["id"], "console": console}

    shape = (
        *(NAME, PACKAGE, Argument("image", "URL of its image", required=True)),
        *(Argument("cpu", "cores", required=True), Argument("memory", "GB", required=True)),
        *(Argument("gpu", 'cards, such as "1(H800)"'), DESCRIPTION),
    )
    gpu_type = Argument("image-gpu-type", "whose cards the image is for, such as nvidia")
    return (
        VendorCommand("notebook-create", "create a notebook", create, (PROJECT, *shape, gpu_type)),
        VendorCommand("notebook-edit", "change a notebook", edit, (ID, *shape)),
        VendorCommand("notebook-stop", "stop a notebook; reset brings it back", stop, (ID,)),
        VendorCommand("notebook-reset", "restart a notebook", reset, (ID,)),
        VendorCommand("notebook-delete", "delete a notebook", deleting(wire, NOTEBOOK_TYPE), (ID,)),
    )


def _notebook(given: Given) -> dict[str, Any]:
    return {
        "name": given["name"],
        "describe": given.get("description", ""),
        "specType": "compute",
        "resourceId": given["package"],
        "imageType": "preset",
        "images": given["image"],
        "resource_memory": given["memory"],
        "resource_cpu": given["cpu"],
        "resource_gpu": given.get("gpu", "0"),
        "expand": json.dumps({}),
    }


# ---------------------------------------------------------------- evaluations


_EVALUATION: Final = "/alpha/maas_evaluation_modelview/api/evaluation"


def _evaluations(wire: Wire) -> tuple[VendorCommand, ...]:
    """§7.9 to §7.14.  Their text and their samples contradict each other in the methods (trap 16): the
    text's is used, and the sample's where the installation has no route for it, which has no effect."""

    async def asked(word: str, body: Any, *methods: str, effect: bool) -> Any:
        """GET with a body too: a proxy may drop it (trap 4)."""
        places = [(method, f"{_EVALUATION}/{word}") for method in methods]
        return await either(wire, f"evaluation.{word}", places, body, effect=effect)

    async def create(given: Given) -> Any:
        """The answer has no id, and there is no list: it is read at the console (trap 14)."""
        try:
            body = parse_json(given["body"].encode())
        except ValueError as error:
            raise Refused(f"body is no JSON: {error}") from None
        if not isinstance(body, dict):
            raise Refused("body is no object, expected the fields of §7.9")
        await wire.call("evaluation.save", "POST", f"{_EVALUATION}/save", effect=True, text=given["body"])
        return {"created": body.get("name")}

    async def start(given: Given) -> Any:
        body = {"id": given["id"]}
        await either(
            wire,
            "evaluation.start",
            [(m, f"{_EVALUATION}/start") for m in ("POST", "GET")],
            body,
            effect=True,
        )
        return {"started": given["id"]}

    async def stop(given: Given) -> Any:
        body = {"id": given["id"]}
        await either(
            wire, "evaluation.stop", [(m, f"{_EVALUATION}/stop") for m in ("GET", "POST")], body, effect=True
        )
        return {"stopped": given["id"]}

    async def delete(given: Given) -> Any:
        body = {"evalIds": [str(given["id"])]}
        await either(
            wire,
            "evaluation.delete",
            [(m, f"{_EVALUATION}/delete") for m in ("GET", "POST")],
            body,
            effect=True,
        )
        return {"deleted": given["id"]}

    async def show(given: Given) -> Any:
        body = {"id": given["id"]}
        return await either(
            wire,
            "evaluation.detail",
            [(m, f"{_EVALUATION}/detail") for m in ("GET", "POST")],
            body,
            effect=False,
        )

    body = Argument("body", "file with the fields of the evaluation", ArgumentKind.FILE, required=True)
    return (
        VendorCommand("evaluation-create", "create an evaluation of a model", create, (body,)),
        VendorCommand("evaluation-start", "start an evaluation", start, (ID,)),
        VendorCommand("evaluation-stop", "stop an evaluation", stop, (ID,)),
        VendorCommand("evaluation-show", "an evaluation as the platform tells it", show, (ID,)),
        VendorCommand("evaluation-delete", "delete an evaluation", delete, (ID,)),
    )

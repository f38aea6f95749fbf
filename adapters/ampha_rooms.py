"""Notebooks and online services of an Ampha center, for operators (8, 9).

Here: their calls and their words of state, which are numbers of two vocabularies (15.4, 15.5).  Not
here: jobs; neither is a job of the broker.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from adapters.ampha_wire import Api, rows_of, total_of
from adapters.values import whole
from broker.adapter import Argument, ArgumentKind, Refused, Unavailable, VendorCommand

BOOKS = "/api/kernel/notebooks"
MODEL = "/api/model/"
PAGE = 100
MAX_PAGES = 100
NOTEBOOK_WORDS = {
    1: "stopped",
    2: "stopping",
    3: "running",
    4: "starting",
    5: "being deleted",
    6: "being saved",
    7: "failed",
    8: "being created",
}
SERVICE_WORDS = {
    0: "failed",
    1: "running",
    2: "starting",
    3: "ready",
    4: "failed",
    5: "stopping",
    6: "stopped",
    7: "to be created",
    10: "recovering",
    11: "being stopped by the platform",
}
Arguments = Mapping[str, Any]


class Rooms:
    """What keeps running until somebody ends it."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def commands(self) -> tuple[VendorCommand, ...]:
        name = Argument("name", "Its name.", required=True)
        request = Argument(
            "request",
            "The request as the platform documents it: a JSON object.",
            ArgumentKind.FILE,
            required=True,
        )
        return (
            VendorCommand("notebooks", "Lists notebooks.", self.notebooks),
            VendorCommand(
                "create-notebook", "Creates a notebook, which starts.", self.create_notebook, (request,)
            ),
            *(
                VendorCommand(f"{verb}-notebook", f"{help_} a notebook.", do, (name,))
                for verb, help_, do in (
                    ("start", "Starts", self.start_notebook),
                    ("stop", "Stops", self.stop_notebook),
                    ("delete", "Deletes", self.delete_notebook),
                )
            ),
            VendorCommand("services", "Lists online services.", self.services),
            VendorCommand("service", "Shows an online service with its address.", self.service, (name,)),
            VendorCommand(
                "create-service", "Creates an online service, which starts.", self.create_service, (request,)
            ),
            *(
                VendorCommand(f"{verb}-service", f"{help_} an online service.", do, (name,))
                for verb, help_, do in (
                    ("start", "Starts", self.start_service),
                    ("stop", "Stops", self.stop_service),
                    ("delete", "Deletes", self.delete_service),
                )
            ),
            VendorCommand("service-log", "Shows the log of an online service.", self.service_log, (name,)),
            VendorCommand("service-calls", "How often a service was called.", self.service_calls, (name,)),
        )

    # ------------------------------------------------------------ notebooks

    async def notebooks(self, _: Arguments) -> Any:
        return [_notebook(row) for row in await self._notebooks()]

    async def _notebooks(self) -> list[dict[str, Any]]:
        """Pages count from 0 here (1.6, T19)."""
        found: list[dict[str, Any]] = []
        for page in range(MAX_PAGES):
            query = {"page": page, "size": PAGE}
            answer = await self._api.ask("notebooks", BOOKS, method="GET", query=query)
            rows = rows_of(answer, "notebooks")
            found += rows
            total = total_of(answer, "total")
            if len(rows) < PAGE or (total is not None and (page + 1) * PAGE >= total):
                return found
        raise Unavailable(f"the list of notebooks has more than {MAX_PAGES} pages")

    async def _book(self, name: str) -> str:
        """The id of a notebook: creation tells none (T1)."""
        ids = [str(row.get("id")) for row in await self._notebooks() if row.get("name") == name]
        if len(ids) != 1:
            raise Refused(f"name is {name!r}: {len(ids)} notebooks have it, expected one")
        return ids[0]

    async def create_notebook(self, given: Arguments) -> Any:
        body = _document(given["request"])
        if any(row.get("name") == body.get("name") for row in await self._notebooks()):
            raise Refused(f"name is {body.get('name')!r}, which a notebook has already")
        await self._done("create_notebook", BOOKS, body)
        return [_notebook(row) for row in await self._notebooks() if row.get("name") == body.get("name")]

    async def start_notebook(self, given: Arguments) -> Any:
        return await self._done("start_notebook", f"{BOOKS}/{await self._book(given['name'])}:start")

    async def stop_notebook(self, given: Arguments) -> Any:
        return await self._done("stop_notebook", f"{BOOKS}/{await self._book(given['name'])}:close")

    async def delete_notebook(self, given: Arguments) -> Any:
        path = f"{BOOKS}/{await self._book(given['name'])}"
        return await self._done("delete_notebook", path, method="DELETE")

    async def _done(self, operation: str, path: str, body: Any = None, *, method: str = "POST") -> Any:
        """A call whose answer has a success of its own inside (9)."""
        found = await self._api.ask(operation, path, body, method=method, effect=True)
        if isinstance(found, Mapping) and str(found.get("success", True)).lower() == "false":
            raise Refused(f"the platform did not do it: {found}")
        return {"asked": True}

    # ------------------------------------------------------------ online services

    async def services(self, _: Arguments) -> Any:
        return [_service(row) for row in await self._services("")]

    async def _services(self, name: str) -> list[dict[str, Any]]:
        account = await self._api.account()
        found: list[dict[str, Any]] = []
        for page in range(1, MAX_PAGES + 1):
            criteria = {"createUser": account.id, "name": name}
            body = {"pageNum": page, "pageSize": PAGE, "queryCriteria": criteria}
            answer = await self._api.ask("services", MODEL + "modelServer/findModelServerPageList", body)
            rows = rows_of(answer, "online services")
            found += rows
            total = total_of(answer, "total")
            if len(rows) < PAGE or (total is not None and page * PAGE >= total):
                return found
        raise Unavailable(f"the list of services has more than {MAX_PAGES} pages")

    async def _detail(self, name: str) -> Mapping[str, Any]:
        """A service with its version: stops and starts want the version's id (T36)."""
        ids = [str(row.get("id")) for row in await self._services(name) if row.get("name") == name]
        if len(ids) != 1:
            raise Refused(f"name is {name!r}: {len(ids)} services have it, expected one")
        found = await self._api.ask("service", MODEL + "modelServer/findModelServerById", {"id": ids[0]})
        if not isinstance(found, Mapping):
            raise Unavailable("findModelServerById: the answer is no object")
        return found

    async def service(self, given: Arguments) -> Any:
        return _service(await self._detail(given["name"]))

    async def create_service(self, given: Arguments) -> Any:
        body = _document(given["request"])
        id = await self._api.ask(
            "create_service", MODEL + "modelServer/createUnionModelServer", body, effect=True
        )
        return {"id": id}

    async def start_service(self, given: Arguments) -> Any:
        return await self._version("start_service", "startModelIntegrally", given["name"])

    async def stop_service(self, given: Arguments) -> Any:
        return await self._version("stop_service", "stopModelIntegrally", given["name"])

    async def delete_service(self, given: Arguments) -> Any:
        return await self._version("delete_service", "deleteModelServerVersionIntegrally", given["name"])

    async def _version(self, operation: str, call: str, name: str) -> Any:
        body = {"id": _version_id(await self._detail(name))}
        await self._api.ask(operation, f"{MODEL}modelServerVersion/{call}", body, effect=True)
        return {"asked": True}

    async def service_log(self, given: Arguments) -> Any:
        body = {"id": _version_id(await self._detail(given["name"]))}
        text = await self._api.ask("service_log", MODEL + "modelServerVersion/getModelServerPodLog", body)
        return {"log": text if isinstance(text, str) else ""}

    async def service_calls(self, given: Arguments) -> Any:
        id = str((await self._detail(given["name"])).get("id"))
        path = MODEL + "modelServer/modelServerCallStatistics"
        return rows_of(await self._api.ask("service_calls", path, {"id": id}), "calls of a service")


def _document(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise Refused(f"request is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise Refused("request is not a JSON object")
    return found


def _notebook(row: Mapping[str, Any]) -> dict[str, Any]:
    """Without the password that the platform shows in clear text (T35)."""
    status = whole(row.get("status"), "status")
    kept = ("id", "name", "cpuLimit", "memoryLimit", "gpuResource", "webPath", "sshPort", "errorReason")
    return {
        "status": NOTEBOOK_WORDS.get(status if status is not None else -1, f"unknown ({status})"),
        **{name: row.get(name) for name in kept},
    }


def _service(row: Mapping[str, Any]) -> dict[str, Any]:
    """The version's state wins over the service's (15.4); numbers may be text."""
    versions = [v for v in row.get("modelServerVersions") or [] if isinstance(v, Mapping)]
    status = whole((versions[0] if versions else row).get("status"), "status")
    return {
        "id": row.get("id"),
        "name": row.get("name"),
        "status": SERVICE_WORDS.get(status if status is not None else -1, f"unknown ({status})"),
        "url": row.get("url"),
        "predictUrl": row.get("predictUrl"),
        "replicas": whole(versions[0].get("replica"), "replica") if versions else None,
    }


def _version_id(detail: Mapping[str, Any]) -> str:
    versions = [v for v in detail.get("modelServerVersions") or [] if isinstance(v, Mapping)]
    if len(versions) != 1:
        raise Refused(f"the service has {len(versions)} versions, expected one")
    return str(versions[0].get("modelServerVersionId"))

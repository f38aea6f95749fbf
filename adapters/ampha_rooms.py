"""Notebooks and online services of an Ampha center, for operators (8, 9).

Here: notebooks with their words of state (15.5), and what operators do with services, whose calls are in
ampha_services.  Not here: jobs of the queue.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from adapters.ampha_services import MODEL, Services, status_of, word_of
from adapters.ampha_wire import Api, rows_of, total_of
from adapters.values import whole
from broker.adapter import Argument, ArgumentKind, Refused, Unavailable, VendorCommand

BOOKS = "/api/kernel/notebooks"
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
Arguments = Mapping[str, Any]


class Rooms:
    """What keeps running until somebody ends it."""

    def __init__(self, api: Api, services: Services) -> None:
        self._api = api
        self._services = services

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
        return [_service(row) for row in await self._services.rows()]

    async def _detail(self, given: Arguments) -> Mapping[str, Any]:
        ids = await self._services.named(given["name"])
        if len(ids) != 1:
            raise Refused(f"name is {given['name']!r}: {len(ids)} services have it, expected one")
        return await self._services.detail(ids[0])

    async def service(self, given: Arguments) -> Any:
        return _service(await self._detail(given))

    async def create_service(self, given: Arguments) -> Any:
        return {"id": await self._services.create(_document(given["request"]))}

    async def start_service(self, given: Arguments) -> Any:
        await self._services.start(await self._detail(given))
        return {"asked": True}

    async def stop_service(self, given: Arguments) -> Any:
        await self._services.stop(await self._detail(given))
        return {"asked": True}

    async def delete_service(self, given: Arguments) -> Any:
        await self._services.delete(await self._detail(given))
        return {"asked": True}

    async def service_log(self, given: Arguments) -> Any:
        return {"log": await self._services.log(await self._detail(given))}

    async def service_calls(self, given: Arguments) -> Any:
        id = str((await self._detail(given)).get("id"))
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
    versions = [v for v in row.get("modelServerVersions") or [] if isinstance(v, Mapping)]
    return {
        "id": row.get("id"),
        "name": row.get("name"),
        "status": word_of(status_of(row)),
        "url": row.get("url"),
        "predictUrl": row.get("predictUrl"),
        "replicas": whole(versions[0].get("replica"), "replica") if versions else None,
    }

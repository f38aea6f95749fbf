"""Online services of a CECSTACK (chapter 3): a job with a port, run as a model service.

Here: their bodies, calls and states.  Not here: tasks.

A create answers without an id, and the document has no list: a service can only be made where the
installation lists them, which its relatives do.  It is made in two calls, and only the second (§3.3)
says what runs: one that lacks it is not found by its name, so it is never published.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from adapters.cecstack_tasks import remote_id, word
from adapters.cecstack_wire import Wire, absent
from adapters.sent import begun
from adapters.values import whole
from broker.adapter import AdapterError, RemoteState, RunSpec, Sighting, Unavailable
from broker.core.model import RemoteId, RunId

SERVICE: Final = "service"
SERVICE_TYPE: Final = 3
"""`type` of deleteInstance (§3.7)."""
NEEDED: Final = ("model_id", "vpc_id", "subnet_id", "eip_id", "eip")
"""Options of the connection without which no service can be made."""
_PATH = "/v1/inferenceservice_modelview/api/"
_LIST = "/alpha/inferenceservice_modelview/api/"
_ACTION = "/alpha/inferenceservice_modelview"
_STATES: Final[Mapping[str, RemoteState]] = {  # words of the platform's relatives
    "": RemoteState.CREATED,
    "offline": RemoteState.CREATED,
    "pending": RemoteState.PENDING,
    "online": RemoteState.RUNNING,
    "running": RemoteState.RUNNING,
    "failed": RemoteState.FAILED,
    "error": RemoteState.FAILED,
}


@dataclass(frozen=True, slots=True)
class Network:
    """What a service is reached by, from the connection."""

    model_id: int
    vpc_id: str
    subnet_id: str
    eip_id: str
    eip: str

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Network | None:
        """None where an option is missing.  Raises ValueError."""
        if not all(options.get(name) not in (None, "") for name in NEEDED):
            return None
        model = str(options["model_id"])
        if not model.isdecimal():
            raise ValueError(f"model_id is {model!r}, expected a number")
        return cls(int(model), *(str(options[name]) for name in NEEDED[1:]))


class Services:
    """The calls about services.  `listed` is False until `find_out` has seen the list."""

    def __init__(self, wire: Wire, network: Network) -> None:
        self.listed = False
        self._wire = wire
        self._network = network

    async def find_out(self) -> bool:
        """Whether the installation lists services."""
        try:
            async for _ in self._rows():
                break
        except AdapterError as error:
            if not absent(error):
                raise
            self.listed = False
        else:
            self.listed = True
        return self.listed

    async def create(
        self, run: RunSpec, *, package: str, project: int, command: str, env: Mapping[str, str]
    ) -> RemoteId:
        """§3.2, the look for its id, and §3.3, which says what runs.  Raises Unavailable in between."""
        network = self._network
        body = {
            "project": project,
            "service_name": run.id,
            "label": run.id,
            "describe": f"run {run.id}",
            "infer_backend": "huggingface",
            "specType": "compute",
            "resourceId": package,
            "vpc_id": network.vpc_id,
            "subnet_id": network.subnet_id,
            "eip_id": network.eip_id,
            "min_replicas": 1,
            "max_replicas": 1,
            "hpa": "cpu:50%,gpu:50%",
            "priority": 1,
            "eip": network.eip,
            "library_option": 0,
            "service_type": "serving",
            "model_source": 0,
            "env": "\n".join(f"{name}={value}" for name, value in env.items()),
            "model_id": network.model_id,
            "image_source": 0,
            "quantization_bit": 4,
        }
        await self._wire.call("service.create", "POST", _PATH, effect=True, document=body)
        with begun("service.create"):
            id = await self._named(run.id, complete=False)
            if id is None:
                raise Unavailable(f"service {run.id} was created and is not in the list yet")
            more = {
                "model_name": run.id,
                "model_path": "",
                "images": run.image,
                "command": command,
                "ports": str(run.port),
                "business_type": "default",
            }
            await self._wire.call("service.edit", "PUT", f"{_PATH}{id}", effect=True, document=body | more)
        return remote_id(SERVICE, id)

    async def publish(self, id: int) -> None:
        """§3.4, a GET that starts the service."""
        await self._wire.call("service.publish", "GET", f"{_ACTION}/deploy/prod/restful/{id}", effect=True)

    async def take_offline(self, id: int) -> None:
        """§3.5, a GET; its path says clear, and the service is kept."""
        path = f"{_ACTION}/clear/restful/{id}"
        await self._wire.call("service.offline", "GET", path, effect=True, urgent=True)

    async def delete(self, id: int) -> None:
        """§3.7."""
        query = {"id": id, "type": SERVICE_TYPE}
        await self._wire.call("instance.delete", "DELETE", "/v1/deleteInstance", effect=True, query=query)

    async def find(self, name: RunId) -> RemoteId | None:
        """A service that is whole; one whose second call never came does not run and never will."""
        id = await self._named(name, complete=True)
        return None if id is None else remote_id(SERVICE, id)

    async def _named(self, name: str, *, complete: bool) -> int | None:
        async for row in self._rows():
            if row.get("service_name") == name and (not complete or row.get("images")):
                return whole(row.get("id"), "id")
        return None

    async def row(self, id: int) -> dict[str, Any] | None:
        return (await self._those({id})).get(id)

    async def look(self, ids: Collection[int]) -> dict[int, Sighting]:
        """A service that a whole list is without is GONE.

        "offline" is the word for one that was never published and for one that no longer is.
        """
        rows = await self._those(ids)
        return {id: self._sighting(rows[id]) if id in rows else Sighting(RemoteState.GONE) for id in ids}

    def _sighting(self, row: Mapping[str, Any]) -> Sighting:
        raw = word(row) or str(row.get("model_status") or "")
        state = _STATES.get(raw.lower(), RemoteState.UNKNOWN)
        port = str(row.get("ports") or "").split(",")[0].strip()
        online = state is RemoteState.RUNNING and port.isdecimal()
        address = f"http://{row.get('eip') or self._network.eip}:{port}" if online else ""
        return Sighting(state, address=address, raw=raw)

    async def _those(self, ids: Collection[int]) -> dict[int, dict[str, Any]]:
        return {id: row async for row in self._rows() if (id := whole(row.get("id"), "id")) in ids and id}

    def _rows(self) -> AsyncIterator[dict[str, Any]]:
        return self._wire.rows("service.list", _LIST, related="str_related")

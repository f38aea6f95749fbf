"""Online services of an Ampha center (8): their calls, and a job of the queue as one of them.

Here: what a service is created with, its state and its address.  Not here: operators' commands
(ampha_rooms), tasks (ampha_tasks).

The platform serves a model of its own assets by a framework of its own, in an image of its own: nothing
in the call takes an image, and where a command's port would be is not documented.  So a job is a service
here only if its variables name the model (Recipe).  A service starts by itself when it is created (8).
Calls about a version want the version's id, those about a service the service's (T36).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from adapters.ampha_assets import Asset, Assets
from adapters.ampha_capacity import Group
from adapters.ampha_wire import Account, Api, PlatformRefused, rows_of, total_of
from adapters.values import whole
from broker.adapter import Refused, RemoteState, RunSpec, Sighting, Unavailable, Unsupported
from broker.core.model import Kind as JobKind
from broker.core.model import RunId

MODEL: Final = "/api/model/"
PAGE: Final = 100
MAX_PAGES: Final = 100
WORDS: Final[Mapping[int, str]] = {
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
_STATES: Final[Mapping[int, RemoteState]] = {
    0: RemoteState.FAILED,
    1: RemoteState.RUNNING,
    2: RemoteState.PENDING,
    3: RemoteState.PENDING,
    4: RemoteState.FAILED,
    5: RemoteState.RUNNING,
    6: RemoteState.STOPPED,
    7: RemoteState.PENDING,
    10: RemoteState.RUNNING,
    11: RemoteState.RUNNING,
}
"""15.4.  What is on its way to an end is not there: it occupies."""
READY: Final = 3
ENDED: Final = (RemoteState.FAILED, RemoteState.STOPPED)

MODEL_VARIABLE: Final = "AMPHA_MODEL"
DEPLOYMENT_VARIABLE: Final = "AMPHA_DEPLOYMENT"
FLOAT_VARIABLE: Final = "AMPHA_MODEL_FLOAT"
DEPLOYMENTS: Final[Mapping[str, tuple[int, int, int]]] = {"sglang": (3, 2, 14), "fastchat": (1, 1, 12)}
"""isLargeModel, deploymentMode, and customImageFlag, which is framework too (8)."""
FLOATS: Final = ("", "float16")


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a job's variables say of the service that it is."""

    model: str
    deployment: str
    model_float: str

    @classmethod
    def of(cls, run: RunSpec) -> Recipe:
        """Raises Unsupported without a model, and Refused for what cannot be meant."""
        env = dict(run.env)
        model = env.get(MODEL_VARIABLE, "")
        if not model:
            raise Unsupported(
                f"online services here serve a model of the platform: {MODEL_VARIABLE} is not set,"
                " expected name/version as `broker ampha assets models` shows them"
            )
        deployment = env.get(DEPLOYMENT_VARIABLE, "sglang")
        if deployment not in DEPLOYMENTS:
            raise Refused(
                f"{DEPLOYMENT_VARIABLE} is {deployment!r}, expected one of {', '.join(DEPLOYMENTS)}"
            )
        model_float = env.get(FLOAT_VARIABLE, "")
        if model_float not in FLOATS:
            raise Refused(f"{FLOAT_VARIABLE} is {model_float!r}, expected float16 or nothing")
        return cls(model, deployment, model_float)


def is_service(run: RunSpec) -> bool:
    return run.kind is JobKind.ONLINE or run.port is not None


def service_body(run: RunSpec, recipe: Recipe, *, model: Asset, group: Group, who: Account) -> dict[str, Any]:
    """createUnionModelServer (8).  Instances are the job's nodes; cards are whole ones."""
    large, mode, framework = DEPLOYMENTS[recipe.deployment]
    shape = run.spec.shape
    version = {
        "createUser": who.id,
        "userName": who.name,
        "cpu": shape.cores,
        "memory": shape.memory_gib,
        "gpu": shape.accelerators,
        "gpuShare": "none",
        "predictMinReplicas": run.nodes,
        "rate": 100,
        "modelId": model.id,
        "modelVersionId": model.version_id,
        "modelInfo": f"{model.name}/{model.version}",
        "customImageFlag": framework,
        "framework": framework,
        "reqMethod": "rest",
        "resourceGroupName": group.name,
        "resourceGroupId": group.id,
        "resourceGroupKey": group.key,
        "volumePath": model.path,
        "command": "",
        "envs": "",
        "rates": [],
        "volumes": "[]",
        "hyperParameterList": "[]",
        "modelFloat": recipe.model_float,
        "autoRecovery": 0,  # the broker repeats, not the platform
        "scenario": "算力任务（在线服务）",
        "deploymentMode": mode,
        "distributed": False,
    }
    server = {
        "name": run.id,
        "description": f"job {run.job}",
        "createUser": who.id,
        "userName": who.name,
        "path": "",
        "isLargeModel": large,
    }
    return {"modelServer": server, "modelServerVersions": [version]}


# ---------------------------------------------------------------- reading


def version_of(detail: Mapping[str, Any]) -> Mapping[str, Any]:
    """The only version of a service.  Raises Refused."""
    versions = [v for v in detail.get("modelServerVersions") or [] if isinstance(v, Mapping)]
    if len(versions) != 1:
        raise Refused(f"the service has {len(versions)} versions, expected one")
    return versions[0]


def status_of(detail: Mapping[str, Any]) -> int | None:
    """The version's state wins over the service's (15.4); numbers may be text."""
    versions = [v for v in detail.get("modelServerVersions") or [] if isinstance(v, Mapping)]
    return whole((versions[0] if versions else detail).get("status"), "status")


def word_of(status: int | None) -> str:
    return WORDS.get(status if status is not None else -1, f"unknown ({status})")


def sighting(detail: Mapping[str, Any], gateway: str) -> Sighting:
    """What a service shows.  It tells no times."""
    status = status_of(detail)
    state = RemoteState.UNKNOWN if status is None else _STATES.get(status, RemoteState.UNKNOWN)
    if status == READY and (whole(version_of(detail).get("replica"), "replica") or 0) > 0:
        state = RemoteState.RUNNING
    raw = word_of(status)
    if state is RemoteState.FAILED:
        return Sighting(state, message="the service failed; see `broker ampha service-log`", raw=raw)
    running = state is RemoteState.RUNNING
    return Sighting(state, address=address_of(detail, gateway) if running else "", raw=raw)


def address_of(detail: Mapping[str, Any], gateway: str) -> str:
    """Where a service is reached: its own host, or the gateway that the operator names, and the first
    part of its path, which what follows /v1/ comes after; "" while that is not told."""
    host, path = str(detail.get("url") or ""), str(detail.get("predictUrl") or "")
    if not path.startswith("/") or not (gateway or host):
        return ""
    return f"{gateway or f'http://{host}'}{path.partition('/v1/')[0].rstrip('/')}"


# ---------------------------------------------------------------- calls


class Services:
    """The service calls of one center."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def rows(self, name: str = "") -> list[dict[str, Any]]:
        """All services whose name contains `name`.  Raises Unavailable."""
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

    async def named(self, name: str) -> list[str]:
        """Ids of the services with exactly this name."""
        return [str(row["id"]) for row in await self.rows(name) if row.get("name") == name and row.get("id")]

    async def detail(self, id: str) -> Mapping[str, Any]:
        """A service with its version.  Raises PlatformRefused, for one that is not there too (1.4)."""
        found = await self._api.ask("service", MODEL + "modelServer/findModelServerById", {"id": id})
        if not isinstance(found, Mapping):
            raise Unavailable("findModelServerById: the answer is no object")
        return found

    async def known(self, id: str, name: str) -> Mapping[str, Any] | None:
        """The same; None when neither the detail nor the list knows it."""
        try:
            return await self.detail(id)
        except PlatformRefused:
            if id in await self.named(name):
                raise
            return None

    async def create(self, body: Mapping[str, Any]) -> Any:
        path = MODEL + "modelServer/createUnionModelServer"
        return await self._api.ask("create_service", path, body, effect=True)

    async def act(self, operation: str, call: str, detail: Mapping[str, Any]) -> None:
        """Start, stop or delete its version: an acknowledgement and no more (T32)."""
        body = {"id": str(version_of(detail).get("modelServerVersionId"))}
        path = f"{MODEL}modelServerVersion/{call}"
        await self._api.ask(operation, path, body, effect=True, urgent=operation == "stop_service")

    async def log(self, detail: Mapping[str, Any]) -> str:
        body = {"id": str(version_of(detail).get("modelServerVersionId"))}
        text = await self._api.ask("service_log", MODEL + "modelServerVersion/getModelServerPodLog", body)
        return text if isinstance(text, str) else ""

    async def start(self, detail: Mapping[str, Any]) -> None:
        await self.act("start_service", "startModelIntegrally", detail)

    async def stop(self, detail: Mapping[str, Any]) -> None:
        await self.act("stop_service", "stopModelIntegrally", detail)

    async def delete(self, detail: Mapping[str, Any]) -> None:
        await self.act("delete_service", "deleteModelServerVersionIntegrally", detail)


class ServiceRuns:
    """Runs of the queue that are services; their RemoteId is the service's id."""

    def __init__(self, services: Services, assets: Assets, api: Api, gateway: str) -> None:
        self._services = services
        self._assets = assets
        self._api = api
        self._gateway = gateway

    async def request(self, run: RunSpec, group: Group) -> dict[str, Any]:
        """What is sent.  Raises Refused and Unsupported for what cannot be a service."""
        recipe, shape = Recipe.of(run), run.spec.shape
        if shape.accelerators and (group.share != "none" or shape.card_permille < 1000):
            raise Refused(
                f"group {group.name!r} gives its cards away as {group.share}: the platform documents"
                " online services with whole cards only"
            )
        if run.datasets:
            raise Refused("datasetIds: an online service of this platform reads its model only")
        name, _, version = recipe.model.rpartition("/")
        for model in await self._assets.listed("model", title=name):
            if (model.name, model.version) == (name, version):
                who = await self._api.account()
                return service_body(run, recipe, model=model, group=group, who=who)
        raise Refused(f"{MODEL_VARIABLE} is {recipe.model!r}, which the center does not list as name/version")

    async def find(self, run: RunId) -> str | None:
        ids = await self._services.named(run)
        return min(ids, default=None)

    async def look(self, id: str, run: RunId) -> Sighting:
        detail = await self._services.known(id, run)
        if detail is None:
            return Sighting(RemoteState.GONE, message="the platform knows no such service")
        return sighting(detail, self._gateway)

    async def log(self, id: str, run: RunId) -> bytes:
        detail = await self._services.known(id, run)
        return b"" if detail is None else (await self._services.log(detail)).encode()

    async def stop(self, id: str, run: RunId) -> None:
        detail = await self._services.known(id, run)
        if detail is None or sighting(detail, "").state in ENDED:
            return
        try:
            await self._services.stop(detail)
        except PlatformRefused:
            after = await self._services.known(id, run)
            if after is not None and sighting(after, "").state not in ENDED:
                raise

    async def delete(self, id: str, run: RunId) -> None:
        """Raises Unavailable for a live service, which the platform does not delete."""
        detail = await self._services.known(id, run)
        if detail is None:
            return
        if detail.get("name") != run:
            raise Refused(f"service {id} is called {detail.get('name')!r}, not {run}: it is not deleted")
        seen = sighting(detail, "")
        if seen.state not in ENDED:
            raise Unavailable(f"service {run} is {seen.raw}, expected an ended one")
        try:
            await self._services.delete(detail)
        except PlatformRefused:
            if await self._services.known(id, run) is not None:
                raise

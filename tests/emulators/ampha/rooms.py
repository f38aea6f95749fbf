"""Notebooks and online services of the emulated platform (spec 8, 9)."""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import ge
from typing import TYPE_CHECKING, Any

from tests.emulators.ampha.market import MODEL
from tests.emulators.ampha.parts import Need
from tests.emulators.ampha.wire import (
    USR,
    Answer,
    Call,
    Field,
    Fields,
    No,
    Route,
    array,
    e2,
    flag,
    maybe,
    number,
    text,
    thing,
)
from tests.emulators.faults import Fault

if TYPE_CHECKING:
    from tests.emulators.ampha.world import World


@dataclass
class Room:
    """A notebook, or a service with its one version; `status` is a code of its own vocabulary."""

    id: str
    body: dict[str, Any]
    user: str
    status: int
    created_ms: int
    version: str = ""
    epoch: int = 0
    calls: int = 0
    ran: list[tuple[int, str]] = field(default_factory=list)


class Rooms:
    def __init__(self, world: World) -> None:
        self.world = world
        self.notebooks: dict[str, Room] = {}
        self.services: dict[str, Room] = {}

    def goes(self, room: Room, *steps: tuple[float, int]) -> None:
        """Through these states, each after some seconds."""
        room.epoch += 1
        epoch, after = room.epoch, 0.0
        for seconds, status in steps:
            after += seconds

            def arrive(status: int = status) -> None:
                if room.epoch == epoch:
                    room.status = status
                    room.ran.append((self.world.now(), str(status)))

            self.world.later(after, arrive)

    # ------------------------------------------------------------ what services take of nodes

    def begin(self, room: Room) -> None:
        """A service gets nodes for its instances, or asks again a second later."""
        if room.status not in (2, 7, 10):
            return
        if not self._place(room):
            self.world.later(1, lambda: self.begin(room))
            return
        room.status = 2
        self.goes(room, (5, 1))

    def _place(self, room: Room) -> bool:
        asked = room.body["modelServerVersions"][0]
        group = next(g for g in self.world.groups if g.id == asked["resourceGroupId"])
        need = Need(asked["cpu"], asked["memory"], asked["gpu"])
        for _ in range(asked["predictMinReplicas"]):
            free = [
                n
                for n in group.nodes
                if n.status == 1 and all(map(ge, n.free(), (need.cores, need.memory_gib, need.cards)))
            ]
            if not free:
                self.release(room)
                return False
            free[0].used.append((room.id, need))
        return True

    def release(self, room: Room) -> None:
        for group in self.world.groups:
            for node in group.nodes:
                node.used = [(id, need) for id, need in node.used if id != room.id]
        self.world.schedule()

    def end(self, room: Room, *steps: tuple[float, int]) -> None:
        """Through these states; what it had is free when it is at the last."""
        self.goes(room, *steps)
        epoch = room.epoch
        after = sum(seconds for seconds, _ in steps)
        self.world.later(after, lambda: self.release(room) if room.epoch == epoch else None)

    def stop_of(self, users: list[str]) -> None:
        for room in self.notebooks.values():
            if room.user in users and room.status in (3, 4, 8):
                room.status = 2
                self.goes(room, (2, 1))
        for room in self.services.values():
            if room.user in users and room.status in (1, 2, 3, 7):
                room.status = 5
                self.end(room, (2, 6))


# ---------------------------------------------------------------- notebooks

GOOD: dict[str, Any] = {"success": True}


async def create_notebook(call: Call) -> Answer:
    rooms = call.center.rooms
    room = Room(call.center.world.hex(), call.body, call.user, 8, call.center.world.now())
    rooms.notebooks[room.id] = room
    rooms.goes(room, (2, 4), (5, 3))
    return e2(GOOD)


def _notebook(call: Call) -> Room:
    room = call.center.rooms.notebooks.get(call.request.match_info["id"])
    if room is None or room.user != call.user:
        raise No("开发环境不存在")
    return room


def _shown(room: Room) -> dict[str, Any]:
    body = {k: v for k, v in room.body.items() if k != "sshPassword"}
    return {
        **body,
        "id": room.id,
        "status": room.status,
        "webPath": f"/devolopenv/notebook/{room.id}/web" if room.status == 3 else None,
        "sshUsername": "root",
        "sshPort": "22",
        "sshPassword": "clear-text-secret",
        "serviceClusterIp": "10.0.0.1",
        "errorReason": None,
    }


async def list_notebooks(call: Call) -> Answer:
    rooms = [_shown(r) for r in call.center.rooms.notebooks.values() if r.user == call.user]
    query = call.request.query
    if query.get("unpaged") != "true":
        first = int(query["page"]) * int(query["size"])
        return e2({"total": len(rooms), "rows": rooms[first : first + int(query["size"])]})
    return e2({"total": len(rooms), "rows": rooms})


async def show_notebook(call: Call) -> Answer:
    return e2(_shown(_notebook(call)))


async def start_notebook(call: Call) -> Answer:
    room = _notebook(call)
    if room.status != 1:
        raise No("当前状态不支持启动")
    room.status = 4
    call.center.rooms.goes(room, (5, 3))
    return e2(GOOD)


async def close_notebook(call: Call) -> Answer:
    room = _notebook(call)
    if room.status not in (3, 4):
        raise No("当前状态不支持停止")
    room.status = 2
    call.center.rooms.goes(room, (2, 1))
    return e2(GOOD)


async def delete_notebook(call: Call) -> Answer:
    room = _notebook(call)
    if room.status not in (1, 7):
        raise No("请先停止")
    room.status = 5
    rooms = call.center.rooms

    def gone() -> None:
        rooms.notebooks.pop(room.id, None)

    call.center.world.later(1, gone)
    return e2(GOOD)


# ---------------------------------------------------------------- online services


async def create_service(call: Call) -> Answer:
    if call.wants(Fault.DUPLICATE_NAME):
        raise No("服务名称已存在")
    rooms, world = call.center.rooms, call.center.world
    room = Room(world.hex(), call.body, call.user, 7, world.now(), version=world.hex())
    if any(
        r.body["modelServer"]["name"] == call.body["modelServer"]["name"] for r in rooms.services.values()
    ):
        raise No("服务名称已存在")
    _check_service(call)
    rooms.services[room.id] = room
    world.later(1, lambda: rooms.begin(room))
    return e2(room.id, "保存成功!")


def _check_service(call: Call) -> None:
    """One version, of a model of the list with all that belongs to it, in a group as it is listed."""
    server, versions = call.body["modelServer"], call.body["modelServerVersions"]
    if len(versions) != 1:
        raise No("参数错误，版本数量不支持")
    version = versions[0]
    zone = (version["resourceGroupId"], version["resourceGroupName"], version["resourceGroupKey"])
    if zone not in {(g.id, g.name, g.key) for g in call.center.world.groups}:
        raise No("参数错误，资源组不存在")
    asset = call.center.market.assets.get(version["modelId"])
    model = asset.versions.get(version["modelVersionId"]) if asset and asset.category == MODEL else None
    if asset is None or model is None:
        raise No("参数错误，模型不存在")
    said, expected = (
        (version["modelInfo"], version["volumePath"]),
        (f"{asset.name}/{model.name}", model.path),
    )
    if said != expected:
        call.center.complain(call.operation, f"model {said}, expected {expected}")
    kind = (
        server["isLargeModel"],
        version["deploymentMode"],
        version["framework"],
        version["customImageFlag"],
    )
    if kind[0] and kind not in {(1, 1, 12, 12), (3, 2, 14, 14)}:
        call.center.complain(call.operation, f"isLargeModel, deploymentMode and frameworks are {kind}")
    if version["gpuShare"] != "none":
        call.center.complain(call.operation, "gpuShare is not documented for services but as none")


def _service(call: Call) -> Room:
    room = call.center.rooms.services.get(call.body["id"])
    if room is None or room.user != call.user:
        raise No("服务不存在")
    return room


def _of_version(call: Call) -> Room:
    for room in call.center.rooms.services.values():
        if room.version == call.body["id"] and room.user == call.user:
            return room
    raise No("服务版本不存在")


async def list_services(call: Call) -> Answer:
    wanted = call.body["queryCriteria"]
    rows = [
        {
            "id": r.id,
            "name": r.body["modelServer"]["name"],
            "status": r.status,
            "url": f"model-{r.id}.example.com",
            "predictUrl": f"/{r.id}/v1/chat/completions",
            "createTime": "2024-01-29 19:45:22",
            "isLargeModel": bool(r.body["modelServer"]["isLargeModel"]),
            "controlRate": True,
        }
        for r in call.center.rooms.services.values()
        if r.user == wanted["createUser"] == call.user and wanted["name"] in r.body["modelServer"]["name"]
    ]
    return e2({"total": len(rows), "rows": call.page(rows)})


async def show_service(call: Call) -> Answer:
    room = _service(call)
    asked = room.body["modelServerVersions"][0]
    version = {
        "modelServerVersionId": room.version,
        "replica": asked["predictMinReplicas"] if room.status == 1 else 0,
        "predictMinReplicas": asked["predictMinReplicas"],
        "cpu": asked["cpu"],
        "memory": asked["memory"],
        "gpu": asked["gpu"],
        "gpuResource": {"gpuLimit": asked["gpu"]},
        "status": room.status,
    }
    return e2(
        {
            "id": room.id,
            "name": room.body["modelServer"]["name"],
            "url": f"model-{room.id}.example.com",
            "predictUrl": f"/{room.id}/v1/chat/completions",
            "predictUrlInner": "--",
            "createTime": room.created_ms,
            "isLargeModel": room.body["modelServer"]["isLargeModel"],
            "status": str(room.status),
            "modelServerVersions": [version],
        }
    )


async def start_service(call: Call) -> Answer:
    room = _of_version(call)
    if room.status not in (3, 6, 4):
        raise No("当前状态不支持启动")
    room.status = 2
    call.center.rooms.begin(room)
    return e2("创建crd资源结果,已存在，更新成功", "服务启动成功!")


async def stop_service(call: Call) -> Answer:
    room = _of_version(call)
    if call.wants(Fault.STOP_REFUSED) or room.status not in (1, 2, 3, 7, 10):
        raise No("当前状态不支持停止")
    room.status = 5
    call.center.rooms.end(room, (2, 6))
    return {"code": 200, "success": True, "message": "服务停止成功!"}


async def delete_service(call: Call) -> Answer:
    room = _of_version(call)
    if room.status not in (4, 6):
        raise No("请先停止服务")
    del call.center.rooms.services[room.id]
    return {"code": 200, "success": True, "message": "删除成功"}


async def service_log(call: Call) -> Answer:
    room = _of_version(call)
    return e2("".join(f"status {word}\n" for _, word in room.ran))


async def service_calls(call: Call) -> Answer:
    room = _service(call)
    return e2([{"total": room.calls, "date": "2024-12-20", "success": room.calls, "fail": 0}])


# ---------------------------------------------------------------- routes

NOTEBOOK: Fields = {
    "name": text(),
    "imageId": text(),
    "image": text(),
    "imageType": number(1, 2),
    "resourceGroupId": text(),
    "cpuLimit": number(),
    "memoryLimit": number(),
    "gpuResource": thing(
        {name: number(need=False) for name in ("gpuLimit", "vGpu", "vGpuMem", "vGpuCores", "migSliceCount")}
        | {"migSlice": text(need=False)}
    ),
    "enableSsh": flag(),
    "sshAuthType": maybe(int),
    "sshPassword": maybe(str),
    "keyPairId": maybe(str),
    "enableSharedMemory": flag(),
    "specId": maybe(str),
}
SERVER: Fields = {
    "name": text(),
    "description": text(need=False),
    "createUser": text(),
    "userName": text(),
    "path": text(),
    "isLargeModel": number(0, 1, 3),
}
VERSION: Fields = {
    **{
        name: text()
        for name in (
            *("createUser", "userName", "gpuShare", "modelId", "modelVersionId", "modelInfo"),
            *("resourceGroupName", "resourceGroupId", "resourceGroupKey", "volumePath", "volumes"),
            *("hyperParameterList", "scenario"),
        )
    },
    **{
        name: number()
        for name in ("cpu", "memory", "gpu", "predictMinReplicas", "rate", "customImageFlag", "framework")
    },
    "reqMethod": text("rest", "grpc"),
    "deploymentMode": number(0, 1, 2),
    "command": text(need=False),
    "envs": text(need=False),
    "rates": array(need=False),
    "modelFloat": text("", "float16", need=False),
    "autoRecovery": number(0, 1, need=False),
    "distributed": flag(need=False),
}
LISTED: Fields = {
    "pageNum": number(),
    "pageSize": number(),
    "queryCriteria": thing({"createUser": text(), "name": text(), "isLargeModel": Field((int,), False)}),
}
ID: Fields = {"id": text()}
BOOKS = "/api/kernel/notebooks"
SERVE = "/api/model/"


def _route(name: str, method: str, path: str, do: Any, fields: Fields | None = None, **more: Any) -> Route:
    return Route(name, method, path, do, 2, fields, roles=(USR,), **more)


ROUTES = (
    _route("create_notebook", "POST", BOOKS, create_notebook, NOTEBOOK, effect=True),
    _route("list_notebooks", "GET", BOOKS, list_notebooks, optional=("page", "size", "unpaged")),
    _route("show_notebook", "GET", BOOKS + "/{id:[0-9a-f]+}", show_notebook),
    _route("start_notebook", "POST", BOOKS + "/{id:[0-9a-f]+}:start", start_notebook, effect=True),
    _route("close_notebook", "POST", BOOKS + "/{id:[0-9a-f]+}:close", close_notebook, effect=True),
    _route("delete_notebook", "DELETE", BOOKS + "/{id:[0-9a-f]+}", delete_notebook, effect=True),
    _route(
        "create_service",
        "POST",
        SERVE + "modelServer/createUnionModelServer",
        create_service,
        {"modelServer": thing(SERVER), "modelServerVersions": array(VERSION)},
        effect=True,
    ),
    _route("list_services", "POST", SERVE + "modelServer/findModelServerPageList", list_services, LISTED),
    _route("show_service", "POST", SERVE + "modelServer/findModelServerById", show_service, ID),
    _route("service_calls", "POST", SERVE + "modelServer/modelServerCallStatistics", service_calls, ID),
    _route("service_log", "POST", SERVE + "modelServerVersion/getModelServerPodLog", service_log, ID),
    *(
        _route(name, "POST", SERVE + f"modelServerVersion/{path}", do, ID, effect=True)
        for name, path, do in (
            ("start_service", "startModelIntegrally", start_service),
            ("stop_service", "stopModelIntegrally", stop_service),
            ("delete_service", "deleteModelServerVersionIntegrally", delete_service),
        )
    ),
)

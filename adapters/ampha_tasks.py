"""Training tasks of an Ampha center: their two stores, three ways to create them, states, pods (6, 7, 15).

Here: requests, rows and words of tasks.  Not here: capacity, assets, and what the broker makes of it.

RemoteId is `<kind>:<task id>`; `new:<name>` while a task that was accepted is in no list yet, because
two of the three ways to create one do not tell its id (T1).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from zoneinfo import ZoneInfo

from adapters.ampha_wire import Account, Api, PlatformRefused, Settings, TaskApi, rows_of, total_of
from adapters.values import utc_ms, whole
from broker.adapter import RemoteState, RunSpec, Sighting, Unavailable
from broker.core.model import NodeShape, RemoteId, RunId

KERNEL = "/api/kernel/"
PAGE = 100
MAX_PAGES = 1000
FIRST_PAGES = 3
"""Pages of the newest tasks that one look reads; a run that is not there is asked for by itself."""
TRAINING = "算力任务（模型训练）"
SUFFIX = re.compile(r"-[a-z0-9]{8}")
"""What the platform's own pages add to a name (6.3)."""

STATES: Mapping[str, RemoteState] = {
    word.casefold(): state
    for state, words in {
        RemoteState.SUCCEEDED: "Succeeded 成功 已成功 Completed 已完成",
        RemoteState.FAILED: "Failed 失败 Error 异常 Aborted Timeout",
        RemoteState.STOPPED: "Terminated Stopped 停止 已停止 终止 已终止",
        # On its way to an end, and not there: it occupies (15.1).
        RemoteState.RUNNING: "Running 运行中 Restarting Recovering 恢复中 Stopping 停止中 Terminating",
        RemoteState.PENDING: (
            "Created Creating 创建中 待创建 Pending 等待中 Queuing Queued Inqueue 排队中"
            " Starting 启动中 Submitted"
        ),
    }.items()
    for word in words.split()
}
"""Words of a task's state (15.1): Succeeded, Failed and Terminated are the document's, the others are
what its parts (Kubernetes, Volcano) and its pages say.  A word that is not here is UNKNOWN."""
ENDED = (RemoteState.SUCCEEDED, RemoteState.FAILED, RemoteState.STOPPED)
POD_SUCCEEDED, POD_FAILED = 2, 3
NODE_REASONS = frozenset({"NodeLost", "NodeShutdown", "DeletionByTaintManager"})
"""What Kubernetes writes as the reason of a pod whose node went away."""


class Kind(StrEnum):
    """The stores, and the calls that act on them, by the RemoteId's first part."""

    OPERATOR = "to"  # trainOperator, made there
    COMPUTATION = "ct"  # trainOperator, made by computationTask (createWay userDefined)
    FINE_TUNE = "llm"  # fineTune
    SERVICE = "svc"  # an online service, whose calls are in ampha_services
    NEW = "new"  # accepted, by its name
    NAME = "name"  # what is not ours by its form, by that name

    @property
    def by_name(self) -> bool:
        return self in (Kind.NEW, Kind.NAME)


LISTS: Mapping[Kind, str] = {
    Kind.OPERATOR: KERNEL + "trainOperator/listTask",
    Kind.FINE_TUNE: KERNEL + "fineTune/listLlmFineTuneTask",
}
CREATES: Mapping[TaskApi, tuple[Kind, str]] = {
    TaskApi.TRAIN_OPERATOR: (Kind.OPERATOR, KERNEL + "trainOperator/createTask"),
    TaskApi.COMPUTATION: (Kind.COMPUTATION, KERNEL + "computationTask/train"),
    TaskApi.FINE_TUNE: (Kind.FINE_TUNE, KERNEL + "fineTune/createLlmFineTuneTask"),
}


def store_of(kind: Kind) -> Kind:
    """The kind whose list and details a task is in."""
    return Kind.FINE_TUNE if kind is Kind.FINE_TUNE else Kind.OPERATOR


@dataclass(frozen=True, slots=True)
class Remote:
    """A RemoteId, taken apart."""

    kind: Kind
    id: str

    @property
    def text(self) -> RemoteId:
        return RemoteId(f"{self.kind}:{self.id}")


def remote_of(text: RemoteId) -> Remote:
    """What is not ours by its form is looked for by that name."""
    word, colon, id = text.partition(":")
    if colon and word in set(Kind):
        return Remote(Kind(word), id)
    return Remote(Kind.NAME, text)


@dataclass(frozen=True, slots=True)
class Task:
    """One row of a list, or a detail.  `word` is the platform's state."""

    remote: Remote
    name: str
    word: str
    created_ms: int | None

    @property
    def state(self) -> RemoteState:
        return STATES.get(self.word.strip().casefold(), RemoteState.UNKNOWN)


def read_task(row: Mapping[str, Any], store: Kind, zone: ZoneInfo, id: str = "") -> Task:
    """A row of either list, or a detail (which has no id).  Raises Unavailable."""
    name, found = row.get("name") or row.get("taskName"), row.get("id") or row.get("taskId") or id
    word = row.get("status")
    if not isinstance(name, str) or not found or not isinstance(word, str):
        raise Unavailable(f"a task without name, id or status: {sorted(row)}")
    kind = store
    if store is Kind.OPERATOR and row.get("createWay") == "userDefined":
        kind = Kind.COMPUTATION
    return Task(Remote(kind, str(found)), name, word, utc_ms(row.get("createTime"), "createTime", zone))


def named(tasks: Iterable[Task], name: str) -> Task | None:
    """The task of a run: exactly its name, else its name with the platform's suffix (T20).

    Should there be several, one that lives comes before one that has ended, then the older (T2).
    """
    ours = [t for t in tasks if t.name == name]
    if not ours:
        ours = [t for t in tasks if t.name.startswith(name) and SUFFIX.fullmatch(t.name[len(name) :])]
    return min(ours, key=lambda t: (t.state in ENDED, t.created_ms or 0, t.remote.id), default=None)


# ---------------------------------------------------------------- creating


@dataclass(frozen=True, slots=True)
class Picture:
    """An image of the center with all that a task must say of it (6.1)."""

    path: str
    id: str
    name: str
    version: str
    version_id: str


@dataclass(frozen=True, slots=True)
class Data:
    """A data set of the center with all that a task must say of it."""

    path: str
    id: str
    name: str
    version: str
    version_id: str

    @property
    def key(self) -> str:
        """What it is called among further inputs."""
        return self.name


def create_body(
    run: RunSpec,
    *,
    settings: Settings,
    account: Account,
    zone: Mapping[str, str],
    image: Picture,
    command: str,
    gpu: Mapping[str, Any],
    spec_id: str | None,
    data: Sequence[Data],
) -> dict[str, Any]:
    """What creates a task (6.1, 6.2).  `zone` has zoneId, zoneName and resourceGroupKey; the first of `data`
    is the task's input, the others are its further ones.

    One entry of `resource` with `numbers` nodes, which is the layout that samples show (T10).  Values
    where the document contradicts itself: T9, T11.
    """
    api = settings.task_api
    shape = run.spec.shape
    item = {
        "nodeType": "Node",
        "numbers": run.nodes,
        "cpuNumber": shape.cores,
        "memory": shape.memory_gib,
        "specId": spec_id,
        "gpuResource": dict(gpu),
    }
    body: dict[str, Any] = {
        "name": run.id,
        "type": "PyTorch",
        "isPretrain": 0 if api is TaskApi.FINE_TUNE else 2,
        "createWay": "userDefined" if api is TaskApi.COMPUTATION else "custom",
        "resourceType": "standard",
        **zone,
        "resource": [item],
        "rdma": False,
        "resourceName": "",
        "image": image.path,
        "imageId": image.id,
        "imageName": image.name,
        "imageVersion": image.version,
        "imageVersionId": image.version_id,
        "algorithmOriginType": "local",
        "algorithmPath": settings.algorithm_path,
        "startupFile": settings.startup_file,
        "command": command,
        "inputType": "aiAssets" if data else "local",
        "inputDir": data[0].path if data else "/",
        "storageMedium": "1201",
        "outputDir": "/output",
        "originModelDir": "",
        "modelOriginType": "",
        "fineTuneStrategy": "train",
        "llmTrainFramework": "PyTorch",
        "commonHyperParameters": [],
        "fineTuneHyperParameters": [],
        "variable": [],  # its items are not documented: variables are part of the command
        "isUrgentTask": "Y" if run.vip else "N",
        "describe": f"job {run.job}",
        "userId": account.id,
        "userName": account.name,
    }
    if data:
        body |= {
            "datasetId": data[0].id,
            "datasetName": data[0].name,
            "datasetVersion": data[0].version,
            "datasetVersionId": data[0].version_id,
        }
    if len(data) > 1:  # of the first call alone (6.1)
        inputs = [{"key": each.key, "value": each.path} for each in data[1:]]
        body["extraMultipleDirBo"] = {"extraMultipleInputDirs": inputs, "extraMultipleOutputDirs": []}
    if api is TaskApi.TRAIN_OPERATOR:
        body["taskType"] = "3"
    else:
        body["autoRecovery"] = 0  # the broker repeats, not the platform
    if api is TaskApi.COMPUTATION:
        body |= {"taskType": 3, "scenario": TRAINING}
    return body


def gpu_resource(want: NodeShape, *, share: str, profile: str, card_gib: int) -> dict[str, Any]:
    """What one instance takes of cards (6.2, T15, T17): whole ones, instances, or parts of one.

    `card_gib` is a whole card's memory.  Parts are percents of power and M of memory.
    """
    whole_ = {"gpuShare": "none", "gpuNum": want.accelerators}
    if not want.accelerators:
        return whole_
    if profile:
        return {"gpuShare": "mig", "gpuNum": want.accelerators, "migRes": profile}
    if share != "vgpu":
        return whole_
    part = want.card_permille < 1000
    return {
        "gpuShare": "vgpu",
        "gpuNum": want.accelerators,
        "gpuMem": (want.accelerator_memory_gib if part else card_gib) * 1024,
        "gpuCores": min(100, max(1, want.card_permille // 10)),
    }


# ---------------------------------------------------------------- calls


class Tasks:
    """The task calls of one center."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._zone = api.settings.zone

    async def pages(self, store: Kind, *, name: str = "") -> list[Task]:
        """All tasks of a store whose name contains `name`.  Raises Unavailable."""
        found: list[Task] = []
        for page in range(1, MAX_PAGES + 1):
            rows, last = await self._page(store, page, name)
            found += rows
            if last:
                return found
        raise Unavailable(f"the task list has more than {MAX_PAGES} pages")

    async def first_pages(self, store: Kind, wanted: Collection[str]) -> list[Task]:
        """The newest tasks, until all ids in `wanted` are there: a few pages at most."""
        missing, found = set(wanted), list[Task]()
        for page in range(1, FIRST_PAGES + 1):
            rows, last = await self._page(store, page, "")
            found += rows
            missing -= {task.remote.id for task in rows}
            if last or not missing:
                break
        return found

    async def _page(self, store: Kind, page: int, name: str) -> tuple[list[Task], bool]:
        """One page, and whether it is the last."""
        account = await self._api.account()
        body = {"userId": account.id, "status": "", "taskName": name, "pageNum": page, "pageSize": PAGE}
        answer = await self._api.ask(f"list_{store}", LISTS[store], body)
        rows = rows_of(answer, "task list")
        total = total_of(answer, "total")
        last = len(rows) < PAGE or (total is not None and page * PAGE >= total)
        return [read_task(row, store, self._zone) for row in rows], last

    async def detail(self, remote: Remote) -> Task | None:
        """One task by its id; None when the platform says that it has none.  Raises Unavailable.

        There is no code for "unknown" (1.4): a refusal of a well-formed request counts as that.
        """
        store = store_of(remote.kind)
        try:
            if store is Kind.FINE_TUNE:
                path = KERNEL + "fineTune/queryLlmFineTuneTaskDetail"
                row = await self._api.ask("detail_llm", path, query={"taskId": remote.id})
            else:
                path = KERNEL + "trainOperator/queryTaskInfo"
                row = await self._api.ask("detail_to", path, {"taskId": remote.id})
        except PlatformRefused:
            return None
        if not isinstance(row, Mapping) or not (row.get("name") or row.get("taskName")):
            return None
        return read_task(row, store, self._zone, remote.id)

    async def find(self, name: RunId) -> Task | None:
        """The task of a run in either store, by its name."""
        found: list[Task] = []
        for store in LISTS:
            found += await self.pages(store, name=name)
        return named(found, name)

    async def stop(self, remote: Remote) -> None:
        """Ask for an end; an acknowledgement and no more (T33).  Raises PlatformRefused."""
        act = self._api.ask
        if remote.kind is Kind.FINE_TUNE:
            path = KERNEL + "fineTune/stopLlmFineTuneTask"
            await act("stop", path, query={"taskId": remote.id}, effect=True, urgent=True)
        elif remote.kind is Kind.COMPUTATION:
            body = {"taskId": remote.id, "createWay": "userDefined"}
            await act("stop", KERNEL + "computationTask/stop", body, effect=True, urgent=True)
        else:
            path, id = KERNEL + "trainOperator/stopTask", {"taskId": remote.id}
            await act("stop", path, id, query=id, effect=True, urgent=True)  # body and query (T6)

    async def delete(self, remote: Remote) -> None:
        """Remove an ended task (T7).  Raises PlatformRefused."""
        ids = {"taskIds": [remote.id]}
        if remote.kind is Kind.OPERATOR:
            await self._api.ask("delete", KERNEL + "trainOperator/deleteTask", ids, effect=True)
            return
        way = "custom" if remote.kind is Kind.FINE_TUNE else "userDefined"
        path = KERNEL + "computationTask/deleteTask"
        await self._api.ask("delete", path, {**ids, "createWay": way}, effect=True)

    async def pods(self, remote: Remote) -> list[Pod]:
        """The task's pods, the first node's first."""
        pods: list[Pod] = []
        for page in range(1, MAX_PAGES + 1):
            body = {"taskId": remote.id, "pageNum": page, "pageSize": PAGE}
            answer = await self._api.ask("pods", KERNEL + "trainOperatorPod/getPodList", body)
            rows = rows_of(answer, "pod list")
            pods += [read_pod(row, self._zone) for row in rows]
            if len(rows) < PAGE:
                return sorted(pods, key=lambda pod: pod.order)
        raise Unavailable(f"the pod list has more than {MAX_PAGES} pages")


# ---------------------------------------------------------------- pods


@dataclass(frozen=True, slots=True)
class Pod:
    """One container instance of a task (7); `id` is what logs are asked for by."""

    id: str
    uid: str
    name: str
    ip: str
    status: int | None
    type: str
    started_ms: int | None
    ended_ms: int | None
    reason: str

    @property
    def order(self) -> tuple[bool, int, str]:
        """The master first, then workers by their number."""
        tail = self.name.rpartition("-")[2]
        return (self.type.lower() != "master", int(tail) if tail.isdecimal() else 0, self.name)


def read_pod(row: Mapping[str, Any], zone: ZoneInfo) -> Pod:
    return Pod(
        id=str(row.get("id") or ""),
        uid=str(row.get("podUid") or ""),
        name=str(row.get("name") or ""),
        ip=str(row.get("ip") or ""),
        status=whole(row.get("status"), "pod.status"),
        type=str(row.get("type") or ""),
        started_ms=utc_ms(row.get("startTime"), "pod.startTime", zone),
        ended_ms=utc_ms(row.get("endTime"), "pod.endTime", zone),
        reason=str(row.get("reason") or ""),
    )


def sighting(task: Task, pods: Collection[Pod], bad_nodes: Collection[str]) -> Sighting:
    """What a task and its pods show.  `bad_nodes` are addresses of nodes that are not normal.

    A word that nobody has documented is refined by the pods (15.1), and only by what is certain: all
    of them have ended, or one of them runs.
    """
    state = task.state
    all_ended = bool(pods) and all(p.ended_ms is not None and p.status in (2, 3) for p in pods)
    failed = [p for p in pods if p.status == POD_FAILED]
    if state is RemoteState.UNKNOWN and all_ended:
        state = RemoteState.FAILED if failed else RemoteState.SUCCEEDED
    elif state is RemoteState.UNKNOWN and any(p.started_ms and p.ended_ms is None for p in pods):
        state = RemoteState.RUNNING
    starts = [p.started_ms for p in pods if p.started_ms is not None]
    ends = [p.ended_ms for p in pods if p.ended_ms is not None]
    lost = any(p.ip in bad_nodes or p.reason in NODE_REASONS for p in failed)
    host_lost = state is RemoteState.FAILED and lost
    reasons = ", ".join(f"{p.name}: {p.reason}" for p in failed if p.reason)
    return Sighting(
        state,
        started_ms=min(starts, default=None),
        ended_ms=max(ends, default=None) if state in ENDED else None,
        exit_code=0 if state is RemoteState.SUCCEEDED else None,
        host_lost=host_lost,
        message=reasons if state is RemoteState.FAILED else "",
        raw=task.word,
    )

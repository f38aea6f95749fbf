"""AIHub: trainings and quota tasks of one installation, behind nine services, as one center.

Here: the adapter protocol.  Not here: calls and envelopes (aihub_services.py), tasks
(aihub_tasks.py), capacity (aihub_capacity.py), finding what a lost answer left behind
(aihub_search.py), data (aihub_data.py), options (aihub_settings.py), operators' commands
(aihub_commands.py), `broker doctor` (aihub_checks.py).  The vendor's document has no section numbers;
its headings are cited.

What the platform does not have, and what stands in for it:

* no list, no find, no idempotent create (创建训练任务): a create whose answer is lost leaves its run in
  doubt; evidence can show that it arrived, nothing can show that it did not (Lookup.EVIDENCE)
* no logs, no results, no exit codes: the wrapper of the command, where `output` is set
* no deletion: a tombstone here, and what the run left on the shared storage is removed
* no capacity: estimated from the stated pools and from what others are seen to occupy
* no way back from a stop, no resume: another run with the same checkpoint folder
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Mapping
from typing import Any

from adapters.aihub_capacity import (
    INFINIBAND,
    Cluster,
    NodeTask,
    Ours,
    cluster_of,
    clusters_of,
    inventory,
    node_tasks_of,
    pools_of,
    sku_of,
)
from adapters.aihub_checks import checks_of
from adapters.aihub_commands import commands_of
from adapters.aihub_data import Data
from adapters.aihub_search import Search, trim
from adapters.aihub_services import Missing, NameTaken, Service, Services
from adapters.aihub_settings import TRAITS, Settings, traits_of
from adapters.aihub_tasks import (
    MASTER,
    RANK,
    Sku,
    TaskId,
    body_of,
    detail,
    pods_of,
    quota_only,
    sighting,
    skus_per_node,
    training_only,
)
from adapters.checkpoints import SharedCheckpoints
from adapters.http import open_http
from adapters.nodes import misfit
from adapters.output import Output, command_line, environment
from adapters.sent import preparing
from adapters.values import Clock, now_ms
from broker.adapter import (
    Adapter,
    AdapterError,
    Catalogue,
    Check,
    Connection,
    CopyRef,
    CopySighting,
    Denied,
    Inventory,
    NoCapacity,
    RawAnswer,
    Refused,
    RemoteState,
    ResultFile,
    RunRef,
    RunSpec,
    Sighting,
    StatedPool,
    Throttled,
    Unavailable,
    Unsupported,
)
from broker.core.model import Kind, RemoteId, RunId

__all__ = ["TRAITS", "Aihub", "connect"]

PAGE = 9999
"""page_size of pods, as the document has it."""
SIGNALLED = 128
"""Exit codes from here on are signals'."""
LOOK_AGAIN_S = 5.0
"""node_tasks are read again for a run in doubt after this."""


async def connect(connection: Connection) -> Adapter:
    """The adapter of a configured center; nothing is called yet.

    Raises ValueError for options that cannot be meant.
    """
    settings = Settings.read(connection)
    http = await open_http(connection)
    secrets = connection.credentials
    services = Services(
        http,
        urls=settings.urls,
        username=secrets.get("username", ""),
        password=secrets.get("password", ""),
        s3_token=secrets.get("s3_token", ""),
    )
    return Aihub(connection, settings, services)


class Aihub:
    """One installation, as one account sees it.

    What is learnt while running (SKUs, ids, what others occupy) makes answers better and calls fewer;
    nothing depends on it, and a new process learns it again.
    """

    def __init__(
        self, connection: Connection, settings: Settings, services: Services, *, clock: Clock = now_ms
    ) -> None:
        self.center = connection.center
        self.settings = settings
        self.services = services
        self.output = Output.of(connection)
        self._checkpoints = SharedCheckpoints(self.output)
        self.traits = traits_of(settings, self.output)
        self.commands = commands_of(self)
        self.ours = Ours(connection.prefix)
        self.clusters: Mapping[int, Cluster] | None = None
        self.pools = pools_of(settings.pools, None)  # by virtual cluster
        self.evidence: dict[int, list[NodeTask]] = {}
        self.seen_by: dict[int, TaskId] = {}  # a quota task of each cluster, for its node_tasks
        self.gangs: dict[str, tuple[int, int]] = {}  # sku_cnt and instances of runs of several nodes
        self._skus: dict[int, Sku] = {}  # by cluster, as details tell them
        self._clock = clock
        self.data = Data(services, bucket=settings.bucket, prefix=connection.prefix, output=self.output)
        self._search = Search(services, self.learn, usual=settings.usual)
        self._creating: dict[RunId, asyncio.Lock] = {}
        self._unsure: dict[RunId, None] = {}  # creates of this process whose effect is unknown
        self._looked = 0.0
        self._stopped: dict[RunId, None] = {}  # of this process: a stop the broker wants outweighs all
        self._deleted: dict[RunId, None] = {}

    async def aclose(self) -> None:
        """Calls under way end as Unavailable: they are not cancelled, their callers must know."""
        await self.services.aclose()

    # ------------------------------------------------------------ capacity

    async def probe(self) -> Inventory:
        """Estimated: stated pools less what others are seen to occupy."""
        if self.services.has(Service.TAG):
            await self.list_clusters()
        else:
            await self.services.session.current()  # whole or raise: at least the account works
        as_of_ms = self._clock()
        await asyncio.gather(*map(self._look_at_nodes, self.pools))
        return inventory(
            self.pools,
            self.clusters,
            as_of_ms=as_of_ms,
            evidence=self.evidence,
            skus={cluster: self.sku(cluster) for cluster in self.pools},
            ours=self.ours,
        )

    async def list_clusters(self) -> dict[int, Cluster]:
        """获取用户虚拟集群列表, of module 1: trainings."""
        query = {"user_id": await self.services.user_id(), "module_type": 1}
        found = clusters_of(await self.services.read(Service.TAG, "/select-clusters", "clusters", query))
        self.clusters, self.pools = found, pools_of(self.settings.pools, found)
        return found

    async def _look_at_nodes(self, cluster: int) -> None:
        """Refresh node_tasks by the detail of a quota task that is known to be in the cluster.

        Without one there is no evidence: then nothing is believed to be taken.
        """
        task = self.seen_by.get(cluster)
        if task is None:
            return
        try:
            self.learn(task, await self._detail(task))
        except Missing:
            self.seen_by.pop(cluster, None)
            self.evidence.pop(cluster, None)

    def sku(self, cluster: int) -> Sku:
        """What a SKU is: as a detail told it, else as the list and `sku_cards` do, else by the pool."""
        if (told := self._skus.get(cluster)) is not None:
            return told
        cards = self.settings.sku_cards
        if self.clusters and (listed := self.clusters.get(cluster)) is not None:
            return Sku(listed.cores, listed.memory_gib, cards)
        shape = self.pools[cluster].shape
        share = max(1, shape.accelerators or shape.cores)
        return Sku(max(1, shape.cores // share), max(1, shape.memory_gib // share), cards)

    def learn(self, task: TaskId, found: Mapping[str, Any]) -> None:
        """Keep what a detail tells beside its own task."""
        cluster = cluster_of(found)
        if (sku := sku_of(found)) is not None and (sku.cards or not self._has_cards(cluster)):
            self._skus[cluster] = sku
        if task.service is Service.QUOTA and (tasks := node_tasks_of(found)) is not None:
            self.evidence[cluster] = tasks
            self.seen_by[cluster] = task

    def _has_infiniband(self, cluster: int) -> bool:
        listed = (self.clusters or {}).get(cluster)
        return listed is not None and listed.network == INFINIBAND

    def _has_cards(self, cluster: int) -> bool:
        pool = self.pools.get(cluster)
        return pool is not None and bool(pool.shape.accelerators)

    async def catalogue(self) -> Catalogue:
        """The platform lists no images: the operator's stand."""
        return Catalogue()

    # ------------------------------------------------------------ a run's life

    async def submit(self, run: RunSpec) -> RemoteId:
        """创建训练任务 or 创建配额任务; VIP jobs are always trainings.

        A second call of the same id, in this process, answers with the first and sends nothing: the
        platform would make another task.
        """
        async with self._creating.setdefault(run.id, asyncio.Lock()):
            if (known := self._search.named(run.id)) is not None:
                return known.remote
            if run.id in self._unsure:
                raise Unavailable(f"a create of {run.id} had no answer: it is not sent again")
            if "" in self.settings.pools and self.clusters is None:
                await self._before_the_first_probe()
            service, body = self._request(run)
            try:
                return await self._create(run.id, service, body)
            finally:
                self._creating.pop(run.id, None)

    async def _before_the_first_probe(self) -> None:
        """Learn which cluster the stated pool is."""
        with preparing("create"):
            await self.list_clusters()

    def _request(self, run: RunSpec) -> tuple[Service, dict[str, Any]]:
        """Where a run goes and what is sent.  Raises Refused for what can never run here."""
        if run.kind is Kind.ONLINE:
            raise Unsupported("the platform has no online services for jobs")
        cluster = int(run.native_pool) if run.native_pool.isdecimal() else 0
        pool = self.pools.get(cluster)
        if pool is None:
            known = sorted(each.native for each in self.pools.values())
            raise Refused(f"pool is {run.native_pool!r}, expected one of {known}")
        if why := misfit(run.spec.shape, pool.shape):
            raise Refused(f"pool {pool.native!r}: {why}")
        skus = skus_per_node(run, pool, self.sku(cluster))
        room = pool.nodes * _slots(pool, run)
        if run.nodes > room:
            raise Refused(f"pool {pool.native!r}: nodes is {run.nodes}, it has room for {room}")
        env = environment(run, self._data_env(run))
        for name, value in env.items():
            if "\0" in value:
                raise Refused(f"{name} has a NUL character, expected text without")
        fields = self.settings.fields
        body = body_of(
            run,
            cluster=cluster,
            skus=skus,
            command=command_line(run, {}, self.output, rank=RANK, master=MASTER),
            env=list(env.items()),
            infiniband=self._has_infiniband(cluster),
            fields=fields,
        )
        if run.vip or self.settings.usual is Service.TRAINING:
            return Service.TRAINING, body | training_only(run, fields)
        return Service.QUOTA, body | quota_only(run)

    def _data_env(self, run: RunSpec) -> dict[str, str]:
        """Where the run's data sets are; where jobs share no storage, their names at the platform."""
        if not run.datasets:
            return {}
        if self.output is not None:
            return {}  # links to them, made by the command
        return {"BROKER_DATASETS": " ".join(f"{id}={remote}" for id, remote in run.datasets)}

    async def _create(self, run: RunId, service: Service, body: dict[str, Any]) -> RemoteId:
        path = "/tasks" if service is Service.QUOTA else "/trainings"
        operation = "create_quota_task" if service is Service.QUOTA else "create_training"
        self._search.sent(run, service)
        if body["instances"] > 1:
            self.gangs = {run: (body["sku_cnt"], body["instances"])}  # the newest is enough
        self._unsure[run] = None
        trim(self._unsure)
        try:
            data = await self.services.act(service, path, operation, body)
        except NameTaken as taken:
            # No other task has this name: an earlier create of this very run has arrived.
            raise Unavailable(f"the platform has a task named {run} already: {taken}") from None
        except (Refused, NoCapacity, Throttled, Denied, Unsupported):
            del self._unsure[run]
            raise
        number = data.get("id") if isinstance(data, dict) else None
        if not isinstance(number, int) or number <= 0:
            raise Unavailable(f"the create of {run} answered without an id")
        task = TaskId(service, number)
        self._search.known(task, run)
        del self._unsure[run]
        return task.remote

    async def start(self, run: RunRef) -> None:
        raise Unsupported("a task of this platform starts by itself once it is created")

    async def find(self, run: RunId) -> RemoteId | None:
        """By evidence: None does not mean that it is not there (Lookup.EVIDENCE)."""
        if run in self._deleted:
            return None
        if (known := self._search.named(run)) is not None:
            return known.remote
        if (now := time.monotonic()) - self._looked >= LOOK_AGAIN_S:
            self._looked = now
            await asyncio.gather(*map(self._look_at_nodes, list(self.seen_by)))
        seen = [task for tasks in self.evidence.values() for task in tasks if task.name == run]
        return await self._search.find(run, self._services(), {task.id for task in seen})

    def _services(self) -> list[Service]:
        """Where a run may be: the usual service first."""
        others = [Service.TRAINING] if self.settings.usual is Service.QUOTA else []
        return [s for s in (self.settings.usual, *others) if self.services.has(s)]

    async def observe(self, runs: Collection[RunRef]) -> Mapping[RunId, Sighting]:
        """One detail each (获取训练任务信息, 获取配额任务信息): a run without an answer has no news."""
        looks = await asyncio.gather(*(self._look(ref) for ref in runs), return_exceptions=True)
        seen: dict[RunId, Sighting] = {}
        failures: list[BaseException] = []
        for ref, found in zip(runs, looks, strict=True):
            if isinstance(found, Sighting):
                seen[ref.id] = found
            elif isinstance(found, AdapterError) and not isinstance(found, Denied):
                failures.append(found)
            else:
                raise found
        if failures and not seen:
            raise failures[0]
        return await self._checkpoints.added(runs, seen)

    async def _look(self, ref: RunRef) -> Sighting:
        task = TaskId.read(ref.remote, self.settings.usual)
        if task is None or ref.id in self._deleted:
            return Sighting(RemoteState.GONE, raw=f"no task {ref.remote}")
        try:
            found = await self._detail(task)
        except Missing as gone:
            return Sighting(RemoteState.GONE, raw=str(gone))
        self.learn(task, found)
        self._search.known(task, str(found.get("name")))
        code = None
        if found.get("status") in (4, 5):
            code = await self._exit_code(ref)
        return sighting(found, name=ref.id, user_id=await self._stopper(ref.id), exit_code=code)

    async def _stopper(self, run: RunId) -> int | None:
        """Whose stop of a run is no eviction; see sighting."""
        if self.settings.fields.allow_preempt_kill and run not in self._stopped:
            return None
        return await self.services.user_id()

    async def _detail(self, task: TaskId, *, urgent: bool = False) -> Mapping[str, Any]:
        operation = "quota_task" if task.service is Service.QUOTA else "training"
        return detail(await self.services.read(task.service, task.path, operation, urgent=urgent), task)

    async def _exit_code(self, ref: RunRef) -> int | None:
        """As the wrapper left it: that of a node that failed by itself before that of one that was
        ended with it; None where nothing tells."""
        if self.output is None:
            return None
        found = [await self.output.exit_code(ref.id, node) for node in range(ref.nodes)]
        failed = [code for code in found if code]
        return next((code for code in failed if code < SIGNALLED), failed[0] if failed else None)

    async def pods(self, task: TaskId) -> list[Mapping[str, Any]]:
        """获取…pod 列表: every page."""
        operation = "quota_pods" if task.service is Service.QUOTA else "training_pods"
        found: list[Mapping[str, Any]] = []
        page = 1
        while True:
            query = {"page_size": PAGE, "page_num": page}
            rows, total = pods_of(
                await self.services.read(task.service, f"{task.path}/pods", operation, query)
            )
            found += rows
            if not rows or page * PAGE >= total:
                return found
            page += 1

    async def stop(self, run: RunRef, *, grace_s: int) -> None:
        """停止训练任务 or 停止配额任务: acknowledges only.  The platform takes no grace.

        The name is looked at first: an id that an operator gave wrongly may be somebody else's task.
        """
        task = TaskId.read(run.remote, self.settings.usual)
        if task is None:
            return
        if await self._over(run, task):
            return
        operation = "stop_quota_task" if task.service is Service.QUOTA else "stop_training"
        self._stopped[run.id] = None
        trim(self._stopped)
        try:
            await self.services.act(task.service, f"{task.path}/stop", operation, urgent=True)
        except Refused as no:
            if not await self._over(run, task):
                raise Unavailable(f"the stop was not taken: {no}") from None

    async def _over(self, run: RunRef, task: TaskId) -> bool:
        """Whether there is nothing to stop.  Raises Refused for a task that is not this run."""
        try:
            found = await self._detail(task, urgent=True)
        except Missing:
            return True
        if found.get("name") != run.id:
            raise Refused(
                f"task {task.remote} is named {found.get('name')!r}, not {run.id}: it is not stopped"
            )
        return found.get("status") in (3, 4, 5)

    async def delete(self, run: RunRef) -> None:
        """The platform has no call for it: the run is forgotten here."""
        if self.output is not None:
            await self.output.delete(run.id)
        self._deleted[run.id] = None
        trim(self._deleted)
        self._stopped.pop(run.id, None)

    # ------------------------------------------------------------ files and the rest

    async def logs(self, run: RunRef, node: int, offset: int) -> AsyncIterator[bytes]:
        output = self.storage("logs")
        async for chunk in output.logs(run.id, node, offset):
            yield chunk

    async def results(self, run: RunRef) -> AsyncIterator[ResultFile]:
        output = self.storage("results")
        async for result in output.results(run.id):
            yield result

    def storage(self, what: str) -> Output:
        """The shared storage.  Raises Unsupported where none is set."""
        if self.output is None:
            raise Unsupported(
                f"this platform has no call for {what}; set output = {{in_job, here}} to a shared storage"
            )
        return self.output

    async def stage(self, copy: CopyRef) -> CopySighting:
        return await self.data.stage(copy)

    async def unstage(self, copy: CopyRef) -> None:
        await self.data.unstage(copy)

    async def call(self, method: str, path: str, body: bytes | None) -> RawAnswer:
        return await self.services.raw(method, path, body)

    async def checks(self) -> AsyncIterator[Check]:
        async for check in checks_of(self):
            yield check


def _slots(pool: StatedPool, run: RunSpec) -> int:
    """How many instances of the run one node of the pool has room for."""
    have, want = pool.shape, run.spec.shape
    pairs = (
        (have.accelerators, want.accelerators),
        (have.cores, want.cores),
        (have.memory_gib, want.memory_gib),
    )
    return min((whole // part for whole, part in pairs if part), default=1)

"""Centers on the Ampha platform (cloudos): the adapter.

Here: what each call of the protocol means there.  Not here: how the platform is spoken to
(ampha_wire), its capacity (ampha_capacity), tasks (ampha_tasks) and their creation (ampha_submit),
assets (ampha_assets), logs (ampha_logs) and what operators may do (ampha_commands).

What the platform lacks.  No look-up of a created task but by its name, so the run's id is the task's
name (T1, T2).  No exit codes and no call for results: both come through the shared storage, where
`output` is set.  Stops and deletions are acknowledged before they happen (T33): looking tells.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

from adapters.ampha_assets import Assets
from adapters.ampha_capacity import Capacity
from adapters.ampha_checks import look_over
from adapters.ampha_commands import commands_of
from adapters.ampha_logs import Logs
from adapters.ampha_operations import PATHS as CALLBACK_PATHS
from adapters.ampha_operations import Operations
from adapters.ampha_records import metered
from adapters.ampha_resume import Resume
from adapters.ampha_services import ServiceRuns, Services
from adapters.ampha_specs import preset_specs
from adapters.ampha_submit import Submissions
from adapters.ampha_tasks import (
    ENDED,
    Kind,
    Remote,
    Task,
    Tasks,
    remote_of,
    sighting,
    store_of,
)
from adapters.ampha_wire import Api, PlatformRefused, Role, Settings, open_api
from adapters.checkpoints import SharedCheckpoints
from adapters.http import Request, below
from adapters.output import Output
from broker.adapter import (
    Adapter,
    AdapterError,
    Catalogue,
    Check,
    Connection,
    CopyRef,
    CopySighting,
    CopyState,
    Inventory,
    Lookup,
    RawAnswer,
    RemoteState,
    ResultFile,
    RunRef,
    RunSpec,
    Sighting,
    Spans,
    Traits,
    Unavailable,
    Unsupported,
)
from broker.core.model import Accuracy, RemoteId, RunId

__all__ = ["CALLBACK_PATHS", "TRAITS", "Ampha", "connect"]

K = TypeVar("K")
V = TypeVar("V")

MAX_REMEMBERED = 10_000

TRAITS = Traits(
    gang=True,  # a task starts when all of its instances fit
    vip_flag=True,  # the urgent flag; what it does is not documented (10)
    logs=True,
    metering=True,  # a record for each pod, some time after its end
    any_image_url=False,
    idle=Accuracy.EXACT,
    lookup=Lookup.FIND_BY_NAME,
    submit_timeout_s=60,
    lookup_lag_s=30,
    report_lag_s=10,
)


async def connect(connection: Connection) -> Adapter:
    """The adapter of a configured center.  Raises ValueError for an option that cannot be meant."""
    return Ampha(connection, await open_api(connection))


def traits_of(connection: Connection, settings: Settings) -> Traits:
    """TRAITS as the operator's options have them."""
    output = Output.of(connection) is not None
    return replace(
        TRAITS,
        resume=output,
        results=output,
        services=settings.services,
        address=settings.services,
        submit_timeout_s=max(1, round(min(settings.timeout_s * 2, 60))),
        lookup_lag_s=settings.lookup_lag_s,
        report_lag_s=settings.report_lag_s,
    )


class Ampha:
    """One center."""

    def __init__(self, connection: Connection, api: Api) -> None:
        self.center = connection.center
        self.traits = traits_of(connection, api.settings)
        self.api = api
        self.tasks = Tasks(api)
        self.assets = Assets(api, connection.prefix)
        self.services = Services(api)
        self._operations = Operations(connection)
        self.callbacks = self._operations.callbacks()
        self.commands = commands_of(api, self.tasks, self.assets, self.services, connection.prefix)
        self._output = Output.of(connection)
        self._checkpoints = SharedCheckpoints(self._output)
        self._logs = Logs(api, self.tasks)
        self._resume = Resume(api, self.tasks)
        self._capacity = Capacity(api, connection.pools)
        self._served = ServiceRuns(self.services, self.assets, api, api.settings.service_gateway)
        self._submissions = Submissions(
            api,
            self._capacity,
            self.tasks,
            self.assets,
            self._resume,
            self._output,
            self._served if api.settings.services else None,
        )
        self._ended: dict[Remote, tuple[str, Sighting]] = {}  # word and what was seen
        self._starts: dict[Remote, int] = {}
        self._named: dict[str, Remote] = {}  # tasks whose id was not told
        self._missing: dict[str, float] = {}  # name of an accepted task -> when it was first not listed

    async def aclose(self) -> None:
        await self.api.aclose()

    # ------------------------------------------------------------ capacity

    async def probe(self) -> Inventory:
        inventory = await self._capacity.probe()
        self._operations.nodes = [pool.shape for pool in inventory.pools]
        return inventory

    async def catalogue(self) -> Catalogue:
        if self._operations.active:
            self._operations.own = (await self.api.account()).id
            with suppress(PlatformRefused):  # what was known of them stays; not every center has any
                self._operations.know(await preset_specs(self.api))
        return Catalogue(
            images=await self.assets.images(),
            datasets=await self.assets.offered("dataset"),
            models=await self.assets.offered("model"),
            apps=await self.assets.offered("algo"),
        )

    # ------------------------------------------------------------ a run's life

    async def submit(self, run: RunSpec) -> RemoteId:
        """One task per run: a second call for the same id answers with the first, if it is known."""
        async with self._operations.creating((await self.api.account()).id):
            remote = await self._submissions.submit(run)
        self._forget(remote)
        return remote

    async def start(self, run: RunRef) -> None:
        raise Unsupported("a task of this center starts by itself")

    async def find(self, run: RunId) -> RemoteId | None:
        found = await self._submissions.find(run)
        if found is None:
            return None
        self._forget(found.text)
        return found.text

    def _forget(self, remote: RemoteId) -> None:
        """A task that goes on has another start, and no end yet."""
        self._ended.pop(remote_of(remote), None)
        self._starts.pop(remote_of(remote), None)

    # ------------------------------------------------------------ looking

    async def observe(self, runs: Collection[RunRef]) -> Mapping[RunId, Sighting]:
        """The lists first, which are one call for many runs (T30); then details of those not listed."""
        remotes = {ref.id: self._remote(ref.remote) for ref in runs}
        tasks = await self._listed(remotes)
        seen = await asyncio.gather(*(self._look(id, remote, tasks[id]) for id, remote in remotes.items()))
        found = {id: one for id, one in zip(remotes, seen, strict=True) if one is not None}
        return await self._checkpoints.added(runs, found)

    def _remote(self, text: RemoteId) -> Remote:
        """A RemoteId, taken apart; with the task's id where a name has led to it since."""
        remote = remote_of(text)
        return self._named.get(remote.id, remote) if remote.kind.by_name else remote

    async def _listed(self, remotes: Mapping[RunId, Remote]) -> dict[RunId, Task | None]:
        """What the first pages of the lists say of each run; what lives is there (6.3)."""
        by_store: dict[Kind, set[str]] = {}
        for remote in remotes.values():
            if not remote.kind.by_name and remote.kind is not Kind.SERVICE:
                by_store.setdefault(store_of(remote.kind), set()).add(remote.id)
        by_id: dict[str, Task] = {}
        for store, wanted in by_store.items():
            rows = await self.tasks.first_pages(store, wanted)
            by_id |= {task.remote.id: task for task in rows}
        return {run: by_id.get(remote.id) for run, remote in remotes.items()}

    async def _look(self, run: RunId, remote: Remote, task: Task | None) -> Sighting | None:
        """One run; None is no news."""
        if remote.kind is Kind.SERVICE:
            return await self._served.look(remote.id, run)
        if remote.kind.by_name:
            task = await self.tasks.find(RunId(remote.id))
            if task is None:
                return self._not_listed(remote)
            _remember(self._named, remote.id, task.remote)
            self._missing.pop(remote.id, None)
        if task is None:
            task = await self.tasks.detail(remote)
        if task is None:  # one refusal alone may be of any kind (1.4): is its name known?
            task = await self.tasks.find(run)
        if task is None or (task.remote != remote and not remote.kind.by_name):
            return Sighting(RemoteState.GONE, message="the platform knows no such task")
        if (known := self._ended.get(task.remote)) is not None and known[0] == task.word:
            return known[1]
        if task.state is RemoteState.PENDING:
            return Sighting(RemoteState.PENDING, raw=task.word)
        if task.state is RemoteState.RUNNING and (start := self._starts.get(task.remote)) is not None:
            return Sighting(RemoteState.RUNNING, started_ms=start, raw=task.word)
        return await self._closer(task)

    def _not_listed(self, remote: Remote) -> Sighting | None:
        """A name that is in no list: gone once that has been so for longer than lists are late."""
        if remote.kind is Kind.NEW:
            now = time.monotonic()
            if now - self._missing.setdefault(remote.id, now) < self.api.settings.lookup_lag_s:
                return None
        return Sighting(RemoteState.GONE, message="no task has this name")

    async def _closer(self, task: Task) -> Sighting:
        """A task that has started, with its pods, and its exit code where the storage tells it."""
        pods = await self.tasks.pods(task.remote)
        bad = await self._capacity.bad_nodes() if task.state is RemoteState.FAILED else ()
        seen = sighting(task, pods, bad)
        if seen.state is RemoteState.RUNNING and seen.started_ms is not None:
            _remember(self._starts, task.remote, seen.started_ms)
        if seen.state is RemoteState.FAILED and self._output is not None:
            code = await self._exit_code(RunId(task.name), len(pods))
            if code is not None:
                why = f"ended with exit code {code}" + (f" ({seen.message})" if seen.message else "")
                seen = replace(seen, exit_code=code, message=why)
        if seen.state in ENDED:
            _remember(self._ended, task.remote, (task.word, seen))
        return seen

    async def _exit_code(self, run: RunId, nodes: int) -> int | None:
        """The first exit code that is none of success, over all nodes."""
        assert self._output is not None
        for node in range(nodes):
            if code := await self._output.exit_code(run, node):
                return code
        return None

    async def metered(self, runs: Collection[RunRef]) -> Mapping[RunId, Spans]:
        return await metered(self.api, runs)

    # ------------------------------------------------------------ stops and deletions

    async def stop(self, run: RunRef, *, grace_s: int) -> None:
        """The platform has no grace of ours: it ends a task within some seconds."""
        remote = await self._known(run)
        if remote is None:
            return
        if remote.kind is Kind.SERVICE:
            await self._served.stop(remote.id, run.id)
            return
        try:
            await self.tasks.stop(remote)
        except PlatformRefused:
            task = await self.tasks.detail(remote)
            if task is not None and task.state not in ENDED:
                raise  # such as: it is being created

    async def delete(self, run: RunRef) -> None:
        """Raises Unavailable for a live task: what deleting one does is not documented."""
        remote = await self._known(run)
        if remote is not None and remote.kind is Kind.SERVICE:
            await self._served.delete(remote.id, run.id)
        elif remote is not None and (task := await self.tasks.detail(remote)) is not None:
            if task.state not in ENDED:
                raise Unavailable(f"task {task.name} is {task.word}, expected an ended one")
            try:
                await self.tasks.delete(remote)
            except PlatformRefused:
                if await self.tasks.detail(remote) is not None:
                    raise
        if self._output is not None:
            await self._output.delete(run.id)
        else:
            await self._resume.forget(run.id)

    async def _known(self, run: RunRef) -> Remote | None:
        """The task of a run; None when there is none.  Raises Unavailable while it may still appear."""
        remote = self._remote(run.remote)
        if not remote.kind.by_name:
            return remote
        task = await self.tasks.find(RunId(remote.id))
        if task is None and self._not_listed(remote) is None:
            raise Unavailable(f"task {remote.id} was accepted and is in no list yet")
        return task.remote if task else None

    # ------------------------------------------------------------ files and the rest

    async def logs(self, run: RunRef, node: int, offset: int) -> AsyncIterator[bytes]:
        """A service has one log for all of its instances: it is that of node 0."""
        told = remote_of(run.remote)
        if told.kind is Kind.SERVICE:
            text = await self._served.log(told.id, run.id) if node == 0 else b""
            if text[offset:]:
                yield text[offset:]
            return
        if self._output is not None:
            async for chunk in self._output.logs(run.id, node, offset):
                yield chunk
            return
        remote = await self._known(run)
        if remote is None:
            return
        try:
            async for chunk in self._logs.read(remote, node, offset):
                yield chunk
        except PlatformRefused:
            if await self.tasks.detail(remote) is not None:
                raise  # a task that is gone has no log

    async def results(self, run: RunRef) -> AsyncIterator[ResultFile]:
        if self._output is None:
            raise Unsupported("results need a storage that jobs and the broker share: set `output`")
        async for result in self._output.results(run.id):
            yield result

    async def stage(self, copy: CopyRef) -> CopySighting:
        seen = await self.assets.stage(copy)
        if seen.state is CopyState.READY:
            try:
                await self.assets.clean(copy)
            except AdapterError as error:  # the next step tries again
                return replace(seen, state=CopyState.MOVING, message=str(error))
        return seen

    async def unstage(self, copy: CopyRef) -> None:
        """Remove what `stage` brought there."""
        await self.assets.unstage(copy)

    async def checks(self) -> AsyncIterator[Check]:
        async for check in look_over(self.api, self.probe, self.assets, self.tasks):
            yield check
        if self._output is not None:
            yield await self._output.check()

    async def call(self, method: str, path: str, body: bytes | None) -> RawAnswer:
        url = below(self.api.settings.base_url, path)
        headers = {"Content-Type": "application/json"} if body else {}
        session = self.api.session(Role.USER)
        return await self.api.http.raw(
            Request("call", method, url, effect=True, body=body, headers=headers, session=session)
        )


def _remember(memory: dict[K, V], key: K, value: V) -> None:
    """Keep a value, and the newest ones only."""
    memory[key] = value
    while len(memory) > MAX_REMEMBERED:
        del memory[next(iter(memory))]

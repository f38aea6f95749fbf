"""A CECSTACK AI Space (OpenAPI 5.3.0): packages as pools, runs as tasks in one of its projects.

Here: the adapter's protocol over the parts.  Not here: the wire (cecstack_wire.py), packages
(cecstack_packages.py), tasks (cecstack_tasks.py), services (cecstack_services.py), operators' commands
(cecstack_commands.py), options (cecstack_settings.py).

What the platform lacks and how it is met.  It has no idempotent create: a lost one is looked up by its
name.  It starts by a second call: see Traits.two_phase_create.  It has no logs, results or exit codes:
they come from the shared storage where `output` is stated, else they are declared unavailable.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Coroutine, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

from adapters.cecstack_checks import checks
from adapters.cecstack_commands import commands_of
from adapters.cecstack_packages import Package, Project
from adapters.cecstack_services import NEEDED, SERVICE, Services
from adapters.cecstack_settings import Settings
from adapters.cecstack_tasks import ENDED, RECIPE, Recipe, Tasks, parted, sighting
from adapters.cecstack_wire import SIGNERS, NotThere, Wire
from adapters.checkpoints import SharedCheckpoints
from adapters.http import open_http
from adapters.nodes import misfit
from adapters.output import Output, command_line, environment
from adapters.sent import preparing
from adapters.staging import FOLDER, remove, step
from adapters.values import Clock, now_ms
from broker.adapter import (
    Adapter,
    Asset,
    Catalogue,
    Check,
    Connection,
    CopyRef,
    CopySighting,
    Image,
    Inventory,
    Lookup,
    NoCapacity,
    RawAnswer,
    Refused,
    RemoteState,
    ResultFile,
    RunRef,
    RunSpec,
    Sighting,
    Traits,
    Unavailable,
    Unsupported,
)
from broker.core.model import Accuracy, Kind, RemoteId, RunId

TRAITS = Traits(
    any_image_url=True,
    idle=Accuracy.EXACT,
    lookup=Lookup.FIND_BY_NAME,
    two_phase_create=True,
    max_batch=1000,
    report_lag_s=10,
    lookup_lag_s=10,
    submit_timeout_s=32,
)
"""Without optional keys, at an installation that lists slm tasks."""
REMEMBERED: Final = 256
"""Submissions whose answer is kept, should the same one be asked for again."""
_CANNOT_START = (126, 127)  # of a shell: found but not executable, not found
_PROCESSORS: Final[Mapping[str, str]] = {"nvidia": "GPU", "ascend": "NPU", "cpu": "CPU"}


async def connect(connection: Connection) -> Adapter:
    """The adapter of a center, after one look at what its installation can do.

    Raises ValueError for an option that cannot be meant, and adapter errors.
    """
    settings = Settings.read(connection)
    http = await open_http(connection)
    options, keys = connection.options, connection.credentials
    sign = SIGNERS[settings.signature](keys.get("access_key", ""), keys.get("secret_key", ""))
    wire = Wire(
        http,
        endpoint=str(options["endpoint"]),
        region=str(options["region"]),
        sign=sign,
        extra_headers=options.get("extra_headers") or {},
    )
    for value in wire.extra_values():
        http.redact.add(value)
    adapter = Cecstack(connection, settings, wire)
    try:
        await adapter.find_out()
    except BaseException:
        await http.aclose()
        raise
    return adapter


class Cecstack:
    """One account's project at one center.  `clock` gives milliseconds since the epoch."""

    def __init__(
        self, connection: Connection, settings: Settings, wire: Wire, *, clock: Clock = now_ms
    ) -> None:
        self.center = connection.center
        self.wire = wire
        self._settings = settings
        self._clock = clock
        self._output = settings.output
        self._checkpoints = SharedCheckpoints(settings.output)
        self._packages: dict[str, Package] = {}
        self._project: Project | None = None
        self._making: dict[RunId, asyncio.Lock] = {}
        self._made: dict[RunId, RemoteId] = {}
        self.tasks = Tasks(
            wire, zone=settings.zone, node_selector=settings.node_selector, maas=settings.multi_node
        )
        self.services = Services(wire, settings.network) if settings.network is not None else None
        self.traits = self._traits()
        self.commands = commands_of(self)

    async def find_out(self) -> None:
        """Look what the installation has where the document is silent; the traits follow."""
        await self.tasks.find_out()
        if self.services is not None:
            await self.services.find_out()
        self.traits = self._traits()

    def _traits(self) -> Traits:
        services = self.services is not None and self.services.listed
        kept = self._output is not None
        return replace(
            TRAITS,
            gang=self._settings.multi_node,
            resume=kept,
            logs=kept,
            results=kept,
            services=services,
            address=services,
            lookup=Lookup.FIND_BY_NAME if self.tasks.insight.listed else Lookup.NEITHER,
            report_lag_s=self._settings.lookup_lag_s,
            lookup_lag_s=self._settings.lookup_lag_s,
            submit_timeout_s=self._settings.submit_timeout_s,
        )

    # ------------------------------------------------------------ capacity

    async def packages(self) -> tuple[Project | None, list[Package]]:
        """The project and the packages that concern it, as they are now (§9.5, §4.3)."""
        project = await self._find_project()
        rows = [row async for row in self.wire.packages()]
        found = self._settings.packages.read(rows, project, self._clock())
        self._project, self._packages = project, {package.native: package for package in found}
        return project, found

    async def projects(self) -> list[Project]:
        rows = self.wire.rows("project.page", "/v1/project/page", related="str_relate")
        return [Project.read(row) async for row in rows]

    async def _find_project(self) -> Project | None:
        """The one that is named, or the account's only one."""
        found = await self.projects()
        wanted = self._settings.project_id
        if wanted is None:
            return found[0] if len(found) == 1 else None
        for project in found:
            if project.id == wanted:
                return project
        raise Refused(f"project_id is {wanted}, the account sees {[p.id for p in found] or 'no project'}")

    async def probe(self) -> Inventory:
        as_of_ms = self._clock()
        _, found = await self.packages()
        return Inventory(
            as_of_ms,
            self.traits.idle,
            tuple(package.pool() for package in found if not package.trouble),
            quarantined=tuple((p.native, p.trouble) for p in found if p.trouble),
        )

    async def catalogue(self) -> Catalogue:
        """§8.4.  A job needs the image's URL; its id is the key."""
        images = []
        async for row in self.wire.rows("image.list", "/alpha/images_modelview/api/", related="str_related"):
            key, url = str(row.get("key") or ""), str(row.get("images_url") or "")
            if key and url:
                processor = _PROCESSORS.get(str(row.get("gpu_type") or "").lower(), "")
                images.append(Image(key, url, str(row.get("title") or ""), processor=processor))
        return Catalogue(
            images=tuple({image.id: image for image in images}.values()), datasets=await self._public_data()
        )

    async def _public_data(self) -> tuple[Asset, ...]:
        """§10.3, those that are public; how a task reads one is not in the document."""
        found = []
        async for row in self.wire.rows("dataset.page", "/v1/dataset/page", related="str_relate"):
            id, name, version = (str(row.get(key) or "") for key in ("id", "name", "version"))
            if row.get("isPublic") and id and name:
                found.append(
                    Asset(
                        native=id,
                        title=f"{name}:{version}" if version else name,
                        desc=str(row.get("describe") or ""),
                        labels=str(row.get("sourceType") or ""),
                        owner=str(row.get("createdBy") or ""),
                    )
                )
        return tuple(found)

    # ------------------------------------------------------------ a run's life

    async def submit(self, run: RunSpec) -> RemoteId:
        """Create the task; it is started by `start`.  The same run a second time is the first."""
        lock = self._making.setdefault(run.id, asyncio.Lock())
        try:
            async with lock:
                if run.id not in self._made:
                    self._made[run.id] = await self._create(run)
                    while len(self._made) > REMEMBERED:
                        del self._made[next(iter(self._made))]
                return self._made[run.id]
        finally:
            if not lock.locked():
                self._making.pop(run.id, None)

    async def _create(self, run: RunSpec) -> RemoteId:
        recipe = Recipe.of(run)
        package = await self._fitting(run)
        self._allowed(run, recipe, package)
        assert self._project is not None, "a package without trouble is associated with the project"
        project = self._project.id
        if recipe is not None:
            return await self.tasks.create_maas(run, recipe, package=package.native, project=project)
        env = environment(run, self._surroundings(run))
        command = run.command if self._output is None else command_line(run, env, self._output)
        if run.kind is Kind.ONLINE or run.port is not None:
            assert self.services is not None
            return await self.services.create(
                run, package=package.native, project=project, command=run.command, env=env
            )
        return await self.tasks.create_slm(
            run, package=package.native, project=project, command=command, env=env
        )

    def _surroundings(self, run: RunSpec) -> dict[str, str]:
        """What a task of one node finds beside its own variables; a service has no shell to make links."""
        found = {"BROKER_NODE_RANK": "0", "BROKER_MASTER_ADDR": "127.0.0.1"}
        if self._output is not None and run.port is not None:
            found["BROKER_DATASETS_DIR"] = f"{self._output.in_job}/{FOLDER}"
        return found

    async def _fitting(self, run: RunSpec) -> Package:
        """The run's package.  Raises Refused when it can never hold the run."""
        if not self._packages:
            with preparing("create"):
                await self.packages()
        package = self._packages.get(run.native_pool)
        if package is None:
            raise Refused(f"package is {run.native_pool!r}, expected one of {sorted(self._packages)}")
        if package.trouble:  # it may pass
            raise NoCapacity(f"package {package.native}: {package.trouble}")
        node, want = package.shape, run.spec.shape
        if not node.accelerator_memory_gib:  # the platform's word for the product, and no memory
            node = replace(
                node, accelerator=want.accelerator, accelerator_memory_gib=want.accelerator_memory_gib
            )
        if why := misfit(want, node):
            raise Refused(f"package {package.native}: {why}")
        if (want.cores, want.memory_gib, want.accelerators) != (
            node.cores,
            node.memory_gib,
            node.accelerators,
        ):
            raise Refused(
                f"package {package.native}: a run takes a whole node ({node.cores} cores, {node.memory_gib}"
                f" GiB, {node.accelerators} cards), the spec is {run.spec.name}"
            )
        if run.nodes > package.nodes:
            raise Refused(f"package {package.native}: nodes is {run.nodes}, it has {package.nodes}")
        if package.ends_ms is not None and run.max_run_time_s is not None:
            left_s = (package.ends_ms - self._clock()) // 1000
            if run.max_run_time_s > left_s:
                raise Refused(
                    f"package {package.native} ends in {left_s} s, maxRunTime is {run.max_run_time_s} s"
                )
        return package

    def _allowed(self, run: RunSpec, recipe: Recipe | None, package: Package) -> None:
        """Raises Refused and Unsupported for what the platform cannot do with this run."""
        if recipe is not None and not self._settings.multi_node:
            raise Unsupported(f"{RECIPE} is {recipe.kind!r}: the center is not set up for it (multi_node)")
        if recipe is None and run.nodes > 1:
            raise Unsupported(
                f"nodes is {run.nodes}: a task that runs its own command has one node here;"
                f" only the platform's fine-tuning ({RECIPE}) has several"
            )
        if (run.kind is Kind.ONLINE or run.port is not None) and not self.traits.services:
            raise Unsupported(f"online services need {', '.join(NEEDED)}, and a platform that lists them")
        if run.kind is Kind.ONLINE and run.port is None:
            raise Refused("port is not set, expected the one that the service listens on")
        if not run.image and recipe is None:
            raise Refused("image is '', expected the URL of one: a task here always has an image")
        if run.vip_nodes:
            raise Unsupported("nodes cannot be named here: the platform shows none")

    async def start(self, run: RunRef) -> None:
        match parted(run.remote):
            case (kind, id) if kind == SERVICE and self.services is not None:
                await self.services.publish(id)
            case (kind, id) if kind in self.tasks.kinds:
                await self._start_task(kind, id)
            case _:
                raise Refused(f"remote is {run.remote!r}, which is nothing that this center can start")

    async def _start_task(self, kind: str, id: int) -> None:
        """A start that is refused because the task runs already has been made before."""
        try:
            await self.tasks.start(kind, id)
        except NotThere:
            raise
        except Refused as no:
            seen = (await self.tasks.look(kind, {id})).get(id)
            if seen is None:
                raise Unavailable(f"the start was refused, and the task cannot be seen: {no}") from no
            if seen.state in (RemoteState.CREATED, RemoteState.GONE):
                raise

    async def find(self, run: RunId) -> RemoteId | None:
        if self.traits.lookup is Lookup.NEITHER:
            raise Unsupported("this installation has no list of slm tasks")
        found = await self.tasks.find(run)
        if found is None and self.services is not None and self.services.listed:
            found = await self.services.find(run)
        return found

    async def observe(self, runs: Collection[RunRef]) -> Mapping[RunId, Sighting]:
        """One list of each kind that is asked for."""
        seen: dict[RunId, Sighting] = {}
        wanted: dict[str, dict[int, RunRef]] = {}
        for run in runs:
            match parted(run.remote):
                case (kind, id) if kind in (*self.tasks.kinds, SERVICE):
                    wanted.setdefault(kind, {})[id] = run
                case _:
                    seen[run.id] = Sighting(RemoteState.GONE)
        for kind, refs in wanted.items():
            if kind == SERVICE:
                found = await self.services.look(refs) if self.services is not None else {}
            else:
                found = await self.tasks.look(kind, refs)
            for id, run in refs.items():
                told = await self._with_files(run, found.get(id))
                if told is not None:
                    seen[run.id] = told
        return await self._checkpoints.added(runs, seen)

    async def _with_files(self, run: RunRef, seen: Sighting | None) -> Sighting | None:
        """Add what the shared storage tells: the exit code, and when it was written.

        Where the platform shows no task at all, an exit code is all that tells of its end.
        """
        if self._output is None or (seen is not None and seen.state not in ENDED):
            return _explained(seen)
        ended = await self._output.ended(run.id, 0)
        if ended is None:
            return _explained(seen)
        code, ended_ms = ended
        if seen is None:
            seen = Sighting(RemoteState.FAILED if code else RemoteState.SUCCEEDED, raw="exit code")
        if seen.started_ms is not None:  # two clocks: the platform's and the storage's
            ended_ms = max(ended_ms, seen.started_ms)
        cannot = seen.state is RemoteState.FAILED and code in _CANNOT_START
        return _explained(replace(seen, exit_code=code, ended_ms=ended_ms, cannot_start=cannot))

    async def stop(self, run: RunRef, *, grace_s: int) -> None:
        """Look first: a stop of what has ended may change what it is called.  The platform takes no
        grace of ours."""
        match parted(run.remote):
            case (kind, id) if kind == SERVICE and self.services is not None:
                await _unless_gone(self.services.take_offline(id))
            case (kind, id) if kind in self.tasks.kinds:
                await self._stop_task(kind, id)
            case _:
                pass

    async def _stop_task(self, kind: str, id: int) -> None:
        try:
            seen = (await self.tasks.look(kind, {id})).get(id)
        except Unavailable:
            seen = None  # it must be stopped all the same
        if seen is not None and seen.state in (*ENDED, RemoteState.GONE):
            return
        try:
            await _unless_gone(self.tasks.stop(kind, id))
        except Refused as no:  # as while a task is being created: not never, but not now
            raise Unavailable(f"the stop was refused: {no}") from no

    async def delete(self, run: RunRef) -> None:
        """By the kind of thing and its number, after its name was read back: numbers of different
        kinds look alike (trap 6)."""
        match parted(run.remote):
            case (kind, id) if kind == SERVICE and self.services is not None:
                row = await self.services.row(id)
                if row is not None and _is(row, "service_name", run.id, run.remote):
                    await _unless_gone(self.services.delete(id))
            case (kind, id) if kind in self.tasks.kinds:
                row = await self.tasks.row(kind, id)
                if row is not None and _is(row, "name", run.id, run.remote):
                    seen = sighting(row, self._settings.zone)
                    if seen.state not in (*ENDED, RemoteState.CREATED):
                        raise Unavailable(f"task {id} is {seen.raw!r}, expected an ended one")
                    await _unless_gone(self.tasks.delete(kind, id, row))
            case _:
                pass
        if self._output is not None:
            await self._output.delete(run.id)

    # ------------------------------------------------------------ files

    async def logs(self, run: RunRef, node: int, offset: int) -> AsyncIterator[bytes]:
        async for chunk in self._storage("logs").logs(run.id, node, offset):
            yield chunk

    async def results(self, run: RunRef) -> AsyncIterator[ResultFile]:
        async for result in self._storage("results").results(run.id):
            yield result

    def _storage(self, what: str) -> Output:
        if self._output is None:
            raise Unsupported(f"the platform has no call for {what}: set output = {{in_job, here}}")
        return self._output

    async def stage(self, copy: CopyRef) -> CopySighting:
        """Over the shared storage: the platform's own way for the bytes is not in its document."""
        return await step(self._storage("the bytes of data sets"), copy)

    async def unstage(self, copy: CopyRef) -> None:
        """Remove what `stage` brought there."""
        await remove(self._storage("the bytes of data sets"), copy.dataset)

    # ------------------------------------------------------------ the rest

    async def checks(self) -> AsyncIterator[Check]:
        async for check in checks(self, self._output, now_ms=self._clock()):
            yield check

    async def call(self, method: str, path: str, body: bytes | None) -> RawAnswer:
        return await self.wire.raw(method, path, body)

    async def aclose(self) -> None:
        await self.wire.http.aclose()


def _explained(seen: Sighting | None) -> Sighting | None:
    """A failure with a text; the platform itself gives none."""
    if seen is None or seen.state is not RemoteState.FAILED or seen.message:
        return seen
    if seen.exit_code is None:
        return replace(seen, message=f"the platform says {seen.raw!r} and no exit code was left")
    return replace(seen, message=f"exit code {seen.exit_code}")


def _is(row: Mapping[str, Any], field: str, name: str, remote: RemoteId) -> bool:
    """Whether a row is the run's.  Raises Refused for another one's: it must not be deleted."""
    if row.get(field) != name:
        raise Refused(f"{remote} is called {row.get(field)!r} there, expected {name!r}: nothing was deleted")
    return True


async def _unless_gone(call: Coroutine[Any, Any, None]) -> None:
    with suppress(NotThere):
        await call

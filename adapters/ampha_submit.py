"""Creating the task of a run at an Ampha center, or going on with that of an earlier one (6).

Here: what is asked for, that it is asked once, and what the answers mean.  Not here: the request's form
(ampha_tasks), and looking afterwards.
"""

from __future__ import annotations

import asyncio
import re
import shlex
from collections.abc import Mapping
from dataclasses import replace

from adapters.ampha_assets import Assets, data_of
from adapters.ampha_capacity import Capacity, Group, GroupNode, group_id, native_of
from adapters.ampha_resume import Resume
from adapters.ampha_services import MODEL, ServiceRuns, is_service
from adapters.ampha_tasks import (
    CREATES,
    Kind,
    Remote,
    Tasks,
    create_body,
    gpu_resource,
    named,
    store_of,
)
from adapters.ampha_wire import Api, PlatformRefused
from adapters.nodes import misfit, pack, rooms
from adapters.output import Output, command_line, environment
from adapters.sent import preparing
from broker.adapter import (
    AdapterError,
    Denied,
    NoCapacity,
    Refused,
    RunSpec,
    Throttled,
    Unavailable,
    Unsupported,
)
from broker.core.model import NodeShape, RemoteId, RunId

DATA_IN_JOB = "/ampha/dataset"
"""Where a task finds its data set, as the platform's own log lines show it (7)."""
DATASETS_IN_JOB = "/tmp/broker-datasets"
CREATE_SERVICE = MODEL + "modelServer/createUnionModelServer"
MAX_REMEMBERED = 10_000

_FULL = re.compile(r"配额|余量|不足|上限|超过|超出|quota|insufficient", re.IGNORECASE)
_NEVER = re.compile(
    r"参数|不存在|不支持|不可用|不允许|无法|请选择|请正确|请先|没有|已存在|重复|invalid|not found|exist",
    re.IGNORECASE,
)
_TAKEN = re.compile(r"(名称|名字|name).*(已存在|重复|exist)", re.IGNORECASE)


class Submissions:
    """The submissions of one center; what has been sent is remembered, and not sent again."""

    def __init__(
        self,
        api: Api,
        capacity: Capacity,
        tasks: Tasks,
        assets: Assets,
        resume: Resume,
        output: Output | None,
        services: ServiceRuns | None,
    ) -> None:
        self._api = api
        self._services = services
        self._capacity = capacity
        self._tasks = tasks
        self._assets = assets
        self._resume = resume
        self._output = output
        self._submitting: dict[RunId, asyncio.Lock] = {}
        self._tried: dict[RunId, RemoteId | None] = {}  # None: the outcome is not known

    async def submit(self, run: RunSpec) -> RemoteId:
        """One task per run: a second call for the same id answers with the first, if it is known."""
        lock = self._submitting.setdefault(run.id, asyncio.Lock())
        try:
            async with lock:
                if run.id in self._tried:
                    return self._tried[run.id] or await self._found_again(run.id)
                if (resumed := await self._resumed(run)) is not None:
                    return resumed
                with preparing("create"):
                    body, kind, path = await self._request(run)
                self._trying(run.id)
                try:
                    answer = await self._api.ask("create", path, body, effect=True)
                except PlatformRefused as no:
                    return await self._refused(run.id, no)
                except (NoCapacity, Refused, Denied, Throttled, Unsupported):  # no effect
                    del self._tried[run.id]
                    raise
                self._tried[run.id] = remote = await self._accepted(run.id, kind, answer)
                return remote
        finally:
            if not lock.locked():
                self._submitting.pop(run.id, None)

    async def _resumed(self, run: RunSpec) -> RemoteId | None:
        """The earlier run's task, going on; None when the run has to be a task of its own.

        With `output`, a run finds the checkpoints of its job where the earlier one left them.
        """
        if run.resume_from is None or self._output is not None:
            return None
        with preparing("resume"):
            remote = await self._resume.possible(run.resume_from)
        if remote is None:
            return None
        self._trying(run.id)
        try:
            await self._resume.resume(run.id, run.resume_from, remote)
        except Throttled:
            del self._tried[run.id]
            raise
        except PlatformRefused as no:
            if not _NEVER.search(no.text):
                raise  # it may go on all the same
            del self._tried[run.id]
            return None  # such as: its resource group is not available
        self._tried[run.id] = remote.text
        return remote.text

    async def _request(self, run: RunSpec) -> tuple[dict[str, object], Kind, str]:
        """What is sent.  Raises Refused for what never fits; nothing has an effect yet."""
        settings = self._api.settings
        group, node = await self._group(run)
        if is_service(run):
            if self._services is None:
                raise Unsupported("online services are not set up for this center (online_services)")
            return await self._services.request(run, group), Kind.SERVICE, CREATE_SERVICE
        image = await self._assets.picture(run.image)
        if image is None:
            raise Refused(
                f"image is {run.image!r}, which the center does not list; `broker images` shows what it has"
            )
        preset = None
        if settings.preset:
            preset = await self._capacity.preset(run.spec.shape, group, node)
            if preset is None:
                raise Refused(f"spec {run.spec.name!r} is none of the center's preset specs (spec_mode)")
        if len(run.datasets) > 1 and not settings.extra_inputs:
            raise Refused(
                f"datasetIds has {len(run.datasets)} entries, a task of this center reads one"
                " (its operator may set extra_inputs)"
            )
        kind, path = CREATES[settings.task_api]
        body = create_body(
            run,
            settings=settings,
            account=await self._api.account(),
            zone={"zoneId": group.id, "zoneName": group.name, "resourceGroupKey": group.key},
            image=image,
            command=self._command(run),
            gpu=gpu_resource(
                run.spec.shape,
                share=group.share,
                profile=node.profile,
                card_gib=node.shape.accelerator_memory_gib,
            )
            if preset is None
            else preset.resource(),
            spec_id=None if preset is None else preset.id,
            data=[data_of(remote) for _, remote in run.datasets],
        )
        return body, kind, path

    def _command(self, run: RunSpec) -> str:
        """The job's command with its environment, for the shell of each instance.

        RANK and MASTER_ADDR are what the platform's training operator sets.
        """
        more = {"BROKER_DATASETS_DIR": DATASETS_IN_JOB}
        if self._output is None:
            more |= {
                "BROKER_OUTPUT_DIR": f"/tmp/{run.id}",
                "BROKER_CHECKPOINT_DIR": f"/tmp/{run.job}",
            }
        links = "".join(
            f"mkdir -p {DATASETS_IN_JOB};"
            f" ln -sfn {shlex.quote(self._place(at, remote))} {DATASETS_IN_JOB}/{shlex.quote(dataset)}; "
            for at, (dataset, remote) in enumerate(run.datasets)
        )
        made = "" if self._output else f"mkdir -p /tmp/{run.id} /tmp/{run.job}; "
        line = command_line(
            run,
            environment(run, more),
            self._output,
            rank="${RANK:-0}",
            master="${MASTER_ADDR:-127.0.0.1}",
        )
        return links + made + line

    def _place(self, at: int, remote: str) -> str:
        """Where a task finds its data sets: the first as documented, the others as the operator says."""
        if at == 0:
            return DATA_IN_JOB
        return self._api.settings.extra_inputs.replace("{key}", data_of(remote).key)

    async def _group(self, run: RunSpec) -> tuple[Group, GroupNode]:
        """The group of a run's pool, which can hold it when it is empty, and such a node.  Raises Refused."""
        group = await self._capacity.group(group_id(run.native_pool))
        if group is None:
            known = sorted(self._capacity.groups)
            raise Refused(f"pool is {run.native_pool!r}, expected that of a resource group: {known}")
        nodes = [n for n in group.nodes if native_of(group, n) == run.native_pool]
        why = {n.shape: misfit(_as_named(run.spec.shape, n), n.shape) for n in nodes}
        fitting = [n for n in nodes if not why[n.shape]]
        if not fitting:
            raise Refused(f"pool {run.native_pool!r}: {next(iter(why.values()), 'it has no nodes')}")
        shape = fitting[0].shape
        if pack(shape, rooms(shape, len(fitting), ()), run.spec.shape, run.nodes) is None:
            raise Refused(f"pool {run.native_pool!r}: nodes is {run.nodes}, more than it can ever hold")
        return group, fitting[0]

    async def _accepted(self, run: RunId, kind: Kind, answer: object) -> RemoteId:
        """The id of a task that was accepted: told, or in a list, or its name until it is (6.3)."""
        if kind is Kind.SERVICE:
            if not isinstance(answer, str) or not answer:
                raise Unavailable(f"service {run} was accepted without an id")
            return Remote(kind, answer).text
        told = answer.get("taskId") if isinstance(answer, Mapping) else None
        if told:
            return Remote(kind, str(told)).text
        try:
            task = named(await self._tasks.pages(store_of(kind), name=run), run)
        except AdapterError:  # it is accepted, whatever becomes of this look
            task = None
        return task.remote.text if task else Remote(Kind.NEW, run).text

    async def _refused(self, run: RunId, no: PlatformRefused) -> RemoteId:
        """What a refused creation means (1.4): the code is the same for everything, the text is not.

        A text that speaks of the request is a refusal; any other leaves the outcome unknown.
        """
        if _TAKEN.search(no.text):
            return await self._found_again(run)
        if _FULL.search(no.text):
            del self._tried[run]
            raise NoCapacity(str(no)) from None
        if _NEVER.search(no.text):
            del self._tried[run]
            raise Refused(str(no)) from None
        raise no

    async def _found_again(self, run: RunId) -> RemoteId:
        """The task of a creation whose outcome was not known.  Raises Unavailable."""
        found = await self.find(run)
        if found is None:
            raise Unavailable(f"{run} has been sent already and is not in the center's lists (yet)")
        self._tried[run] = found.text
        return found.text

    async def find(self, run: RunId) -> Remote | None:
        """What has been created for a run, by its name."""
        task = await self._tasks.find(run)
        if task is not None:
            return task.remote
        if self._services is not None and (service := await self._services.find(run)) is not None:
            return Remote(Kind.SERVICE, service)
        return await self._resume.find(run) if self._output is None else None

    def _trying(self, run: RunId) -> None:
        """Whatever becomes of the next call, it is not made again for this run."""
        self._tried[run] = None
        while len(self._tried) > MAX_REMEMBERED:
            del self._tried[next(iter(self._tried))]


def _as_named(want: NodeShape, node: GroupNode) -> NodeShape:
    """A request in the platform's word for the product, unless the operator has named the group's."""
    own_word = want.accelerators and node.shape.accelerator == node.product
    return replace(want, accelerator=node.product) if own_word else want

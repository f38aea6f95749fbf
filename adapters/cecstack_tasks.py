"""Tasks of a CECSTACK: slm trainings (chapter 11), which run the user's command on one node, and the
maas tasks pt, sft, dpo, rw and ppo (chapter 7), which run the platform's own recipe on several.

Here: their bodies, their calls and what their states mean.  Not here: files of runs (output.py) and
packages.

A task is created by one call and started by another, which is a GET; a second start ends what runs and
begins anew.  The document has no list and no detail of slm tasks; both are looked for when the center
is opened (`find_out`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from html import unescape
from typing import Any, Final
from zoneinfo import ZoneInfo

from adapters.cecstack_wire import NotThere, Wire, absent, uncertain
from adapters.sent import begun
from adapters.values import utc_ms, whole
from broker.adapter import AdapterError, Refused, RemoteState, RunSpec, Sighting, Unavailable
from broker.core.model import RemoteId, RunId

SLM: Final = "slm"
MAAS: Final = ("pt", "sft", "dpo", "rw", "ppo")
TASK_TYPE: Final = 5
"""`type` of deleteInstance (§7.8, §11.6): any task, large model or not."""
RECIPE: Final = "CECSTACK_TASK"
"""Variable of a job that asks for a maas task; the others are RECIPE_DEFAULTS."""
RECIPE_DEFAULTS: Final[Mapping[str, str | None]] = {  # None: must be given
    "CECSTACK_AIHUB_ID": None,
    "CECSTACK_DATASET_IDS": "[]",
    "CECSTACK_ARGS": "{}",
    "CECSTACK_FRAMEWORK_CONFIG": "{}",
    "CECSTACK_FRAMEWORK": "deepspeed",
    "CECSTACK_FRAMEWORK_TEMPLATE": "stage2",
    "CECSTACK_FT_TYPE": "lora",
}

_STATES: Final[Mapping[str, RemoteState]] = {
    "": RemoteState.CREATED,
    "未知": RemoteState.CREATED,
    "pending": RemoteState.PENDING,
    "waiting": RemoteState.PENDING,
    "created": RemoteState.PENDING,  # of its workflow: it has been started
    "queued": RemoteState.PENDING,
    "running": RemoteState.RUNNING,
    "succeeded": RemoteState.SUCCEEDED,
    "success": RemoteState.SUCCEEDED,
    "completed": RemoteState.SUCCEEDED,
    "failed": RemoteState.FAILED,
    "error": RemoteState.FAILED,
    "terminated": RemoteState.STOPPED,
    "stopped": RemoteState.STOPPED,
    "deleted": RemoteState.STOPPED,
}
ENDED: Final = (RemoteState.SUCCEEDED, RemoteState.FAILED, RemoteState.STOPPED)
_TAGS = re.compile(r"<[^>]*>")


def remote_id(kind: str, id: int) -> RemoteId:
    return RemoteId(f"{kind}:{id}")


def parted(remote: RemoteId) -> tuple[str, int] | None:
    """Kind and number of a remote id; None for text that no object of this platform can have."""
    kind, _, number = remote.partition(":")
    return (kind, int(number)) if number.isascii() and number.isdecimal() else None


def word(row: Mapping[str, Any]) -> str:
    """The status in the platform's word; final_status, which may be HTML, where status is empty."""
    for field in ("status", "final_status"):
        text = unescape(_TAGS.sub("", str(row.get(field) or ""))).replace("\xa0", " ").strip()
        if text:
            return text
    return ""


def sighting(row: Mapping[str, Any], zone: ZoneInfo) -> Sighting:
    """What a row of a list or a detail says of a task.

    The platform tells when a task last began to run; of its end only when its record last changed,
    which is taken for the end where it can be.
    """
    raw = word(row)
    state = _STATES.get(raw.lower(), RemoteState.UNKNOWN)
    started = ended = None
    if state is RemoteState.RUNNING or state in ENDED:
        started = utc_ms(row.get("last_run_time"), "last_run_time", zone)
    if started is not None and state in ENDED:
        changed = utc_ms(row.get("changed_on"), "changed_on", zone)
        ended = changed if changed is not None and changed >= started else None
    return Sighting(state, started_ms=started, ended_ms=ended, raw=raw)


def envs(env: Mapping[str, str]) -> str:
    """The field `expand`: an object as text (trap 24)."""
    pairs = [{"key": name, "value": value} for name, value in env.items()]
    return json.dumps({"trainWorkArgs": {"imageType": "preset", "envs": pairs}}, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a job asks of the platform's own training, from its variables CECSTACK_*."""

    kind: str
    aihub_id: int
    dataset_ids: str
    args: str
    framework_config: str
    framework: str
    framework_template: str
    ft_type: str

    @classmethod
    def of(cls, run: RunSpec) -> Recipe | None:
        """None for a job that runs its own command.  Raises Refused."""
        given = dict(run.env)
        kind = given.get(RECIPE)
        if kind is None:
            return None
        if kind not in MAAS:
            raise Refused(f"{RECIPE} is {kind!r}, expected one of {', '.join(MAAS)}")
        values = {name: given.get(name, default) for name, default in RECIPE_DEFAULTS.items()}
        aihub = values["CECSTACK_AIHUB_ID"]
        if aihub is None or not aihub.isdecimal():
            raise Refused(f"CECSTACK_AIHUB_ID is {aihub!r}, expected the number of a base model")
        for name, kinds in (
            ("CECSTACK_DATASET_IDS", list),
            ("CECSTACK_ARGS", dict),
            ("CECSTACK_FRAMEWORK_CONFIG", dict),
        ):
            try:
                fine = isinstance(json.loads(str(values[name])), kinds)
            except ValueError:
                fine = False
            if not fine:
                what = "a list" if kinds is list else "an object"
                raise Refused(f"{name} is {values[name]!r}, expected {what} in JSON")
        return cls(kind, int(aihub), *(str(values[name]) for name in list(RECIPE_DEFAULTS)[1:]))


@dataclass(frozen=True, slots=True)
class Insight:
    """What this installation lets us see of tasks (the document is silent about slm)."""

    listed: bool
    detailed: bool | None  # None: there was no task to try it with


class Tasks:
    """The calls about tasks of the kinds that this broker makes."""

    def __init__(self, wire: Wire, *, zone: ZoneInfo, node_selector: str, maas: bool) -> None:
        self.kinds: tuple[str, ...] = (SLM, *MAAS) if maas else (SLM,)
        self.insight = Insight(listed=True, detailed=None)
        self._wire = wire
        self._zone = zone
        self._selector = node_selector

    async def find_out(self) -> Insight:
        """Whether slm tasks can be listed and looked at one by one; two reads at most."""
        try:
            first = None
            async for row in self._wire.rows("task.list", _path(SLM), related="str_related"):
                first = row
                break
        except AdapterError as error:
            if not absent(error):
                raise
            self.insight = Insight(listed=False, detailed=None)
            return self.insight
        detailed = None
        if first is not None and (id := whole(first.get("id"), "id")) is not None:
            try:
                await self._detail(SLM, id)
                detailed = True
            except NotThere:
                detailed = None  # deleted meanwhile
            except AdapterError as error:
                if not absent(error):
                    raise
                detailed = False
        self.insight = Insight(listed=True, detailed=detailed)
        return self.insight

    # ------------------------------------------------------------ making

    async def create_slm(
        self, run: RunSpec, *, package: str, project: int, command: str, env: Mapping[str, str]
    ) -> RemoteId:
        """§11.2.  Ids are sent in both spellings, with one value (trap 8)."""
        body = {
            "projectId": project,
            "project_id": project,
            "name": run.id,
            "maas_task_type": SLM,
            "billing_mode": "resourcePool",
            "label": "",
            "images": run.image,
            "command": command,
            "spec_type": "compute",
            "resourceId": package,
            "resource_id": package,
            "node_selector": self._selector,
            "expand": envs(env),
        }
        return await self._create(SLM, body)

    async def create_maas(self, run: RunSpec, recipe: Recipe, *, package: str, project: int) -> RemoteId:
        """§7.15, then §7.2: the container, which is named like the run too, and the task in it."""
        answer = await self._wire.call(
            "maas.create",
            "POST",
            f"/alpha/maas_modelview/{recipe.kind}/api/",
            effect=True,
            document={"project": project, "name": run.id, "describe": f"run {run.id}"},
        )
        container = _id_of(answer, "maas.create")
        body = {
            "jobname": run.id,
            "name": run.id,
            "label": "",
            "storage_type": 0,
            "billing_mode": "resourcePool",
            "spec_type": "compute",
            "node_selector": self._selector,
            "workers": run.nodes,
            "resource_id": package,
            "resourceId": package,
            "framework": recipe.framework,
            "framework_template": recipe.framework_template,
            "ft_type": recipe.ft_type,
            "level": "L0",
            "advanced_mode": "close",
            "aihub_id": recipe.aihub_id,
            "projectId": project,
            "project_id": project,
            "dataset_ids": recipe.dataset_ids,
            "maas": container,
            "args": recipe.args,
            "framework_config": recipe.framework_config,
        }
        with begun("maas.create"):
            return await self._create(recipe.kind, body)

    async def _create(self, kind: str, body: Mapping[str, Any]) -> RemoteId:
        answer = await self._wire.call("task.create", "POST", _path(kind), effect=True, document=body)
        return remote_id(kind, _id_of(answer, "task.create"))

    async def start(self, kind: str, id: int) -> None:
        """§7.6, §11.4: a GET that starts the task, and restarts one that runs (traps 1 and 2)."""
        path = f"{_path(kind)}maas_run/{id}"
        await self._wire.call("task.run", "GET", path, effect=True, envelope=uncertain)

    async def stop(self, kind: str, id: int) -> None:
        """§7.7, §11.5, by GET too."""
        await self._wire.call("task.stop", "GET", f"{_path(kind)}stop/{id}", effect=True, urgent=True)

    async def delete(self, kind: str, id: int, row: Mapping[str, Any]) -> None:
        """§7.8, §11.6 and, for the container of a maas task, §7.16."""
        query = {"id": id, "type": TASK_TYPE}
        await self._wire.call("instance.delete", "DELETE", "/v1/deleteInstance", effect=True, query=query)
        maas = row.get("maas")
        container = maas.get("id") if isinstance(maas, dict) else row.get("maas_id")
        if kind != SLM and (number := whole(container, "maas.id")) is not None:
            path = f"/alpha/maas_modelview/{kind}/api/{number}"
            await self._wire.call("maas.delete", "DELETE", path, effect=True)

    # ------------------------------------------------------------ looking

    async def find(self, name: RunId) -> RemoteId | None:
        """Look a task up by its name in the lists of all kinds (names stay unique: they are run ids)."""
        for kind in self.kinds:
            rows = self._wire.rows("task.list", _path(kind), related="str_related")
            found = [whole(row.get("id"), "id") async for row in rows if row.get("name") == name]
            if ids := [id for id in found if id is not None]:
                return remote_id(kind, min(ids))
        return None

    async def row(self, kind: str, id: int) -> dict[str, Any] | None:
        """One task, from its detail or the list; None when the platform says that there is none.

        Raises Unavailable where it can be neither seen nor listed.
        """
        if kind != SLM or self.insight.detailed is not False:
            try:
                found = await self._detail(kind, id)
                if kind == SLM and self.insight.detailed is None:
                    self.insight = replace(self.insight, detailed=True)
                return found
            except NotThere:
                return None
            except AdapterError as error:
                if not absent(error):
                    raise
                if kind == SLM:
                    self.insight = replace(self.insight, detailed=False)
        rows = await self.rows(kind, {id})
        return rows.get(id)

    async def rows(self, kind: str, ids: Collection[int]) -> dict[int, dict[str, Any]]:
        """Those of some tasks that the list has; it is read until all are found, or to its end.

        Raises Unavailable where slm tasks cannot be listed.
        """
        if kind == SLM and not self.insight.listed:
            raise Unavailable("this installation neither lists slm tasks nor shows one by its id")
        found: dict[int, dict[str, Any]] = {}
        async for row in self._wire.rows("task.list", _path(kind), related="str_related"):
            if (id := whole(row.get("id"), "id")) in ids and id is not None:
                found[id] = row
                if len(found) == len(set(ids)):
                    break
        return found

    async def look(self, kind: str, ids: Collection[int]) -> dict[int, Sighting]:
        """What the platform says of some tasks: one list, and a detail for each that is not in it.

        A task is GONE when its detail says so, and where there is none, when a whole list is without
        it; one that cannot be looked at is left out.
        """
        seen: dict[int, Sighting] = {}
        if kind != SLM or self.insight.listed:
            seen = {id: sighting(row, self._zone) for id, row in (await self.rows(kind, ids)).items()}
        for id in sorted(set(ids) - seen.keys()):
            try:
                row = await self.row(kind, id)
            except Unavailable:
                if kind != SLM or self.insight.listed or self.insight.detailed is not False:
                    raise
                continue
            seen[id] = Sighting(RemoteState.GONE) if row is None else sighting(row, self._zone)
        return seen

    async def _detail(self, kind: str, id: int) -> dict[str, Any]:
        """§7.4, and the same for slm where the installation has it."""
        row = await self._wire.call("task.detail", "GET", f"{_path(kind)}{id}", effect=False)
        if not isinstance(row, dict) or whole(row.get("id"), "id") != id:
            raise Unavailable(f"task.detail: asked for {id}, got {str(row)[:200]}")
        return row


def _path(kind: str) -> str:
    return f"/alpha/maas_task_modelview/{kind}/api/"


def _id_of(answer: Any, operation: str) -> int:
    """The id in a create's answer.  Raises Unavailable: something was made, and nobody says what."""
    id = whole(answer.get("id"), "id") if isinstance(answer, dict) else None
    if id is None:
        raise Unavailable(f"{operation}: expected an id in the answer, got {str(answer)[:200]}")
    return id

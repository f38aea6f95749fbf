"""Going on with a stopped task of an Ampha center from its own checkpoint (6.3, T34).

Here: when that is possible, and how a resume whose answer was lost is found.  Not here: jobs that go on
from BROKER_CHECKPOINT_DIR, which are new tasks.

The platform resumes a task as itself, under the name of the earlier run, so the later run could not be
looked up by its name.  A folder in the user's private files, made before the call, ties the two: its
name is `<later run>.<earlier run>.<a pod of the earlier one>`, and it goes when the later run is deleted.  A
task that has ended and has that pod
no more has been resumed and has ended again.
"""

from __future__ import annotations

from adapters.ampha_assets import FILES
from adapters.ampha_tasks import ENDED, KERNEL, Kind, Remote, Tasks, store_of
from adapters.ampha_wire import Api, PlatformRefused, rows_of
from broker.adapter import RemoteState, Unavailable
from broker.core.model import RunId

FOLDER = "broker-resumed"
MAX_FOLDERS = 10_000
_CALLS = {
    Kind.OPERATOR: ("trainOperator/checkCanResumeTrainOperatorTask", "trainOperator/resumeTrainOperatorTask"),
    Kind.FINE_TUNE: ("fineTune/checkCanResumeFineTuneTask", "fineTune/resumeLlmFineTuneTask"),
}


class Resume:
    """The resumes of one center."""

    def __init__(self, api: Api, tasks: Tasks) -> None:
        self._api = api
        self._tasks = tasks

    async def possible(self, earlier: RunId) -> Remote | None:
        """The ended task of a run, if the platform would go on with it: it has left a checkpoint."""
        task = await self._tasks.find(earlier)
        if task is None or task.state not in (RemoteState.STOPPED, RemoteState.FAILED):
            return None
        check, _ = _CALLS[store_of(task.remote.kind)]
        try:
            can = await self._api.ask("can_resume", f"{KERNEL}{check}/{task.remote.id}")
        except PlatformRefused:
            return None
        return task.remote if str(can).lower() == "true" else None

    async def resume(self, run: RunId, earlier: RunId, remote: Remote) -> None:
        """Go on with a task as a later run.  Raises PlatformRefused, Unavailable."""
        account = await self._api.account()
        pods = await self._tasks.pods(remote)
        mark = f"{run}.{earlier}.{pods[0].uid if pods else ''}"
        body = {"folderName": mark, "parentPath": f"/{FOLDER}", "userId": account.id}
        await self._api.ask("mark_resume", FILES + "addFolder", body, effect=True)
        _, call = _CALLS[store_of(remote.kind)]
        await self._api.ask("resume", KERNEL + call, query={"taskId": remote.id}, effect=True)

    async def find(self, run: RunId) -> Remote | None:
        """The task that goes on as this run; None when no resume of it has arrived."""
        mark = next((name for name in await self._marks(run) if name.startswith(f"{run}.")), None)
        if mark is None:
            return None
        _, earlier, pod = mark.split(".", 2)
        task = await self._tasks.find(RunId(earlier))
        if task is None:
            return None
        if task.state not in ENDED or task.state is RemoteState.SUCCEEDED:
            return task.remote
        still_there = pod in {each.uid for each in await self._tasks.pods(task.remote)}
        return None if still_there or not pod else task.remote

    async def forget(self, run: RunId) -> None:
        """Remove what ties a run to an earlier one; nothing where there is nothing."""
        marks = [f"/{FOLDER}/{name}" for name in await self._marks(run) if name.startswith(f"{run}.")]
        if marks:
            account = await self._api.account()
            body = {"sPath": marks, "userId": account.id}
            await self._api.ask("forget_resume", FILES + "deleteFileOrDictory", body, effect=True)

    async def _marks(self, run: RunId) -> list[str]:
        account = await self._api.account()
        body = {
            "fileName": run,
            "path": f"/{FOLDER}",
            "requestBegin": 1,
            "requestFileAccount": MAX_FOLDERS,
            "userId": account.id,
        }
        rows = rows_of(await self._api.ask("resumes", FILES + "getFolderInfo", body), "folders")
        if len(rows) >= MAX_FOLDERS:
            raise Unavailable(f"/{FOLDER} has too many folders")
        return [str(row.get("fileName")) for row in rows]

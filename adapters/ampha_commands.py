"""What operators may ask of an Ampha center beyond jobs: `broker ampha …`.

Here: the table of commands, each one or few calls of the platform.  Not here: anything that the
scheduler does; nothing in this module is ever called by it.  Whoever may use them, and the audit, are
the API's.

What a call says of its success is not what happened (T32): answers of commands that ask for something
say that it was asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adapters.ampha_assets import Assets
from adapters.ampha_records import MAX_PAGES, records
from adapters.ampha_rooms import Rooms
from adapters.ampha_services import Services
from adapters.ampha_tasks import KERNEL, Kind, Tasks
from adapters.ampha_wire import Api, Role, maybe_json, rows_of
from adapters.values import now_ms, utc_ms, whole
from broker.adapter import Argument, ArgumentKind, Refused, Unavailable, VendorCommand

ORDERS = "/api/resource/workOrder/"
MONITORING = "/api/monitor/monitor/getPodsAvgMonitoringInformation"
PAGE = 100
QUOTA_ORDER = 5
PRIORITIES = ("high", "middle", "low")
Arguments = Mapping[str, Any]

ID = Argument("id", "Its id.", required=True)
TASK = Argument("task", "The run's id, which is the task's name.", required=True)


def commands_of(
    api: Api, tasks: Tasks, assets: Assets, services: Services, prefix: str
) -> tuple[VendorCommand, ...]:
    """All commands of a center."""
    office, rooms = Office(api, prefix), Rooms(api, services)
    inside = Inside(api, tasks)
    return (*office.commands(), *inside.commands(), *assets.commands(), *rooms.commands())


class Office:
    """Work orders, quotas, priorities, metering, and stopping all jobs of users (3.4, 10, 11, 14)."""

    def __init__(self, api: Api, prefix: str) -> None:
        self._api = api
        self._prefix = prefix

    def commands(self) -> tuple[VendorCommand, ...]:
        whole_, file = ArgumentKind.WHOLE, ArgumentKind.FILE
        order = Argument("order", "The work order's id.", required=True)
        reason = Argument("reason", "Why.")
        return (
            VendorCommand("quota", "Shows what the broker's account may still take there.", self.quota),
            VendorCommand(
                "user-priority",
                "Sets the priority of a user's queue; needs the tenant's account and qos_ids.",
                self.user_priority,
                (
                    Argument("user", "The platform's user id.", required=True),
                    Argument("priority", "Its rank.", required=True, choices=PRIORITIES),
                ),
            ),
            VendorCommand(
                "users", "Lists users with their ids; needs the tenant's or the system's account.", self.users
            ),
            VendorCommand(
                "stop-all-jobs",
                "Asks for the end of ALL jobs, notebooks and services of users, the broker's own included.",
                self.stop_all_jobs,
                (
                    Argument("users", "The platform's user ids.", required=True, many=True),
                    Argument("yes", "I mean it.", ArgumentKind.FLAG),
                ),
            ),
            VendorCommand(
                "orders",
                "Lists work orders of the broker's account, or those to be approved.",
                self.orders,
                (Argument("to-approve", "Those that the tenant's account may approve.", ArgumentKind.FLAG),),
            ),
            VendorCommand("order", "Shows a work order.", self.order, (order,)),
            VendorCommand(
                "request-quota",
                "Asks for a quota by a work order.",
                self.request_quota,
                (
                    Argument("title", "By which it is found again: the platform tells no id.", required=True),
                    Argument("content", "What is asked for: a JSON object.", file, required=True),
                    reason,
                ),
            ),
            VendorCommand("withdraw-order", "Takes a work order back.", self.withdraw_order, (order,)),
            VendorCommand(
                "approve-order",
                "Agrees to a work order or refuses it; needs the tenant's account.",
                self.approve_order,
                (order, Argument("refuse", "Refuse it.", ArgumentKind.FLAG), reason),
            ),
            VendorCommand(
                "metering",
                "What the platform metered, newest first, joined to the broker's runs.",
                self.metering,
                (
                    Argument("runs", "Only these runs.", many=True),
                    Argument("pages", "Pages of 100 records at most.", whole_),
                ),
            ),
        )

    # ------------------------------------------------------------ quotas and priorities

    async def quota(self, _: Arguments) -> Any:
        account = await self._api.account()
        remains = "/api/system/config/getRemainResource"
        found = {"resources": await self._api.ask("quota", remains, {"userId": account.id})}
        if account.uid is not None:
            path = "/api/resource/configRemake/getQuotaRemainResource"
            body = {"userId": account.id, "uid": account.uid}
            found["storage"] = await self._api.ask("storage_quota", path, body)
        return found

    async def user_priority(self, given: Arguments) -> Any:
        """The id that the call wants is no user id, and no call lists those ids (10, T31)."""
        user, ids = given["user"], self._api.settings.qos_ids
        if user not in ids:
            raise Refused(
                f"user {user!r} has no entry in qos_ids of the center: the platform lists no priority ids,"
                " its operator has to tell the one of this user"
            )
        body = {"id": int(ids[user]), "priority": given["priority"]}
        path = "/api/system/VolcanoQos/updateById"
        await self._api.ask("set_priority", path, body, effect=True, roles=(Role.TENANT,))
        return {"user": user, "priority": given["priority"]}

    async def users(self, _: Arguments) -> Any:
        body = {"quotaFlag": "", "queryType": "user"}
        path, roles = "/api/resource/quota/getUser", (Role.TENANT, Role.SYSTEM)
        rows = rows_of(await self._api.ask("users", path, body, roles=roles), "users")
        ids = self._api.settings.qos_ids
        return [
            {"id": str(r.get("userId")), "name": r.get("user_name"), "qosId": ids.get(str(r.get("userId")))}
            for r in rows
        ]

    async def stop_all_jobs(self, given: Arguments) -> Any:
        """`type` 1 are all AI jobs.  No result per job is told: the lists show it later."""
        if not given.get("yes"):
            raise Refused("--yes is missing: this stops everything that these users have there")
        body = {"type": 1, "userIds": list(given["users"])}
        path = "/api/kernel/api/job/stopJobsByUserIds"
        await self._api.ask("stop_all_jobs", path, body, effect=True, roles=(Role.TENANT,))
        return {"asked": True, "users": list(given["users"])}

    # ------------------------------------------------------------ work orders

    async def orders(self, given: Arguments) -> Any:
        account = await self._api.account()
        page = {"pageNum": 1, "pageSize": PAGE}
        if given.get("to-approve"):
            body = {**page, "applyType": "all", "queryCriteria": {}}
            roles = (Role.TENANT, Role.SYSTEM)
            found = await self._api.ask("orders", ORDERS + "findSearchByApprover", body, roles=roles)
        else:
            body = {**page, "queryCriteria": {"creator": account.id}}
            found = await self._api.ask("orders", ORDERS + "findPageList", body)
        return [_order(row) for row in rows_of(found, "work orders")]

    async def order(self, given: Arguments) -> Any:
        found = await self._api.ask("order", ORDERS + "findById", {"id": given["order"]})
        if not isinstance(found, Mapping):
            raise Unavailable("findById: the answer is no object")
        return _order(found)

    async def request_quota(self, given: Arguments) -> Any:
        content = maybe_json(given["content"])
        if not isinstance(content, dict):
            raise Refused(
                'content is not a JSON object, expected such as {"gpuMemory": 8, "maxOperation": 4}'
            )
        account = await self._api.account()
        body = {
            "applyReason": given.get("reason", ""),
            "approvalStatus": 1,
            "creator": account.id,
            "status": 1,
            "title": given["title"],
            "type": QUOTA_ORDER,
            "applyType": "new",
            "content": given["content"],
        }
        await self._api.ask("request_quota", ORDERS + "addWorkOrder", body, effect=True)
        mine = await self.orders({})
        return [order for order in mine if order["title"] == given["title"]]

    async def withdraw_order(self, given: Arguments) -> Any:
        body = {"id": given["order"]}
        found = await self._api.ask("withdraw_order", ORDERS + "deleteWorkOrder", body, effect=True)
        if isinstance(found, Mapping) and found.get("flag") not in (None, "success"):
            raise Refused(f"the platform did not take it back: {found.get('info')}")
        return await self.order(given)

    async def approve_order(self, given: Arguments) -> Any:
        order = {
            "status": 3 if given.get("refuse") else 2,
            "approvalReason": given.get("reason", ""),
            "id": given["order"],
        }
        found = await self._api.ask("order", ORDERS + "findById", {"id": given["order"]})
        content = found.get("content") if isinstance(found, Mapping) else None
        body = {
            "approvalId": (await self._api.account(Role.TENANT)).id,
            "isEditOrder": "false",
            "editContent": content if isinstance(content, str) else "",
            "workOrder": order,
        }
        path = ORDERS + "changeApprovalStatus"
        await self._api.ask("approve_order", path, body, effect=True, roles=(Role.TENANT,))
        return {"order": given["order"], "asked": "refused" if given.get("refuse") else "approved"}

    # ------------------------------------------------------------ metering

    async def metering(self, given: Arguments) -> Any:
        """The records of the broker's runs, or of some of them."""
        wanted = set(given.get("runs") or ())
        return [
            record
            async for page in records(self._api, given.get("pages", MAX_PAGES))
            for record in page
            if (record["run"] in wanted if wanted else record["run"].startswith(self._prefix))
        ]


def _order(row: Mapping[str, Any]) -> dict[str, Any]:
    words = {1: "pending", 2: "approved", 3: "refused", 4: "withdrawn", 5: "abandoned", 6: "disabled"}
    status = whole(row.get("status"), "status")
    return {
        "id": row.get("id"),
        "title": row.get("title"),
        "type": whole(row.get("type"), "type"),
        "status": words.get(status or 0, str(status)),
        "reason": row.get("applyReason"),
        "content": maybe_json(row.get("content")),
        "createdAt": row.get("createTime"),
    }


class Inside:
    """Looking into one task: pods, events, figures, its whole log (7)."""

    def __init__(self, api: Api, tasks: Tasks) -> None:
        self._api = api
        self._tasks = tasks

    def commands(self) -> tuple[VendorCommand, ...]:
        span = Argument("minutes", "How far back; 60 unless given.", ArgumentKind.WHOLE)
        return (
            VendorCommand("task", "Shows a task as the platform has it.", self.task, (TASK,)),
            VendorCommand("pods", "Lists the pods of a task.", self.pods, (TASK,)),
            VendorCommand("events", "Shows what the cluster said of a task's pods.", self.events, (TASK,)),
            VendorCommand(
                "monitoring", "Figures of use of a task's pods over time.", self.monitoring, (TASK, span)
            ),
            VendorCommand(
                "stop-pod",
                "Ends one pod of a task, which ends the task.",
                self.stop_pod,
                (TASK, Argument("pod", "Its name.", required=True)),
            ),
        )

    async def _task(self, given: Arguments) -> Any:
        task = await self._tasks.find(given["task"])
        if task is None:
            raise Refused(f"task is {given['task']!r}, and no task there has this name")
        return task

    async def task(self, given: Arguments) -> Any:
        """With the documents in its texts unpacked (T3)."""
        task = await self._task(given)
        id = {"taskId": task.remote.id}
        if task.remote.kind is Kind.FINE_TUNE:
            path = KERNEL + "fineTune/queryLlmFineTuneTaskDetail"
            found = await self._api.ask("task", path, query=id)
        else:
            found = await self._api.ask("task", KERNEL + "trainOperator/queryTaskInfo", id)
        if not isinstance(found, Mapping):
            raise Unavailable("the answer is no object")
        return {"taskId": task.remote.id, **{key: maybe_json(value) for key, value in found.items()}}

    async def pods(self, given: Arguments) -> Any:
        task = await self._task(given)
        return [
            {
                "name": pod.name,
                "node": pod.ip,
                "status": pod.status,
                "startedMs": pod.started_ms,
                "endedMs": pod.ended_ms,
                "reason": pod.reason,
            }
            for pod in await self._tasks.pods(task.remote)
        ]

    async def events(self, given: Arguments) -> Any:
        task = await self._task(given)
        found = []
        for pod in await self._tasks.pods(task.remote):
            body = {"podUid": pod.uid}
            rows = rows_of(
                await self._api.ask("events", KERNEL + "trainOperatorPod/viewPodEvents", body), "events"
            )
            found += [
                {
                    "pod": pod.name,
                    "atMs": utc_ms(row.get("createTime"), "createTime", self._api.settings.zone),
                    "message": row.get("message"),
                }
                for row in rows
            ]
        return found

    async def monitoring(self, given: Arguments) -> Any:
        """A figure without data is left out; its times and values are the platform's."""
        task = await self._task(given)
        pods = await self._tasks.pods(task.remote)
        starts = [pod.started_ms for pod in pods if pod.started_ms is not None]
        if not starts:
            return {}
        ends = [pod.ended_ms for pod in pods if pod.ended_ms is not None]
        end = max(ends) if len(ends) == len(pods) else now_ms()
        start = max(min(starts), end - given.get("minutes", 60) * 60_000)
        body = {"startTime": start, "endTime": max(end, start + 1), "podNames": [pod.name for pod in pods]}
        found = await self._api.ask("monitoring", MONITORING, body, roles=(Role.USER,))
        figures = found if isinstance(found, Mapping) else {}
        return {
            name: each for name, each in figures.items() if isinstance(each, Mapping) and each.get("values")
        }

    async def stop_pod(self, given: Arguments) -> Any:
        task = await self._task(given)
        body = {"taskId": task.remote.id, "podName": given["pod"]}
        await self._api.ask("stop_pod", KERNEL + "fineTune/deleteLlmFineTunePod", body, effect=True)
        return {"asked": True, "pod": given["pod"]}

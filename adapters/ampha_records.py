"""What an Ampha platform metered: a record for each pod that has ended (section 11).

Here: reading the records and joining them to runs, by the task's name, which is the run's id (T29).  Not
here: what a run costs.  A record has no task id, no amount and no filter by time; the newest come first,
some time after the end, and may come twice.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from decimal import Decimal
from typing import Any

from adapters.ampha_wire import Api, rows_of, total_of
from adapters.values import number, utc_ms
from broker.adapter import RunRef, Spans, Unavailable
from broker.core.model import RunId

METERING = "/api/charge-manage/chargeStatistic/getUserJobDetails"
PAGE = 100
MAX_PAGES = 200
PAGES_AT_ONCE = 10
"""Pages in which runs that ended lately are looked for; older ones are asked for again later."""
MS_PER_H = 3_600_000


async def records(api: Api, pages: int = MAX_PAGES) -> AsyncIterator[list[dict[str, Any]]]:
    """The account's records, a page at a time, the newest first."""
    account = await api.account()
    for page in range(1, min(pages, MAX_PAGES) + 1):
        body = {"userId": account.id, "pageNum": page, "pageSize": PAGE}
        answer = await api.ask("metering", METERING, body)
        rows = rows_of(answer, "metering")
        yield [_record(row, api) for row in rows]
        total = total_of(answer, "totalNum")
        if len(rows) < PAGE or (total is not None and page * PAGE >= total):
            return


async def metered(api: Api, runs: Collection[RunRef]) -> Mapping[RunId, Spans]:
    """The records of some runs, each pod's once."""
    found: dict[RunId, dict[tuple[str, int], int]] = {run.id: {} for run in runs}
    async for page in records(api, PAGES_AT_ONCE):
        for record in page:
            start, end, pods = record["startedMs"], record["endedMs"], found.get(record["run"])
            if pods is not None and start is not None and end is not None:
                pods[str(record["pod"]), start] = end
        if all(len(found[run.id]) >= run.nodes for run in runs):
            break
    return {
        run: tuple((start, end) for (_, start), end in sorted(pods.items()))
        for run, pods in found.items()
        if pods
    }


def _record(row: Mapping[str, Any], api: Api) -> dict[str, Any]:
    """A metering record.  Memory is MB here and nowhere else (T13); card-hours from the times."""
    detail, basic = row.get("jobDetailInfo"), row.get("jobBasicInfo")
    if not isinstance(detail, Mapping) or not isinstance(basic, Mapping):
        raise Unavailable("metering: a record without jobDetailInfo or jobBasicInfo")
    zone = api.settings.zone
    start = utc_ms(basic.get("startTime"), "startTime", zone)
    end = utc_ms(basic.get("endTime"), "endTime", zone)
    cards = number(detail.get("gpuUsage"), "gpuUsage") or Decimal(0)
    memory_mb = number(detail.get("memoryUsage"), "memoryUsage")
    return {
        "run": str(basic.get("jobName") or ""),
        "pod": detail.get("jobId"),
        "nodes": detail.get("nodeList"),
        "accelerator": detail.get("gpuType"),
        "cards": cards,
        "cores": number(detail.get("cpuUsage"), "cpuUsage"),
        "memoryGib": None if memory_mb is None else memory_mb / 1024,
        "startedMs": start,
        "endedMs": end,
        "cardHours": None
        if start is None or end is None
        else (cards * (end - start) / MS_PER_H).quantize(Decimal("0.0001")),
    }

"""Logs of an Ampha center's pods, as bytes from an offset (7).

Here: the platform's pages of lines, turned into bytes.  Not here: logs through a shared storage.

A page is asked for backwards, the one way that the document shows: "so many lines before line n", from
the end when n is null.  The answer says which line its first one is, so the pages of a log can be asked
for in any order, and a gap shows (T39).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

from adapters.ampha_tasks import KERNEL, Pod, Remote, Tasks
from adapters.ampha_wire import Api
from adapters.values import whole
from broker.adapter import Unavailable

LINES = 1000
MAX_REMEMBERED = 1000


@dataclass(frozen=True, slots=True)
class _Page:
    first: int
    lines: list[str]


class Logs:
    """Reads pods' logs; remembers where each was read to, so that following one is cheap."""

    def __init__(self, api: Api, tasks: Tasks) -> None:
        self._api = api
        self._tasks = tasks
        self._read: dict[str, tuple[int, int]] = {}  # pod id -> (lines, bytes) that were handed out

    async def read(self, remote: Remote, node: int, offset: int) -> AsyncIterator[bytes]:
        """A node's log from a byte offset up to what is there now; nothing where there is no such node.

        The last line of a live pod may still grow: it is left for the next time.
        """
        pods = await self._tasks.pods(remote)
        if not 0 <= node < len(pods):
            return
        pod = pods[node]
        last = await self._page(pod, None, LINES)
        end = last.first + len(last.lines) - (0 if pod.ended_ms is not None else 1)
        line, at = self._read.get(pod.id, (0, 0))
        if at > offset:
            line, at = 0, 0
        while line < end:
            upto = min(line + LINES, end)
            page = await self._page(pod, upto, upto - line)
            if page.first != line or len(page.lines) != upto - line:
                raise Unavailable(
                    f"log of {pod.name}: asked for lines {line} to {upto},"
                    f" got {len(page.lines)} from {page.first}"
                )
            for text in page.lines:
                content = text.encode() + b"\n"
                if at + len(content) > offset:
                    yield content[max(0, offset - at) :]
                line, at = line + 1, at + len(content)
            self._remember(pod.id, line, at)

    def _remember(self, pod: str, line: int, at: int) -> None:
        self._read.pop(pod, None)
        self._read[pod] = (line, at)
        while len(self._read) > MAX_REMEMBERED:
            del self._read[next(iter(self._read))]

    async def _page(self, pod: Pod, before: int | None, lines: int) -> _Page:
        """At most `lines` lines before line number `before`.  `recerseRead` is the platform's spelling."""
        body = {"id": pod.id, "offset": lines, "startReadLines": before, "recerseRead": True}
        found = await self._api.ask("pod_logs", KERNEL + "trainOperatorPod/viewPodLogs", body)
        content = found.get("logContent") if isinstance(found, dict) else None
        if not isinstance(content, list) or not all(isinstance(line, str) for line in content):
            raise Unavailable(f"log of {pod.name}: the answer has no lines")
        return _Page(whole(found.get("startReadLines"), "startReadLines") or 0, content)

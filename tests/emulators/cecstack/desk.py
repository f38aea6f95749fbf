"""What every call to the emulated CECSTACK shares: its switches, its records, and the strict reading.

What belongs here: the switches, and checking bodies and pages against the document.  What does not:
what a call does (task_calls.py, service_calls.py) and HTTP itself (server.py).
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from aiohttp import web

from tests.emulators.cecstack import wire
from tests.emulators.cecstack.packages import Packages
from tests.emulators.cecstack.records import Records
from tests.emulators.cecstack.tasks import Tasks
from tests.emulators.cecstack.wire import Clock, Failure, Need, Seen

SEEN: Final = web.RequestKey("seen", Seen)
Answer = Callable[[web.Request, Seen], Awaitable[Any]]
Route = tuple[str, str, str, Answer]
"""Method, path, operation and what answers."""


@dataclass(slots=True)
class Site:
    """What this installation does where the document is silent or contradicts itself."""

    region: str = "region1"
    secrets: Mapping[str, str] | None = None  # access key -> secret key; None: nothing is signed
    slm_list: bool = True
    slm_detail: bool = True
    service_list: bool = True
    redirect: int = 308  # of a collection without its slash
    failures_in_body: bool = False  # HTTP 200 and status -1
    long_push: bool = False  # /library/push, as the text has it; the sample has /push
    evaluation_start: str = "POST"  # as the text has it; the sample has GET
    unknown_words: Mapping[str, str] = field(default_factory=dict)  # e.g. {"Running": "运行中"}


@dataclass(slots=True)
class Desk:
    """Everything a call works on."""

    site: Site
    clock: Clock
    packages: Packages
    tasks: Tasks
    records: Records
    complaints: list[str] = field(default_factory=list)

    def complain(self, seen: Seen, what: str) -> None:
        self.complaints.append(f"{seen.number} {seen.operation or seen.path}: {what}")

    def checked(self, seen: Seen, needs: Mapping[str, Need], *texts: str) -> dict[str, Any]:
        """The body, if every field is there and of its type; `texts` are JSON in strings."""
        body: Any = seen.body
        found = wire.problems(body, needs)
        if not found:
            found = [p for name in texts if name in body for p in wire.json_text(name, body[name])]
        for what in found:
            self.complain(seen, what)
        if found:
            raise Failure("; ".join(found), status=422)
        assert isinstance(body, dict)
        return body

    def paging(self, seen: Seen, *, related: str, body_too: bool = False) -> tuple[int, int, list[Any]]:
        """Page, size and filters of `form_data`; `body_too`: or of a body with GET."""
        text = seen.query.get("form_data") or (seen.text if body_too else "")
        try:
            form = json.loads(text) if text else {}
        except ValueError:
            raise Failure("form_data is not JSON", status=400) from None
        for key in form:
            if key not in ("page", "page_size", "filters", related):
                self.complain(seen, f"form_data: {key} is not in the document")
        for key in ("page", "page_size", related):
            if key not in form:
                self.complain(seen, f"form_data: {key} is missing")
        return int(form.get("page", 0)), int(form.get("page_size", 10)), list(form.get("filters", []))


def not_there() -> web.Response:
    """What a path answers that this installation does not have."""
    return web.Response(status=405, text="Method Not Allowed")

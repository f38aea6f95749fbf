"""Operators' view of centers and of the broker itself."""

from __future__ import annotations

from typing import Any, NotRequired

from typing_extensions import TypedDict

from broker.client.answers.resources import Resources


class SubmitDefaults(TypedDict):
    image: str


class Info(TypedDict):
    version: str
    name: str
    installation: str
    timezone: str
    submit: SubmitDefaults
    limits: dict[str, int]


class CenterCommand(TypedDict):
    centerId: str
    state: str


class CenterPool(TypedDict):
    pool: str
    native: str
    nodeCount: int
    node: Resources
    accuracy: str
    observedAt: str


class Quarantined(TypedDict):
    """A pool of a report that is not used, and why."""

    name: str
    reason: str


class CenterReport(TypedDict):
    centerId: str
    state: str
    health: str
    error: str
    lastReportAt: str
    inFlight: int
    maxInFlight: int
    running: int
    pools: list[CenterPool]
    quarantined: list[Quarantined]


class CenterReports(TypedDict):
    items: list[CenterReport]


class CenterAnswer(TypedDict):
    """What a center's platform answered; `status` is that of HTTP."""

    centerId: str
    status: int
    contentType: str
    body: str
    truncated: bool


class Check(TypedDict):
    """One line of the doctor."""

    name: str
    ok: bool
    detail: str


class CommandArgument(TypedDict):
    name: str
    help: str
    kind: str
    required: bool
    many: bool
    secret: bool
    choices: list[str]


class Command(TypedDict):
    name: str
    help: str
    timeoutS: int
    arguments: list[CommandArgument]


class Commands(TypedDict):
    centerId: str
    adapter: str
    commands: list[Command]


class CommandResult(TypedDict):
    centerId: str
    result: Any
    truncated: bool


class Health(TypedDict):
    status: str


class CenterReadiness(TypedDict):
    """`quarantined` is how many of its pools are not used."""

    centerId: str
    health: str
    error: str
    quarantined: NotRequired[int]


class Readiness(TypedDict):
    """`leads`: this daemon schedules and talks to centers; `leader` is the one that does: its host, process
    and a mark of its start, empty while nobody does."""

    ready: bool
    store: str
    leads: bool
    leader: str
    centers: list[CenterReadiness]


class Refusal(TypedDict):
    """The body of every error."""

    errorCode: str
    errorMsg: str
    detail: str
    requestId: str

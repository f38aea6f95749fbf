"""What an emulated Ampha center is made of: its settings, nodes, groups, tasks, pods, executions.

What belongs here: the facts.  What does not: what happens to them (world.py).
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any


@dataclass
class Settings:
    """How this installation behaves.  Pairs are the least and the most seconds that something takes."""

    scale: float = 1.0
    seed: int = 0
    execute: bool = False  # commands are run by /bin/sh
    password_key: bytes = b""  # empty: passwords travel in clear text
    password_iv: bytes = bytes(16)
    password_ecb: bool = False
    session_s: float = 3600.0  # life of a token, not scaled
    one_session: bool = False  # a new login ends the older one
    real_statuses: bool = False  # HTTP 401 and 500 instead of 200 with a code in the body
    list_lag_s: tuple[float, float] = (0, 0)
    create_s: tuple[float, float] = (0, 0)
    pull_s: tuple[float, float] = (30, 60)  # first pull of an image on a node
    cached_pull_s: float = 0.05
    stop_s: tuple[float, float] = (1, 10)
    metering_s: tuple[float, float] = (10, 60)
    ack_s: tuple[float, float] = (0.5, 5)  # uploads, imports, versions
    suffix_names: bool = False  # "-[a-z0-9]{8}" is added to a task's name
    refuse_duplicates: bool = False
    urgent_jumps: bool = True
    implicit_stop: bool = False  # deleting a running task stops it
    english: dict[str, str] = field(default_factory=dict)  # other words for the states
    preset: bool = False  # creation wants a spec of the platform
    quotas: bool = False  # isInitConfig


@dataclass
class Node:
    """One machine.  `mig`: instances per card as the layout says; None when it is not split."""

    name: str
    ip: str
    cores: int
    memory_gib: float
    cards: int
    model: str = "A800-PCIE-80GB"
    card_memory_mib: int = 81920
    mig: list[dict[str, int]] | None = None
    status: int = 1
    images: set[str] = field(default_factory=set)
    foreign: int = 0  # whole cards that somebody else has
    used: list[tuple[str, Need]] = field(default_factory=list)

    def free(self) -> tuple[float, float, float]:
        """Cores, GiB and cards (or vGPU percent of all cards) that nobody has."""
        cores = self.cores - sum(need.cores for _, need in self.used)
        memory = self.memory_gib - sum(need.memory_gib for _, need in self.used)
        cards = float(self.cards - self.foreign)
        for _, need in self.used:
            if need.share == "none":
                cards -= need.cards
            elif need.share == "vgpu":
                cards -= need.cards * need.percent / 100
        return cores, memory, cards

    def profiles(self) -> dict[str, int]:
        """Free instances by MIG profile; an unsplit card counts as "card"."""
        left: dict[str, int] = {}
        for layout in self.mig or []:
            for profile, count in (layout or {"card": 1}).items():
                left[profile] = left.get(profile, 0) + count
        for _, need in self.used:
            key = need.profile or "card"
            left[key] = left.get(key, 0) - need.cards
        return left


@dataclass(frozen=True)
class Need:
    """What one instance takes of a node."""

    cores: float
    memory_gib: float
    cards: int
    share: str = "none"
    profile: str = ""
    card_memory_mib: int = 0
    percent: int = 100


@dataclass
class Group:
    """A resource group (zone)."""

    id: str
    name: str
    nodes: list[Node]
    share: str = "none"
    vendor: str = "nvidia"
    arch: str = "X86"
    status: int = 1
    departments: set[str] = field(default_factory=lambda: {"200"})

    @property
    def key(self) -> str:
        return f"resourceGroup{self.id[:16]}"


class State(StrEnum):
    PENDING = "Pending"
    CREATING = "Creating"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    TERMINATED = "Terminated"

    @property
    def ended(self) -> bool:
        return self in (State.SUCCEEDED, State.FAILED, State.TERMINATED)


@dataclass
class Execution:
    """Ground truth: one start of a task's command, by which call it came, and how it ended.

    `how` is Succeeded, Failed, Terminated (a stop), or what befell it.
    """

    task: str
    name: str
    by: str
    started_ms: int
    ended_ms: int | None = None
    how: str = ""


@dataclass
class Pod:
    id: str
    uid: str
    name: str
    node: Node
    type: str
    rank: int
    started_ms: int | None = None
    ended_ms: int | None = None
    status: int = 0
    reason: str = ""
    events: list[tuple[int, str]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None
    out: Path | None = None


@dataclass
class Task:
    """One task of either store; `body` is the request that made it."""

    id: str
    uid: str
    name: str
    store: str  # "trainOperator" or "fineTune"
    body: dict[str, Any]
    user: str
    group: Group
    need: Need
    numbers: int
    created_ms: int
    visible_ms: int
    by: str
    seq: int
    state: State = State.PENDING
    since_ms: int = 0
    pods: list[Pod] = field(default_factory=list)
    started_ms: int | None = None
    ended_ms: int | None = None
    stopping: bool = False
    stops: int = 0  # stop calls that were taken
    retries: int = 0
    checkpoint: bool = False
    epoch: int = 0  # which life of it: an event of an earlier one is dropped
    history: list[tuple[int, State]] = field(default_factory=list)
    execution: Execution | None = None

    def says(self, word: str, default: int) -> int:
        """The number after a word of its command."""
        found = re.search(rf"\b{word} (\d+)\b", str(self.body["command"]))
        return int(found[1]) if found else default

    @property
    def urgent(self) -> bool:
        return self.body.get("isUrgentTask") == "Y"

    def state_at(self, at_ms: int) -> State:
        """What it was at an earlier moment."""
        return next((state for ms, state in reversed(self.history) if ms <= at_ms), State.PENDING)

"""What centers have."""

from __future__ import annotations

from typing import NotRequired

from typing_extensions import TypedDict


class Cpu(TypedDict):
    arch: str
    cores: int


class Processor(TypedDict):
    """`memory` is GiB per card; `cardPermille` says what part of a card each is, where it is one."""

    type: str
    count: int
    name: str
    memory: int
    cardPermille: NotRequired[int]


class Memory(TypedDict):
    size: int
    unit: str


class Resources(TypedDict):
    cpu: Cpu
    memory: Memory
    processor: Processor


class SpecPrice(TypedDict):
    """The cheapest stated price of a spec now, and where."""

    unitPrice: str
    currency: str
    unit: str
    centerId: str


class SpecItem(Resources):
    """`price` where some center states one."""

    resourceSpecId: str
    resourceSpecName: str
    price: NotRequired[SpecPrice]


class SpecPage(TypedDict):
    resourceSpecs: list[SpecItem]
    totalSize: int


class CenterItem(TypedDict):
    centerId: str
    centerName: str
    province: str
    city: str
    desc: str
    connected: bool
    processorType: str
    totalStorage: int
    maxComputingPower: int
    createTime: str
    state: str
    health: str
    error: str
    adapter: str
    queueLength: int | None
    inFlight: int
    running: int
    observedAt: str


class CenterPage(TypedDict):
    centers: list[CenterItem]
    totalSize: int


class NodeResource(TypedDict):
    """`freeParts`: of cards that are partly used, what is free of each, in thousandths."""

    resourceSpec: Resources
    nodeCount: str
    freeParts: NotRequired[list[int]]


class PoolResource(TypedDict):
    """Nodes of one shape in one native unit: what a whole one is, and what is free on how many."""

    native: str
    node: Resources
    splitPermille: int
    nodeCount: str
    accuracy: str
    observedAtMs: int
    freeNodes: list[NodeResource]


class CenterResource(TypedDict):
    centerId: str
    totalResource: Resources
    idleResource: Resources
    nodeResources: list[NodeResource]
    accuracy: str
    observedAt: str
    resources: list[Resources]
    pools: list[PoolResource]


class Idle(TypedDict):
    centerResources: list[CenterResource]

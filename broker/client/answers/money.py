"""Prices, bills, budgets and balances."""

from __future__ import annotations

from typing_extensions import TypedDict

PriceWindow = TypedDict("PriceWindow", {"days": list[str], "from": str, "to": str, "unitPrice": str})
"""Days mon to sun, and a stretch of the local day that may go over midnight; `from` is a keyword."""


class PriceItem(TypedDict):
    """A spec at a center: per node and hour.  `stated`: whether the center states a price now."""

    centerId: str
    resourceSpecId: str
    resourceSpecName: str
    unitPrice: str
    currency: str
    unit: str
    stated: bool
    windows: list[PriceWindow]
    pools: list[str]


class PricePage(TypedDict):
    prices: list[PriceItem]
    totalSize: int


class BillItem(TypedDict):
    """A bill line.  `kind` is run, or correction: then the amount may be below 0 and `seconds` is 0."""

    billId: str
    kind: str
    jobId: str
    jobName: str
    taskId: str
    userId: str
    userName: str
    tenant: str
    centerId: str
    resourceSpecId: str
    nodeCount: int
    startTime: str
    finishTime: str
    seconds: int
    amount: str
    currency: str
    createTime: str
    createTimeMs: int


class BillPage(TypedDict):
    items: list[BillItem]
    totalSize: int


class BillSum(TypedDict):
    key: str
    name: str
    lines: int
    runs: int
    seconds: int
    amount: str


class BillSummary(TypedDict):
    """`amount` is of all groups, those of other pages too."""

    groupBy: str
    items: list[BillSum]
    totalSize: int
    amount: str
    currency: str


class Budget(TypedDict):
    """`period` is month or total."""

    amount: str
    period: str
    spent: str
    left: str


class Balance(TypedDict):
    """What a tenant may spend; null: no limit.  `committed`: what its live runs are expected to cost."""

    tenant: str
    balance: str | None
    budget: Budget | None
    left: str | None
    committed: str
    exhausted: bool
    spent: str
    spentThisMonth: str
    month: str
    currency: str


class LedgerItem(TypedDict):
    """`balance` is after it."""

    id: int
    amount: str
    balance: str
    note: str
    actor: str
    createTime: str
    createTimeMs: int


class LedgerPage(TypedDict):
    items: list[LedgerItem]
    totalSize: int


class LinkItem(TypedDict):
    centerId: str
    user: str
    createTime: str


class LinkPage(TypedDict):
    items: list[LinkItem]
    totalSize: int

"""Resource packages and storage of the emulated CECSTACK: what may be used, what is left, what it costs.

What belongs here: packages, their records (§4.3, §4.4, §5.3), purchases and returns (§4.2, §5.2, §6).
What does not: what runs on them (tasks.py), which only takes and gives back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.emulators.cecstack import wire
from tests.emulators.cecstack.wire import Failure, may, must

_QUOTED = must(dict, "queryPriceResult")
BUY = {
    **_QUOTED,
    **must(str, "ratingKey", "specCode", "cycleType", "billingMode", "bizType", "tenantId", "departmentId"),
    **must(str, "name", "azId", "regionId"),
    **must(int, "cycleCount", "amount"),
}
RETURN = _QUOTED
LIST = must(int, "pageSize", "pageNum") | must(str, "specType")
STORAGE_LIST = must(int, "pageSize", "pageNum") | must(str, "name") | may(str, "orderId")


@dataclass(slots=True)
class Package:
    """A bought package: `nodes` nodes of one shape.  `foreign` of them are used by others.

    `blank`: rest* are "" as in the document's sample.  `per_price` is fen for the whole of a cycle.
    """

    resource_id: str
    name: str
    cpu: int
    memory_gib: int
    gpus: int = 0
    product: str = ""
    nodes: int = 1
    foreign: int = 0
    used: int = 0
    projects: set[int] = field(default_factory=set)
    state: int = 1
    deleted: bool = False
    ends: float | None = None
    per_price: int = 7_200_000
    cycle: str = "Month"
    blank: bool = False
    order: str = ""
    created: float = 0.0
    appears: float = 0.0

    @property
    def free(self) -> int:
        return 0 if self.deleted else max(0, self.nodes - self.foreign - self.used)

    def record(self, projects: dict[int, str], region: str) -> dict[str, Any]:
        def gpus(count: int) -> str:
            return f"{count}({self.product})" if count else "0"

        named = [projects[p] for p in sorted(self.projects) if p in projects]
        rest = {
            "restCPU": str(self.cpu * self.free),
            "restGpu": gpus(self.gpus * self.free),
            "restMemory": f"{self.memory_gib * self.free}G",
        }
        used = 100 * (self.used + self.foreign) // self.nodes
        passive = dict.fromkeys(
            (
                *("createUser", "updateUser", "cellId", "resourceGroupId", "resourceGroupName"),
                *("expireTime", "instanceType", "specStorage", "storageSize", "busId", "instanceName"),
                "internalGpuType",
            ),
            "",
        )
        return {
            **passive,
            "id": 1000 + sum(map(ord, self.resource_id)),
            "resourceId": self.resource_id,
            "name": self.name,
            "orderId": self.order,
            "tenantId": "1841781662849977753",
            "departmentId": "1841781662849977754",
            "project": ",".join(named),
            "projectName": ",".join(named),
            "tenantName": "lab",
            "departmentName": "lab",
            "specCode": "calculate",
            "specName": f"{self.cpu}c{self.memory_gib}g|calculate",
            "specCPU": str(self.cpu),
            "specGpu": gpus(self.gpus),
            "specMemory": f"{self.memory_gib}G",
            **(dict.fromkeys(rest, "") if self.blank else rest),
            "resourceType": "compute",
            "resourceState": self.state,
            "resourceStateName": "正常" if self.state == 1 else "已到期",
            "perPrice": self.per_price,
            "feeUnit": 0,
            "cycleType": self.cycle,
            "billingMode": "ByCycle",
            "cycleCount": 0,
            "totalAmount": 100,
            "usedAmount": used,
            "restAmount": 100 - used,
            "endTime": "" if self.ends is None else wire.local(self.ends),
            "createTime": int(self.created * 1000),
            "updateTime": int(self.created * 1000),
            "delete": int(self.deleted),
            "regionId": region,
            "azId": "AZ1",
            "usageType": "2",
            "instanceTypeCode": 0,
            "durationNum": 0,
            "beforeAmount": 0,
            "afterAmount": 0,
        }


@dataclass(slots=True)
class Packages:
    """All packages and storage of an account; `appear_s` after its order a package is in the list."""

    clock: Callable[[], float]
    region: str
    appear_s: float = 30.0
    without_resource_id: bool = False
    all: dict[str, Package] = field(default_factory=dict)
    storage: list[dict[str, Any]] = field(default_factory=list)
    orders: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    returned: list[str] = field(default_factory=list)

    def add(self, resource_id: str, **facts: Any) -> Package:
        named = {"name": f"pkg-{resource_id}", "created": self.clock(), **facts}
        package = Package(resource_id, **named)
        self.all[resource_id] = package
        return package

    def _there(self) -> list[Package]:
        now = self.clock()
        return [p for p in self.all.values() if p.appears <= now]

    def usable(self, resource_id: str, project: int) -> Package:
        package = self.all.get(resource_id)
        if package is None or package.deleted or package.appears > self.clock():
            raise Failure(f"resource {resource_id} does not exist", status=404)
        if project not in package.projects:
            raise Failure(f"resource {resource_id} is not associated with project {project}")
        return package

    def listed(self, projects: dict[int, str]) -> list[dict[str, Any]]:
        rows = [p.record(projects, self.region) for p in self._there()]
        if self.without_resource_id:
            for row in rows:
                del row["resourceId"]
        return rows

    def detail(self, resource_id: str, projects: dict[int, str]) -> dict[str, Any]:
        for package in self._there():
            if package.resource_id == resource_id:
                return package.record(projects, self.region)
        raise Failure(f"resource {resource_id} does not exist", status=404)

    def buy(self, body: dict[str, Any], *, storage: bool) -> str:
        """The order's id; the same order a second time buys a second time."""
        order = str(221_189_662_184_701_952 + len(self.orders))
        self.orders.append((order, body))
        now = self.clock()
        if storage:
            self.storage.append({"name": body["name"], "orderId": order, "resourceId": f"AIDP-{order:0>32}"})
        else:
            self.add(
                f"AIDP-{order:0>32}",
                name=body["name"],
                cpu=50,
                memory_gib=200,
                gpus=2,
                product="H800",
                order=order,
                appears=now + self.appear_s,
            )
        return order

    def give_back(self, resource_id: str) -> str:
        package = self.all.get(resource_id)
        if package is None or package.deleted:
            raise Failure(f"resource {resource_id} does not exist", status=404)
        if package.used:
            raise Failure(f"resource {resource_id} is in use", status=409)
        package.deleted = True
        self.returned.append(resource_id)
        return str(221_374_549_881_651_200 + len(self.returned))

    def relate(self, resource_ids: list[str], project: int, *, bind: bool) -> int:
        """How many associations changed."""
        changed = 0
        for resource_id in resource_ids:
            package = self.all.get(resource_id)
            if package is None:
                raise Failure(f"resource {resource_id} does not exist", status=404)
            if (project in package.projects) == bind:
                continue
            if bind:
                package.projects.add(project)
            else:
                package.projects.discard(project)
            changed += 1
        return changed

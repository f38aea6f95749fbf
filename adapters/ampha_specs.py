"""Preset specs of an Ampha center (3.3): what a task may ask for where the site wants one.

Here: reading them, and which of a pool's nodes each fits.  Not here: pools (ampha_capacity).

A spec is for cards given away in one way (`gpuShare`), as a resource group is: whole ones, instances
of one profile, or parts.  A task repeats a spec's own numbers beside its id.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from adapters.ampha_wire import Api
from adapters.values import whole
from broker.adapter import Unavailable
from broker.core.model import NodeShape, Spec
from broker.core.resources import part_permille, same_devices, spec_id

SPECS = "/api/system/presetSpec/getSpecList"
_CARDS = re.compile(r"GPU[：:]\s*(?:(\d+)\*(?P<a>[^|*\s]+)|(?P<b>[^|*\s]+)\s+\d+\*\S+)")
_VENDORS = frozenset({"nvidia", "huawei", "gpu"})


@dataclass(frozen=True, slots=True)
class Devices:
    """How the cards of a pool are given away; `profile` is that of its instances, "" for cards."""

    product: str
    share: str  # of the group: none, mig, vgpu
    profile: str = ""


@dataclass(frozen=True, slots=True)
class Preset:
    """One of the platform's specs.  `percent` and `mib` are of the power and memory of a part of a card."""

    id: str
    name: str
    cores: int
    memory_gib: int
    count: int  # of cards, instances or parts
    product: str = ""
    share: str = "none"
    profile: str = ""
    percent: int = 100
    mib: int = 0

    def shape_on(self, node: NodeShape, devices: Devices) -> NodeShape | None:
        """What it is on a node; None where it is not for such nodes."""
        if bool(self.count) is not bool(node.accelerators) or not self._is_for(devices):
            return None
        is_part = self.share == "vgpu" and self.percent < 100
        shape = NodeShape(
            arch=node.arch,
            cores=self.cores,
            memory_gib=self.memory_gib,
            accelerator=node.accelerator if self.count else "",
            accelerators=self.count,
            accelerator_memory_gib=self.mib // 1024 if is_part else node.accelerator_memory_gib,
            card_permille=self.percent * 10 if is_part else node.card_permille,
        )
        fits = (
            shape.cores <= node.cores
            and shape.memory_gib <= node.memory_gib
            and shape.accelerators <= node.accelerators
            and same_devices(node, shape)
            and part_permille(node, shape) <= 1000
        )
        return shape if fits else None

    def _is_for(self, devices: Devices) -> bool:
        if not self.count:
            return True
        share = "mig" if devices.profile else "vgpu" if devices.share == "vgpu" else "none"
        same = self.share == share and self.profile == devices.profile
        return same and same_product(self.product, devices.product)

    def resource(self) -> dict[str, Any]:
        """What one instance of a task says of cards beside the spec's id (6.2)."""
        asked: dict[str, Any] = {"gpuShare": self.share, "gpuNum": self.count}
        if self.share == "mig":
            asked["migRes"] = self.profile
        if self.share == "vgpu":
            asked |= {"gpuMem": self.mib, "gpuCores": self.percent}
        return asked


async def preset_specs(api: Api) -> list[Preset]:
    """The platform's specs for the broker's account."""
    return read_specs(await api.ask("specs", SPECS, {"specList": None}))


def read_specs(found: Any) -> list[Preset]:
    """Preset specs; one that does not tell what it gives of a card is left out.

    Raises Unavailable.
    """
    if not isinstance(found, Mapping):
        raise Unavailable("preset specs: the answer is no object")
    rows = [*(found.get("cpuSpecList") or []), *(found.get("gpuSpecList") or [])]
    read = [_read(row) for row in rows if row.get("specId")]
    return [each for each in read if each is not None]


def _read(row: Mapping[str, Any]) -> Preset | None:
    count = whole(row.get("numberOfGpus"), "numberOfGpus") or 0
    share = str(row.get("gpuShare") or "none") if count else "none"
    cores, memory = whole(row.get("cpuCoresNumber"), "cores"), whole(row.get("memorySize"), "memorySize")
    profile = str(row.get("migType") or "") if share == "mig" else ""
    percent = whole(row.get("computility"), "computility") if share == "vgpu" else 100
    mib = whole(row.get("gpuMemory"), "gpuMemory") if share == "vgpu" else 0
    unclear = share not in ("none", "mig", "vgpu") or (share == "mig" and not profile)
    if unclear or cores is None or memory is None or mib is None or percent is None or not 0 < percent <= 100:
        return None
    return Preset(
        id=str(row["specId"]),
        name=str(row.get("specName") or ""),
        cores=cores,
        memory_gib=memory,
        count=count,
        product=_model(row) if count else "",
        share=share,
        profile=profile,
        percent=percent,
        mib=mib,
    )


def _model(row: Mapping[str, Any]) -> str:
    """The product of a spec: its model where told, else from its name (null in every sample, 3.3)."""
    if row.get("gpuModel"):
        return str(row["gpuModel"])
    found = _CARDS.search(str(row.get("specName") or ""))
    return str(found["a"] or found["b"]) if found else ""


def offered(presets: Iterable[Preset], node: NodeShape, devices: Devices) -> tuple[Spec, ...]:
    """Those that fit a node, as specs of its product and architecture; the first of equal ones."""
    found: dict[str, Spec] = {}
    for preset in presets:
        if (shape := preset.shape_on(node, devices)) is not None:
            found.setdefault(spec_id(shape), Spec(spec_id(shape), preset.name, shape))
    return tuple(found.values())


def preset_of(presets: Iterable[Preset], want: NodeShape, node: NodeShape, devices: Devices) -> Preset | None:
    """The spec that a request for `want` on such a node is; names of products are not compared."""
    for preset in presets:
        shape = preset.shape_on(node, devices)
        if shape is not None and _size(shape) == _size(want):
            return preset
    return None


def _size(shape: NodeShape) -> tuple[int, ...]:
    whole_ = (shape.cores, shape.memory_gib, shape.accelerators)
    return (*whole_, shape.card_permille, shape.accelerator_memory_gib) if shape.accelerators else whole_


def same_product(one: str, other: str) -> bool:
    """Whether two of the platform's spellings mean one product: all words equal, vendors aside (T16)."""
    return _words(one) == _words(other)


def _words(name: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z0-9]+", name.lower())) - _VENDORS

"""Domain values as JSON documents of the store, and back."""

from __future__ import annotations

from typing import Any

from broker.core.model import (
    CenterId,
    FreeNodes,
    JobRequest,
    Kind,
    NodeShape,
    OnLost,
    Price,
    Spec,
    SpecId,
    Tier,
)


def spec_to_json(spec: Spec | None) -> dict[str, Any]:
    if spec is None:
        return {}
    shape = {name: getattr(spec.shape, name) for name in NodeShape.__slots__}
    return {"id": spec.id, "name": spec.name, "shape": shape}


def spec_from_json(data: dict[str, Any]) -> Spec | None:
    if not data:
        return None
    return Spec(SpecId(data["id"]), data["name"], NodeShape(**data["shape"]))


_DEFAULTS = [(name, getattr(JobRequest(), name)) for name in JobRequest.__slots__]


def request_to_json(request: JobRequest) -> dict[str, Any]:
    """Only what differs from the defaults, so that a million rows stay small."""
    data = {name: value for name, default in _DEFAULTS if (value := getattr(request, name)) != default}
    if request.spec is not None:
        data["spec"] = spec_to_json(request.spec)
    return data


def request_from_json(data: dict[str, Any]) -> JobRequest:
    values = dict(data)
    if "spec" in values:
        values["spec"] = spec_from_json(values["spec"])
    for name, convert in (("kind", Kind), ("tier", Tier), ("on_lost", OnLost)):
        if name in values:
            values[name] = convert(values[name])
    for name in ("vip_nodes", "datasets"):
        if name in values:
            values[name] = tuple(values[name])
    if "centers" in values:
        values["centers"] = tuple(CenterId(c) for c in values["centers"])
    for name in ("env", "labels"):
        if name in values:
            values[name] = tuple((key, value) for key, value in values[name])
    return JobRequest(**values)


def free_to_json(free: tuple[FreeNodes, ...]) -> list[list[int]]:
    return [[f.cores, f.memory_gib, f.accelerators, f.nodes, *f.parts] for f in free]


def free_from_json(data: list[list[int]]) -> tuple[FreeNodes, ...]:
    return tuple(
        FreeNodes(cores, memory, cards, nodes, tuple(parts)) for cores, memory, cards, nodes, *parts in data
    )


def price_to_json(price: Price) -> dict[str, Any]:
    return {
        "micro_per_hour": price.micro_per_hour,
        "days": sorted(price.days),
        "start_min": price.start_min,
        "end_min": price.end_min,
    }


def price_from_json(data: dict[str, Any]) -> Price:
    return Price(data["micro_per_hour"], frozenset(data["days"]), data["start_min"], data["end_min"])


def kind_of(spec: Spec | None) -> str:
    """The standard's processor type of a spec: GPU, NPU …, "" for CPU only."""
    return spec.shape.accelerator.split("/")[1] if spec is not None and spec.shape.accelerator else ""

"""How strictly the emulated AIHub reads requests: every documented field, its type and its values.

What belongs here: the field tables of the document and the complaints about a request that departs
from them.  What does not: what a request does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Check = Callable[[Any], bool]
"""Whether a value is what the document says."""


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _filled(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _positive(value: Any) -> bool:
    return _int(value) and value > 0


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _one_of(*allowed: Any) -> Check:
    return lambda value: value in allowed and not isinstance(value, bool)


def _list_of(check: Check) -> Check:
    return lambda value: isinstance(value, list) and all(check(each) for each in value)


def _pairs(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(each, dict)
        and set(each) == {"key", "value"}
        and _filled(each["key"])
        and _text(each["value"])
        for each in value
    )


def _image(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == {"url", "box"}
        and _filled(value["url"])
        and isinstance(value["box"], list)
        and len(value["box"]) == 4
        and all(_int(each) for each in value["box"])
    )


LOGIN: Mapping[str, Check] = {"username": _filled, "password": _filled}

_TASK: Mapping[str, Check] = {
    "framework": _one_of("MpiJob", "PyTorchJob"),
    "name": lambda value: _filled(value) and len(value) <= 63,
    "description": _text,
    "command": _filled,
    "image": _filled,
    "virtual_cluster_id": _positive,
    "sku_cnt": _positive,
    "instances": _positive,
    "enable_ssh": _flag,
    "envs": _pairs,
    "storage_ids": _list_of(_positive),
    "use_ib_network": _flag,
    "always_pull_image": _flag,
    "shm": _positive,
    "category_id": _one_of(1, 2, 3, 4),
    "project_id": _positive,
    "estimate_run_time": _positive,
}
TRAINING: Mapping[str, Check] = {
    **_TASK,
    "is_vip": _flag,
    "preempt_policy": _one_of(1, 2),
    "vip_node_names": _list_of(_filled),
}
QUOTA: Mapping[str, Check] = {**_TASK, "priority": _one_of(1, 2)}

DATASET: Mapping[str, Check] = {
    "name": _filled,
    "description": _text,
    "tags": _list_of(_positive),
    "cover_img": _text,
    "create_by": _positive,
}
VERSION: Mapping[str, Check] = {
    "upload_type": _one_of(1, 2, 3),
    "upload_path": _filled,
    "description": _text,
    "parent_version_id": _positive,
    "dataset_id": _positive,
}
RUN: Mapping[str, Check] = {
    "name": _filled,
    "description": _text,
    "pipeline_id": _positive,
    "pipeline_version_id": _positive,
    "params": _pairs,
}
_SEARCH: Mapping[str, Check] = {"name": _filled, "description": _text}
SEARCHES: Mapping[int, Mapping[str, Check]] = {
    1: {**_SEARCH, "type": _one_of(1), "sql": _filled},
    2: {
        **_SEARCH,
        "type": _one_of(2),
        "feature_lib_id": _positive,
        "images": _list_of(_image),
        "top_k": _positive,
    },
    3: {
        **_SEARCH,
        "type": _one_of(3),
        "feature_lib_id": _positive,
        "keywords": _filled,
        "top_k": _positive,
    },
}
OPTIONAL = frozenset({"description", "parent_version_id"})
EVALUATION_FIELDS = (
    *("model_name", "model_type", "epoch", "dataset_name", "id_dataset_name", "gallery_dataset_name"),
    "user_id",
)
EVALUATION_FILES = ("model_file", "pred_file")


def faults_of(body: Any, fields: Mapping[str, Check]) -> list[str]:
    """What is wrong with a body, field by field."""
    if not isinstance(body, dict):
        return [f"the body is {type(body).__name__}, expected an object"]
    missing = [f"{name} is missing" for name in fields if name not in body and name not in OPTIONAL]
    unknown = [f"{name} is not in the document" for name in body if name not in fields]
    wrong = [
        f"{name} is {body[name]!r}"
        for name, check in fields.items()
        if name in body and not check(body[name])
    ]
    return missing + unknown + wrong

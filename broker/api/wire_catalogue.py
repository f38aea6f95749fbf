"""Images, data sets, models and applications as the objects of the wire."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from zoneinfo import ZoneInfo

from broker.api.times import written
from broker.store.centers import ImageView
from broker.store.datasets import CopyView, DatasetView


def image(view: ImageView, zone: ZoneInfo) -> dict[str, Any]:
    """Without a name of its own an image is called by its id."""
    one = view.image
    return {
        "imageId": one.id,
        "imageName": one.name or one.id,
        "imageDesc": one.desc,
        "arch": one.arch,
        "processor": one.processor,
        "operationSystem": one.os,
        "framework": one.framework,
        "createTime": written(view.created_ms, zone),
        "installedLib": list(one.installed_lib),
        "centerIds": list(view.centers),
    }


def dataset(view: DatasetView, zone: ZoneInfo) -> dict[str, Any]:
    return {
        "id": view.id,
        "title": view.title,
        "owner": view.owner,
        "size": view.bytes,
        "desc": view.desc,
        "labels": view.labels,
        "public": view.public,
        "createTime": written(view.created_ms, zone),
        "centerIds": list(view.centers),
    }


def dataset_detail(view: DatasetView, copies: Sequence[CopyView], zone: ZoneInfo) -> dict[str, Any]:
    return {**dataset(view, zone), "md5": view.md5, "copies": [copy(each, zone) for each in copies]}


def copy(view: CopyView, zone: ZoneInfo) -> dict[str, Any]:
    return {
        "centerId": view.center,
        "state": view.state.value,
        "size": view.bytes,
        "sizeDone": view.bytes_done,
        "message": view.message,
        "usedTime": written(view.used_ms or None, zone),
    }


def asset(view: DatasetView, zone: ZoneInfo) -> dict[str, Any]:
    """A model or an application."""
    return {
        "id": view.id,
        "title": view.title,
        "owner": view.owner,
        "desc": view.desc,
        "labels": view.labels,
        "createTime": written(view.created_ms, zone),
        "centerIds": list(view.centers),
    }

"""Data sets, models and applications: list, show, delete.

What belongs here: finding them.  What does not: bringing data here (uploads.py, dataset_upload.py).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping

from aiohttp import web

from broker.adapter import AssetKind
from broker.api import wire, wire_catalogue
from broker.api.context import CALLER, CONTEXT
from broker.api.fields import OWNER, QueryField, Text, paged
from broker.api.paging import paging
from broker.api.reading import Query, no_query
from broker.api.routes import Route, Scope
from broker.client import answers
from broker.store import datasets
from broker.store.datasets import DatasetFilter, NoSuchDataset
from broker.store.paging import Paging

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)

_DATASET_SORTS: Mapping[str, str] = {
    "datasetName": "title",  # the standard's default; the object calls it title
    "title": "title",
    "id": "id",
    "owner": "owner",
    "size": "bytes",
    "createTime": "created_ms",
}
_ASSET_SORTS: Mapping[str, str] = {
    name: _DATASET_SORTS[name] for name in ("title", "id", "owner", "createTime")
}


def path_dataset(request: web.Request) -> str:
    """The data set's id of the path.  Raises NoSuchDataset for what cannot be one."""
    text = request.match_info["id"]
    if not _ID.fullmatch(text):
        raise NoSuchDataset(f"there is no data set {text[:64]!r} that you may read")
    return text


async def list_all(request: web.Request) -> web.Response:
    """GET /datasets: the public ones, uploaded or of centers; with owner=me one's own."""
    context = request.app[CONTEXT]
    with Query(request) as query:
        page = _page(query, _DATASET_SORTS, context.max_page_size)
        mine = query.choice("owner") == "me"
        wanted = DatasetFilter(query=query.text("query"), category=query.text("category"), mine=mine)
    found, total = await context.store.read(datasets.list_datasets, request[CALLER], wanted, page)
    shown = [wire_catalogue.dataset(view, context.timezone) for view in found]
    return wire.answer({"totalSize": total, "datasets": shown})


async def show(request: web.Request) -> web.Response:
    """GET /datasets/{id}: with how it stands with it at centers."""
    no_query(request)
    context = request.app[CONTEXT]
    found, copies = await context.store.read(datasets.show_dataset, request[CALLER], path_dataset(request))
    return wire.answer(wire_catalogue.dataset_detail(found, copies, context.timezone))


async def delete(request: web.Request) -> web.Response:
    """DELETE /datasets/{id}: refused while a job that has not ended reads it."""
    no_query(request)
    context, dataset = request.app[CONTEXT], path_dataset(request)
    await context.store.write(datasets.delete_dataset, request[CALLER], dataset)
    await asyncio.to_thread(context.files.remove_dataset, dataset)
    return web.Response(status=204)


async def models(request: web.Request) -> web.Response:
    """GET /models: what centers have, each once."""
    return await _assets(request, AssetKind.MODEL, "models")


async def apps(request: web.Request) -> web.Response:
    """GET /apps: what centers have, each once."""
    return await _assets(request, AssetKind.APP, "apps")


async def _assets(request: web.Request, kind: AssetKind, name: str) -> web.Response:
    context = request.app[CONTEXT]
    with Query(request) as query:
        page = _page(query, _ASSET_SORTS, context.max_page_size)
        wanted = DatasetFilter(query=query.text("query"), category=query.text("category"))
    found, total = await context.store.read(datasets.list_assets, kind, wanted, page)
    return wire.answer(
        {name: [wire_catalogue.asset(view, context.timezone) for view in found], "totalSize": total}
    )


def _page(query: Query, sorts: Mapping[str, str], max_page_size: int) -> Paging:
    """The page with the store's name of what it is sorted by."""
    page = paging(query, max_page_size=max_page_size)
    return Paging(page.page, page.size, sorts[page.sort], page.descending)


# ---------------------------------------------------------------- routes

_FOUND_BY: tuple[QueryField, ...] = (
    Text("query", "Text in title or description.", "标题或描述中的文字。"),
    Text("category", "One of the labels.", "标签之一。"),
)
_ASSETS_QUERY = (*paged(tuple(_ASSET_SORTS), default="title"), *_FOUND_BY)

ROUTES = (
    Route(
        "GET",
        "/datasets",
        list_all,
        "The public data sets, uploaded ones and those of centers; or one's own",
        "公开的数据集，含上传的和各中心自有的；或本人的",
        query=(*paged(tuple(_DATASET_SORTS), default="datasetName"), *_FOUND_BY, OWNER),
        answer=answers.DatasetPage,
    ),
    Route(
        "GET",
        "/datasets/{id}",
        show,
        "A data set and its copies at centers",
        "数据集及其在各中心的副本",
        answer=answers.DatasetDetail,
    ),
    Route(
        "DELETE",
        "/datasets/{id}",
        delete,
        "Delete a data set that no job reads which has not ended",
        "删除没有未结束的作业读取的数据集",
        scope=Scope.DATA,
    ),
    Route(
        "GET",
        "/models",
        models,
        "The models that centers have",
        "各中心拥有的模型",
        query=_ASSETS_QUERY,
        answer=answers.ModelPage,
    ),
    Route(
        "GET",
        "/apps",
        apps,
        "The applications that centers have",
        "各中心拥有的应用",
        query=_ASSETS_QUERY,
        answer=answers.AppPage,
    ),
)

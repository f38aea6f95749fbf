"""What only an AIHub can do, for operators: `broker aihub …`.  The scheduler never uses it.

Here: the table of commands and their arguments.  Not here: the calls (aihub_data.py, aihub.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from adapters.aihub_checks import storages_of
from adapters.aihub_services import Service
from adapters.aihub_tasks import TaskId
from broker.adapter import Argument, ArgumentKind, Refused, VendorCommand
from broker.core.model import RunId

if TYPE_CHECKING:
    from adapters.aihub import Aihub

_ID = Argument("id", "its id at the platform", ArgumentKind.WHOLE, required=True)
_NAME = Argument("name", "its name at the platform", required=True)
_DESCRIPTION = Argument("description", "free text")
SEARCH_TYPES = {"sql": 1, "image": 2, "text": 3}
MODEL_TYPES = {"face": "3", "body": "4", "licence-plate": "5"}


def commands_of(hub: Aihub) -> tuple[VendorCommand, ...]:
    """The table of one center."""
    return (*_listings(hub), *_workflows(hub), *_warehouse(hub), *_datasets(hub), _evaluation(hub))


def _listings(hub: Aihub) -> tuple[VendorCommand, ...]:
    async def clusters(_given: Mapping[str, Any]) -> Any:
        return [cluster.told for cluster in (await hub.list_clusters()).values()]

    async def storages(_given: Mapping[str, Any]) -> Any:
        return storages_of(await hub.services.read(Service.TRAINING, "/storages", "storages"))

    async def pods(given: Mapping[str, Any]) -> Any:
        task = TaskId.read(given["task"], hub.settings.usual)
        if task is None:
            raise Refused(f"task is {given['task']!r}, expected a remote id such as trn:101 or quo:7")
        return await hub.pods(task)

    async def node_tasks(given: Mapping[str, Any]) -> Any:
        return [asdict(task) for task in hub.evidence.get(given["cluster"], ())]

    task = Argument("task", "remote id of a run, such as trn:101 or quo:7", required=True)
    cluster = Argument("cluster", "id of a virtual cluster", ArgumentKind.WHOLE, required=True)
    return (
        VendorCommand("clusters", "the virtual clusters that the account sees", clusters),
        VendorCommand("storages", "the storages that jobs can mount", storages),
        VendorCommand("pods", "the pods of a run, with their nodes", pods, (task,)),
        VendorCommand("node-tasks", "what was last seen to occupy the nodes", node_tasks, (cluster,)),
    )


def _workflows(hub: Aihub) -> tuple[VendorCommand, ...]:
    async def start(given: Mapping[str, Any]) -> Any:
        params = [_pair(text) for text in given.get("param", ())]
        number = await hub.data.create_run(
            given["name"], given["pipeline"], given["version"], params, given.get("description", "")
        )
        return {"id": number}

    async def show(given: Mapping[str, Any]) -> Any:
        return await hub.data.run(given["id"])

    arguments = (
        _NAME,
        Argument("pipeline", "id of the workflow", ArgumentKind.WHOLE, required=True),
        Argument("version", "id of its version", ArgumentKind.WHOLE, required=True),
        Argument("param", "input of the first node, KEY=VALUE", many=True),
        _DESCRIPTION,
    )
    return (
        VendorCommand("workflow-start", "start a run of a workflow; it cannot be stopped", start, arguments),
        VendorCommand("workflow-run", "the state of a workflow run and of its nodes", show, (_ID,)),
    )


def _pair(text: str) -> tuple[str, str]:
    key, mark, value = text.partition("=")
    if not mark or not key:
        raise Refused(f"param is {text!r}, expected KEY=VALUE")
    return key, value


def _warehouse(hub: Aihub) -> tuple[VendorCommand, ...]:
    async def start(given: Mapping[str, Any]) -> Any:
        return {"id": await hub.data.create_search(search_body(given))}

    async def show(given: Mapping[str, Any]) -> Any:
        return await hub.data.search(given["id"])

    arguments = (
        Argument("type", "what it searches by", required=True, choices=tuple(SEARCH_TYPES)),
        _NAME,
        Argument("sql", "the query of a search by sql"),
        Argument("feature-library", "id, of a search by image or text", ArgumentKind.WHOLE),
        Argument("image", "URL,x1,y1,x2,y2 of a search by image", many=True),
        Argument("keywords", "of a search by text"),
        Argument("top", "how many, of a search by image or text", ArgumentKind.WHOLE),
        _DESCRIPTION,
    )
    return (
        VendorCommand("search-start", "start a search of the data warehouse", start, arguments),
        VendorCommand("search", "the state of a search; its result once it is there", show, (_ID,)),
    )


def search_body(given: Mapping[str, Any]) -> dict[str, Any]:
    """A create's body with the fields of its type.  Raises Refused, naming what is missing."""
    kind = given["type"]
    fields = {
        "sql": ("sql",),
        "image": ("feature-library", "image", "top"),
        "text": ("feature-library", "keywords", "top"),
    }[kind]
    if missing := [name for name in fields if not given.get(name)]:
        raise Refused(f"a search by {kind} needs {', '.join(missing)}")
    body: dict[str, Any] = {
        "type": SEARCH_TYPES[kind],
        "name": given["name"],
        "description": given.get("description", ""),
    }
    names = {"feature-library": "feature_lib_id", "image": "images", "top": "top_k"}
    for name in fields:
        value = given[name]
        body[names.get(name, name)] = [_box(text) for text in value] if name == "image" else value
    return body


def _box(text: str) -> dict[str, Any]:
    url, *corners = text.rsplit(",", 4)
    if len(corners) != 4 or not all(corner.strip().isdecimal() for corner in corners):
        raise Refused(f"image is {text!r}, expected URL,x1,y1,x2,y2")
    return {"url": url, "box": [int(corner) for corner in corners]}


def _datasets(hub: Aihub) -> tuple[VendorCommand, ...]:
    async def create(given: Mapping[str, Any]) -> Any:
        return {"id": await hub.data.create_dataset(given["name"], given.get("description", ""))}

    async def version(given: Mapping[str, Any]) -> Any:
        number = await hub.data.create_version(given["dataset"], given["path"], given.get("description", ""))
        return {"id": number}

    async def show(given: Mapping[str, Any]) -> Any:
        return await hub.data.version(given["name"])

    made = (
        Argument("dataset", "id of the data set", ArgumentKind.WHOLE, required=True),
        Argument("path", "s3 path of a zip file", required=True),
        _DESCRIPTION,
    )
    return (
        VendorCommand("dataset-create", "make an empty data set", create, (_NAME, _DESCRIPTION)),
        VendorCommand("dataset-version", "make a version of a data set from a zip file", version, made),
        VendorCommand(
            "dataset-show",
            "the state of a version",
            show,
            (Argument("name", "<data set>/V<number>, such as mnist/V1", required=True),),
        ),
    )


def _evaluation(hub: Aihub) -> VendorCommand:
    async def run(given: Mapping[str, Any]) -> Any:
        output = hub.storage("results")
        fields = {
            "model_name": given["model-name"],
            "model_type": MODEL_TYPES[given["model-type"]],
            "epoch": str(given["epoch"]),
            "dataset_name": given["dataset-name"],
            "id_dataset_name": given["id-dataset-name"],
            "gallery_dataset_name": given["gallery-dataset-name"],
        }
        results = {result.path: result async for result in output.results(RunId(given["task"]))}
        files = {}
        for name, path in (("model_file", given["model-file"]), ("pred_file", given["pred-file"])):
            if path not in results:
                raise Refused(f"{name} is {path!r}, expected one of {sorted(results)} of {given['task']}")
            files[name] = (PurePosixPath(path).name, results[path].chunks)
        return {"id": await hub.data.import_evaluation(fields, files)}

    text = ("model-name", "dataset-name", "id-dataset-name", "gallery-dataset-name")
    return VendorCommand(
        "evaluation-import",
        "give the results of a run to the evaluation platform; nothing can be asked of it later",
        run,
        (
            Argument("task", "id of the run whose results they are", required=True),
            Argument("model-file", "its model, a path among the results", required=True),
            Argument("pred-file", "its predictions in jsonl, a path among the results", required=True),
            Argument("model-type", "what it recognises", required=True, choices=tuple(MODEL_TYPES)),
            Argument("epoch", "the epoch", ArgumentKind.WHOLE, required=True),
            *(Argument(name, "as the platform names it", required=True) for name in text),
        ),
        timeout_s=3600,
    )

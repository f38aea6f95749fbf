"""Calls of the emulated CECSTACK about everything that is no task: notebooks, online services, images,
data sets, evaluations, and the one call that deletes an instance of any kind.

What belongs here: chapters 2, 3, 8 and 10 and the evaluations of 7.  What does not: their records.
"""

from __future__ import annotations

from typing import Any, Final

from aiohttp import web

from tests.emulators.cecstack import records, wire
from tests.emulators.cecstack.desk import Desk, Route, not_there
from tests.emulators.cecstack.records import Service
from tests.emulators.cecstack.wire import Failure, Need, Seen

TYPES: Final = {1: "notebook", 3: "service", 4: "image", 5: "task"}


class ServiceCalls:
    """See `routes`."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def routes(self) -> list[Route]:
        service = "/alpha/inferenceservice_modelview"
        evaluation = "/alpha/maas_evaluation_modelview/api/evaluation"
        return [
            ("POST", "/v1/dataset/insert", "dataset.insert", self._add_dataset),
            ("POST", "/v1/dataset/files", "dataset.files", self._add_file),
            ("GET", "/v1/dataset/page", "dataset.page", self._datasets),
            ("DELETE", "/v1/dataset/delete", "dataset.delete", self._drop_dataset),
            ("GET", "/alpha/images_modelview/api/", "image.list", self._images),
            ("POST", "/v1/docker_modelview/api/", "image.build", self._build),
            ("POST", "/v1/images/preUpload", "image.preupload", self._pre_upload),
            (
                "POST",
                "/v1/instances/{ccr}/projects/{project}{longer:(?:/library)?}/push",
                "image.push",
                self._push,
            ),
            ("POST", "/v1/notebook_modelview", "notebook.create", self._add_notebook),
            ("PUT", "/v1/notebook_modelview/api/{id}", "notebook.edit", self._edit_notebook),
            ("GET", "/v1/resource/stopInstance", "notebook.stop", self._stop_notebook),
            (
                "GET",
                "/alpha/notebook_modelview/api/reset/restful/{id}",
                "notebook.reset",
                self._reset_notebook,
            ),
            ("DELETE", "/v1/deleteInstance", "instance.delete", self._delete_instance),
            ("POST", "/v1/inferenceservice_modelview/api/", "service.create", self._add_service),
            ("PUT", "/v1/inferenceservice_modelview/api/{id}", "service.edit", self._edit_service),
            ("GET", f"{service}/api/", "service.list", self._services),
            ("GET", f"{service}/api/{{id}}", "service.detail", self._service),
            ("GET", f"{service}/deploy/prod/restful/{{id}}", "service.publish", self._publish),
            ("GET", f"{service}/clear/restful/{{id}}", "service.offline", self._offline),
            ("GET", f"{service}/deploy/debug/restful/{{id}}", "service.debug", self._debug),
            ("POST", f"{evaluation}/save", "evaluation.save", self._save_evaluation),
            ("*", f"{evaluation}/start", "evaluation.start", self._start_evaluation),
            ("GET", f"{evaluation}/stop", "evaluation.stop", self._stop_evaluation),
            ("GET", f"{evaluation}/delete", "evaluation.delete", self._delete_evaluations),
            ("GET", f"{evaluation}/detail", "evaluation.detail", self._show_evaluation),
        ]

    # ------------------------------------------------------------ data sets

    async def _add_dataset(self, request: web.Request, seen: Seen) -> Any:
        self._desk.records.add_dataset(self._desk.checked(seen, records.DATASET))
        return wire.plain(seen.number, True)

    async def _add_file(self, request: web.Request, seen: Seen) -> Any:
        body = self._desk.checked(seen, records.DATASET_FILE)
        roots = [f"{dataset['downloadUrl']}/" for dataset in self._desk.records.datasets.values()]
        if not any(f"{body['dstpath']}/".startswith(root) for root in roots):
            raise Failure(f"dstpath {body['dstpath']} is below no data set", status=422)
        self._desk.records.files.append(body)
        return wire.plain(seen.number, True)

    async def _datasets(self, request: web.Request, seen: Seen) -> Any:
        page, size, _ = self._desk.paging(seen, related="str_relate", body_too=True)
        rows = self._desk.records.dataset_rows()
        return wire.plain(seen.number, wire.page_b(rows, page=page, size=size))

    async def _drop_dataset(self, request: web.Request, seen: Seen) -> Any:
        body = self._desk.checked(seen, wire.must(int, "id"))
        if self._desk.records.datasets.pop(body["id"], None) is None:
            raise Failure(f"dataset {body['id']} does not exist", status=404)
        return wire.plain(seen.number, True)

    # ------------------------------------------------------------ images

    async def _images(self, request: web.Request, seen: Seen) -> Any:
        page, size, filters = self._desk.paging(seen, related="str_related")
        rows = self._desk.records.images
        if filters:
            rows = [row for row in rows if all(row.get(f["col"]) == f["value"] for f in filters)]
        return wire.raw(seen.number, wire.page_b(rows, page=page, size=size))

    async def _build(self, request: web.Request, seen: Seen) -> Any:
        body = self._desk.checked(seen, records.IMAGE)
        return wire.inner(seen.number, {**body, "id": self._desk.records.id()})

    async def _pre_upload(self, request: web.Request, seen: Seen) -> Any:
        body = self._desk.checked(
            seen, wire.must(str, "projectName", "imageName") | wire.must(dict, "abortController")
        )
        place = ("ccr-unws3g1ctn", body["projectName"], body["imageName"])
        self._desk.records.uploads.add(place)
        return wire.plain(seen.number, {"instanceId": place[0], "projectName": place[1]})

    async def _push(self, request: web.Request, seen: Seen) -> Any:
        if bool(request.match_info["longer"]) is not self._desk.site.long_push:
            return not_there()
        body = self._desk.checked(seen, wire.must(str, "hash_md5", "image_name", "upload_id"))
        place = (request.match_info["ccr"], request.match_info["project"], body["image_name"])
        if place not in self._desk.records.uploads:
            raise Failure(f"no upload of {place} was begun", status=422)
        self._desk.records.pushed.append(body)
        return wire.plain(seen.number, {"status": "Pushing"})

    # ------------------------------------------------------------ notebooks

    async def _add_notebook(self, request: web.Request, seen: Seen) -> Any:
        body = self._desk.checked(seen, records.NOTEBOOK, "expand")
        self._desk.packages.usable(body["resourceId"], body["project"])
        id = self._desk.records.id()
        self._desk.records.notebooks[id] = {**body, "status": "Running"}
        return wire.inner(seen.number, {**body, "id": id, "resource_memory": f"{body['resource_memory']}G"})

    async def _edit_notebook(self, request: web.Request, seen: Seen) -> Any:
        body = self._desk.checked(seen, records.NOTEBOOK_EDIT, "expand")
        record = self._desk.records.notebook(int(request.match_info["id"]))
        record.update(body)
        return wire.inner(seen.number, record)

    async def _stop_notebook(self, request: web.Request, seen: Seen) -> Any:
        self._desk.records.notebook(int(seen.query["instanceId"]))["status"] = "Stopped"
        return wire.plain(seen.number, True)

    async def _reset_notebook(self, request: web.Request, seen: Seen) -> Any:
        self._desk.records.notebook(int(request.match_info["id"]))["status"] = "Running"
        return wire.plain(seen.number, "/frontend/dev/dev_online/notebook")

    async def _delete_instance(self, request: web.Request, seen: Seen) -> Any:
        """One call for all kinds; the number says which."""
        kind, id = TYPES.get(int(seen.query["type"])), int(seen.query["id"])
        match kind:
            case "task":
                task = self._desk.tasks.all.get(id)
                if task is None or task.deleted:
                    raise Failure("Not found", status=404)
                if task.kind != "slm":
                    return wire.inner(seen.number, self._desk.tasks.delete(task))
                self._desk.tasks.delete(task)
                return wire.raw(seen.number, {})
            case "notebook":
                self._desk.records.notebook(id)
                del self._desk.records.notebooks[id]
            case "service":
                self._desk.records.service(id)
                del self._desk.records.services[id]
            case "image":
                pass
            case _:
                raise Failure(f"type {seen.query['type']} is unknown", status=400)
        return wire.inner(seen.number, {"id": id})

    # ------------------------------------------------------------ online services

    async def _add_service(self, request: web.Request, seen: Seen) -> Any:
        body = self._desk.checked(seen, records.SERVICE)
        self._desk.packages.usable(body["resourceId"], body["project"])
        id = self._desk.records.id()
        self._desk.records.services[id] = Service(id, body)
        return wire.plain(seen.number, {})  # no id

    async def _edit_service(self, request: web.Request, seen: Seen) -> Any:
        body = self._desk.checked(seen, records.SERVICE_EDIT)
        service = self._desk.records.service(int(request.match_info["id"]))
        service.body = body
        return wire.inner(seen.number, self._desk.records.service_row(service))

    async def _publish(self, request: web.Request, seen: Seen) -> Any:
        service = self._desk.records.service(int(request.match_info["id"]))
        service.published = self._desk.clock()
        return wire.plain(
            seen.number, "/frontend/service/inferenceservice/inferenceservice_manager", "Success"
        )

    async def _offline(self, request: web.Request, seen: Seen) -> Any:
        self._desk.records.take_offline(int(request.match_info["id"]))
        return wire.plain(seen.number, "/frontend/service/inferenceservice_manager", "Success")

    async def _debug(self, request: web.Request, seen: Seen) -> Any:
        service = self._desk.records.service(int(request.match_info["id"]))
        service.debugged += 1
        url = f"http://{service.body['eip']}:8080/debug" if service.debugged > 1 else ""
        return {"code": "Success", "data": url, "message": "" if url else "调试任务资源准备中, 再次点击"}

    async def _services(self, request: web.Request, seen: Seen) -> Any:
        if not self._desk.site.service_list:
            return not_there()
        page, size, _ = self._desk.paging(seen, related="str_related")
        rows = [self._desk.records.service_row(s) for s in self._desk.records.services.values()]
        return wire.raw(seen.number, wire.page_b(rows, page=page, size=size))

    async def _service(self, request: web.Request, seen: Seen) -> Any:
        if not self._desk.site.service_list:
            return not_there()
        service = self._desk.records.service(int(request.match_info["id"]))
        return wire.raw(seen.number, self._desk.records.service_row(service))

    # ------------------------------------------------------------ evaluations

    async def _save_evaluation(self, request: web.Request, seen: Seen) -> Any:
        body = self._desk.checked(seen, records.EVALUATION)
        self._desk.records.evaluations[self._desk.records.id()] = {**body, "state": "Stopped"}
        return wire.inner(seen.number, {})  # no id

    def _evaluation(self, seen: Seen) -> tuple[int, dict[str, Any]]:
        id = int(self._desk.checked(seen, {"id": Need((int, str))})["id"])
        if id not in self._desk.records.evaluations:
            raise Failure("Not found", status=404)
        return id, self._desk.records.evaluations[id]

    async def _start_evaluation(self, request: web.Request, seen: Seen) -> Any:
        if seen.method != self._desk.site.evaluation_start:
            return not_there()
        self._evaluation(seen)[1]["state"] = "Running"
        return wire.raw(seen.number, {})

    async def _stop_evaluation(self, request: web.Request, seen: Seen) -> Any:
        self._evaluation(seen)[1]["state"] = "Stopped"
        return wire.raw(seen.number, {})

    async def _delete_evaluations(self, request: web.Request, seen: Seen) -> Any:
        for id in self._desk.checked(seen, wire.must(list, "evalIds"))["evalIds"]:
            self._desk.records.evaluations.pop(int(id), None)
        return wire.inner(seen.number, {})

    async def _show_evaluation(self, request: web.Request, seen: Seen) -> Any:
        id, body = self._evaluation(seen)
        return wire.raw(seen.number, {**body, "evaluationId": id, "datasetId": str(body["datasetId"])})

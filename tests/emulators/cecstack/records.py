"""What the emulated CECSTACK keeps beside tasks and packages: projects, data sets, images, notebooks,
online services and evaluations.

What belongs here: their records and the little life they have.  What does not: HTTP (server.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.emulators.cecstack import wire
from tests.emulators.cecstack.packages import Packages
from tests.emulators.cecstack.wire import Failure, may, must

PROJECT = must(str, "name", "Describe")
RELATE = must(str, "projectId") | must(list, "resourceIds")
DATASET = {
    **must(str, "name", "describe", "sourceType", "downloadUrl", "markStatus", "version"),
    **must(int, "projectId", "storageType"),
    **may(str, "label", "source", "status", "clearStatus"),
}
DATASET_FILE = must(str, "namespace", "dstpath", "uploadId", "filename")
IMAGE = {
    **must(str, "image_type", "base_image", "volume_mount", "describe", "target_image", "resourceId"),
    **must(str, "specCode", "resource_memory", "resource_cpu", "resource_gpu", "exclusive"),
    **must(int, "project"),
    **must(bool, "consecutive_build"),
}
NOTEBOOK_EDIT = {
    **must(str, "name", "describe", "specType", "resourceId", "imageType", "images", "expand"),
    **must(str, "resource_memory", "resource_cpu", "resource_gpu"),
}
NOTEBOOK = {
    **NOTEBOOK_EDIT,
    **must(int, "project"),
    **must(str, "imageGpuType"),
    **must(bool, "vpcEnabled"),
    **may(str, "vpc_id", "subnet_id", "eip_id", "specCode"),
}
SERVICE = {
    **must(int, "project", "min_replicas", "max_replicas", "priority", "library_option", "model_source"),
    **must(int, "model_id", "image_source", "quantization_bit"),
    **must(str, "service_name", "label", "describe", "infer_backend", "specType", "resourceId", "vpc_id"),
    **must(str, "subnet_id", "eip_id", "hpa", "eip", "service_type"),
    **may(str, "env"),
}
SERVICE_EDIT = {
    **SERVICE,
    **must(str, "model_name", "model_path", "images", "command", "ports", "business_type"),
    **may(str, "placeholder", "library_config"),
}
EVALUATION = {
    **must(str, "name", "storage_type", "spec_type", "datasetName", "specCode", "specCPU", "specGpu"),
    **must(str, "specMemory", "task_specCPU", "task_specGpu", "task_specMemory", "task_specCode"),
    **must(str, "resource_id", "service_resource_id"),
    **must(int, "type", "datasetId", "aihub", "projectId"),
    **must(dict, "evalStandardConf"),
    **may(str, "description", "maas_task_parent", "model_type", "model_path"),
}


@dataclass(slots=True)
class Service:
    """An online service; its status is a word of the platform's relatives, which the document lacks."""

    id: int
    body: dict[str, Any]
    status: str = "offline"
    published: float | None = None
    debugged: int = 0


@dataclass(slots=True)
class Records:
    """Everything by id; `online_s` after its publication a service is online."""

    clock: Callable[[], float]
    packages: Packages
    online_s: float = 5.0
    projects: dict[int, str] = field(default_factory=dict)
    datasets: dict[int, dict[str, Any]] = field(default_factory=dict)
    files: list[dict[str, Any]] = field(default_factory=list)
    images: list[dict[str, Any]] = field(default_factory=list)
    uploads: set[tuple[str, str, str]] = field(default_factory=set)  # registry instance, project, image
    pushed: list[dict[str, Any]] = field(default_factory=list)
    notebooks: dict[int, dict[str, Any]] = field(default_factory=dict)
    services: dict[int, Service] = field(default_factory=dict)
    evaluations: dict[int, dict[str, Any]] = field(default_factory=dict)
    _next: int = 40

    def id(self) -> int:
        self._next += 1
        return self._next

    # ------------------------------------------------------------ projects

    def add_project(self, name: str) -> int:
        if name in self.projects.values():
            raise Failure(f"project {name} exists", status=409)
        id = self.id()
        self.projects[id] = name
        return id

    def project_rows(self) -> list[dict[str, Any]]:
        return [
            {
                "id": id,
                "cluster": "default",
                "name": name,
                "projectUser": "user@admin",
                "createTime": wire.local(self.clock()),
                "status": "使用中",
                "completeResource": ",".join(
                    p.name for p in self.packages.all.values() if id in p.projects and not p.deleted
                ),
                "storageResource": "",
                "exclusiveResource": "",
            }
            for id, name in self.projects.items()
        ]

    def drop_project(self, id: int) -> None:
        if self.projects.pop(id, None) is None:
            raise Failure(f"project {id} does not exist", status=404)

    # ------------------------------------------------------------ data sets and images

    def add_dataset(self, body: dict[str, Any]) -> None:
        self.datasets[self.id()] = {**body, "createTime": wire.local(self.clock())}

    def dataset_rows(self) -> list[dict[str, Any]]:
        return [
            {
                **body,
                "id": id,
                "storageSize": "1G",
                "dataSize": 3,
                "dealStatus": "",
                "importStatus": "",
                "isPublic": body.get("isPublic", False),
                "projectName": self.projects.get(body["projectId"], ""),
            }
            for id, body in self.datasets.items()
        ]

    def add_image(self, key: str, gpu_type: str, title: str) -> None:
        self.images.append(
            {
                "creator": "admin",
                "gpu_type": gpu_type,
                "gpu_type_ch": gpu_type,
                "id": self.id(),
                "image_type": "preset",
                "images_url": f"image.cestc.cn/iaas_pub/{key}",
                "isPreset": True,
                "key": key,
                "modified": "15 days ago",
                "project": "train",
                "title": title,
            }
        )

    # ------------------------------------------------------------ services

    def service(self, id: int) -> Service:
        service = self.services.get(id)
        if service is None:
            raise Failure("Not found", status=404)
        return service

    def take_offline(self, id: int) -> None:
        """By a call, or by itself: the platform tells these apart by no word."""
        service = self.service(id)
        service.published, service.status = None, "offline"

    def service_row(self, service: Service) -> dict[str, Any]:
        online = service.published is not None and self.clock() >= service.published + self.online_s
        status = "online" if online else service.status
        return {**service.body, "id": service.id, "model_status": status, "status": status}

    # ------------------------------------------------------------ notebooks

    def notebook(self, id: int) -> dict[str, Any]:
        record = self.notebooks.get(id)
        if record is None:
            raise Failure(f"instance {id} does not exist", status=404)
        return record

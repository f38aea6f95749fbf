"""What a CECSTACK stores, for operators: data sets, images and labs (chapters 8, 10 and 12).

Here: their commands, and what all commands share.  Not here: how bytes get there: the calls for those
are in other documents of the vendor, so only what begins and ends a transfer is here (trap 32).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Final

from adapters.cecstack_wire import NotThere, Wire, absent
from adapters.values import whole
from broker.adapter import Argument, ArgumentKind, Refused, Unavailable, VendorCommand

IMAGE_TYPE: Final = 4
"""`type` of deleteInstance (§8.3)."""
NAMESPACE: Final = "ccos-aidp"
"""The only one that the document shows (§10.2)."""

Given = Mapping[str, Any]

ID = Argument("id", "its number at the platform", ArgumentKind.WHOLE, required=True)
PROJECT = Argument("project", "number of the project", ArgumentKind.WHOLE, required=True)
PACKAGE = Argument("package", "resourceId of a package, AIDP-…", required=True)
NAME = Argument("name", "its name at the platform", required=True)
DESCRIPTION = Argument("description", "free text")
UPLOAD = Argument("upload", "id that the upload of its bytes was given", required=True)


def assets(wire: Wire) -> tuple[VendorCommand, ...]:
    return (*_datasets(wire), *_images(wire), *_labs(wire))


def _datasets(wire: Wire) -> tuple[VendorCommand, ...]:
    def rows() -> AsyncIterator[dict[str, Any]]:
        return wire.rows("dataset.page", "/v1/dataset/page", related="str_relate")

    async def show_all(_given: Given) -> Any:
        return [row async for row in rows()]

    async def register(given: Given) -> Any:
        """§10.1, without an id in its answer; the bytes are brought by other means (trap 32)."""
        project, name, version = given["project"], given["name"], given["version"]
        body = {
            "name": name,
            "describe": given.get("description", ""),
            "label": "",
            "sourceType": given.get("type", "text"),
            "source": "",
            "status": "",
            "downloadUrl": f"/mnt/{project}/{name}/{version}",
            "markStatus": "2",
            "clearStatus": "",
            "projectId": project,
            "version": version,
            "storageType": 0,
        }
        await wire.call("dataset.insert", "POST", "/v1/dataset/insert", effect=True, document=body)
        async for row in rows():
            if row.get("name") == name and row.get("version") == version:
                return {"id": row.get("id"), "path": body["downloadUrl"]}
        raise Unavailable("the data set was registered and is not in the list yet: see `datasets`")

    async def delete(given: Given) -> Any:
        """§10.4 by DELETE with a body, which a proxy may drop: the query says it too (trap 5)."""
        id = given["id"]
        await wire.call(
            "dataset.delete",
            "DELETE",
            "/v1/dataset/delete",
            effect=True,
            query={"id": id},
            document={"id": id},
        )
        return {"deleted": id}

    async def file(given: Given) -> Any:
        """§10.2 registers a file whose bytes have been sent already: that call is in another document."""
        body = {
            "namespace": given.get("namespace", NAMESPACE),
            "dstpath": given["path"],
            "uploadId": given["upload"],
            "filename": given["file"],
        }
        await wire.call("dataset.files", "POST", "/v1/dataset/files", effect=True, document=body)
        return {"registered": f"{given['path']}/{given['file']}"}

    version = Argument("version", "its version, such as v1", required=True)
    kind = Argument("type", "what it holds, such as text")
    return (
        VendorCommand("datasets", "the data sets that are registered there", show_all),
        VendorCommand(
            "dataset-register",
            "register a data set; its files must be brought to the path that is answered",
            register,
            (PROJECT, NAME, version, kind, DESCRIPTION),
        ),
        VendorCommand(
            "dataset-file",
            "register a file of a data set that was uploaded by other means",
            file,
            (
                Argument("path", "folder below the data set's path, such as /mnt/59/a/v1/x", required=True),
                UPLOAD,
                Argument("file", "its name", required=True),
                Argument("namespace", f"of the storage; {NAMESPACE} unless given"),
            ),
        ),
        VendorCommand("dataset-delete", "delete a data set", delete, (ID,)),
    )


def _images(wire: Wire) -> tuple[VendorCommand, ...]:
    async def build(given: Given) -> Any:
        """§8.2; the platform does not tell how the build goes."""
        body = {
            "project": given["project"],
            "image_type": "基础镜像构建",
            "base_image": given["base"],
            "consecutive_build": True,
            "volume_mount": given["volume"],
            "describe": given.get("description", ""),
            "target_image": given["target"],
            "resourceId": given["package"],
            "specCode": given["spec-code"],
            "resource_memory": given["memory"],
            "resource_cpu": given["cpu"],
            "resource_gpu": given.get("gpu", "0"),
            "exclusive": "",
        }
        found = await wire.call(
            "image.build", "POST", "/v1/docker_modelview/api/", effect=True, document=body
        )
        return {"id": number_of(found)}

    async def upload(given: Given) -> Any:
        """§8.5 names the registry instance; the bytes go to the registry, by another document's calls."""
        body = {
            "projectName": given.get("registry-project", "library"),
            "imageName": given["image"],
            "abortController": {},
        }
        found = await wire.call("image.preupload", "POST", "/v1/images/preUpload", effect=True, document=body)
        if not isinstance(found, dict) or not found.get("instanceId"):
            raise Unavailable(f"expected an instanceId in the answer, got {str(found)[:200]}")
        return {"instance": found["instanceId"], "registryProject": found.get("projectName")}

    async def push(given: Given) -> Any:
        """§8.6.  Its text has one step more in the path than its sample, which is tried first (trap 10)."""
        instance, project = segment(given["instance"]), segment(given.get("registry-project", "library"))
        base = f"/v1/instances/{instance}/projects/{project}"
        body = {
            "hash_md5": given.get("md5", ""),
            "image_name": given["image"],
            "upload_id": given["upload"],
        }
        places = [("POST", f"{base}/push"), ("POST", f"{base}/library/push")]
        found = await either(wire, "image.push", places, body, effect=True)
        return {"status": found.get("status") if isinstance(found, dict) else found}

    registry = Argument("registry-project", "project of the registry; library unless given")
    image = Argument("image", "name and tag, such as test:v1", required=True)
    arguments = (
        *(PROJECT, PACKAGE, Argument("base", "URL of the image to start from", required=True)),
        Argument("target", "URL of the image to make", required=True),
        Argument("volume", "volume to mount, such as kubeflow-user-workspace(pvc):/mnt", required=True),
        Argument("spec-code", "specCode of the package", required=True),
        *(Argument("cpu", "cores", required=True), Argument("memory", "GB", required=True)),
        *(Argument("gpu", 'cards, such as "1(H800)"'), DESCRIPTION),
    )
    return (
        VendorCommand("image-build", "build an image on a package", build, arguments),
        VendorCommand(
            "image-upload",
            "begin an image's upload: where its bytes must be sent to, which the platform's registry takes",
            upload,
            (image, registry),
        ),
        VendorCommand(
            "image-push",
            "take over an image whose bytes have been sent",
            push,
            (
                Argument("instance", "what image-upload answered", required=True),
                image,
                UPLOAD,
                Argument("md5", "of its bytes"),
                registry,
            ),
        ),
        VendorCommand("image-delete", "delete an image", deleting(wire, IMAGE_TYPE), (ID,)),
    )


def _labs(wire: Wire) -> tuple[VendorCommand, ...]:
    """§12.2 and §12.3; there is no list of them."""

    async def create(given: Given) -> Any:
        body = {
            "project": given["project"],
            "name": given["name"],
            "describe": given.get("description", ""),
        }
        path = "/alpha/maas_modelview/lab/api/"
        return {"id": number_of(await wire.call("lab.create", "POST", path, effect=True, document=body))}

    async def delete(given: Given) -> Any:
        path = f"/alpha/maas_modelview/lab/api/{given['id']}"
        try:
            await wire.call("lab.delete", "DELETE", path, effect=True)
        except NotThere:
            return {"deleted": None}
        return {"deleted": given["id"]}

    return (
        VendorCommand(
            "lab-create", "create a lab, which compares tasks", create, (PROJECT, NAME, DESCRIPTION)
        ),
        VendorCommand("lab-delete", "delete a lab", delete, (ID,)),
    )


# ---------------------------------------------------------------- what commands share


async def either(
    wire: Wire, operation: str, places: Sequence[tuple[str, str]], body: Any, *, effect: bool
) -> Any:
    """A call whose text and sample differ in method or path: the next place is tried where the
    installation has no route for one, which has no effect (traps 4, 10 and 16)."""
    for place in places:
        method, path = place
        try:
            return await wire.call(operation, method, path, effect=effect, document=body)
        except Unavailable as error:
            if not absent(error) or place == places[-1]:
                raise
    raise AssertionError("the last place answers or raises")


def deleting(wire: Wire, kind: int) -> Any:
    """One call deletes things of all kinds: the number of the kind must be right (trap 6)."""

    async def delete(given: Given) -> Any:
        query = {"id": given["id"], "type": kind}
        try:
            await wire.call("instance.delete", "DELETE", "/v1/deleteInstance", effect=True, query=query)
        except NotThere:
            return {"deleted": None}
        return {"deleted": given["id"]}

    return delete


def number_of(found: Any) -> int:
    id = whole(found.get("id"), "id") if isinstance(found, dict) else None
    if id is None:
        raise Unavailable(f"expected an id in the answer, got {str(found)[:200]}")
    return id


def segment(text: str) -> str:
    """One step of a path.  Raises Refused."""
    if not text.replace("-", "").isalnum() or not text.isascii():
        raise Refused(f"id is {text!r}, expected letters, digits and '-'")
    return text

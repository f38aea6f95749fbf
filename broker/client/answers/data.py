"""Images, data sets, models and applications."""

from __future__ import annotations

from typing_extensions import TypedDict

from broker.client.answers.outlook import CopyItem


class ImageItem(TypedDict):
    imageId: str
    imageName: str
    imageDesc: str
    arch: str
    processor: str
    operationSystem: str
    framework: str
    createTime: str
    installedLib: list[str]
    centerIds: list[str]


class ImagePage(TypedDict):
    images: list[ImageItem]
    totalSize: int


class DatasetItem(TypedDict):
    """`size` in bytes; `centerIds` have it ready."""

    id: str
    title: str
    owner: str
    size: int
    desc: str
    labels: str
    public: bool
    createTime: str
    centerIds: list[str]


class DatasetDetail(DatasetItem):
    md5: str
    copies: list[CopyItem]


class DatasetPage(TypedDict):
    totalSize: int
    datasets: list[DatasetItem]


class DatasetUpload(TypedDict):
    id: str


class AssetItem(TypedDict):
    """A model or an application."""

    id: str
    title: str
    owner: str
    desc: str
    labels: str
    createTime: str
    centerIds: list[str]


class ModelPage(TypedDict):
    models: list[AssetItem]
    totalSize: int


class AppPage(TypedDict):
    apps: list[AssetItem]
    totalSize: int


class Upload(TypedDict):
    id: str
    bytes: int
    files: int

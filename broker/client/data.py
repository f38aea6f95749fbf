"""The client's calls about images, data sets, models and applications.

What belongs here: one method per call, taken over by broker.client.Client.  What does not: connections.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast
from urllib.parse import quote

from broker.client.form import FileForm

if TYPE_CHECKING:
    from broker.client import Query
    from broker.client.answers import (
        AppPage,
        DatasetDetail,
        DatasetPage,
        DatasetUpload,
        ImagePage,
        ModelPage,
    )


class Sender(Protocol):
    """What sends requests: the client."""

    def _json(self, method: str, path: str, *, query: Query | None = None) -> Any: ...

    def _send_pieces(
        self, path: str, pieces: Iterator[bytes], headers: Mapping[str, str]
    ) -> dict[str, Any]: ...


class DataCalls:
    """The part of the client that is about data."""

    def images(self: Sender, query: Query | None = None) -> ImagePage:
        return cast("ImagePage", self._json("GET", "/resource/images", query=query))

    def datasets(self: Sender, query: Query | None = None) -> DatasetPage:
        return cast("DatasetPage", self._json("GET", "/datasets", query=query))

    def dataset(self: Sender, dataset: str) -> DatasetDetail:
        return cast("DatasetDetail", self._json("GET", f"/datasets/{quote(dataset, safe='')}"))

    def delete_dataset(self: Sender, dataset: str) -> None:
        self._json("DELETE", f"/datasets/{quote(dataset, safe='')}")

    def upload_dataset(
        self: Sender, path: Path, title: str, *, desc: str = "", labels: str = "", public: bool = True
    ) -> DatasetUpload:
        """Send a file as a data set.  Raises FileChanged, OSError."""
        stated = {"title": title, "desc": desc, "labels": labels}
        fields = {name: text for name, text in stated.items() if text}
        with path.open("rb") as file:
            form = FileForm(file, path.name, {**fields, "public": "true" if public else "false"})
            headers = {"Content-Type": form.content_type, "Content-Length": str(form.length)}
            return cast("DatasetUpload", self._send_pieces("/datasets/upload", form.pieces(), headers))

    def models(self: Sender, query: Query | None = None) -> ModelPage:
        return cast("ModelPage", self._json("GET", "/models", query=query))

    def apps(self: Sender, query: Query | None = None) -> AppPage:
        return cast("AppPage", self._json("GET", "/apps", query=query))

"""The client's calls about images, data sets, models and applications.

What belongs here: one method per call, which broker.client.Client has.  What does not: the exchange.
"""

from __future__ import annotations

from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING, cast

from broker.client.exchange import Exchange, Query, segment
from broker.client.form import FileForm
from broker.client.sending import ChunkedBody, send

if TYPE_CHECKING:
    from broker.client.answers import (
        AppPage,
        DatasetDetail,
        DatasetPage,
        DatasetUpload,
        ImagePage,
        ModelPage,
        Upload,
    )


class DataCalls(Exchange):
    """The part of the client that is about data."""

    def images(self, query: Query | None = None) -> ImagePage:
        return cast("ImagePage", self._json("GET", "/resource/images", query=query))

    def datasets(self, query: Query | None = None) -> DatasetPage:
        return cast("DatasetPage", self._json("GET", "/datasets", query=query))

    def dataset(self, dataset: str) -> DatasetDetail:
        return cast("DatasetDetail", self._json("GET", f"/datasets/{segment(dataset)}"))

    def delete_dataset(self, dataset: str) -> None:
        self._json("DELETE", f"/datasets/{segment(dataset)}")

    def upload_dataset(
        self, path: Path, title: str, *, desc: str = "", labels: str = "", public: bool = True
    ) -> DatasetUpload:
        """Send a file as a data set.  Raises FileChanged, OSError."""
        stated = {"title": title, "desc": desc, "labels": labels}
        fields = {name: text for name, text in stated.items() if text}
        with path.open("rb") as file:
            form = FileForm(file, path.name, {**fields, "public": "true" if public else "false"})
            headers = {"Content-Type": form.content_type, "Content-Length": str(form.length)}

            def write(connection: HTTPConnection) -> None:
                for piece in form.pieces():
                    send(connection, piece)

            return cast("DatasetUpload", self._send("/datasets/upload", headers, write))

    def upload(self, folder: Path, title: str) -> Upload:
        """Send a folder as a private data set; UnsafeFolder before anything is sent."""
        from broker.client.archive import entries, pack

        contents = entries(folder)

        def write(connection: HTTPConnection) -> None:
            body = ChunkedBody(connection)
            pack(contents, body)
            body.end()

        headers = {"Content-Type": "application/gzip", "Transfer-Encoding": "chunked"}
        return cast("Upload", self._send("/broker/v1/uploads", headers, write, {"title": title}))

    def models(self, query: Query | None = None) -> ModelPage:
        return cast("ModelPage", self._json("GET", "/models", query=query))

    def apps(self, query: Query | None = None) -> AppPage:
        return cast("AppPage", self._json("GET", "/apps", query=query))

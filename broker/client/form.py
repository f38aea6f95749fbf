"""A multipart form with one file, sent piece by piece.

What belongs here: the bytes of the form.  What does not: the connection (broker.client).
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator, Mapping
from typing import BinaryIO

PIECE = 1 << 20
_NO_SUM = "0" * 32
_UNFIT = str.maketrans({'"': "%22", "\\": "_", "\r": "_", "\n": "_"})  # as browsers do


class FileChanged(Exception):
    """A file had another length when it was sent than at first."""


class FileForm:
    """The form of an open file: its length is known in advance; its MD5 comes last, so it is read once."""

    def __init__(self, file: BinaryIO, name: str, fields: Mapping[str, str]) -> None:
        self._file = file
        self._name = name
        self.size = os.fstat(file.fileno()).st_size
        self._boundary = secrets.token_hex(16)
        first = "".join(self._field(key, value) for key, value in {**fields, "size": str(self.size)}.items())
        self._head = (first + self._part(f'name="file"; filename="{name.translate(_UNFIT)}"')).encode()

    @property
    def content_type(self) -> str:
        return f"multipart/form-data; boundary={self._boundary}"

    @property
    def length(self) -> int:
        return len(self._head) + self.size + len(self._tail(_NO_SUM))

    def pieces(self) -> Iterator[bytes]:
        """The whole form.  Raises FileChanged, OSError."""
        digest, left = hashlib.md5(usedforsecurity=False), self.size
        yield self._head
        while left and (piece := self._file.read(min(PIECE, left))):
            digest.update(piece)
            left -= len(piece)
            yield piece
        if left or self._file.read(1):
            raise FileChanged(f"{self._name} changed while it was sent; it had {self.size} bytes at first")
        yield self._tail(digest.hexdigest())

    def _tail(self, md5: str) -> bytes:
        return f"\r\n{self._field('md5', md5)}--{self._boundary}--\r\n".encode()

    def _part(self, disposition: str) -> str:
        return f"--{self._boundary}\r\nContent-Disposition: form-data; {disposition}\r\n\r\n"

    def _field(self, name: str, value: str) -> str:
        head = self._part(f'name="{name}"')
        return f"{head}{value}\r\n"

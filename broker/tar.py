"""Reading a tar that a stranger wrote: forward only, within limits.

What belongs here: how much may be in an archive, for those of clients (broker.api.unpack) and of centers
(adapters).  What does not: which entries are taken, files on disk, requests.

tarfile alone reads as much as a header says, remembers every entry and every global header, and looks
at extended headers in a time that grows with the square of their length.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

MAX_ENTRIES = 100_000
MAX_HEADER_BYTES = 16 << 10
"""Of all that stands before the content of one entry: its header, a long name, an extended header."""
MAX_HEADERS_BYTES = 256 << 20
"""Of the headers of all entries together."""
CHUNK = 256 << 10

_EXTENDED = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
_TYPE_AT = 156  # in a header's block
_RECORD = re.compile(rb"([0-9]{1,5}) [^=\0\n]{1,255}=")
_MANY_DIGITS = re.compile(rb"[0-9]{256}")
_HARMLESS = frozenset({"comment"})  # what git and others write into a global header


class BadArchive(Exception):
    """Not a tar, or one with something that may not be in it; the text names it."""


class TooLarge(Exception):
    """More entries or bytes than allowed."""


class Forward:
    """A stream for tarfile that only goes forward, and what it may read of it for headers.

    tarfile goes back by one byte, to see that the last one was there.
    """

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self._at = 0
        self._last = b""
        self._back = False
        self._extended = False
        self._left = MAX_HEADER_BYTES
        self.headers = 0

    def tell(self) -> int:
        return self._at - self._back

    def seek(self, to: int) -> int:
        if to == self._at - 1 and self._last:
            self._back = True
            return to
        self._back = False
        if to < self._at:
            raise BadArchive("the archive points back into itself")
        while self._at < to and self.content(min(CHUNK, to - self._at)):
            pass
        return self._at

    def read(self, size: int = -1) -> bytes:
        """What tarfile reads: headers alone.  Sizes in them are a stranger's word and would be allocated."""
        if not 0 <= size <= self._left:
            raise BadArchive(f"more than {MAX_HEADER_BYTES} bytes of headers before one entry")
        data = self._read(size)
        if self._extended:
            _check_records(data)
        self._extended = (
            not self._extended and size == tarfile.BLOCKSIZE and data[_TYPE_AT : _TYPE_AT + 1] in _EXTENDED
        )
        self._left -= size
        self.headers += size
        return data

    def content(self, size: int) -> bytes:
        """At most so many bytes of what stands after a header; fewer at the end only."""
        return self._read(size)

    def next_entry(self) -> None:
        """What one entry may have for its header may be read anew."""
        self._left = MAX_HEADER_BYTES

    def _read(self, size: int) -> bytes:
        before = self._last if self._back and size else b""
        self._back = self._back and not size
        data = self._source.read(size - len(before))
        self._at += len(data)
        self._last = data[-1:] or self._last
        return before + data


def _check_records(data: bytes) -> None:
    """Raises BadArchive for an extended header that is not one record after the other."""
    at, end = 0, len(data)
    while at < end and data[at]:
        record = _RECORD.match(data, at)
        after = at + int(record[1]) if record is not None else 0
        if record is None or not record.end() < after <= end or data[after - 1 : after] != b"\n":
            raise BadArchive("an extended header with a record that is none")
        at = after
    if _MANY_DIGITS.search(data):
        raise BadArchive("an extended header with a number of hundreds of digits")


def members(stream: Forward, *, max_bytes: int) -> Iterator[tarfile.TarInfo]:
    """The entries, each to be read with `stream.content` or not at all before the next one.

    Raises BadArchive, TooLarge, and what tarfile and the stream below raise.
    """
    entries = total = 0
    with tarfile.open(fileobj=cast(Any, stream), mode="r:", errorlevel=2) as tar:
        for member in tar:
            if member.size < 0:
                raise BadArchive(f"{member.name!r} has a size of {member.size}")
            entries += 1
            total += member.size
            if entries > MAX_ENTRIES:
                raise TooLarge(f"the archive has more than {MAX_ENTRIES} entries")
            if stream.headers > MAX_HEADERS_BYTES:
                raise TooLarge(f"the archive has more than {MAX_HEADERS_BYTES} bytes of headers")
            if total > max_bytes:
                raise TooLarge(f"the archive unpacks to more than {max_bytes} bytes")
            if not tar.pax_headers.keys() <= _HARMLESS:  # they are remembered to the end
                raise BadArchive("a global header that says more than a comment")
            stream.next_entry()
            yield member
            tar.members.clear()  # type: ignore[attr-defined]  # tarfile would remember all of them

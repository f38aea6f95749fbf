"""A synchronous client of the HTTP API, on the standard library.

What belongs here: one method per call and the two errors.  What does not: the shapes of
the answers (broker.client.answers), credentials files, texts for people, waiting loops (broker.cli.*).

Repeating: a POST or DELETE is never sent twice, but for a create, whose Idempotency-Key makes the
second the same as the first.  A GET is repeated once when the connection breaks.
Timeouts, in seconds: CONNECT_S for a connection, ANSWER_S between two pieces of an answer,
STREAM_S for a large answer to begin; a log that is followed may be silent for ever.
"""

from __future__ import annotations

import http.client
import json
import re
import secrets
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, cast
from urllib.parse import quote, unquote, urlencode, urlsplit

from broker import __version__
from broker.client.data import DataCalls
from broker.client.further import EventsEnded, FurtherCalls, Query
from broker.client.money import MoneyCalls
from broker.client.sending import ChunkedBody, SendBroken, send

if TYPE_CHECKING:
    from broker.client.answers import (
        CenterCommand,
        CenterPage,
        Explanation,
        Idle,
        Info,
        JobDetail,
        JobItem,
        JobPage,
        Me,
        ServiceDetail,
        ServiceLink,
        SpecPage,
        StopAnswer,
        Token,
        Upload,
    )

CONNECT_S = 5.0
ANSWER_S = 30.0
STREAM_S = 600.0
CALL_S = 90.0  # a little more than the broker waits for a center
CHUNK = 1 << 16

__all__ = ["Client", "EventsEnded", "Query", "RequestFailed", "Unreachable"]

Noun = Literal["trainjob", "onlineJob"]
"""Training jobs and online services have the same calls on paths of their own."""
TRAIN: Noun = "trainjob"
ONLINE: Noun = "onlineJob"

BROKEN = (http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)
"""What a broken connection raises; a local file raises none of them."""


# ---------------------------------------------------------------- errors


class Unreachable(Exception):
    """No answer of a broker: not there, cut off, or something else answers at this address."""


class RequestFailed(Exception):
    """The broker said no.

    `code` is the standard's error code, "" outside its table; `retry_after_s` is None or what the
    broker asked for.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        detail: str = "",
        request_id: str = "",
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(detail or message or f"HTTP status {status}")
        self.status = status
        self.code = code
        self.message = message
        self.detail = detail
        self.request_id = request_id
        self.retry_after_s = retry_after_s


# ---------------------------------------------------------------- the client


class Client(DataCalls, FurtherCalls, MoneyCalls):
    """`url` is the broker's address, a path prefix included; ValueError if it is no http(s) URL."""

    def __init__(self, url: str, token: str = "", *, answer_s: float = ANSWER_S) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is not a URL like http://127.0.0.1:8238")
        self.url = url.rstrip("/")
        self._secure = parts.scheme == "https"
        self._host = parts.hostname
        self._port = parts.port
        self._prefix = parts.path.rstrip("/")
        self._token = token
        self._answer_s = answer_s

    # ------------------------------------------------ accounts

    def login(self, user: str, password: str) -> Token:
        body = {"authMethod": "password", "user": {"name": user, "password": password}}
        return cast("Token", self._json("POST", "/auth/tokens", body=body))

    def logout(self) -> None:
        self._json("DELETE", "/auth/tokens")

    def change_password(self, old: str, new: str) -> None:
        self._json("POST", "/auth/password", body={"old": old, "new": new})

    def me(self) -> Me:
        return cast("Me", self._json("GET", "/broker/v1/me"))

    def info(self) -> Info:
        return cast("Info", self._json("GET", "/broker/v1/info"))

    def accounts(self) -> dict[str, Any]:
        return cast(dict[str, Any], self._json("GET", "/broker/v1/accounts"))

    def change_account(self, name: str, action: str, body: Mapping[str, str] | None = None) -> Any:
        """`action` is grant, revoke (body: right), freeze, unfreeze or password (body: password)."""
        return self._json("POST", f"/broker/v1/accounts/{_word(name)}/{action}", body=dict(body or {}))

    # ------------------------------------------------ resources

    def centers(self, query: Query | None = None) -> CenterPage:
        return cast("CenterPage", self._json("GET", "/centers", query=query))

    def specs(self, query: Query | None = None) -> SpecPage:
        return cast("SpecPage", self._json("GET", "/resource/specs", query=query))

    def idle(self, center: str | None = None) -> Idle:
        return cast("Idle", self._json("GET", "/resource/idle", query={"centerId": center}))

    def command_center(self, center: str, command: str) -> CenterCommand:
        """`command` is drain or resume."""
        return cast("CenterCommand", self._json("POST", f"/broker/v1/centers/{_word(center)}/{command}"))

    # ------------------------------------------------ one center, directly

    def call_center(self, center: str, method: str, path: str, body: str | None = None) -> dict[str, Any]:
        """What the center's platform answers, as it is; CALL_S for it."""
        call = {"method": method, "path": path, "body": body}
        where = f"/broker/v1/centers/{_word(center)}/call"
        return cast(dict[str, Any], self._json("POST", where, body=call, answer_s=CALL_S))

    def doctor(self, center: str) -> Iterator[dict[str, Any]]:
        """The checks of a center as they end: name, ok, detail."""
        with self._opened("POST", f"/broker/v1/centers/{_word(center)}/doctor", answer_s=STREAM_S) as answer:
            rest = b""
            for piece in _pieces(answer):
                *lines, rest = (rest + piece).split(b"\n")
                yield from map(json.loads, lines)

    def center_commands(self, center: str) -> dict[str, Any]:
        return cast(dict[str, Any], self._json("GET", f"/broker/v1/centers/{_word(center)}/commands"))

    def run_center_command(
        self, center: str, name: str, arguments: Mapping[str, Any], *, timeout_s: float
    ) -> dict[str, Any]:
        where = f"/broker/v1/centers/{_word(center)}/commands/{_word(name)}"
        sent = {"arguments": dict(arguments)}
        return cast(dict[str, Any], self._json("POST", where, body=sent, answer_s=timeout_s + ANSWER_S))

    # ------------------------------------------------ jobs

    def create_job(
        self, request: Mapping[str, Any], *, key: str | None = None, noun: Noun = TRAIN
    ) -> JobItem:
        """Submit a job.  A lost answer is asked for again with the same key, so the job exists once."""
        headers = {"Idempotency-Key": key or secrets.token_hex(16)}
        try:
            answer = self._json("POST", f"/{noun}", body=request, headers=headers)
        except Unreachable:
            answer = self._json("POST", f"/{noun}", body=request, headers=headers)
        return cast("JobItem", answer)

    def jobs(self, query: Query | None = None, *, noun: Noun = TRAIN) -> JobPage:
        return cast("JobPage", self._json("GET", f"/{noun}", query=query))

    def all_jobs(self, query: Query, *, noun: Noun = TRAIN) -> Iterator[JobItem]:
        """Every job of a listing, page after page, oldest ids first so that new jobs shift nothing."""
        page = seen = 0
        while True:
            page += 1
            answer = self.jobs({**query, "sort": "id", "order": "asc", "page": page}, noun=noun)
            yield from answer["items"]
            seen += len(answer["items"])
            if not answer["items"] or seen >= answer["totalSize"]:
                return

    def job(self, job: str) -> JobDetail:
        return cast("JobDetail", self._json("GET", f"/broker/v1/jobs/{_word(job)}"))

    def explain(self, job: str, *, what_if: bool = True) -> Explanation:
        """`what_if`: also what would start it now, which costs the broker some rounds."""
        query = "" if what_if else "?whatIf=false"
        return cast("Explanation", self._json("GET", f"/broker/v1/jobs/{_word(job)}/explain{query}"))

    def stop_job(self, job: str, *, noun: Noun = TRAIN) -> StopAnswer:
        return cast("StopAnswer", self._json("POST", f"/{noun}/{_word(job)}/stop"))

    def delete_job(self, job: str, *, noun: Noun = TRAIN) -> None:
        self._json("DELETE", f"/{noun}/{_word(job)}")

    def service(self, job: str) -> ServiceDetail:
        return cast("ServiceDetail", self._json("GET", f"/{ONLINE}/{_word(job)}"))

    def service_link(self, job: str) -> ServiceLink:
        """A link that lets a browser in, for a moment."""
        return cast("ServiceLink", self._json("POST", f"/broker/v1/services/{_word(job)}/link"))

    def retry_job(self, job: str) -> JobItem:
        return cast("JobItem", self._json("POST", f"/broker/v1/jobs/{_word(job)}/retry"))

    def resolve_job(self, job: str, verdict: Mapping[str, Any]) -> Any:
        """`verdict` has one of neverRan (true), remote (native id) and ended (a final status)."""
        return self._json("POST", f"/broker/v1/jobs/{_word(job)}/resolve", body=verdict)

    def logs(self, job: str, *, task: str = "", node: int = 0, follow: bool = False) -> Iterator[bytes]:
        """The log of one node of one task (default: the newest), in pieces as they come.

        A broken connection is resumed where it broke, once per piece received.
        """
        path = f"/broker/v1/jobs/{_word(job)}/logs"
        offset, resumed = 0, False
        while True:
            query: Query = {"task": task or None, "node": node, "offset": offset, "follow": int(follow)}
            try:
                with self._opened("GET", path, query=query, answer_s=None if follow else STREAM_S) as answer:
                    for piece in _pieces(answer):
                        offset, resumed = offset + len(piece), False
                        yield piece
                return
            except Unreachable:
                if resumed:
                    raise
                resumed = True

    def download(self, job: str, folder: Path) -> list[Path]:
        """Write the results of a job below `folder` and name the files; UnsafeArchive, OSError.

        Several results come as one archive, which is unpacked; a single one keeps its own name.
        """
        from broker.client.archive import safe_name, unpack

        with self._opened("GET", f"/trainjob/{_word(job)}/download", answer_s=STREAM_S) as answer:
            name = safe_name(_file_name(answer) or job)
            folder.mkdir(parents=True, exist_ok=True)
            if name == f"{job}.tar.gz":  # the broker's, and not one that the job made
                return unpack(cast(IO[bytes], _Whole(answer)), folder)
            part = folder / f".{name}.part"
            try:
                with part.open("wb") as file:
                    for piece in _pieces(answer):
                        file.write(piece)
                part.replace(folder / name)
            finally:
                part.unlink(missing_ok=True)
            return [folder / name]

    def upload(self, folder: Path, title: str) -> Upload:
        """Send a folder as a private data set; UnsafeFolder before anything is sent."""
        from broker.client.archive import entries, pack

        contents = entries(folder)
        headers = {"Content-Type": "application/gzip", "Transfer-Encoding": "chunked"}
        with self._begun("/broker/v1/uploads", headers, {"title": title}) as connection:
            body = ChunkedBody(connection)
            with suppress(SendBroken):  # a refusal may have been sent before it was closed: read it
                pack(contents, body)
                body.end()
            return cast("Upload", _decoded(self._answer_of(connection), self.url))

    def _send_pieces(self, path: str, pieces: Iterator[bytes], headers: Mapping[str, str]) -> dict[str, Any]:
        with self._begun(path, headers) as connection:
            with suppress(SendBroken):
                for piece in pieces:
                    send(connection, piece)
            return _decoded(self._answer_of(connection), self.url)

    @contextmanager
    def _begun(
        self, path: str, headers: Mapping[str, str], query: Query | None = None
    ) -> Iterator[_Connection | _SecureConnection]:
        """A POST whose headers are sent and whose body is to come."""
        connection = self._connection(STREAM_S)
        with closing(connection):
            try:
                connection.connect()
                connection.putrequest("POST", self._target(path, query))
                for header, value in self._headers(headers).items():
                    connection.putheader(header, value)
                connection.endheaders()
            except (OSError, http.client.HTTPException) as error:
                raise self._unreachable(error) from error
            yield connection

    # ------------------------------------------------ one exchange

    def _json(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        answer_s: float | None = None,
    ) -> Any:
        """The JSON object of the answer; {} when it has no body."""
        payload = None if body is None else json.dumps(body, ensure_ascii=False).encode()
        sent = (
            dict(headers or {}) if body is None else {"Content-Type": "application/json", **(headers or {})}
        )
        for last in (method != "GET", True):
            try:
                with self._opened(
                    method,
                    path,
                    query=query,
                    payload=payload,
                    headers=sent,
                    answer_s=answer_s or self._answer_s,
                ) as answer:
                    return _decoded(answer, self.url)
            except Unreachable as error:
                if last or isinstance(error.__cause__, TimeoutError):
                    raise
        raise AssertionError("the last try returns or raises")

    @contextmanager
    def _opened(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        payload: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        answer_s: float | None = ANSWER_S,
    ) -> Iterator[http.client.HTTPResponse]:
        """Send a request and have its good answer to read; no `answer_s`: it may be silent for ever."""
        connection = self._connection(answer_s)
        with closing(connection):
            try:
                connection.request(method, self._target(path, query), payload, self._headers(headers or {}))
                yield self._answer_of(connection)
            except BROKEN as error:
                raise self._unreachable(error) from error
            except OSError as error:
                if connection.answered:
                    raise  # of a local file that the answer is written to
                raise self._unreachable(error) from error

    def _answer_of(self, connection: _Connection | _SecureConnection) -> http.client.HTTPResponse:
        """The answer, if it is a good one; RequestFailed or Unreachable otherwise."""
        try:
            answer = connection.getresponse()
            connection.answered = True
            if answer.status < 300:
                return answer
            raise _failure(answer, self.url)
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from error

    def _connection(self, timeout: float | None) -> _Connection | _SecureConnection:
        kind: type[_Connection | _SecureConnection] = _SecureConnection if self._secure else _Connection
        connection = kind(self._host, self._port, timeout=CONNECT_S)
        connection.later_s = timeout
        return connection

    def _headers(self, more: Mapping[str, str]) -> dict[str, str]:
        headers = {"User-Agent": f"broker/{__version__}", "Accept": "*/*", **more}
        if self._token:
            headers["X-Auth-Token"] = self._token
        return headers

    def _target(self, path: str, query: Query | None) -> str:
        stated = {name: value for name, value in (query or {}).items() if value is not None}
        return self._prefix + path + (f"?{urlencode(stated, doseq=True)}" if stated else "")

    def _unreachable(self, error: Exception) -> Unreachable:
        if isinstance(error, TimeoutError):
            why = "no answer in time"
        elif isinstance(error, http.client.IncompleteRead):
            why = "the answer broke off"
        else:
            why = str(error) or type(error).__name__
        return Unreachable(f"the broker at {self.url} cannot be reached: {why}")


class _Connection(http.client.HTTPConnection):
    """Has one time limit for connecting and another for everything after; knows if an answer began."""

    later_s: float | None = None
    answered = False

    def connect(self) -> None:
        super().connect()
        _settle(self.sock, self.later_s)


class _SecureConnection(http.client.HTTPSConnection):
    """The same over TLS; certificates as the system, SSL_CERT_FILE and SSL_CERT_DIR say."""

    later_s: float | None = None
    answered = False

    def connect(self) -> None:
        super().connect()
        _settle(self.sock, self.later_s)


def _settle(sock: socket.socket, timeout: float | None) -> None:
    sock.settimeout(timeout)
    # Without a time limit only keep-alive notices that the other side is gone.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


class _Whole:
    """A reader of an answer that never takes a broken connection for its end."""

    def __init__(self, answer: http.client.HTTPResponse) -> None:
        self._answer = answer

    def read(self, size: int = -1) -> bytes:
        data = self._answer.read(size if size >= 0 else None)
        if not data and self._answer.length:
            raise http.client.IncompleteRead(b"", self._answer.length)
        return data


def _pieces(answer: http.client.HTTPResponse) -> Iterator[bytes]:
    while piece := answer.read1(CHUNK):
        yield piece
    if answer.length:
        raise http.client.IncompleteRead(b"", answer.length)


def _decoded(answer: http.client.HTTPResponse, url: str) -> dict[str, Any]:
    """The JSON object of an answer; {} when it has no body."""
    raw = answer.read()
    try:
        document = json.loads(raw) if raw else {}
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise Unreachable(f"what answers at {url} is not a broker: no JSON object came back")
    return document


def _failure(answer: http.client.HTTPResponse, url: str) -> Exception:
    """The error of an answer that is not a good one."""
    try:
        body = json.loads(answer.read())
    except ValueError:
        body = None
    if not isinstance(body, dict) or "errorCode" not in body:
        if answer.status in (502, 503, 504):
            return Unreachable(f"the broker behind {url} cannot be reached: HTTP status {answer.status}")
        return RequestFailed(answer.status, "", "", detail=f"HTTP status {answer.status} {answer.reason}")
    wait = answer.headers.get("Retry-After", "")
    return RequestFailed(
        answer.status,
        str(body["errorCode"]),
        str(body.get("errorMsg", "")),
        detail=str(body.get("detail") or ""),
        request_id=str(body.get("requestId") or ""),
        retry_after_s=int(wait) if wait.isdecimal() else None,
    )


def _word(text: str) -> str:
    """One segment of a path, whatever its characters."""
    return quote(text, safe="")


def _file_name(answer: http.client.HTTPResponse) -> str:
    """The name in Content-Disposition, "" without one; the extended form of RFC 6266 goes first."""
    stated = answer.headers.get("Content-Disposition", "")
    extended = re.search(r"filename\*\s*=\s*UTF-8''([^;\s]+)", stated, re.IGNORECASE)
    if extended:
        return unquote(extended[1])
    plain = re.search(r'filename\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^;\s]+))', stated, re.IGNORECASE)
    return re.sub(r"\\(.)", r"\1", plain[1] or plain[2] or "") if plain else ""

"""A server on a socket that follows a script, and a terminal to run `broker` in.

What belongs here: what the tests of the client and of the commands share.  What does not: tests.
"""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

ROOT = Path(__file__).parent.parent

# ---------------------------------------------------------------- a server that follows a script


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Answer:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: int = 0  # bytes of the body that are announced and not sent


class Drop:
    """Read the request, then close the connection without an answer."""


Reply = Answer | Drop | dict[str, Any] | Callable[[Request], "Answer | dict[str, Any]"]


def refusal(code: str, message: str, detail: str = "", status: int = 400) -> Answer:
    body = {"errorCode": code, "errorMsg": message, "detail": detail, "requestId": "r-1"}
    return Answer(status, json.dumps(body).encode())


class Stub:
    """A server: `on(method, path, *replies)`; the last reply stays, and every request is kept."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self._replies: dict[tuple[str, str], list[Reply]] = {}
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                stub.serve(self)

            do_POST = do_DELETE = do_GET

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def on(self, method: str, path: str, *replies: Reply) -> None:
        self._replies[method, path] = list(replies)

    def sent(self, method: str, path: str) -> list[Request]:
        return [each for each in self.requests if (each.method, each.path) == (method, path)]

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        url = urlsplit(handler.path)
        headers = {name.lower(): value for name, value in handler.headers.items()}
        request = Request(handler.command, url.path, parse_qs(url.query), headers, _body(handler))
        self.requests.append(request)
        replies = self._replies.get((request.method, request.path)) or [refusal("0240", "训练作业不存在")]
        reply = replies.pop(0) if len(replies) > 1 else replies[0]
        if callable(reply):
            reply = reply(request)
        handler.close_connection = True
        if isinstance(reply, Drop):
            return
        if isinstance(reply, dict):
            reply = Answer(body=json.dumps(reply).encode(), headers={"Content-Type": "application/json"})
        handler.send_response(reply.status)
        for name, value in reply.headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(reply.body) + reply.cut))
        try:
            handler.end_headers()
            handler.wfile.write(reply.body)
        except ConnectionError:
            return  # the client did not wait


def _body(handler: BaseHTTPRequestHandler) -> bytes:
    if handler.headers.get("Transfer-Encoding") != "chunked":
        return handler.rfile.read(int(handler.headers.get("Content-Length", "0")))
    body = b""
    while size := int(handler.rfile.readline(), 16):
        body += handler.rfile.read(size)
        handler.rfile.readline()
    handler.rfile.readline()
    return body


def unused_url() -> str:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{sock.getsockname()[1]}"


def created(job: str = "j-1", name: str = "a") -> dict[str, Any]:
    return {"metadata": {"id": job, "name": name, "createTime": "2026-01-01 00:00:00"}, "status": "PENDING"}


def detail(job: str = "j-1", status: str = "RUNNING", **more: Any) -> dict[str, Any]:
    runs = [{"taskId": f"t-{job}", "attempt": 1, "status": status, "centerId": "sz-1"}]
    base = {"id": job, "name": f"name-{job}", "status": status, "state": status, "runs": runs}
    return {**base, "message": "", "config": {"command": "true"}, "cost": "0.42", "currency": "CNY", **more}


def archive(**members: str | bytes) -> bytes:
    """A tar.gz; text stands for a link to it, bytes for a file; names have _ for / and .. for UP."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name.replace("UP", "..").replace("__", "/"))
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                tar.addfile(info)
            else:
                info.size, info.mode = len(content), 0o755 if content.startswith(b"#!") else 0o644
                tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def served(body: bytes, name: str, kind: str = "application/octet-stream") -> Answer:
    return Answer(
        body=body,
        headers={"Content-Type": kind, "Content-Disposition": f'attachment; filename="{name}"'},
    )


def project(folder: Path) -> Path:
    folder.mkdir()
    (folder / "train.py").write_text("print(1)\n")
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o755)
    (folder / "data").mkdir()
    (folder / "data" / "big").write_bytes(bytes(range(256)) * 4096)
    (folder / "data" / "link").symlink_to("../train.py")
    (folder / "also").symlink_to("data")
    (folder / "hard").hardlink_to(folder / "train.py")
    for name in (".git", "__pycache__", "data/__pycache__"):
        (folder / name).mkdir()
        (folder / name / "left_out").write_text("x")
    return folder


# ---------------------------------------------------------------- a terminal


@dataclass
class Terminal:
    """Runs `broker` as a process of its own, in a home of its own."""

    home: Path
    url: str
    token: str = "t-1"

    def environ(self) -> dict[str, str]:
        environ = {"PATH": os.environ["PATH"], "HOME": str(self.home), "PYTHONPATH": str(ROOT)}
        environ["PYTHONDONTWRITEBYTECODE"] = "1"
        stated = {"BROKER_URL": self.url, "BROKER_TOKEN": self.token}
        return environ | {name: value for name, value in stated.items() if value}

    def run(self, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "broker", *words]
        return subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            text=True,
            env=self.environ(),
            cwd=self.home,
            timeout=60,
        )

    def start(self, *words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "broker", *words]
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environ(),
            cwd=self.home,
        )


# ---------------------------------------------------------------- both, as fixtures


@pytest.fixture
def stub() -> Iterator[Stub]:
    server = Stub()
    yield server
    server.close()


@pytest.fixture
def terminal(tmp_path: Path, stub: Stub) -> Terminal:
    home = tmp_path / "home"
    home.mkdir()
    return Terminal(home, stub.url)

"""End to end: real online services at a real local center, reached through the real daemon."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest

from broker.client import ONLINE, Client, RequestFailed
from tests.daemon_process import PASSWORD, DaemonProcess, daemon, eventually, local_center
from tests.test_daemon import spec_of

FILES = f"exec {shlex.quote(sys.executable)} -m http.server $BROKER_PORT"

ECHO = """
import asyncio, hashlib, os
from aiohttp import web

async def echo(request):
    if request.headers.get("Upgrade") == "websocket":
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            await socket.send_str("echo " + message.data)
        return socket
    found = hashlib.sha256()
    async for chunk in request.content.iter_any():
        found.update(chunk)
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(found.hexdigest().encode())
    for _ in range(int(request.query.get("more", 0))):
        await response.write(b"x" * 1_000_000)
    return response

app = web.Application()
app.router.add_route("*", "/{path:.*}", echo)
web.run_app(app, host="127.0.0.1", port=int(os.environ["BROKER_PORT"]), print=None)
"""


def create(client: Client, name: str, command: str, **config: Any) -> str:
    body = {
        "jobName": name,
        "config": {"specId": spec_of(client, 1), "imageId": "local", "command": command, **config},
    }
    return str(client.create_job(body, noun=ONLINE)["metadata"]["id"])


def ask(
    broker: DaemonProcess, path: str, *, token: str = "", method: str = "GET", body: bytes | None = None
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", broker.port, timeout=60)
    try:
        connection.request(method, path, body, {"X-Auth-Token": token} if token else {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def serves(broker: DaemonProcess, job: str, token: str, path: str = "") -> bytes:
    """What the service answers, once it does."""

    def answered() -> tuple[bytes] | None:
        status, body = ask(broker, f"/services/{job}/{path}", token=token)
        assert status in (200, 502, 503), (status, body)
        return (body,) if status == 200 else None

    (found,) = eventually(f"service {job} serves", answered)
    return bytes(found)


def token(client: Client) -> str:
    return client._token


def test_files_are_served_killed_and_served_again(tmp_path: Path) -> None:
    with daemon(tmp_path, local_center(tmp_path, "one")) as broker:
        alice, root = broker.client("alice"), broker.client("root")
        pids = tmp_path / "pids"
        job = create(alice, "files", f"echo $$ >> {pids}; echo hello > page.html; {FILES}")
        assert alice.service(job)["metadata"]["url"] == f"{broker.url}/services/{job}/"
        assert serves(broker, job, token(alice), "page.html") == b"hello\n"
        assert ask(broker, f"/services/{job}/page.html")[0] == 401
        assert ask(broker, f"/services/{job}/none", token=token(root))[0] == 404  # the service's own
        # killed, it is started again, and its address stays what it was
        os.kill(int(pids.read_text().split()[-1]), signal.SIGKILL)
        eventually("a second start", lambda: len(pids.read_text().split()) == 2)
        assert serves(broker, job, token(alice), "page.html") == b"hello\n"
        detail = alice.service(job)
        assert (detail["restarts"], len(detail["tasks"]), detail["status"]) == (1, 2, "RUNNING")
        # stopped, it stays so
        alice.stop_job(job, noun=ONLINE)
        eventually("it has stopped", lambda: alice.service(job)["status"] == "STOPPED")
        # what is known of a service is remembered for a second
        path = f"/services/{job}/page.html"
        eventually("its end is told", lambda: ask(broker, path, token=token(alice))[0] == 410)
        assert len(pids.read_text().split()) == 2
        alice.delete_job(job, noun=ONLINE)
        with pytest.raises(RequestFailed) as gone:
            alice.service(job)
        assert gone.value.code == "0240"


def test_a_service_outlives_the_daemon(tmp_path: Path) -> None:
    with daemon(tmp_path, local_center(tmp_path, "one")) as broker:
        alice = broker.client("alice")
        job = create(alice, "files", f"echo hello > page.html; {FILES}")
        serves(broker, job, token(alice), "page.html")
        broker.kill()
        broker.start()
        assert serves(broker, job, token(alice), "page.html") == b"hello\n"
        assert len(alice.service(job)["tasks"]) == 1
        alice.stop_job(job, noun=ONLINE)
        eventually("it has stopped", lambda: alice.service(job)["status"] == "STOPPED")


def test_services_that_want_the_same_port_both_serve(tmp_path: Path) -> None:
    centers = local_center(tmp_path, "one") + local_center(tmp_path, "two")
    with daemon(tmp_path, centers) as broker:
        alice = broker.client("alice")
        jobs = [
            create(alice, f"files-{i}", f"echo {i} > page.html; {FILES}", port=21_777, public=True)
            for i in range(4)
        ]
        assert [serves(broker, job, "", "page.html") for job in jobs] == [f"{i}\n".encode() for i in range(4)]
        ports = {urlsplit(alice.job(job)["runs"][0]["address"]).port for job in jobs}
        assert len(ports) == 4
        for job in jobs:
            alice.stop_job(job, noun=ONLINE)
        eventually("all have stopped", lambda: not alice.jobs({"status": "RUNNING"}, noun=ONLINE)["items"])


def test_a_big_body_and_a_websocket(tmp_path: Path) -> None:
    script = tmp_path / "echo.py"
    script.write_text(ECHO)
    with daemon(tmp_path, local_center(tmp_path, "one")) as broker:
        alice = broker.client("alice")
        job = create(alice, "echo", f"exec {shlex.quote(sys.executable)} {script}", public=True)
        serves(broker, job, "")
        body = os.urandom(1 << 20) * 40
        status, back = ask(broker, f"/services/{job}/?more=40", method="POST", body=body)
        assert (status, len(back)) == (200, 64 + 40_000_000)
        assert back.startswith(hashlib.sha256(body).hexdigest().encode())

        async def talk() -> None:
            async with (
                aiohttp.ClientSession() as session,
                session.ws_connect(f"{broker.url}/services/{job}/ws") as socket,
            ):
                await socket.send_str("hello")
                assert await socket.receive_str() == "echo hello"
                # the daemon's end is told, and does not wait for the socket
                assert broker.process is not None
                broker.process.send_signal(signal.SIGTERM)
                closed = await socket.receive(timeout=30)
                assert (closed.type, closed.data) == (aiohttp.WSMsgType.CLOSE, 1001)

        asyncio.run(talk())
        assert broker.stop() == 0
        broker.start()
        alice = broker.client("alice")
        alice.stop_job(job, noun=ONLINE)
        eventually("it has stopped", lambda: alice.service(job)["status"] == "STOPPED")


def test_the_commands(tmp_path: Path) -> None:
    with daemon(tmp_path, local_center(tmp_path, "one")) as broker:
        alice = broker.client("alice")
        broker.command("login", "--user", "alice", "--password-stdin", text=PASSWORD)
        made = broker.command(
            *("submit", "--service", "--spec", spec_of(alice, 1), "--name", "files", "--"),
            f"echo hello > page.html; {FILES}",
        )
        assert made.returncode == 0, made.stderr
        job = made.stdout.strip()
        serves(broker, job, token(alice), "page.html")
        shown = json.loads(broker.command("service", "show", "files", "--json").stdout)
        assert (shown["metadata"]["id"], shown["status"]) == (job, "RUNNING")
        assert f"{broker.url}/services/{job}/" in broker.command("service", "list").stdout
        link = urlsplit(broker.command("service", "link", "files").stdout.strip())
        connection = http.client.HTTPConnection("127.0.0.1", broker.port, timeout=60)
        connection.request("GET", f"{link.path}page.html?{link.query}")
        entered = connection.getresponse()
        entered.read()
        assert entered.status == 303
        cookie = (entered.getheader("Set-Cookie") or "").partition(";")[0]
        connection.request("GET", entered.getheader("Location") or "", headers={"Cookie": cookie})
        assert connection.getresponse().read() == b"hello\n"
        connection.close()
        logs = broker.command("logs", "files")
        assert "GET /page.html" in logs.stdout, logs.stderr
        assert broker.command("service", "stop", "files").returncode == 0
        eventually("it has stopped", lambda: alice.service(job)["status"] == "STOPPED")
        assert broker.command("service", "delete", "files").stdout == f"{job} deleted\n"


def test_a_service_that_cannot_start_is_given_up_after_its_retries(tmp_path: Path) -> None:
    with daemon(tmp_path, local_center(tmp_path, "one")) as broker:
        alice = broker.client("alice")
        job = create(alice, "broken", "exit 3", maxRetries=1)

        def paused() -> bool:
            reasons = alice.explain(job)["reasons"]
            return any(reason["code"] == "restart_pause" for reason in reasons)

        eventually("it pauses", paused)
        eventually("it is given up", lambda: alice.service(job)["status"] == "FAILED")
        detail = alice.job(job)
        assert [run["exitCode"] for run in detail["runs"]] == [3, 3]
        first, second = detail["runs"]
        assert (second["startTimeMs"] or 0) - (first["finishTimeMs"] or 0) >= 2000
        job = create(alice, "done", "exit 0", maxRetries=0)
        eventually("it has ended", lambda: alice.service(job)["status"] == "SUCCEEDED")
        job = create(alice, "limited", "sleep 1000", maxRunTime=1, stopGrace=1)
        eventually("its limit ends it", lambda: alice.service(job)["status"] == "FAILED")
        assert len(alice.service(job)["tasks"]) == 1

"""`broker service` and `broker submit --service`: which calls are made and what is printed."""

from __future__ import annotations

import json
from typing import Any

from tests.cli_stub import Answer, Stub, Terminal, refusal, stub, terminal

__all__ = ["stub", "terminal"]

META: dict[str, Any] = {
    "id": "j-1",
    "name": "chat",
    "desc": "",
    "createTime": "2025-03-01 10:00:00",
    "createTimeMs": 1,
    "url": "http://broker.example/services/j-1/",
}
ITEM: dict[str, Any] = {"metadata": META, "status": "RUNNING", "centerId": "sz-1"}


def test_submit_makes_a_service(terminal: Terminal, stub: Stub) -> None:
    stub.on("POST", "/onlineJob", {"metadata": META, "status": "PENDING"})
    words = ("--spec", "s", "--image", "i", "--service", "--port", "8000", "--public")
    ran = terminal.run("submit", *words, "--name", "chat", "--", "serve")
    assert (ran.returncode, ran.stdout) == (0, "j-1\n"), ran.stderr
    assert "broker service show j-1" in ran.stderr
    (request,) = stub.requests
    config = {"specId": "s", "imageId": "i", "command": "serve", "port": 8000, "public": True}
    assert request.json == {"jobName": "chat", "config": config}
    assert request.headers["idempotency-key"]


def test_nobody_waits_for_the_end_of_a_service(terminal: Terminal, stub: Stub) -> None:
    ran = terminal.run("submit", "--service", "--wait", "--spec", "s", "--image", "i", "--", "serve")
    assert ran.returncode == 2
    assert "--wait" in ran.stderr
    assert stub.requests == []


def test_list(terminal: Terminal, stub: Stub) -> None:
    stub.on("GET", "/onlineJob", {"items": [ITEM], "totalSize": 1})
    ran = terminal.run("service", "list", "--mine", "--status", "running")
    assert ran.returncode == 0, ran.stderr
    heading, row = ran.stdout.splitlines()
    assert heading.split() == ["ID", "NAME", "STATUS", "CENTER", "URL"]
    assert row.split() == ["j-1", "chat", "RUNNING", "sz-1", META["url"]]
    assert (stub.requests[0].query["owner"], stub.requests[0].query["status"]) == (["me"], ["RUNNING"])
    ran = terminal.run("service", "list", "--json")
    assert json.loads(ran.stdout)["totalSize"] == 1


def test_show_by_name(terminal: Terminal, stub: Stub) -> None:
    task = dict.fromkeys(("taskId", "status", "centerId", "startTime", "finishTime", "message"), "x")
    detail = {**ITEM, "public": True, "port": None, "restarts": 2, "tasks": [task]}
    stub.on("GET", "/onlineJob/chat", refusal("0240", "训练作业不存在", "there is no job 'chat'"))
    stub.on("GET", "/trainjob", {"items": [], "totalSize": 0})
    stub.on("GET", "/onlineJob", {"items": [ITEM], "totalSize": 1})
    stub.on("GET", "/onlineJob/j-1", detail)
    ran = terminal.run("service", "show", "chat")
    assert ran.returncode == 0, ran.stderr
    assert META["url"] in ran.stdout
    assert "everybody" in ran.stdout
    assert json.loads(terminal.run("service", "show", "j-1", "--json").stdout) == detail


def test_stop_delete_and_link(terminal: Terminal, stub: Stub) -> None:
    stub.on("POST", "/onlineJob/j-1/stop", {"id": "j-1", "status": "STOPPED", "stoppedTime": "2025"})
    stub.on("DELETE", "/onlineJob/j-1", Answer(204))
    stub.on("POST", "/broker/v1/services/j-1/link", {"url": "http://x/?brokerLink=y", "expiresAt": "z"})
    for words, printed in (
        (("stop", "j-1"), "j-1 stopped\n"),
        (("delete", "j-1"), "j-1 deleted\n"),
        (("link", "j-1"), "http://x/?brokerLink=y\n"),
    ):
        ran = terminal.run("service", *words)
        assert (ran.returncode, ran.stdout) == (0, printed), ran.stderr

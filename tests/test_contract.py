"""The running daemon does what its OpenAPI document says, whatever it is sent.

What belongs here: requests made from the document, good and bad, and what must hold for every answer.
What does not: what an endpoint means (test_api_*.py).  BROKER_CONTRACT_EXAMPLES is how many requests
are tried for each endpoint, beside those at the limits of each field; `make contract` tries many.
"""

from __future__ import annotations

import io
import itertools
import os
import shlex
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis import GenerationMode
from schemathesis.core.failures import Failure
from schemathesis.core.transport import Response
from schemathesis.specs.openapi.checks import positive_data_acceptance

from broker.api.app import ROUTES
from broker.api.routes import Media
from broker.client import ONLINE, TRAIN, Client, Noun
from tests.daemon_process import PASSWORD, DaemonProcess, daemon, eventually, local_center
from tests.openapi_document import strict

EXAMPLES = int(os.environ.get("BROKER_CONTRACT_EXAMPLES", "3"))

SYNTAX = frozenset({"0201", "0203", "0204", "0205", "0206", "0207"})
"""Codes that a request as the document wants it never gets."""

OF_WHAT_THERE_IS = frozenset(
    {
        ("GET /broker/v1/jobs/{id}/logs", "0204"),  # the job has fewer nodes
        ("POST /datasets/upload", "0204"),  # how large a file may be is a setting
        ("POST /broker/v1/tenants/{id}/ledger", "0204"),  # with what is there it becomes too much
    }
)
"""Where such a code does not tell of how the request looks."""

NEVER_DONE = frozenset(
    {
        "POST /broker/v1/centers/{id}/call",  # a local center has no platform to call
        "POST /broker/v1/centers/{id}/commands/{name}",
        "POST /broker/v1/jobs/{id}/resolve",  # its runs are never in doubt
        "GET /logs/{taskId}",  # needs a signature
        "POST /auth/password",  # needs the present password
        "POST /auth/tokens",
        "POST /auth/users",  # registration is closed
        "DELETE /auth/apikeys/{id}",  # there is none
        "DELETE /auth/applications/{name}",
        "POST /datasets/upload",  # needs the MD5 of what was made up
    }
)
"""What no made-up request succeeds with here."""


STREAMS = [
    route.path
    for route in ROUTES
    if isinstance(route.answer, Media) and "text/event-stream" in route.answer.types
]
"""They never end by themselves; test_api_events.py has them."""

SCHEMA = schemathesis.openapi.from_dict(strict()).exclude(path=STREAMS)


@schemathesis.serializer("application/gzip")
def archive(_context: Any, _value: Any) -> bytes:
    """A folder of one file, whatever was made up."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as writer:
        member = tarfile.TarInfo("a.txt")
        member.size = 5
        writer.addfile(member, io.BytesIO(b"hello"))
    return packed.getvalue()


@dataclass
class Contract:
    """A daemon, what it has, and how each operation has been answered."""

    broker: DaemonProcess
    folder: Path
    spec: str
    job: str
    task: str
    session: requests.Session = field(default_factory=requests.Session)
    tokens: dict[str, str] = field(default_factory=dict)
    statuses: dict[str, set[int]] = field(default_factory=dict)
    turns: Iterator[int] = field(default_factory=itertools.count)

    def token(self, operation: str) -> str:
        """Of an operator; of somebody who has just logged in where the operation ends logins."""
        if operation in ("DELETE /auth/tokens", "POST /auth/password"):
            return Client(self.broker.url).login("alice", PASSWORD)["token"]
        if "root" not in self.tokens:
            self.tokens["root"] = Client(self.broker.url).login("root", PASSWORD)["token"]
        return self.tokens["root"]

    def aim(self, case: Any) -> None:
        """Name what there is, so that the request gets past its ids."""
        label = case.operation.label
        ids = self.ids(label)
        for name in case.path_parameters or {}:
            case.path_parameters[name] = ids[name]
        if label.endswith(("/link", "/unlink")) and isinstance(case.body, dict):
            case.body = {**case.body, "centerId": "one"}
        if label in ("POST /trainjob", "POST /onlineJob") and isinstance(case.body, dict):
            config = {**case.body["config"], "specId": self.spec, "imageId": "local"}
            for name in ("minComputingPower", "imageUrl", "centerId", "datasetIds", "port", "public"):
                config.pop(name, None)
            if not config.get("isVip"):
                config.pop("preemptPolicy", None)
                config.pop("vipNodeNames", None)
            name = f"{case.body['jobName'][:50]}-{next(self.turns)}"
            case.body = {**case.body, "jobName": name, "config": config}

    def ids(self, label: str) -> dict[str, str]:
        """What there is for the path of an operation; something of its own where it takes that away."""
        ids = {"id": self.job, "taskId": self.task, "name": "carol"}
        client = Client(self.broker.url, self.token(""))
        method, path = label.split(" ")
        if "/centers/" in path:
            ids["id"] = "one"
        elif "/tenants/" in path:
            ids["id"] = "default"
            if method == "DELETE":
                client.set_budget("default", Decimal(1_000_000))
        elif path.startswith("/datasets/{id}"):
            ids["id"] = self.dataset(client)
        elif label in ("DELETE /trainjob/{id}", "POST /trainjob/{id}/stop"):
            ids["id"] = self.spare(client, TRAIN, stopped=method == "DELETE")
        elif path.startswith(("/onlineJob/", "/broker/v1/services/")):
            ids["id"] = job = self.spare(client, ONLINE, stopped=method == "DELETE")
            ids["taskId"] = client.job(job)["runs"][-1]["taskId"]
        return ids

    def spare(self, client: Client, noun: Noun, *, stopped: bool) -> str:
        """A job that nobody needs: there is no room for it."""
        config = {"specId": self.spec, "imageId": "local", "command": "true", "nodeCount": 1000}
        request = {"jobName": f"spare-{next(self.turns)}", "config": config}
        job = client.create_job(request, noun=noun)["metadata"]["id"]
        if stopped:
            client.stop_job(job, noun=noun)
        return job

    def dataset(self, client: Client) -> str:
        """A data set that nobody needs."""
        file = self.folder / "spare.txt"
        file.write_text("some", encoding="utf-8")
        return client.upload_dataset(file, title=f"spare-{next(self.turns)}")["id"]


@pytest.fixture(scope="module")
def contract(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Contract]:
    folder = tmp_path_factory.mktemp("contract")
    settings = """
[auth]
freeze_after_failures = 1000
[limits]
login_failures_per_minute = 1000000
login_failure_burst = 1000000
"""
    with daemon(folder, local_center(folder, "one"), extra=settings) as broker:
        broker.add_user("carol")
        root = broker.client("root")
        spec = root.specs()["resourceSpecs"][0]["resourceSpecId"]
        config = {"specId": spec, "imageId": "local", "command": "echo 1 > $BROKER_OUTPUT_DIR/one"}
        job = root.create_job({"jobName": "there", "config": config})["metadata"]["id"]
        eventually("the job ended", lambda: root.job(job)["status"] == "SUCCEEDED")
        made = Contract(broker, folder, spec, job, root.job(job)["runs"][-1]["taskId"])
        yield made
        never = {label for label, statuses in made.statuses.items() if not statuses & {200, 204}}
        assert sorted(never - NEVER_DONE) == [], "these were tried and never done"


def harmless(case: Any) -> None:
    """Made-up commands are arguments of one that does nothing: jobs do run here."""
    config = case.body.get("config") if isinstance(case.body, dict) else None
    if isinstance(config, dict) and isinstance(config.get("command"), str):
        command = f": {shlex.quote(config['command'])}"
        case.body = {**case.body, "config": {**config, "command": command}}


def well_formed_is_not_malformed(_context: Any, response: Response, case: Any) -> None:
    """A request as the document wants it is refused for what it means, not for how it looks."""
    if case.meta is None or case.meta.generation.mode is not GenerationMode.POSITIVE:
        return
    label, code = case.operation.label, ""
    if response.status_code == 400:
        code = response.json()["errorCode"]
    if code in SYNTAX and (label, code) not in OF_WHAT_THERE_IS:
        raise Failure(operation=label, title=f"refused with {code}", message=response.json()["detail"])


@SCHEMA.parametrize()
@settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)
def test_the_daemon_keeps_its_contract(case: Any, contract: Contract) -> None:
    label = case.operation.label
    positive = case.meta is not None and case.meta.generation.mode is GenerationMode.POSITIVE
    if positive and next(contract.turns) % 2:
        contract.aim(case)
    harmless(case)
    response = case.call_and_validate(
        base_url=contract.broker.url,
        headers={"X-Auth-Token": contract.token(label)},
        session=contract.session,
        additional_checks=[well_formed_is_not_malformed],
        excluded_checks=[positive_data_acceptance],
    )
    contract.statuses.setdefault(label, set()).add(response.status_code)

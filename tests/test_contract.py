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
import sys
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

OF_WHAT_THERE_IS = {
    ("GET /broker/v1/jobs/{id}/logs", "0204"): "",  # the job has fewer nodes
    ("POST /datasets/upload", "0204"): "",  # how large a file may be is a setting
    ("POST /broker/v1/tenants/{id}/ledger", "0204"): "",  # with what is there it becomes too much
    ("POST /auth/apikeys", "0204"): "expiresAt: must be a time that is to come",
}
"""Where such a code does not tell of how the request looks, and how its detail starts then."""

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

MAKES_JOBS = {
    "POST /trainjob": TRAIN,
    "POST /onlineJob": ONLINE,
    "POST /broker/v1/jobs/{id}/retry": TRAIN,
}
"""Operations that make a job of that kind."""

USES_UP = {
    "DELETE /trainjob/{id}": TRAIN,
    "POST /trainjob/{id}/stop": TRAIN,
    "DELETE /onlineJob/{id}": ONLINE,
    "POST /onlineJob/{id}/stop": ONLINE,
    "DELETE /datasets/{id}": None,
}
"""Operations after which a job of that kind is stopped or gone, or a data set (None)."""


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
    service: tuple[str, str]  # and its task
    file: str
    spares: dict[str, str] = field(default_factory=dict)
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
            if label.endswith("/unlink"):
                case.body["user"] = "them"
                Client(self.broker.url, self.token("")).link_user(ids["name"], "one", "them")
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
            ids["id"] = "lab"
            if method == "DELETE":
                client.set_budget("lab", Decimal(1_000_000))
        elif path.startswith("/datasets/{id}"):
            ids["id"] = self.spare(label, client) if method == "DELETE" else self.file
        elif label in USES_UP:
            ids["id"] = self.spare(label, client)
        elif path.startswith(("/onlineJob/", "/broker/v1/services/")):
            ids["id"], ids["taskId"] = self.service
        return ids

    def spare(self, label: str, client: Client) -> str:
        """What nobody needs, for an operation that uses it up; the same until it has."""
        if label not in self.spares:
            name, noun = f"spare-{next(self.turns)}", USES_UP[label]
            if noun is None:
                self.spares[label] = upload(client, self.folder, name)
            else:
                self.spares[label] = create(client, self.spec, name, noun)
                if label.startswith("DELETE"):
                    client.stop_job(self.spares[label], noun=noun)
        return self.spares[label]

    def note(self, label: str, response: Response) -> None:
        """What the answer says of the operation; take away the jobs that it leaves behind.

        Else every list, and every round, would be of all that was made up so far.
        """
        self.statuses.setdefault(label, set()).add(response.status_code)
        if response.status_code not in (200, 204):
            return
        client = Client(self.broker.url, self.token(""))
        spare = self.spares.pop(label, "")
        if label in MAKES_JOBS:
            job, noun = response.json()["metadata"]["id"], MAKES_JOBS[label]
            client.stop_job(job, noun=noun)
            client.delete_job(job, noun=noun)
        elif spare and label.startswith("POST"):
            client.delete_job(spare, noun=USES_UP[label] or TRAIN)


def create(client: Client, spec: str, name: str, noun: Noun, nodes: int = 1000, **config: Any) -> str:
    """A job; by default one for which there is no room."""
    whole = {"specId": spec, "imageId": "local", "command": "true", "nodeCount": nodes, **config}
    return client.create_job({"jobName": name, "config": whole}, noun=noun)["metadata"]["id"]


def upload(client: Client, folder: Path, title: str) -> str:
    file = folder / "spare.txt"
    file.write_text("some", encoding="utf-8")
    return client.upload_dataset(file, title=title)["id"]


@pytest.fixture(scope="module")
def contract(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Contract]:
    folder = tmp_path_factory.mktemp("contract")
    settings = """
[auth]
freeze_after_failures = 1000
[limits]
login_failures_per_minute = 1000000
unknown_tokens_per_minute = 1000000
unknown_token_burst = 1000000
login_failure_burst = 1000000
"""
    # the daemon looks and plans seldom by itself: its answers are what is tried here
    centers = local_center(folder, "one", cores=1, nodes=1).replace("= 0.2", "= 5")
    program = [sys.executable, "-m", "tests.cheap_hashes"]
    with daemon(folder, centers, extra=settings, interval_s=30, program=program) as broker:
        broker.add_user("carol")
        root = broker.client("root")
        (spec,) = (each["resourceSpecId"] for each in root.specs()["resourceSpecs"])
        writes = "echo 1 > $BROKER_OUTPUT_DIR/one"
        job = create(root, spec, "there", TRAIN, nodes=1, command=writes)
        eventually("the job ended", lambda: root.job(job)["status"] == "SUCCEEDED")
        # what is made up waits behind it: a thousand processes would try this machine
        full = create(root, spec, "full", TRAIN, nodes=1, command="sleep 7200", preemptible=False)
        eventually("the center is full", lambda: root.job(full)["status"] == "RUNNING")
        service = create(root, spec, "service", ONLINE)
        task, start = (root.job(each)["runs"][-1]["taskId"] for each in (job, service))
        made = Contract(broker, folder, spec, job, task, (service, start), upload(root, folder, "there"))
        yield made
        root = broker.client("root")  # that login may have been ended
        root.stop_job(full)
        eventually("the center is empty", lambda: root.job(full)["status"] == "STOPPED")
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
    if response.status_code != 400:
        return
    label, code, detail = case.operation.label, response.json()["errorCode"], response.json()["detail"]
    meant = OF_WHAT_THERE_IS.get((label, code))
    if code in SYNTAX and (meant is None or not detail.startswith(meant)):
        raise Failure(operation=label, title=f"refused with {code}", message=detail)


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
    contract.note(label, response)

"""A real broker as the other side of the tai123 adapter, and accounts at it.

What belongs here: what the tests of that adapter share.  What does not: tests, and the emulated
service that knows the standard alone (tests/emulators/tai123.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from broker.adapter import Connection
from broker.client import ONLINE, TRAIN
from broker.core.hops import hop
from broker.core.model import CenterId
from tests.daemon_process import PASSWORD, DaemonProcess, eventually, local_center

ACCOUNT = "network"
OURS = hop("bk", "0123456789")
"""What this side is called where there is no daemon on it."""


def cards_center(folder: Path, id: str = "c1") -> str:
    """TOML of a local center with two nodes of two cards."""
    cards = 'accelerator = "Nvidia/GPU/A800"\naccelerators = 2\naccelerator_memory_gib = 80\n'
    return local_center(folder, id).replace("nodes = 2\n", f"nodes = 2\n{cards}", 1)


def center_toml(other: DaemonProcess, id: str = "up", more: str = "", connection: str = "") -> str:
    """TOML of another broker as a center."""
    return center_at(other.url, id, more=more, connection=connection)


def center_at(
    url: str, id: str, *, password: str = PASSWORD, quick: bool = True, more: str = "", connection: str = ""
) -> str:
    """TOML of whoever answers there as a center; `quick`: asked far more often than by default."""
    polled, paced = ("poll_interval_s = 0.3", "requests_per_s = 1000") if quick else ("", "")
    return f"""
[[centers]]
id = "{id}"
adapter = "tai123"
{polled}
{more}
[centers.connection]
base_url = "{url}"
{paced}
{connection}
[centers.credentials]
username = "{ACCOUNT}"
password = '{password}'
[[centers.images]]
id = "local"
"""


def account_at(other: DaemonProcess, name: str = ACCOUNT, **options: Any) -> Connection:
    known = {"base_url": other.url, "requests_per_s": 1000.0, **options}
    keys = {"username": name, "password": PASSWORD}
    return Connection(CenterId("up"), "bk", known, keys, broker=OURS)


@contextmanager
def other_broker(folder: Path, centers: str, *, name: str = "far") -> Iterator[DaemonProcess]:
    """A started broker with the account; its jobs are stopped at the end, then it is killed."""
    other = DaemonProcess(folder, centers, name=name)
    other.add_user(ACCOUNT)
    other.start()
    try:
        eventually("its center has been polled", lambda: other.client(ACCOUNT).specs()["resourceSpecs"])
        yield other
    finally:
        try:
            end_jobs(other, ACCOUNT)
        finally:
            if other.process is not None and other.process.poll() is None:
                other.kill()


def end_jobs(other: DaemonProcess, account: str) -> None:
    """Stop every job of an account there: what runs at a local center outlives the daemon."""
    if other.process is None or other.process.poll() is not None:
        return
    client = other.client(account)

    def ended() -> bool:
        live = [
            (item["metadata"]["id"], noun)
            for status in ("PENDING", "RUNNING")
            for noun in (TRAIN, ONLINE)
            for item in client.jobs({"status": status}, noun=noun)["items"]
        ]
        for job, noun in live:
            client.stop_job(job, noun=noun)
        return not live

    eventually("its jobs have ended", ended)

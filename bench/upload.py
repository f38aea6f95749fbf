"""How much memory the daemon takes for a large upload: `python bench/upload.py --gib 2`.

What belongs here: one upload of a data set by the standard's form to a daemon of its own, while what
the daemon's process has in memory is read from /proc.  Memory of the page cache is not the process's.
Progress goes to stderr, one table or JSON document to stdout.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from broker.client import Client
from tests.daemon_process import PASSWORD, DaemonProcess

CENTER = """
[[centers]]
id = "here"
adapter = "local"
[centers.connection]
work_dir = "{folder}/work"
"""
PIECE = 1 << 20
BOUNDARY = "upload-bench"
SAMPLE_S = 0.02


def resident_kib(pid: int) -> int:
    """What of a process is in memory now."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/{pid}/status tells no VmRSS")


class Watch(threading.Thread):
    """The most that a process had in memory since the start of the watch."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.most_kib = 0
        self.samples = 0
        self._pid = pid
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(SAMPLE_S):
            self.most_kib = max(self.most_kib, resident_kib(self._pid))
            self.samples += 1

    def stop(self) -> None:
        self._over.set()
        self.join()


def pieces(size: int) -> Iterator[bytes]:
    """Bytes that do not compress and are not the same twice in a row."""
    noise = os.urandom(PIECE)
    for at in range(0, size, PIECE):
        stamp = at.to_bytes(8, "big")
        yield (stamp + noise[8:])[: min(PIECE, size - at)]


def field(name: str, value: str) -> bytes:
    return (f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n').encode()


def tail_of(md5: str) -> bytes:
    return b"\r\n" + field("md5", md5) + f"--{BOUNDARY}--\r\n".encode()


def upload(url: str, token: str, size: int) -> tuple[str, str]:
    """Send a data set; its id and the MD5 of what was sent, which comes after the file."""
    head = field("title", "bench") + field("size", str(size))
    head += (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="noise.bin"\r\n\r\n'
    ).encode()
    parts = urlsplit(url)
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=600)
    connection.putrequest("POST", "/datasets/upload")
    connection.putheader("X-Auth-Token", token)
    connection.putheader("Content-Type", f"multipart/form-data; boundary={BOUNDARY}")
    connection.putheader("Content-Length", str(len(head) + size + len(tail_of("0" * 32))))
    connection.endheaders()
    digest = hashlib.md5(usedforsecurity=False)
    connection.send(head)
    for piece in pieces(size):
        digest.update(piece)
        connection.send(piece)
    connection.send(tail_of(digest.hexdigest()))
    answer = connection.getresponse()
    body = json.loads(answer.read())
    if answer.status != 200:
        raise RuntimeError(f"the broker refused: {body}")
    connection.close()
    return str(body["id"]), digest.hexdigest()


def measure(folder: Path, size: int) -> dict[str, Any]:
    daemon = DaemonProcess(folder, CENTER.format(folder=folder))
    daemon.add_user("root")
    daemon.start()
    try:
        assert daemon.process is not None
        pid = daemon.process.pid
        token = Client(daemon.url).login("root", PASSWORD)["token"]
        client = Client(daemon.url, token)
        upload(daemon.url, token, 1 << 20)  # what is loaded once is not the upload's
        time.sleep(2)
        idle = resident_kib(pid)
        watch = Watch(pid)
        watch.start()
        began = time.monotonic()
        dataset, md5 = upload(daemon.url, token, size)
        seconds = time.monotonic() - began
        watch.stop()
        stored = client.dataset(dataset)
        if (stored["size"], stored["md5"]) != (size, md5):
            raise RuntimeError(f"the data set is not what was sent: {stored}")
        client.delete_dataset(dataset)
        return {
            "bytes": size,
            "idleMib": round(idle / 1024, 1),
            "mostMib": round(watch.most_kib / 1024, 1),
            "aboveIdleMib": round((watch.most_kib - idle) / 1024, 1),
            "samples": watch.samples,
            "wallS": round(seconds, 1),
        }
    finally:
        daemon.stop()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gib", type=float, default=2.0, help="size of the upload")
    parser.add_argument("--folder", type=Path, help="where the daemon keeps its data")
    parser.add_argument("--json", action="store_true")
    told = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="upload-", dir=told.folder))
    try:
        result = measure(folder, int(told.gib * (1 << 30)))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if told.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:<13} {value}")


if __name__ == "__main__":
    main()

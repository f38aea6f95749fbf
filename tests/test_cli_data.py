"""The commands about images, data sets, models and applications, and a real daemon behind them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from broker.client import Client, RequestFailed
from broker.client.form import FileChanged, FileForm
from tests.cli_stub import Stub, Terminal, refusal, stub, terminal
from tests.daemon_process import PASSWORD, DaemonProcess, daemon, eventually, local_center

__all__ = ["stub", "terminal"]


DATASET = {
    "id": "d-1",
    "title": "corpus",
    "owner": "ann",
    "size": 12,
    "desc": "words",
    "labels": "nlp",
    "public": False,
    "createTime": "2025-03-01 10:00:00",
    "centerIds": ["sz-1", "gz-2"],
}
ASSET = {"id": "m-1", "title": "BERT", "owner": "lab", "desc": "", "labels": "nlp", "centerIds": ["sz-1"]}
IMAGE = {
    "imageId": "pt",
    "imageName": "PyTorch",
    "imageDesc": "",
    "arch": "X86",
    "processor": "GPU",
    "operationSystem": "Ubuntu 22.04",
    "framework": "PyTorch 2.3",
    "createTime": "2025-03-01 10:00:00",
    "installedLib": [],
    "centerIds": ["sz-1"],
}


def test_listings(terminal: Terminal, stub: Stub) -> None:
    stub.on("GET", "/resource/images", {"images": [IMAGE], "totalSize": 2})
    stub.on("GET", "/datasets", {"datasets": [DATASET], "totalSize": 1})
    stub.on("GET", "/models", {"models": [ASSET], "totalSize": 1})
    stub.on("GET", "/apps", {"apps": [ASSET], "totalSize": 1})
    for words, path, shown, asked in (
        (
            "images sz-1 --processor GPU --framework PyTorch --limit 1",
            "/resource/images",
            "pt     PyTorch  X86   GPU   PyTorch 2.3  Ubuntu 22.04  sz-1",
            {"centerId": ["sz-1"], "processor": ["GPU"], "framework": ["PyTorch"], "pageSize": ["1"]},
        ),
        ("datasets", "/datasets", "d-1      corpus  ann       12  nlp     private  sz-1 gz-2", {}),
        (
            "datasets list --query cor --category nlp --mine --page 2",
            "/datasets",
            "d-1      corpus  ann       12  nlp     private  sz-1 gz-2",
            {"query": ["cor"], "category": ["nlp"], "owner": ["me"], "page": ["2"]},
        ),
        ("models --query B", "/models", "m-1    BERT   lab    nlp     sz-1", {"query": ["B"]}),
        ("apps --category nlp", "/apps", "m-1  BERT   lab    nlp     sz-1", {"category": ["nlp"]}),
    ):
        ran = terminal.run(*words.split())
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.splitlines()[1] == shown
        query = stub.sent("GET", path)[-1].query
        assert {name: value for name, value in query.items() if name not in ("sort", "order")} == asked
    assert "1 of 2" in terminal.run("images").stderr
    for words in ("images", "datasets", "datasets list", "models", "apps"):
        document = json.loads(terminal.run(*words.split(), "--json").stdout)
        assert document["totalSize"] in (1, 2)


def test_one_data_set(terminal: Terminal, stub: Stub) -> None:
    copy = {
        "centerId": "sz-1",
        "state": "MOVING",
        "size": 12,
        "sizeDone": 5,
        "message": "slow",
        "usedTime": "2025-03-01 10:00:00",
    }
    stub.on("GET", "/datasets/d-1", {**DATASET, "md5": "abc", "copies": [copy]})
    shown = terminal.run("datasets", "show", "d-1").stdout
    for text in (
        "corpus",
        "words",
        "private",
        "abc",
        "sz-1    MOVING     5     12  2025-03-01 10:00:00  slow",
    ):
        assert text in shown
    assert json.loads(terminal.run("datasets", "show", "d-1", "--json").stdout)["md5"] == "abc"
    stub.on("DELETE", "/datasets/d-1", refusal("0202", "参数值不合法", "in use"))
    ran = terminal.run("datasets", "delete", "d-1")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert "in use [0202" in ran.stderr


def test_what_is_no_file_is_not_sent(terminal: Terminal, stub: Stub) -> None:
    for path in ("nothing", "."):
        ran = terminal.run("datasets", "upload", path)
        assert ran.returncode == 1
        assert "is not a file" in ran.stderr
    assert stub.requests == []


def test_the_form_has_the_length_that_it_says(tmp_path: Path) -> None:
    for content in (b"", b"x" * 3_000_001):
        path = tmp_path / "file"
        path.write_bytes(content)
        with path.open("rb") as file:
            form = FileForm(file, 'odd "name"\n', {"title": "标题"})
            body = b"".join(form.pieces())
        assert len(body) == form.length
        assert hashlib.md5(content, usedforsecurity=False).hexdigest().encode() in body
        assert b'filename="odd %22name%22_"' in body


@pytest.mark.parametrize("later", [b"x" * 9, b"x" * 11])
def test_a_file_that_changes_meanwhile_is_no_upload(tmp_path: Path, later: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 10)
    with path.open("rb") as file:
        form = FileForm(file, "file", {})
        path.write_bytes(later)
        with pytest.raises(FileChanged, match="had 10 bytes"):
            list(form.pieces())


# ---------------------------------------------------------------- with a real daemon


def test_a_data_set_from_the_terminal_to_a_job_and_away(tmp_path: Path) -> None:
    own = tmp_path / "own.txt"
    own.write_text("own\n")
    more = f"""
[[centers.datasets]]
id = "own"
native = "{own}"
labels = "demo"
[[centers.models]]
id = "bert"
"""
    centers = local_center(tmp_path, "a") + more
    source = tmp_path / "words.txt"
    source.write_text("uploaded\n")
    with daemon(tmp_path, centers) as running:
        token = Client(running.url).login("alice", PASSWORD)["token"]
        client = Client(running.url, token)

        def typed(*words: str) -> str:
            ran = running.command(*words, env={"BROKER_TOKEN": token})
            assert ran.returncode == 0, ran.stderr
            return ran.stdout

        dataset = typed("datasets", "upload", str(source), "--private", "--labels", "demo").strip()
        assert dataset in typed("datasets", "list", "--mine", "--category", "demo")
        assert "local" in typed("images")
        assert "bert" in typed("models")
        assert client.apps()["totalSize"] == 0
        spec = client.specs()["resourceSpecs"][0]["resourceSpecId"]
        script = (
            'cat "$BROKER_DATASETS_DIR"/*/words.txt "$BROKER_DATASETS_DIR/own"; ls "$BROKER_DATASETS_DIR"'
        )
        request = {
            "jobName": "reads",
            "config": {
                "specId": spec,
                "imageId": "local",
                "command": script,
                "datasetIds": [dataset, "own"],
            },
        }
        job = client.create_job(request)["metadata"]["id"]
        eventually("the job has ended", lambda: client.job(job)["status"] == "SUCCEEDED")
        assert b"".join(client.logs(job)).decode() == f"uploaded\nown\n{dataset}\nown\n"
        assert client.dataset(dataset)["centerIds"] == ["a"]
        restarted(running)
        assert [copy["state"] for copy in client.dataset(dataset)["copies"]] == ["READY"]
        typed("datasets", "delete", dataset)
        with pytest.raises(RequestFailed, match="no data set"):
            client.dataset(dataset)
        link = tmp_path / "work-a" / "datasets" / dataset
        eventually("the link is gone", lambda: not link.is_symlink())
        assert list((tmp_path / "data" / "datasets").iterdir()) == []


def restarted(running: DaemonProcess) -> None:
    running.kill()
    running.start()

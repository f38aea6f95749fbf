"""What `broker simulate` tells: figures, the page, and the command.

Here: what is made of an outcome.  Not here: how it comes about (test_simulate.py).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path

from broker.simulate.html import page
from broker.simulate.report import percentile, report, table
from tests.test_simulate import KEYS, ROOT, job, many, nodes, play, written

# ---------------------------------------------------------------- figures, page, command


def test_percentiles_are_of_the_nearest_rank() -> None:
    assert percentile([], 50) is None
    assert percentile([3, 1, 2, 4], 50) == 2
    assert percentile(range(1, 201), 99) == 198
    assert percentile([7], 99) == 7


def test_the_document_has_the_keys_and_adds_up() -> None:
    outcome = play([*many(), job("share", 9000, 5, 1, fraction=Decimal("0.4"))], oracle=False)
    told = report(outcome)
    document = json.loads(json.dumps(told.document()))
    assert list(document) == KEYS
    assert document["jobs"] == document["finished"] == 61
    assert sum(group["jobs"] for group in document["perTenant"].values()) == 61
    assert document["perCenter"]["a"]["utilisation"] == document["utilisation"]
    assert 0 < document["utilisation"] <= 1
    assert 0 <= document["gapMedian"] <= document["gapWorst"] <= 1
    assert told.jain is not None
    assert 1 / 3 <= told.jain <= 1
    assert "note: 1 jobs ask for a share of a card and are given the whole card" in table(told)
    assert "longest wait" in table(told)


def test_allocation_is_of_the_time_in_which_somebody_waits() -> None:
    """Half of the cards from 0 to 100, while the second job waits from 20; all to 150; none to 500."""
    half, whole, later = job("half", 0, 100, 4), job("whole", 20, 50), job("later", 500, 50, tenant="u")
    outcome = play([half, whole, later])
    told = report(outcome)
    assert told.allocation == 0.5
    assert told.utilisation == round((4 * 100 + 8 * 50 + 8 * 50) / (8 * 550), 6)
    document = told.document()
    assert document["allocation"] == 0.5
    assert report(play([later])).document()["allocation"] is None
    # The two jobs of t ran 150 s in 100 + 130 s; u waited for nothing.
    served = 150 / 230
    assert document["perTenant"]["t"]["service"] == served
    assert document["perTenant"]["u"]["service"] == 1
    assert document["fairness"] == round((served + 1) ** 2 / (2 * (served**2 + 1)), 6)
    assert "allocation while jobs wait" in page(outcome, told)


class Page(HTMLParser):
    """Collects tags and what they would load, and checks that every tag is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.count: dict[str, int] = {}
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in ("meta", "line"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_nothing_else_and_is_safe() -> None:
    jobs = [*many(), job("<b>", 1, 5, tenant="<script>alert(1)</script>")]
    outcome = play(jobs, [nodes(center=f"c{i}") for i in range(8)])
    text = page(outcome, report(outcome))
    read = Page()
    read.feed(text)
    read.close()
    assert read.open == []
    assert read.loads == []
    assert "http://" not in text
    assert "https://" not in text
    assert "url(" not in text
    assert "<script" not in text
    assert (read.count["svg"], read.count["table"]) == (3, 3)
    assert read.count["polyline"] == 1 + 6 + 1  # five centers and the others
    assert "prefers-color-scheme: dark" in text
    for numbers in re.findall(r'points="([^"]*)"', text):
        for x, y in (point.split(",") for point in numbers.split()):
            assert 0 <= float(x) <= 880
            assert 0 <= float(y) <= 260


def test_a_page_of_one_job_and_of_none_that_ran() -> None:
    for jobs in ([job("one", 0, 1)], [job("wide", 0, 5, nodes=9)]):
        outcome = play(jobs)
        assert page(outcome, report(outcome)).count("<svg") == 3


def run(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environ = {"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "broker", "simulate", *words]
    return subprocess.run(
        command, capture_output=True, text=True, env=environ, cwd=folder, timeout=60, check=False
    )


def test_the_command(tmp_path: Path) -> None:
    written(tmp_path, "one,10,100,1,8,,48,368,1,t,a", "two,40,50,1,8,,48,368,1,t,a")
    header = "center,gpu_model,gpus_per_node,cpus_per_node,mem_gib_per_node,node_count,basis"
    written(tmp_path, "a,,8,48,368,1,real", header=header, name="c.csv")
    files = ("--trace", "t.csv", "--centers", "c.csv")
    done = run(*files, "--json", "--html", "p.html", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert list(json.loads(done.stdout)) == KEYS
    assert "noisy estimates" in done.stderr
    assert "<svg" in (tmp_path / "p.html").read_text(encoding="utf-8")
    told = run(*files, "--order", "sjf", "--home", "--oracle", folder=tmp_path)
    assert told.stdout.startswith("sjf, jobs stay home, oracle: true run times\n")
    assert re.search(r"^mean wait +35 s$", told.stdout, re.MULTILINE)
    (tmp_path / "bad.toml").write_text("[policies.wait]\nweight = 1e30\nwieght = 1\n", encoding="utf-8")
    for words, reason in (
        (("--order", "lifo"), "--order must be fifo, sjf or policy, not 'lifo'"),
        (("--nodes-column", "node_count_busy"), "c.csv:1: column 'node_count_busy' is missing"),
        (("--policy", "p.toml"), "p.toml"),
        (("--policy", "bad.toml"), "bad.toml:2: policies.wait.weight: must be from 0.001"),
        (("--policy", "bad.toml"), "bad.toml:3: policies.wait.wieght: unknown key"),
    ):
        wrong = run(*files, *words, folder=tmp_path)
        assert wrong.returncode == 2
        assert reason in wrong.stderr
    written(tmp_path, "one,10,100,1,8,,48,368,1,t", name="t.csv")
    wrong = run(*files, folder=tmp_path)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "t.csv:2: 10 values for 11 columns" in wrong.stderr

"""The `broker` command as a process: exit codes, logins, listings and what is done to jobs."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.cli import display
from tests.cli_stub import (
    Answer,
    Drop,
    Request,
    Stub,
    Terminal,
    archive,
    created,
    detail,
    refusal,
    served,
    stub,
    terminal,
    unused_url,
)

__all__ = ["stub", "terminal"]


# ---------------------------------------------------------------- exit codes


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("jobs", "--nope"),
        ("jbos",),
        ("wait",),
        ("jobs", "--limit", "many"),
        ("stop",),
        ("stop", "j-1", "--label", "a=b"),
        ("resolve", "j-1"),
        ("resolve", "j-1", "--never-ran", "--remote", "7"),
        ("resolve", "j-1", "--ended", "GONE"),
        ("login", "--url", "nonsense", "--user", "a", "--password-stdin"),
        ("login", "--user", "alice"),
        ("submit", "--spec", "s", "--image", "i", "--max-run-time", "soon", "--", "true"),
        ("submit", "--spec", "s"),
        ("submit", "--image", "i", "--", "true"),
        ("check-config", "--config", "missing.toml"),
        ("user", "add", "a", "--role", "king", "--password-stdin"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_2_and_sends_nothing(terminal: Terminal, stub: Stub, words: tuple[str, ...]) -> None:
    stub.on("POST", "/trainjob", created())
    stub.on("GET", "/broker/v1/info", {"submit": {"image": "i"}})
    ran = terminal.run(*words)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.strip()
    assert "Traceback" not in ran.stderr
    assert not [request for request in stub.requests if request.method != "GET"]


@pytest.mark.parametrize("words", ["jobs", "submit --spec s -- true", "wait j-1", "logs -f j-1", "logout"])
def test_an_unreachable_broker_is_3(terminal: Terminal, words: str) -> None:
    terminal.url = unused_url()
    store = terminal.home / ".config" / "computing-broker"
    store.mkdir(parents=True)
    (store / "credentials.json").write_text(json.dumps({"url": terminal.url, "token": "t", "user": "u"}))
    ran = terminal.run(*words.split())
    assert (ran.returncode, ran.stdout) == (3, "")
    assert terminal.url in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_failed_request_is_1_and_told_in_one_line(terminal: Terminal, stub: Stub) -> None:
    for path in ("/trainjob", "/onlineJob"):
        stub.on("GET", path, {"items": [], "totalSize": 0})
    stub.on("GET", "/broker/v1/jobs/j-9", refusal("0240", "训练作业不存在", "there is no job 'j-9'"))
    ran = terminal.run("show", "j-9")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr == "broker: there is no job 'j-9' [0240 训练作业不存在] (request r-1)\n"


def test_a_missing_login_says_what_to_do(terminal: Terminal, stub: Stub) -> None:
    terminal.token = ""
    stub.on("GET", "/trainjob", refusal("0101", "用户认证失败", "a token is needed", 401))
    ran = terminal.run("jobs")
    assert ran.returncode == 1
    assert "broker login" in ran.stderr
    assert "x-auth-token" not in stub.requests[0].headers


def test_help_and_version_need_no_broker(terminal: Terminal) -> None:
    terminal.url = ""
    assert terminal.run("--version").stdout.startswith("broker ")
    helped = terminal.run("--help").stdout
    for word in ("submit", "explain", "check-config", "Jobs:", "Operators:", "--install-completion"):
        assert word in helped
    assert "--max-run-time" in terminal.run("submit", "--help").stdout


def test_completion_proposes_own_jobs(terminal: Terminal, stub: Stub) -> None:
    items = [created("j-1", "one"), {**created("j-2", "two"), "status": "FAILED"}]
    stub.on("GET", "/trainjob", {"items": items, "totalSize": 2})

    def complete(line: str) -> list[str]:
        environ = terminal.environ() | {"_BROKER_COMPLETE": "complete_bash", "COMP_WORDS": line}
        environ["COMP_CWORD"] = str(len(line.split(" ")) - 1)
        ran = subprocess.run(
            [sys.executable, "-m", "broker"], env=environ, capture_output=True, text=True, timeout=60
        )
        return ran.stdout.split()

    assert complete("broker expl") == ["explain"]
    assert complete("broker show j") == ["j-1", "j-2"]
    assert complete("broker stop j") == ["j-1"]  # what has ended cannot be stopped
    assert complete("broker show tw") == ["two"]
    stub.on("GET", "/trainjob", Drop())
    assert complete("broker show j") == []
    # The shell is the one that is named, and not what these tests were started from.
    environ = terminal.environ() | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    command = [sys.executable, "-m", "broker", "--show-completion", "bash"]
    told = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
    assert "_BROKER_COMPLETE" in told.stdout


def test_a_reader_that_goes_away_is_no_error(terminal: Terminal, stub: Stub) -> None:
    stub.on("GET", "/trainjob", {"items": [created()] * 2000, "totalSize": 2000})
    process = terminal.start("jobs")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(60) in (0, 1)
    process.stderr.close()


# ---------------------------------------------------------------- speed


def test_a_client_command_imports_nothing_heavy(terminal: Terminal, stub: Stub) -> None:
    stub.on("GET", "/trainjob", {"items": [created()], "totalSize": 1})
    heavy = [
        "ortools",
        "numpy",
        "sqlalchemy",
        "sqlmodel",
        "aiohttp",
        "alembic",
        "pydantic",
        "rich",
        "asyncio",
    ]
    program = (
        "import sys; sys.argv = ['broker', 'jobs']\n"
        "from broker.cli import main\n"
        "try: main()\n"
        f"finally: print(sorted(set({heavy!r}) & set(sys.modules)), file=sys.stderr)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], env=terminal.environ(), capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0
    assert "j-1" in ran.stdout
    assert ran.stderr.strip() == "[]"


# ---------------------------------------------------------------- login


def test_login_stores_a_private_token_and_logout_ends_it(terminal: Terminal, stub: Stub) -> None:
    terminal.token = ""
    stub.on("POST", "/auth/tokens", {"token": "secret-1", "expiresAt": "2026-01-02 00:00:00"})
    stub.on("DELETE", "/auth/tokens", Answer(204))
    stub.on("GET", "/trainjob", {"items": [], "totalSize": 0})
    ran = terminal.run("login", "--user", "alice", "--password-stdin", stdin="pass word\n")
    assert (ran.returncode, ran.stdout) == (0, "")
    assert "secret-1" not in ran.stderr
    assert stub.requests[0].json == {
        "authMethod": "password",
        "user": {"name": "alice", "password": "pass word"},
    }
    file = terminal.home / ".config" / "computing-broker" / "credentials.json"
    assert file.stat().st_mode & 0o777 == 0o600
    assert json.loads(file.read_text())["url"] == stub.url
    assert [path.name for path in file.parent.iterdir()] == ["credentials.json"]

    terminal.url = ""  # the address comes from the login as well
    assert terminal.run("jobs").returncode == 0
    assert stub.requests[-1].headers["x-auth-token"] == "secret-1"

    assert terminal.run("logout").returncode == 0
    assert stub.sent("DELETE", "/auth/tokens")[0].headers["x-auth-token"] == "secret-1"
    assert not file.exists()


def test_a_stored_token_goes_to_no_other_address(terminal: Terminal, stub: Stub) -> None:
    terminal.token = ""
    stub.on("POST", "/auth/tokens", {"token": "secret-1", "expiresAt": ""})
    terminal.run("login", "--user", "alice", "--password-stdin", stdin="p\n")
    other = Stub()
    try:
        other.on("GET", "/trainjob", {"items": [], "totalSize": 0})
        terminal.url = other.url
        terminal.run("jobs")
        assert "x-auth-token" not in other.requests[0].headers
    finally:
        other.close()


def test_the_environment_goes_before_the_login(terminal: Terminal, stub: Stub) -> None:
    stub.on("POST", "/auth/tokens", {"token": "stored", "expiresAt": ""})
    stub.on("GET", "/trainjob", {"items": [], "totalSize": 0})
    terminal.run("login", "--user", "alice", "--password-stdin", stdin="p\n")
    terminal.token = "from-environment"
    terminal.run("jobs")
    assert stub.requests[-1].headers["x-auth-token"] == "from-environment"


def test_a_wrong_password_stores_nothing(terminal: Terminal, stub: Stub) -> None:
    stub.on(
        "POST", "/auth/tokens", refusal("0101", "用户认证失败", "user.name or user.password is wrong", 401)
    )
    ran = terminal.run("login", "--user", "alice", "--password-stdin", stdin="p\n")
    assert ran.returncode == 1
    assert ran.stderr == "broker: user.name or user.password is wrong\n"
    assert not (terminal.home / ".config").exists()


def test_a_damaged_login_says_what_to_do(terminal: Terminal) -> None:
    terminal.token = ""
    folder = terminal.home / ".config" / "computing-broker"
    folder.mkdir(parents=True)
    (folder / "credentials.json").write_text("{")
    ran = terminal.run("jobs")
    assert ran.returncode == 2
    assert "broker login" in ran.stderr


def test_the_password_is_changed_from_two_lines(terminal: Terminal, stub: Stub) -> None:
    stub.on("POST", "/auth/password", Answer(204))
    assert terminal.run("password", "--password-stdin", stdin="old\nnew\n").returncode == 0
    assert stub.requests[-1].json == {"old": "old", "new": "new"}
    assert terminal.run("password", "--password-stdin", stdin="old\n").returncode == 2


# ---------------------------------------------------------------- jobs


def test_every_listing_prints_the_brokers_own_document(terminal: Terminal, stub: Stub) -> None:
    documents: dict[str, tuple[str, dict[str, Any]]] = {
        "jobs": ("/trainjob", {"items": [created()], "totalSize": 9}),
        "centers": ("/centers", {"centers": [], "totalSize": 0, "extra": "深圳"}),
        "idle": ("/resource/idle", {"centerResources": []}),
        "specs": ("/resource/specs", {"resourceSpecs": [], "totalSize": 0}),
        "user list": ("/broker/v1/accounts", {"items": [], "totalSize": 0}),
        "show j-1": ("/broker/v1/jobs/j-1", detail()),
        "explain j-1": ("/broker/v1/jobs/j-1/explain", {"id": "j-1", "status": "RUNNING"}),
    }
    for words, (path, document) in documents.items():
        stub.on("GET", path, document)
        ran = terminal.run(*words.split(), "--json")
        assert ran.returncode == 0, words
        assert json.loads(ran.stdout) == document, words


def test_tables_are_aligned_and_harmless(terminal: Terminal, stub: Stub) -> None:
    items = [
        {**created("j-1", "short"), "centerId": "深圳"},
        {**created("j-2", "longer-name"), "centerId": "\x1b[2J"},
    ]
    stub.on("GET", "/trainjob", {"items": items, "totalSize": 7})
    ran = terminal.run("jobs", "--status", "running", "--label", "a=b", "--mine")
    header, first, second = ran.stdout.splitlines()
    column = header.index("CENTER")
    assert first[column:].startswith("深圳")
    assert second[column:].startswith(" [2J")
    assert "\x1b" not in ran.stdout
    assert "2 of 7" in ran.stderr
    assert stub.requests[0].query["status"] == ["RUNNING"]
    assert stub.requests[0].query["label"] == ["a=b"]
    assert stub.requests[0].query["owner"] == ["me"]


@given(st.lists(st.lists(st.text(), min_size=2, max_size=2)))
def test_the_last_column_of_a_table_starts_at_one_place(rows: list[list[str]]) -> None:
    lines = display.table(("A", "B"), [[*row[:1], "|" + row[1]] for row in rows]).splitlines()
    assert len(lines) == len(rows) + 1
    starts = {
        display.width(line[: line.rindex("|" + display.clean(row[1]).rstrip())])
        for line, row in zip(lines[1:], rows, strict=True)
    }
    assert len(starts) <= 1


def test_a_job_is_named_by_its_exact_name(terminal: Terminal, stub: Stub) -> None:
    items = [created("j-1", "train-2"), created("j-2", "train")]
    stub.on("GET", "/trainjob", {"items": items, "totalSize": 2})
    stub.on("GET", "/broker/v1/jobs/j-2", detail("j-2"))
    ran = terminal.run("show", "train")
    assert ran.returncode == 0
    assert "j-2" in ran.stdout
    assert stub.sent("GET", "/trainjob")[0].query["query"] == ["train"]
    assert stub.sent("GET", "/trainjob")[0].query["owner"] == ["me"]


def test_an_ambiguous_name_is_wrong_usage(terminal: Terminal, stub: Stub) -> None:
    items = [created("j-1", "train"), created("j-2", "train")]
    stub.on("GET", "/trainjob", {"items": items, "totalSize": 2})
    ran = terminal.run("stop", "train")
    assert ran.returncode == 2
    assert "j-1, j-2" in ran.stderr
    assert not stub.sent("POST", "/trainjob/j-1/stop")


def test_stop_goes_on_after_a_refusal(terminal: Terminal, stub: Stub) -> None:
    stub.on("POST", "/trainjob/j-1/stop", refusal("0202", "参数值不合法", "job j-1 is FAILED"))
    stub.on(
        "POST", "/trainjob/j-2/stop", {"id": "j-2", "status": "STOPPED", "stoppedTime": "2026-01-01 00:00:00"}
    )
    stub.on("POST", "/trainjob/j-3/stop", {"id": "j-3", "status": "RUNNING", "stoppedTime": ""})
    ran = terminal.run("stop", "j-1", "j-2", "j-3")
    assert ran.returncode == 1
    assert ran.stdout == "j-2 stopped\nj-3 is being stopped\n"
    assert "j-1: job j-1 is FAILED" in ran.stderr
    assert "1 of 3 failed" in ran.stderr


def test_stop_by_label_stops_own_live_jobs(terminal: Terminal, stub: Stub) -> None:
    def live(request: Request) -> dict[str, Any]:
        assert request.query["owner"] == ["me"]
        assert request.query["label"] == ["k=v"]
        job = {"PENDING": "j-1", "RUNNING": "j-2"}[request.query["status"][0]]
        return {"items": [created(job)], "totalSize": 1}

    stub.on("GET", "/trainjob", live)
    for job in ("j-1", "j-2"):
        stub.on("POST", f"/trainjob/{job}/stop", {"id": job, "status": "STOPPED", "stoppedTime": "now"})
    assert terminal.run("stop", "--label", "k=v").stdout == "j-1 stopped\nj-2 stopped\n"


def test_explain_shows_a_row_per_center(terminal: Terminal, stub: Stub) -> None:
    reasons = [
        {"centerId": "a", "code": "capacity", "message": "m1", "need": 4, "have": 1, "unit": "slots"},
        {"centerId": "b", "code": "power", "message": "m2", "need": 9, "have": 3, "unit": "GFLOPS"},
    ]
    answer = {"id": "j-1", "status": "PENDING", "position": 2, "reasons": reasons, "placement": None}
    stub.on("GET", "/broker/v1/jobs/j-1/explain", {**answer, "eta": {"p50": 90, "p90": 7300}})
    words = " ".join(terminal.run("explain", "j-1").stdout.split())
    assert "status: PENDING position: 2 starts in: 1 min 30 s to 2 h 01 min" in words
    assert "CENTER CODE MESSAGE NEED HAVE UNIT a capacity m1 4 1 slots b power m2 9 3 GFLOPS" in words


def test_explain_shows_what_would_start_a_job_and_how_good_forecasts_are(
    terminal: Terminal, stub: Stub
) -> None:
    error = {"centerId": "a", "specId": "s", "jobs": 41, "medianS": 75.2, "p90Coverage": 0.878}
    answer: dict[str, Any] = {
        "id": "j-1",
        "status": "PENDING",
        "position": 1,
        "reasons": [],
        "placement": {},
        "eta": {"p50": 90, "p90": None, "centerId": "a", "error": error},
        "expectedEnd": None,
        "whatIf": [
            {
                "change": {"nodeCount": 2},
                "starts": True,
                "centerId": "a",
                "specId": "s",
                "pricePerHour": "160.00",
                "priceCny": "80.00",
                "message": "with nodeCount 2 it would start at a",
            }
        ],
        "whatIfNote": "no promise",
    }
    stub.on("GET", "/broker/v1/jobs/j-1/explain", answer)
    words = " ".join(terminal.run("explain", "j-1").stdout.split())
    assert "starts in: 1 min 30 s likely at: a" in words
    assert "so far: off by 1 min 15 s in the median, 88% started by the p90 (41 jobs, a)" in words
    assert "What would start it now (no promise) CHANGE CENTER CNY/H CNY MESSAGE" in words
    assert '{"nodeCount": 2} a 160.00 80.00 with nodeCount 2 it would start at a' in words
    running = {**answer, "status": "RUNNING", "eta": {"p50": None, "p90": None}, "whatIf": []}
    stub.on("GET", "/broker/v1/jobs/j-1/explain", {**running, "expectedEnd": {"p50": 60, "p90": 120}})
    assert "ends in: 1 min 00 s to 2 min 00 s" in " ".join(terminal.run("explain", "j-1").stdout.split())


def test_explain_shows_where_a_running_job_is(terminal: Terminal, stub: Stub) -> None:
    placement = {"centerId": "sz-1", "cost": {"estimate": "1.20"}}
    answer: dict[str, Any] = {
        "id": "j-1",
        "status": "RUNNING",
        "position": None,
        "reasons": [],
        "placement": placement,
    }
    stub.on("GET", "/broker/v1/jobs/j-1/explain", {**answer, "eta": {"p50": None, "p90": None}})
    shown = terminal.run("explain", "j-1").stdout
    assert "sz-1" in shown
    assert '{"estimate": "1.20"}' in shown
    assert "position" not in shown


def test_show_has_every_attempt(terminal: Terminal, stub: Stub) -> None:
    runs = [
        {
            "taskId": "t-1",
            "attempt": 1,
            "status": "FAILED",
            "message": "evicted",
            "exitCode": 0,
            "cost": "0.10",
            "checkpointTime": "2025-03-01 10:05:00",
        },
        {"taskId": "t-2", "attempt": 2, "status": "RUNNING", "startTimeMs": 1000, "finishTimeMs": 66_000},
    ]
    stub.on("GET", "/broker/v1/jobs/j-1", detail(runs=runs, message="again"))
    shown = terminal.run("show", "j-1").stdout
    for text in (
        "Attempt 1",
        "Attempt 2",
        "t-1",
        "t-2",
        "evicted",
        "0.42 CNY",
        "again",
        "1 min 05 s",
        "2025-03-01 10:05:00",
        "command",
    ):
        assert text in shown
    assert "exit code: " in " ".join(shown.split("\n"))


def test_logs_are_bytes_as_they_are(terminal: Terminal, stub: Stub) -> None:
    stub.on("GET", "/broker/v1/jobs/j-1", detail())
    stub.on("GET", "/broker/v1/jobs/j-1/logs", Answer(body="第一行\n".encode()))
    ran = terminal.run("logs", "-f", "j-1", "--node", "2")
    assert ran.stdout == "第一行\n"
    query = stub.sent("GET", "/broker/v1/jobs/j-1/logs")[0].query
    assert query == {"task": ["t-j-1"], "node": ["2"], "offset": ["0"], "follow": ["1"]}


def test_download_unpacks_and_refuses(terminal: Terminal, stub: Stub) -> None:
    stub.on("GET", "/trainjob/j-1/download", served(archive(a=b"1", d__b=b"2"), "j-1.tar.gz"))
    ran = terminal.run("download", "j-1", "out")
    assert (ran.returncode, ran.stdout) == (0, "out/a\nout/d/b\n")
    assert (terminal.home / "out" / "d" / "b").read_bytes() == b"2"
    stub.on("GET", "/trainjob/j-1/download", served(archive(UP__evil=b"x"), "j-1.tar.gz"))
    ran = terminal.run("download", "j-1", "out")
    assert ran.returncode == 1
    assert "outside" in ran.stderr
    assert not (terminal.home / "evil").exists()


def test_operators_commands(terminal: Terminal, stub: Stub) -> None:
    stub.on("POST", "/broker/v1/jobs/j-1/resolve", {"id": "j-1"})
    stub.on("POST", "/broker/v1/centers/sz-1/drain", {"centerId": "sz-1", "state": "drain"})
    for action in ("grant", "revoke", "freeze", "unfreeze", "password"):
        stub.on("POST", f"/broker/v1/accounts/bob/{action}", {"name": "bob"})
    expected: dict[str, Any] = {
        "resolve j-1 --never-ran": {"neverRan": True},
        "resolve j-1 --remote slm:44": {"remote": "slm:44"},
        "resolve j-1 --ended failed": {"ended": "FAILED"},
        "user grant bob vip": {"right": "vip"},
        "user revoke bob vip": {"right": "vip"},
        "user freeze bob": {},
        "user unfreeze bob": {},
        "user password bob --password-stdin": {"password": "pw"},
    }
    for words, body in expected.items():
        ran = terminal.run(*words.split(), stdin="pw\n")
        assert ran.returncode == 0, (words, ran.stderr)
        assert json.loads(stub.requests[-1].body or b"{}") == body, words
    assert terminal.run("drain", "sz-1").stdout == "sz-1 drain\n"

"""Real brokers on both sides: a job from its submission here to its results there, and loops.

What belongs here: whole daemons.  What does not: the adapter alone (test_tai123.py) and the contract.
"""

from __future__ import annotations

import re
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from broker.client import ONLINE, Client, RequestFailed
from broker.core.hops import HOPS_LABEL, ORIGIN_LABEL
from broker.core.model import Role
from tests.daemon_process import PASSWORD, DaemonProcess, daemon, eventually, local_center
from tests.emulators.faults import Fault
from tests.emulators.tai123 import Service
from tests.soak import in_background
from tests.tai123_center import ACCOUNT, cards_center, center_at, center_toml, end_jobs, other_broker


@pytest.fixture
def far(tmp_path: Path) -> Iterator[DaemonProcess]:
    (tmp_path / "far").mkdir()
    with other_broker(tmp_path / "far", cards_center(tmp_path / "far")) as other:
        yield other


@pytest.fixture
def near_folder(tmp_path: Path) -> Path:
    (tmp_path / "near").mkdir()
    return tmp_path / "near"


def images_of(client: Client) -> set[str]:
    """The images known here, once a center has told its own: after its first poll."""

    def found() -> set[str]:
        return {each["imageId"] for each in client.images()["images"]}

    return set(eventually("images are known", found))


def spec_with(client: Client, cards: int) -> str:
    """The id of a spec, once the center has been polled and has told its images."""

    def found() -> str:
        specs = client.specs()["resourceSpecs"]
        return next((s["resourceSpecId"] for s in specs if s["processor"]["count"] == cards), "")

    images_of(client)
    return str(eventually(f"a spec of {cards} cards is known", found))


def submit(client: Client, name: str, command: str, **config: Any) -> str:
    known = {"imageId": "local", "command": command, **config}
    return client.create_job({"jobName": name, "config": known})["metadata"]["id"]


def reach(client: Client, job: str, status: str) -> Any:
    detail: dict[str, Any] = {}

    def there() -> bool:
        detail.update(client.job(job))
        return str(detail["status"]) == status

    try:
        eventually(f"job {job} is {status}", there)
    except AssertionError as error:
        raise AssertionError(f"{error}: {detail}") from error
    return detail


def on_far(far: DaemonProcess, **query: Any) -> list[Any]:
    return list(far.client(ACCOUNT).jobs(query)["items"])


def idle_cards(client: Client) -> int:
    return sum(each["idleResource"]["processor"]["count"] for each in client.idle()["centerResources"])


def test_a_job_runs_there_and_all_of_it_comes_back(far: DaemonProcess, near_folder: Path) -> None:
    with daemon(near_folder, center_toml(far)) as near:
        alice = near.client("alice")
        assert spec_with(alice, 2) == spec_with(far.client(ACCOUNT), 2), "equal across the network"
        eventually("what is idle there is seen", lambda: idle_cards(alice) == 4)
        command = (
            'echo "rank $BROKER_NODE_RANK says $WORD"; mkdir -p $BROKER_OUTPUT_DIR/deep;'
            " echo $BROKER_NODE_RANK >$BROKER_OUTPUT_DIR/deep/rank-$BROKER_NODE_RANK"
        )
        job = submit(
            alice,
            "both",
            command,
            specId=spec_with(alice, 2),
            nodeCount=2,
            priority="high",
            env=[{"key": "WORD", "value": "hello there"}],
            labels={"team": "vision"},
        )
        here = reach(alice, job, "SUCCEEDED")
        # one identity on both sides
        (item,) = on_far(far, label=f"{ORIGIN_LABEL}={job}")
        run = here["runs"][-1]
        assert run["remoteId"] == f"job:{item['metadata']['id']}"
        assert (item["metadata"]["name"], item["priority"]) == (run["taskId"], "high")
        there = far.client(ACCOUNT).job(item["metadata"]["id"])
        hops = [f"bk.{near.client('alice').info()['installation']}"]
        assert (there["originId"], there["hops"]) == (job, hops)
        assert (here["originId"], here["hops"]) == (job, [])
        assert there["config"]["labels"]["team"] == "vision"
        token = Client(far.url).login(ACCOUNT, PASSWORD)["token"]
        shown = far.command("show", there["id"], env={"BROKER_TOKEN": token}).stdout
        assert job in shown
        assert hops[0] in shown
        # times and exit code are the center's own
        assert run["exitCode"] == 0
        assert run["startTimeMs"] == there["runs"][-1]["startTimeMs"]
        # logs of each node and results, from here
        logs = [b"".join(alice.logs(job, node=node)) for node in (0, 1)]
        assert logs == [b"rank 0 says hello there\n", b"rank 1 says hello there\n"]
        files = alice.download(job, near_folder / "results")
        found = {path.relative_to(near_folder / "results").as_posix(): path.read_text() for path in files}
        assert found == {"deep/rank-0": "0\n", "deep/rank-1": "1\n"}
        # deleted here, deleted there
        alice.delete_job(job)
        eventually("it is deleted there", lambda: not on_far(far))


def test_a_stop_and_a_failure_arrive(far: DaemonProcess, near_folder: Path) -> None:
    with daemon(near_folder, center_toml(far)) as near:
        alice = near.client("alice")
        spec = spec_with(alice, 1)
        bad = submit(alice, "bad", "echo no >&2; exit 3", specId=spec)
        long = submit(alice, "long", "sleep 600", specId=spec, maxRunTime=3600)
        detail = reach(alice, bad, "FAILED")
        assert detail["runs"][-1]["exitCode"] == 3
        reach(alice, long, "RUNNING")
        eventually("the card is taken", lambda: idle_cards(alice) == 3)
        assert on_far(far, status="RUNNING")
        alice.stop_job(long)
        reach(alice, long, "STOPPED")
        assert not on_far(far, status="RUNNING")
        root = Client(near.url).login("root", PASSWORD)["token"]
        doctor = near.command("doctor", "up", env={"BROKER_TOKEN": root})
        assert doctor.returncode == 0, doctor.stdout + doctor.stderr
        assert f"broker far.{far.client(ACCOUNT).info()['installation']}" in doctor.stdout
        assert PASSWORD not in doctor.stdout + near.log.read_text()


def test_the_other_broker_dies_and_comes_back(far: DaemonProcess, near_folder: Path) -> None:
    """Its runs are UNKNOWN meanwhile, then what they are; what ended meanwhile has ended; none ran twice."""
    traces = near_folder / "traces"
    with daemon(near_folder, center_toml(far), silent_after_s=2) as near:
        alice = near.client("alice")
        spec = spec_with(alice, 1)
        command = f"echo $BROKER_TASK_ID >>{traces}-%s; while [ ! -e {near_folder}/%s ]; do sleep 0.1; done"
        jobs = {
            name: submit(alice, name, command.replace("%s", name), specId=spec)
            for name in ("ends", "goes-on")
        }
        for job in jobs.values():
            reach(alice, job, "RUNNING")
        far.kill()
        for job in jobs.values():
            reach(alice, job, "UNKNOWN")
        waiting = submit(alice, "waits", f"echo $BROKER_TASK_ID >>{traces}-waits", specId=spec)
        (near_folder / "ends").touch()
        far.start()
        reach(alice, jobs["ends"], "SUCCEEDED")
        reach(alice, jobs["goes-on"], "RUNNING")
        reach(alice, waiting, "SUCCEEDED")
        (near_folder / "goes-on").touch()
        reach(alice, jobs["goes-on"], "SUCCEEDED")
        for name in ("ends", "goes-on", "waits"):
            assert len(Path(f"{traces}-{name}").read_text().splitlines()) == 1, f"{name} ran once"
        names = [item["metadata"]["name"] for item in on_far(far)]
        assert len(names) == len(set(names)) == 3


def test_this_side_dies_while_it_submits(far: DaemonProcess, near_folder: Path) -> None:
    """What arrived there is found by its name and goes on, what did not is told; none is there twice."""
    near = DaemonProcess(near_folder, center_toml(far))
    near.add_user("alice")
    near.start()
    try:
        alice = near.client("alice")
        spec = spec_with(alice, 1)
        jobs = [submit(alice, f"n{n}", f"echo x >>{near_folder}/ran-{n}", specId=spec) for n in range(6)]
        eventually("one has arrived", lambda: on_far(far))
        near.kill()
        near.start()

        def settled(job: str) -> bool:
            detail = alice.job(job)
            first = detail["runs"][0]
            return detail["status"] == "SUCCEEDED" or first["failure"] == "never_arrived"

        for job in jobs:
            eventually(f"it is known what became of {job}", partial(settled, job))
        ran = [near_folder / f"ran-{n}" for n in range(6) if (near_folder / f"ran-{n}").exists()]
        assert ran
        assert {path.read_text() for path in ran} == {"x\n"}
        names = [item["metadata"]["name"] for item in on_far(far)]
        assert len(names) == len(set(names)) == len(ran)
    finally:
        near.kill()


def test_a_lost_create_goes_on_where_it_arrived(near_folder: Path) -> None:
    """A service of the standard takes the job and its answer is lost: the job is found, not sent again."""
    with in_background(Service) as service:
        service.faults.plan("create", Fault.LOST_REPLY)
        with daemon(near_folder, center_at(service.url, "plain")) as near:
            alice = near.client("alice")
            job = submit(alice, "lost", "run", specId=spec_with(alice, 2), imageId="img-3")
            reach(alice, job, "RUNNING")
            assert near.logged("submitted")
            (there,) = service.jobs.values()
            there.log, there.result, there.status = b"done\n", ("model.bin", b"weights"), "SUCCEEDED"
            detail = reach(alice, job, "SUCCEEDED")
            assert (len(detail["runs"]), len(service.jobs)) == (1, 1)
            assert b"".join(alice.logs(job)) == b"done\n"
            (path,) = alice.download(job, near_folder / "results")
            assert (path.name, path.read_bytes()) == ("model.bin", b"weights")


def test_data_and_images_go_through(far: DaemonProcess, near_folder: Path) -> None:
    """What is there is listed here, and what is here is brought there, a folder and a file."""
    owner = far.client(ACCOUNT)
    (near_folder / "one.txt").write_text("public there")
    owner.upload_dataset(near_folder / "one.txt", "theirs")
    (near_folder / "set" / "deep").mkdir(parents=True)
    (near_folder / "set" / "a").write_text("A")
    (near_folder / "set" / "deep" / "b").write_text("B")
    (near_folder / "two.txt").write_text("private here")
    with daemon(near_folder, center_toml(far)) as near:
        alice = near.client("alice")
        assert "local" in images_of(alice)
        theirs = eventually("it is listed", lambda: alice.datasets({"query": "theirs"})["datasets"])[0]["id"]
        folder = str(alice.upload(near_folder / "set", "folder")["id"])
        file = alice.upload_dataset(near_folder / "two.txt", "file", public=False)["id"]
        command = f"cd $BROKER_DATASETS_DIR; cat {theirs}/one.txt {folder}/a {folder}/deep/b {file}/two.txt"
        data = [theirs, folder, file]
        job = submit(alice, "reads", command, specId=spec_with(alice, 1), datasetIds=data)
        reach(alice, job, "SUCCEEDED")
        assert b"".join(alice.logs(job)) == b"public thereABprivate here"
        mine = {each["title"]: each for each in owner.datasets({"owner": "me"})["datasets"]}
        assert (mine[folder]["public"], mine[file]["public"]) == (False, False)
        assert mine.keys() == {"theirs", folder, file}, "each is there once"


def test_a_service_there_is_reached_from_here(far: DaemonProcess, near_folder: Path) -> None:
    with daemon(near_folder, center_toml(far, connection="public_services = true")) as near:
        alice = near.client("alice")
        files = f"echo hello >page; exec {sys.executable} -m http.server $BROKER_PORT"
        config = {"specId": spec_with(alice, 1), "imageId": "local", "command": files}
        created = alice.create_job({"jobName": "pages", "config": config}, noun=ONLINE)["metadata"]
        token = Client(near.url).login("alice", PASSWORD)["token"]

        def page(given: str) -> tuple[int, bytes]:
            asked = urllib.request.Request(f"{near.url}/services/{created['id']}/page")
            asked.add_header("X-Auth-Token", given)
            try:
                with urllib.request.urlopen(asked, timeout=10) as answer:
                    return answer.status, answer.read()
            except urllib.error.HTTPError as no:
                return no.code, b""

        eventually("it answers", lambda: page(token) == (200, b"hello\n"))
        assert page("nobody")[0] == 401
        alice.stop_job(created["id"], noun=ONLINE)
        eventually("it has ended", lambda: alice.job(created["id"])["status"] == "STOPPED")
        eventually("nobody is served any more", lambda: page(token)[0] == 410)
        assert not far.client(ACCOUNT).jobs({"status": "RUNNING"}, noun=ONLINE)["items"]


def test_a_vip_job_is_one_there_too(tmp_path: Path, near_folder: Path) -> None:
    """With the right there, and leave to stop others, it stops a lower job of somebody else there."""
    (tmp_path / "far").mkdir()
    policy = (Path(__file__).parent.parent / "config" / "policy.toml").read_text(encoding="utf-8")
    soon = re.sub(r"min_run_time_s = \d+", "min_run_time_s = 1", policy)
    (tmp_path / "far" / "policy.toml").write_text(soon, encoding="utf-8")
    with other_broker(tmp_path / "far", cards_center(tmp_path / "far")) as far:
        far.add_user("bob")
        keeper_of(far).change_account(ACCOUNT, "grant", {"right": "vip"})
        bob = far.client("bob")
        lower = submit(bob, "lower", "sleep 600", specId=spec_with(bob, 2), nodeCount=2, priority="low")
        reach(bob, lower, "RUNNING")
        try:
            with daemon(near_folder, center_toml(far, connection="allow_preempt_kill = true")) as near:
                root = near.client("root")
                spec = spec_with(root, 2)
                eventually("it is seen that nothing is idle", lambda: idle_cards(root) == 0)
                job = submit(root, "urgent", "echo done", specId=spec, isVip=True, preemptPolicy=2)
                reach(root, job, "SUCCEEDED")
                (item,) = on_far(far)
                config = far.client(ACCOUNT).job(item["metadata"]["id"])["config"]
                assert (config["isVip"], config["preemptPolicy"]) == (True, 2)
                stopped = bob.job(lower)  # what is stopped for another job is queued again without a retry
                assert stopped["status"] in ("PENDING", "RUNNING")
                assert stopped["config"]["maxRetries"] == 0
                assert stopped["runs"][0]["finishTime"] != ""
        finally:
            end_jobs(far, "bob")


def test_a_vip_job_goes_without_that_where_the_right_is_missing(
    far: DaemonProcess, near_folder: Path
) -> None:
    """Taken back after the center was opened: what is refused for it is sent again, once, without."""
    keeper = keeper_of(far)
    keeper.change_account(ACCOUNT, "grant", {"right": "vip"})
    with daemon(near_folder, center_toml(far)) as near:
        root = near.client("root")
        spec = spec_with(root, 1)
        keeper.change_account(ACCOUNT, "revoke", {"right": "vip"})
        for name in ("told by the refusal", "known by now"):
            job = submit(root, name.replace(" ", "-"), "echo done", specId=spec, isVip=True)
            here = reach(root, job, "SUCCEEDED")
            assert (here["config"]["isVip"], len(here["runs"])) == (True, 1), name
            (item,) = on_far(far, label=f"{ORIGIN_LABEL}={job}")
            there = far.client(ACCOUNT).job(item["metadata"]["id"])
            assert (there["config"]["isVip"], there["config"]["priority"]) == (False, "high"), name


def keeper_of(broker: DaemonProcess) -> Client:
    broker.add_user("keeper", role=Role.OPERATOR, tenant="ops")
    return broker.client("keeper")


def test_a_loop_between_brokers(tmp_path: Path) -> None:
    """Two brokers that are each other's centers, and one with nodes of its own."""
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    one = DaemonProcess(folders[0], "", name="one")
    two = DaemonProcess(folders[1], cards_center(folders[1]) + center_toml(one, "back"), name="two")
    one.config.write_text(one.config.read_text() + center_toml(two, "up"))
    for each in (one, two):
        each.add_user(ACCOUNT)
    one.start()
    two.start()
    try:
        asking = one.client(ACCOUNT)
        spec = spec_with(asking, 1)
        # Its own capacity is not seen as another's, whichever way it comes back.
        eventually("four cards are seen", lambda: idle_cards(asking) == 4)
        other = two.client(ACCOUNT)
        assert {each["centerId"] for each in other.idle()["centerResources"] if each["pools"]} == {"c1"}
        # A job that went one -> two is refused by one, with the way it took.
        job = submit(asking, "round", "sleep 600", specId=spec)
        reach(asking, job, "RUNNING")
        (item,) = other.jobs({"label": f"{ORIGIN_LABEL}={job}"})["items"]
        labels = other.job(item["metadata"]["id"])["config"]["labels"]
        with pytest.raises(RequestFailed) as caught:
            submit(asking, "again", "true", specId=spec, labels=labels)
        assert caught.value.code == "0202"
        assert f"a loop between brokers: {labels[HOPS_LABEL]} -> " in str(caught.value)
        # And so is one that has come too far.
        far = ",".join(f"b{n}.{n:010d}" for n in range(9))
        for hops, text in (
            (far, "9 brokers have passed the job on"),
            ("nonsense", "expected brokers such as"),
        ):
            with pytest.raises(RequestFailed) as caught:
                submit(asking, "far", "true", specId=spec, labels={HOPS_LABEL: hops})
            assert (caught.value.code, text in str(caught.value)) == ("0202", True)
    finally:
        for each in (one, two):
            end_jobs(each, ACCOUNT)
        for each in (one, two):
            each.kill()


def test_a_broker_is_no_center_of_itself(near_folder: Path) -> None:
    near = DaemonProcess(near_folder, "")
    more = local_center(near_folder, "own") + center_toml(near, "self")
    near.config.write_text(near.config.read_text() + more)
    near.add_user(ACCOUNT)
    near.start()
    try:

        def told() -> str:
            centers = near.client(ACCOUNT).centers()["centers"]
            return str(next(each["error"] for each in centers if each["centerId"] == "self"))

        assert "which is this broker itself" in str(eventually("it is told", told))
    finally:
        near.kill()

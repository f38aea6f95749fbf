"""What becomes of a daemon that is asked for more than it can do: `python bench/overload.py`.

What belongs here: the real daemon on a real SQLite file and crowds of clients in this process beside it:
a burst of creates by some accounts, each on a connection of its own, while idle event streams are open and
clients send or take nothing; then a flood of tokens that are none.  Meanwhile another account asks for
itself, one GET after the other, and so does one who asks for nothing but whether the daemon lives: how
long that takes is how late its event loop is.

The center is drained, so that rounds have every job in the queue.  Memory is VmRSS.  Figures are by the
wall clock, and the crowd shares the processors with the daemon.  Exit code 1 when a bound is broken.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests import crowd
from tests.daemon_process import DaemonProcess, daemon, local_center

MOST_MIB = 1024
"""What the daemon may take at most."""

LEFT_MIB = 300
"""What it may have more than before when all is over."""

GET_P99_S = 10.0
"""Of another account's GET: the daemon and the whole crowd share two processors."""


@dataclass(frozen=True)
class Phase:
    """What happened in it; milliseconds, MiB."""

    name: str
    answers: Counter[int]
    seconds: float
    before_mib: float
    most_mib: float
    after_mib: float
    get_p99_ms: float
    late_p99_ms: float
    others: Counter[int]
    rounds: int


@contextmanager
def slow_clients(broker: DaemonProcess, token: str, count: int) -> Iterator[None]:
    """So many send the beginning of a header, of a body, or take nothing of large answers."""
    begun = (
        b"GET /healthz HTTP/1.1\r\nHost: b\r\nX-Slow: ",
        f"POST /trainjob HTTP/1.1\r\nHost: b\r\nX-Auth-Token: {token}\r\n".encode()
        + b"Content-Length: 99\r\n\r\n{",
        b"GET /openapi.json HTTP/1.1\r\nHost: b\r\n\r\n" * 20,
    )
    with ExitStack() as open_clients:
        for number in range(count):
            client = open_clients.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", broker.port))
            client.sendall(begun[number % len(begun)])
        yield


async def burst(broker: DaemonProcess, tokens: dict[str, str], each: int, spec: str) -> Counter[int]:
    """Creates of all accounts at once; what was answered and what is listed must be the same."""
    bursts = await crowd.create_all_at_once(broker, tokens, each, spec)
    answers: Counter[int] = Counter()
    for name, made in bursts.items():
        answers.update(status for status, _, _ in made.refused.values())
        answers[200] += len(made.made)
        answers[0] += len(made.closed)
        listed = await crowd.listed(broker, tokens[name])
        assert listed == dict.fromkeys(made.made.items(), 1), "lost or doubled"
    return answers


async def measured(name: str, broker: DaemonProcess, token: str, work: asyncio.Task[Counter[int]]) -> Phase:
    before, rounds = crowd.resident_kib(broker), crowd.number(broker, "broker_rounds_total")
    began = time.perf_counter()
    async with (
        crowd.visiting(broker, token, "/broker/v1/me") as visitor,
        crowd.visiting(broker, "", "/healthz") as pulse,
    ):
        answers = await work
    took = time.perf_counter() - began
    return Phase(
        name=name,
        answers=answers,
        seconds=took,
        before_mib=before / 1024,
        most_mib=max(visitor.most_kib, pulse.most_kib) / 1024,
        after_mib=crowd.resident_kib(broker) / 1024,
        get_p99_ms=visitor.ms(0.99),
        late_p99_ms=pulse.ms(0.99),
        others=visitor.statuses + pulse.statuses,
        rounds=int(crowd.number(broker, "broker_rounds_total") - rounds),
    )


async def phases(broker: DaemonProcess, options: argparse.Namespace) -> list[Phase]:
    users = [f"user-{at}" for at in range(options.accounts)]
    tokens = {name: crowd.token_of(broker, name) for name in users}
    alice, spec = crowd.token_of(broker, "alice"), broker.client("alice").specs()["resourceSpecs"][0]
    found = []
    listeners = [crowd.token_of(broker, f"listener-{at}") for at in range(options.streams // 20)]
    async with crowd.streams(broker, listeners, each=20) as opened:
        assert {each.status for each in opened} == {200}
        with slow_clients(broker, alice, options.slow):
            creates = burst(broker, tokens, options.creates // len(users), spec["resourceSpecId"])
            task = asyncio.create_task(creates)
            found.append(await measured(f"{options.creates} creates", broker, alice, task))
            guesses = crowd.guess_tokens(broker, options.tokens, at_once=100)
            task = asyncio.create_task(guesses)
            found.append(await measured(f"{options.tokens} bad tokens", broker, alice, task))
        assert not any(each.ended for each in opened), "a stream was cut"
        assert await asyncio.to_thread(broker.stop) == 0
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--creates", type=int, default=10_000)
    parser.add_argument("--accounts", type=int, default=4)
    parser.add_argument("--streams", type=int, default=500)
    parser.add_argument("--slow", type=int, default=60)
    parser.add_argument("--tokens", type=int, default=20_000)
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        center = local_center(folder, "one", more='state = "drain"')
        with daemon(folder, center, extra="") as broker:
            for at in range(options.accounts):
                broker.add_user(f"user-{at}")
            for at in range(options.streams // 20):
                broker.add_user(f"listener-{at}")
            return told(asyncio.run(phases(broker, options)))


def told(found: list[Phase]) -> int:
    """Print the table; 1 when a bound is broken."""
    head = ("before", "most", "after", "GET p99", "late p99", "rounds", "wall s")
    print(f"{'':18}" + "".join(f"{each:>10}" for each in head) + "  answers")
    first, broken = found[0].before_mib, 0
    for phase in found:
        figures = (phase.before_mib, phase.most_mib, phase.after_mib, phase.get_p99_ms, phase.late_p99_ms)
        answers = ", ".join(
            f"{count} x {status or 'closed'}" for status, count in sorted(phase.answers.items()) if count
        )
        print(f"{phase.name:18}" + "".join(f"{each:10.0f}" for each in figures), end="")
        print(f"{phase.rounds:10}{phase.seconds:10.1f}  {answers}")
        bounds = {
            f"memory at most {MOST_MIB} MiB": phase.most_mib <= MOST_MIB,
            f"at most {LEFT_MIB} MiB more afterwards": phase.after_mib - first <= LEFT_MIB,
            f"another's GET within {GET_P99_S:g} s at p99": phase.get_p99_ms <= GET_P99_S * 1000,
            "others are answered 200": set(phase.others) == {200},
            "answers are 200, 401 or refusals": set(phase.answers) <= {0, 200, 401, 429, 503},
            "rounds go on": phase.rounds > 0,
        }
        for bound, kept in bounds.items():
            if not kept:
                broken += 1
                print(f"  broken: {bound}")
    print("memory in MiB, times in ms; late: how late the event loop answers /healthz")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())

"""When writes are handed to the writer: by a clock and turns of a loop that the tests move."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from broker.store.gathering import FEW, LONGEST_S, Gathering
from broker.store.writer import StoreUnavailable, Write

CROWD = FEW + 2


class Turns:
    """The part of a loop that is used: `turn` makes one."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self._soon: list[Callable[[], None]] = []
        self._later: list[tuple[float, asyncio.TimerHandle]] = []

    def time(self) -> float:
        return self.now_s

    def call_soon(self, callback: Callable[[], None]) -> None:
        self._soon.append(callback)

    def call_at(self, when_s: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when_s, callback, (), cast(Any, self))
        self._later.append((when_s, handle))
        return handle

    def get_debug(self) -> bool:
        return False

    def _timer_handle_cancelled(self, _handle: asyncio.TimerHandle) -> None:
        """As a loop is told."""

    def turn(self, *, after_s: float = 0.0) -> None:
        self.now_s += after_s
        due = [handle for when_s, handle in self._later if when_s <= self.now_s]
        self._later = [each for each in self._later if each[0] > self.now_s]
        soon, self._soon = self._soon, []
        for handle in due:
            if not handle.cancelled():
                handle._run()
        for callback in soon:
            callback()


class Desk:
    """A writer that takes what it is handed and answers when the test says so."""

    def __init__(self) -> None:
        self.loop = Turns()
        self.handed: list[Write] = []
        self.gathering = Gathering(self.handed.append, cast(asyncio.AbstractEventLoop, self.loop))

    def ask(self, count: int = 1) -> None:
        for _ in range(count):
            self.gathering.ask(write())

    def answer(self, *, after_s: float) -> None:
        """All that was handed over, in one transaction that took so long."""
        self.loop.turn(after_s=after_s)
        count = len(self.handed)
        self.handed.clear()
        self.gathering.answered(count)

    def crowd(self, *, took_s: float) -> None:
        """One transaction with many has been answered."""
        self.ask(CROWD)
        self.loop.turn()
        self.answer(after_s=took_s)


def write() -> Write:
    return Write(lambda _tx, items: items, None, cast(Any, None))


def test_one_is_handed_over_with_those_of_the_same_turn() -> None:
    desk = Desk()
    desk.ask()
    desk.ask()
    assert desk.handed == []
    assert desk.gathering.waiting == 2
    desk.loop.turn()
    assert len(desk.handed) == 2
    assert desk.gathering.waiting == 0


def test_what_comes_during_a_transaction_waits_for_its_end() -> None:
    desk = Desk()
    desk.ask()
    desk.loop.turn()
    desk.ask()
    desk.loop.turn(after_s=1)
    assert len(desk.handed) == 1
    desk.answer(after_s=1)
    desk.loop.turn()
    assert len(desk.handed) == 1
    assert desk.gathering.waiting == 0


def test_few_wait_for_nobody() -> None:
    desk = Desk()
    desk.ask(FEW)
    desk.loop.turn()
    desk.answer(after_s=1)
    desk.ask()
    desk.loop.turn()
    assert len(desk.handed) == 1


def test_a_crowd_waits_until_it_is_whole_again() -> None:
    desk = Desk()
    desk.crowd(took_s=LONGEST_S)
    desk.ask(CROWD - 1)
    desk.loop.turn(after_s=LONGEST_S / 2)
    assert desk.handed == []
    desk.ask()
    desk.loop.turn()
    assert len(desk.handed) == CROWD
    desk.loop.turn(after_s=1)
    assert len(desk.handed) == CROWD, "the timer of those who waited is over, too"


def test_those_who_asked_meanwhile_are_of_the_crowd() -> None:
    desk = Desk()
    desk.ask()
    desk.loop.turn()
    desk.ask(CROWD)
    desk.answer(after_s=LONGEST_S)
    desk.loop.turn()
    assert desk.handed == []
    desk.ask()
    desk.loop.turn()
    assert len(desk.handed) == CROWD + 1


@pytest.mark.parametrize("took_s", [LONGEST_S / 4, 3600.0])
def test_nobody_is_waited_for_longer_than_the_last_transaction_took_nor_than_the_longest(
    took_s: float,
) -> None:
    desk = Desk()
    desk.crowd(took_s=took_s)
    desk.ask()
    longest_s = min(took_s, LONGEST_S)
    desk.loop.turn(after_s=longest_s * 0.9)
    assert desk.handed == []
    desk.loop.turn(after_s=longest_s * 0.2)
    assert len(desk.handed) == 1


def test_a_crowd_that_does_not_come_back_is_forgotten() -> None:
    desk = Desk()
    desk.crowd(took_s=1)
    desk.loop.turn(after_s=LONGEST_S)
    desk.ask()
    desk.loop.turn()
    assert len(desk.handed) == 1


async def test_what_the_writer_does_not_take_is_refused() -> None:
    def closed(_write: Write) -> None:
        raise StoreUnavailable("the store is closed")

    loop = asyncio.get_running_loop()
    gathering = Gathering(closed, loop)
    for _ in range(2):
        waiting = loop.create_future()
        gathering.ask(Write(lambda _tx, items: items, None, waiting))
        with pytest.raises(StoreUnavailable, match="closed"):
            await waiting

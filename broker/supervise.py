"""Eternal loops: period, wake-up, jitter, back-off.

What belongs here: how a loop goes round.  What does not: what it does; a loop's work is an object
with `once()`, which tests call by hand.  A pass that fails is logged with its traceback and tried
again later, each time later; a loop that ends by itself is a defect and is loud.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable

from broker.store import LostLease
from broker.telemetry import LOOP_ERRORS, log

LONGEST_BACKOFF_S = 60.0


async def loop(
    name: str,
    once: Callable[[], Awaitable[float | None]],
    *,
    period_s: float,
    wake: asyncio.Event,
    stopping: asyncio.Event,
    rest: float = 0.0,
) -> None:
    """Call `once` every `period_s` (a tenth more or less, so that loops do not march in step) and at
    each wake-up, until `stopping`.

    `once` may return the seconds after which it wants to be called again.  `rest`: a wake-up waits until the
    loop has rested so many times as long as its last pass took, at most `period_s`; what comes meanwhile
    shares the next pass.  A lost lease ends the daemon: LostLease passes through.
    """
    failures = 0
    ended = asyncio.create_task(stopping.wait(), name=f"{name}: stop")
    try:
        while not stopping.is_set():
            wake.clear()  # before the pass: a wake-up during it makes another
            began = time.monotonic()
            try:
                wanted = await once()
                failures = 0
                delay = period_s if wanted is None else wanted
            except LostLease:
                raise
            except Exception:
                failures += 1
                delay = min(LONGEST_BACKOFF_S, max(period_s, 0.1) * 2.0 ** min(failures, 16))
                LOOP_ERRORS.labels(name).inc()
                log.exception("loop_failed", loop=name, failures=failures, retry_s=delay)
            delay *= random.uniform(0.9, 1.1)
            pause_s = min(period_s, rest * (time.monotonic() - began))
            if pause_s > 0:
                await asyncio.wait({ended}, timeout=pause_s)
            woken = asyncio.create_task(wake.wait(), name=f"{name}: wake-up")
            try:
                await asyncio.wait(
                    {woken, ended},
                    timeout=max(0.0, delay - pause_s),
                    return_when=asyncio.FIRST_COMPLETED,
                )
            finally:
                woken.cancel()
    finally:
        ended.cancel()

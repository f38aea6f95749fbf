"""`python -m tests.chaos`: stories until the daemon has been killed so many times (`make chaos`).

Half of the kills are drawn from the seed; the others are at places that were passed and not yet killed
at.  Prints every failure with the command that tells its story again, and exits with 1 if there was one.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path

from tests.chaos.process import Launcher
from tests.chaos.sites import STAGES
from tests.chaos.story import Plot, Told, kills_of, make_template, tell

KILLS_A_STORY = 15
_open: list[tuple[Launcher, Path]] = []  # of this worker
_open_until_the_end = ExitStack()


def play(plot: Plot) -> tuple[Plot, Told | None, str, float]:
    """One story in this worker; its failure as text, and the seconds that it took."""
    began = time.monotonic()
    if not _open:
        folder = Path(_open_until_the_end.enter_context(tempfile.TemporaryDirectory(prefix="chaos-")))
        _open.append((_open_until_the_end.enter_context(Launcher()), make_template(folder)))
    launcher, template = _open[0]
    folder = Path(tempfile.mkdtemp(prefix=f"chaos-{plot.site}-{plot.seed}-"))
    try:
        told = tell(plot, folder, launcher, template)
    except Exception:
        log = folder / "daemon.log"
        tail = log.read_text()[-3000:] if log.exists() else ""
        return plot, None, f"{traceback.format_exc()}\nin {folder}\n{tail}", time.monotonic() - began
    shutil.rmtree(folder, ignore_errors=True)
    return plot, told, "", time.monotonic() - began


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    options.add_argument("--kills", type=int, default=1000)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--site", choices=sorted(STAGES), action="append")
    options.add_argument("--workers", type=int, default=2 * (os.cpu_count() or 1))
    options.add_argument("--kill", action="append", help="a point; then one story is told, with these kills")
    asked = options.parse_args()
    sites = asked.site or sorted(STAGES)
    if asked.kill:
        _, told, trouble, _ = play(Plot(sites[0], asked.seed, tuple(asked.kill)))
        print(trouble or told)
        return int(bool(trouble))
    return campaign(asked.kills, asked.seed, sites, asked.workers)


def campaign(kills: int, seed: int, sites: list[str], workers: int) -> int:
    draw = random.Random(seed)
    passed: dict[str, set[str]] = {site: set() for site in sites}
    died: dict[str, set[str]] = {site: set() for site in sites}
    killed = failed = number = 0
    with ProcessPoolExecutor(workers) as pool:
        running: set[Future[tuple[Plot, Told | None, str, float]]] = set()
        while killed < kills or running:
            while len(running) < workers and killed + len(running) * KILLS_A_STORY < kills:
                site = sites[number % len(sites)]
                fresh = sorted(passed[site] - died[site])
                targets = draw.sample(fresh, min(KILLS_A_STORY // 2, len(fresh)))
                died[site].update(targets)  # tried; it is struck out again below unless it happened
                aimed = [f"{place}#{draw.choice((1, 1, 2, 4))}" for place in targets]
                drawn = [*kills_of(seed * 100_000 + number, KILLS_A_STORY - len(aimed)), *aimed]
                draw.shuffle(drawn)
                running.add(pool.submit(play, Plot(site, seed * 100_000 + number, tuple(drawn))))
                number += 1
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for each in done:
                plot, told, trouble, took = each.result()
                aimed_at = {kill.rpartition("#")[0] for kill in plot.kills if "#" in kill}
                died[plot.site] -= aimed_at
                if told is None:
                    failed += 1
                    print(f"FAILED {plot.command}\n{trouble}", flush=True)
                    continue
                killed += told.killed
                passed[plot.site] |= told.passed
                died[plot.site] |= {place.rpartition("#")[0] for place in told.died}
                print(
                    f"{killed:5} kills, story {number}: {plot.site} {told.killed} kills in {took:.1f} s,"
                    f" {len(died[plot.site])} of {len(passed[plot.site])} places",
                    flush=True,
                )
            if failed >= 20:
                break
    for site in sites:
        left = sorted(passed[site] - died[site])
        print(f"{site}: killed at {len(died[site])} of {len(passed[site])} places; never at {left}")
    print(f"{killed} kills, {failed} stories failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())

"""The Philly and ITP traces: published figures reproduced, then the broker beside the baselines.

    python bench/philly.py DATA_DIR

DATA_DIR has philly4vc_octnov.csv.gz, itp_dev.csv.gz, their centers files and
published_philly_sc21_qssf.csv.  Each part whose files are absent is skipped, loudly.  Waits are mean
seconds.  Prints what is owed and exits 1 where a figure misses it.
"""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from broker.companions import available_policies
from broker.config import find_config_file
from broker.core.policy import PolicySet
from broker.core.policy_file import load_policies
from broker.core.resources import Catalogue
from broker.simulate import JobRecord, Order, Outcome, Progress, Settings, simulate
from broker.simulate.report import percentile, report
from broker.simulate.trace import CenterRow, TraceJob, read_centers, read_jobs

PUBLISHED = "published_philly_sc21_qssf.csv"


@dataclass(frozen=True, slots=True)
class Trace:
    """A trace and what an independent replay of it gave: one pooled queue, mean wait in seconds."""

    name: str
    jobs: str
    centers: str
    column: str
    fifo_s: int
    sjf_s: int

    def missing(self, folder: Path) -> list[str]:
        return [name for name in (self.jobs, self.centers) if not (folder / name).exists()]

    def read(self, folder: Path) -> tuple[tuple[TraceJob, ...], tuple[CenterRow, ...]]:
        return read_jobs(folder / self.jobs), read_centers(folder / self.centers, self.column)


PHILLY = Trace("philly4vc", "philly4vc_octnov.csv.gz", "centers_philly4vc.csv", "node_count", 1018, 407)
ITP = Trace("itp_dev", "itp_dev.csv.gz", "centers_itp_dev.csv", "node_count_busy", 1051, 455)


def main(words: Sequence[str]) -> int:
    if len(words) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    folder = Path(words[0])
    missed: list[str] = []
    skips = 0
    lacking = [*PHILLY.missing(folder), *([] if (folder / PUBLISHED).exists() else [PUBLISHED])]
    if lacking:
        skips += 1
        skipped("published figures", folder, lacking)
    else:
        missed += reproduce(folder)
    for trace in (PHILLY, ITP):
        if lacking := trace.missing(folder):
            skips += 1
            skipped(trace.name, folder, lacking)
        else:
            missed += compare(trace, folder)
    if skips < 3:
        print("\nowed: " + ("; ".join(f"MISSED {text}" for text in missed) or "all that was run is reached"))
    if skips:
        print(f"\n*** {skips} of 3 parts were SKIPPED and prove nothing ***")
    return 1 if missed else 0


def skipped(what: str, folder: Path, lacking: Sequence[str]) -> None:
    print(f"\n*** SKIPPED: {what}: {folder} has no {', '.join(lacking)} ***", flush=True)


# ---------------------------------------------------------------- published figures


def reproduce(folder: Path) -> list[str]:
    """FIFO and SJF with true run times at home, per virtual cluster, beside the published means."""
    jobs, centers = PHILLY.read(folder)
    with (folder / PUBLISHED).open(encoding="utf-8") as file:
        published = {row["vc"]: row for row in csv.DictReader(file)}
    missed = []
    print("\nPhilly at home, published / ours, mean seconds (published: SC'21 Helios artifact)")
    print(f"{'cluster':<9}{'order':<7}{'JCT':>20}{'off':>9}{'queue':>20}{'off':>9}")
    for order in (Order.FIFO, Order.SJF):
        outcome = run(jobs, centers, Settings(order=order, stays_home=True, oracle=True))
        for center in sorted(outcome.cards):
            cluster = center.removeprefix("philly-")
            mine = [record for record in outcome.jobs if record.center == center]
            ours = {"jct": fmean(completions(mine)), "queue": fmean(r.waited_s for r in mine)}
            told = {figure: float(published[cluster][f"{order}_{figure}_s"]) for figure in ours}
            off = {figure: ours[figure] / told[figure] - 1 for figure in ours}
            print(
                f"{cluster:<9}{order:<7}"
                + "".join(f"{told[f]:>10,.0f} /{ours[f]:>8,.0f}{off[f]:>9.2%}" for f in ("jct", "queue"))
            )
            missed += [f"{cluster} {order} {f}: {by:+.2%}" for f, by in off.items() if abs(by) > 0.01]
    return missed


def completions(records: Sequence[JobRecord]) -> list[int]:
    return [record.end_s - record.job.submit_s for record in records if record.end_s is not None]


# ---------------------------------------------------------------- the broker beside the baselines


def compare(trace: Trace, folder: Path) -> list[str]:
    """The baselines pooled and at home, and the broker, which is owed a mean wait of at most ..."""
    jobs, centers = trace.read(folder)
    print(
        f"\n{trace.name} ({trace.column}): independent replay, pooled: FIFO {trace.fifo_s:,} s,"
        f" SJF {trace.sjf_s:,} s"
    )
    print(
        f"{'rule':<26}{'mean':>9}{'P99':>10}{'longest':>10}{'gangs':>9}{'JCT':>10}{'use':>8}"
        f"{'rounds/s':>10}{'gap':>9}{'wall':>8}"
    )
    for stays_home in (True, False):
        for order in (Order.FIFO, Order.SJF):
            show(run(jobs, centers, Settings(order=order, stays_home=stays_home, oracle=True)))
    noisy = [show(run(jobs, centers, Settings(seed=seed))) for seed in range(3)]
    oracle = show(run(jobs, centers, Settings(oracle=True)))
    show(run(jobs, centers, Settings(stays_home=True)))
    owed = (
        (f"{trace.name} noisy, worst of 3 seeds", max(noisy), trace.fifo_s),
        (f"{trace.name} oracle", oracle, 1.25 * trace.sjf_s),
    )
    return [f"{what}: {wait:,.0f} s > {limit:,.0f} s" for what, wait, limit in owed if wait > limit]


def show(outcome: Outcome) -> float:
    """One line; the mean wait."""
    told, chosen = report(outcome), outcome.settings
    known = "" if chosen.order is Order.FIFO else "oracle" if chosen.oracle else f"noisy {chosen.seed}"
    rule = f"{chosen.order} {'home' if chosen.stays_home else 'pooled'} {known}"
    waits = [r.waited_s for r in outcome.jobs if r.end_s is not None]
    gangs = [r.waited_s for r in outcome.jobs if r.end_s is not None and r.job.nodes > 1]
    speed = f"{told.rounds / told.wall_s:,.0f}" if told.rounds else ""
    gap = "" if told.gap_median is None else f"{told.gap_median:.3%}"
    print(
        f"{rule:<26}{fmean(waits):>9,.0f}{percentile(waits, 99) or 0:>10,.0f}{max(waits):>10,}"
        f"{fmean(gangs) if gangs else 0:>9,.0f}{told.overall.completion_mean_s or 0:>10,.0f}"
        f"{told.utilisation:>8.1%}{speed:>10}{gap:>9}{told.wall_s:>7.1f}s",
        flush=True,
    )
    assert len(waits) == len(outcome.jobs), f"{len(outcome.jobs) - len(waits)} jobs never started"
    return fmean(waits)


def run(jobs: Sequence[TraceJob], centers: Sequence[CenterRow], settings: Settings) -> Outcome:
    return simulate(
        jobs, centers, policies=packaged(), catalogue=Catalogue(), settings=settings, progress=telling()
    )


def packaged() -> PolicySet:
    """The policies that the broker comes with."""
    text = find_config_file("policy.toml").read_text(encoding="utf-8")
    return load_policies(text, available_policies())


def telling() -> Progress:
    """A line on stderr every half minute."""
    told = time.monotonic()

    def tell(done: int, jobs: int, now_s: int, rounds: int) -> None:
        nonlocal told
        if time.monotonic() - told > 30:
            told = time.monotonic()
            line = f"  {done:,} of {jobs:,} jobs, day {now_s / 86_400:.1f}, {rounds:,} rounds"
            print(line, file=sys.stderr, flush=True)

    return tell


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Logs and results of platforms that have no call for them: a storage that jobs and the broker share.

Here: the command that a run starts with, which writes there, and reading it back.  Not here: how a
platform mounts the storage, and its own logs.  `output = {in_job, here}` of a connection names the
same folder as jobs and as the broker see it:

    <run id>/log-<rank>        standard output and error of one node
    <run id>/exit-<rank>       its exit code, renamed into place at the end
    <run id>/results/          BROKER_OUTPUT_DIR
    <run id>/datasets/         BROKER_DATASETS_DIR: a link to each data set that the run names
    checkpoints/<job id>/      BROKER_CHECKPOINT_DIR: the same for all runs of a job, never removed here

What is read back was written by jobs: a link that leads out of the run's folder is not followed.
"""

from __future__ import annotations

import asyncio
import os
import re
import shlex
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from adapters.files import content, discard, results_below
from broker.adapter import Check, Connection, Refused, ResultFile, RunSpec, Unavailable
from broker.core.model import JobId, RunId

NO_STORAGE = 74
"""Exit code of a command that finds no storage to write to; EX_IOERR of sysexits."""
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def environment(run: RunSpec, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a job finds in its environment on every node alike; its own variables never replace it."""
    own = {
        "BROKER_JOB_ID": run.job,
        "BROKER_TASK_ID": run.id,
        "BROKER_ATTEMPT": str(run.attempt),
        "BROKER_NODE_COUNT": str(run.nodes),
    }
    if run.port is not None:
        own["BROKER_PORT"] = str(run.port)
    return {**dict(run.env), **own, **(more or {})}


def command_line(
    run: RunSpec,
    env: Mapping[str, str],
    output: Output | None = None,
    *,
    rank: str = "0",
    master: str = "127.0.0.1",
) -> str:
    """What the platform is given to run by a POSIX shell on each node, in the job's place.

    `rank` and `master` are shell words that say which node this is and where the first one is, such
    as "${RANK:-0}".  Raises Refused for a command or variable that no shell can take.
    """
    for name in env:
        if not _VARIABLE.fullmatch(name):
            raise Refused(f"env name is {name!r}, expected letters, digits and '_', not a digit first")
    for name, value in (("command", run.command), *env.items()):
        if "\0" in value:
            raise Refused(f"{name} has a NUL character, expected text without")
    steps = [f"export {name}={shlex.quote(value)}" for name, value in env.items()]
    steps += [
        f'BROKER_NODE_RANK="{rank}"',
        'case "$BROKER_NODE_RANK" in ""|*[!0-9]*) BROKER_NODE_RANK=0;; esac',
        f'BROKER_MASTER_ADDR="{master}"',
        "export BROKER_NODE_RANK BROKER_MASTER_ADDR",
    ]
    if output is not None and "BROKER_DATASETS_DIR" not in env:
        steps += output.data_links(run)
    steps += output.steps(run) if output is not None else [f"exec /bin/sh -c {shlex.quote(run.command)}"]
    return "; ".join(steps)


@dataclass(frozen=True, slots=True)
class Output:
    """One storage: `in_job` as jobs see it, `here` as the broker sees it."""

    in_job: str
    here: Path

    @classmethod
    def of(cls, connection: Connection) -> Output | None:
        stated = connection.options.get("output")
        return cls(stated["in_job"].rstrip("/"), Path(stated["here"])) if stated else None

    def data_links(self, run: RunSpec) -> list[str]:
        """What makes BROKER_DATASETS_DIR; the ranks of a run make the same links."""
        folder = f"{self.in_job}/{run.id}/datasets"
        steps = [f"BROKER_DATASETS_DIR={shlex.quote(folder)}", "export BROKER_DATASETS_DIR"]
        steps.append('mkdir -p "$BROKER_DATASETS_DIR"')
        for dataset, place in run.datasets:
            link = f'"$BROKER_DATASETS_DIR"/{shlex.quote(dataset)}'
            steps.append(f"ln -sfn {shlex.quote(place)} {link} 2>/dev/null || [ -e {link} ]")
        return steps

    def steps(self, run: RunSpec) -> list[str]:
        """The end of `command_line`: the job's command with its output kept and its exit code told.

        A stop reaches the platform's first process only, which is this shell: SIGTERM is passed on, to
        the command's whole session where there is setsid.
        """
        folder, checkpoints = f"{self.in_job}/{run.id}", f"{self.in_job}/checkpoints/{run.job}"
        trouble = shlex.quote(f"broker: cannot write to {folder}: is the storage mounted?")
        return [
            f"_o={shlex.quote(folder)} _p='' _t='' _g=''",
            f'BROKER_OUTPUT_DIR="$_o/results" BROKER_CHECKPOINT_DIR={shlex.quote(checkpoints)}',
            "export BROKER_OUTPUT_DIR BROKER_CHECKPOINT_DIR",
            'mkdir -p "$BROKER_OUTPUT_DIR" "$BROKER_CHECKPOINT_DIR" && : >>"$_o/log-$BROKER_NODE_RANK"'
            f" || {{ echo {trouble} >&2; exit {NO_STORAGE}; }}",
            '_k() { _t=1; [ -z "$_p" ] || kill -s TERM -- "$_g$_p" 2>/dev/null; }',
            "trap _k TERM",
            "command -v setsid >/dev/null 2>&1 && _g=-",
            f'${{_g:+setsid}} /bin/sh -c {shlex.quote(run.command)} >>"$_o/log-$BROKER_NODE_RANK" 2>&1'
            " </dev/null & _p=$!",
            '[ -z "$_t" ] || _k',  # it came before there was anything to stop
            'wait "$_p"',
            "_c=$?",
            # The wait ends early when a signal comes: then its code is the signal's, not the command's.
            'while kill -0 "$_p" 2>/dev/null; do wait "$_p"; _c=$?; done',
            'wait "$_p" 2>/dev/null',
            '_a=$?; [ "$_a" -eq 127 ] || _c=$_a',  # 127: it has been told already
            'echo "$_c" >"$_o/exit-$BROKER_NODE_RANK.new"'
            ' && mv -f "$_o/exit-$BROKER_NODE_RANK.new" "$_o/exit-$BROKER_NODE_RANK"',
            'exit "$_c"',
        ]

    def checkpoints(self, job: JobId) -> Path:
        """A job's BROKER_CHECKPOINT_DIR as the broker sees it."""
        return self.here / "checkpoints" / job

    def mounted(self) -> Path:
        """The folder as the broker sees it.

        Raises Unavailable when the storage is not there: no log is another thing than no storage.
        """
        if not self.here.is_dir():
            raise Unavailable(f"output.here is {str(self.here)!r}, which is no folder: is it mounted?")
        return self.here

    # ------------------------------------------------------------ reading back

    async def logs(self, run: RunId, node: int, offset: int) -> AsyncIterator[bytes]:
        """One node's output from a byte offset up to what is there now; nothing where there is none."""
        root = await asyncio.to_thread(self._root, run)
        async for chunk in content(self.here / run, f"log-{node:d}", offset, root=root):
            yield chunk

    async def results(self, run: RunId) -> AsyncIterator[ResultFile]:
        root = await asyncio.to_thread(self._root, run)
        for result in await asyncio.to_thread(results_below, self.here / run / "results", root=root):
            yield result

    async def exit_code(self, run: RunId, node: int) -> int | None:
        """None while the node's command has not ended, as far as the storage shows."""
        root = await asyncio.to_thread(self._root, run)
        text = b"".join([chunk async for chunk in content(self.here / run, f"exit-{node:d}", root=root)])
        return int(text) if text.strip().isdigit() and len(text) < 8 else None

    async def ended(self, run: RunId, node: int) -> tuple[int, int] | None:
        """Exit code of one node and when it was written, in UTC milliseconds of the storage's clock."""
        code = await self.exit_code(run, node)
        written = await asyncio.to_thread(self._written, self.here / run / f"exit-{node:d}")
        return None if code is None or written is None else (code, written)

    def _written(self, path: Path) -> int | None:
        try:
            return path.lstat().st_mtime_ns // 1_000_000
        except OSError:
            return None

    async def delete(self, run: RunId) -> None:
        """Remove what a run left; its checkpoints belong to the job and stay."""
        await asyncio.to_thread(self._delete, run)

    async def check(self) -> Check:
        """For `broker doctor`: whether the broker can reach the storage."""
        usable = await asyncio.to_thread(os.access, self.here, os.R_OK | os.W_OK | os.X_OK)
        how = "is" if usable else "is not a folder that can be read and written by the broker, or not mounted"
        return Check("output", usable, f"{self.here} {how}{' readable and writable' if usable else ''}")

    def _root(self, run: RunId) -> str:
        """What a run's files must be below: no link is allowed from the storage's folder on.

        Raises Unavailable.
        """
        return f"{os.path.realpath(self.mounted())}/{run}"

    def _delete(self, run: RunId) -> None:
        discard(self.mounted() / run)

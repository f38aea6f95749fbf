"""The command of a local run: as which user it runs, with which signals and in which environment.

Here: what is the same for every run of a center.  Not here: starting it, which the supervisor does
(local_runner.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from adapters.output import environment
from broker.adapter import RunSpec

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Owner:
    """Who runs commands and owns what they write; None of these: the daemon's own user."""

    name: str
    uid: int
    gid: int


def launcher(owner: Owner | None) -> list[str]:
    """What goes before a command's own argument vector.

    No signal is ignored when the command starts: a shell ignores SIGINT and SIGQUIT for what it
    starts in the background, the daemon may have inherited more (SIGHUP from nohup), and no shell
    below could undo it.  The user changes before the job's environment is read, so that nothing of it
    is ever in effect for another user.
    """
    argv = ["/usr/bin/env", "--default-signal"]
    if owner is not None:
        argv += ["setpriv", f"--reuid={owner.uid}", f"--regid={owner.gid}", "--init-groups", "--"]
    return argv


def environment_of(spec: RunSpec, path: Path, rank: int, shared: Mapping[str, str]) -> dict[str, str]:
    """The whole environment of one node of the run in `path`: a few defaults, the job's own variables,
    then what only we know.  `shared`: variables that are the same for all ranks."""
    node = path / f"node-{rank}"
    defaults = {"PATH": PATH, "HOME": str(node), "LANG": "C.UTF-8", "TMPDIR": str(node / "tmp")}
    own = {
        "BROKER_NODE_RANK": str(rank),
        "BROKER_MASTER_ADDR": "127.0.0.1",
        "BROKER_OUTPUT_DIR": str(path / "output"),
        "BROKER_DATASETS_DIR": str(path / "datasets"),
        **shared,
    }
    return defaults | environment(spec, own)

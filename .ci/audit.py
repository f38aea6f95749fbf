"""Looks up known vulnerabilities of what the locks name, with pip-audit: `make audit`.

Exit code 0: none is known, or nobody could be asked, which is said and is the only reason to go on
without an answer.  1: something has a known vulnerability.  2: the audit itself failed.

pip-audit ends well when its service knows none of the packages, as behind a mirror of the package index
that has no advisories; so its report is read, and what was skipped counts as not audited.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LOCKS = ("requirements-service.lock", "requirements.lock")
SERVICES: tuple[tuple[str, ...], ...] = (("-s", "pypi"), ("-s", "osv"))
"""Asked in this order until one answers for everything."""
LIMIT_S = 25
"""For one service."""
_NO_WAY = ("ConnectionError", "ConnectTimeout", "ReadTimeout", "ProxyError", "NameResolutionError")


class NobodyThere(Exception):
    """The service cannot be asked from here; the text says why."""


class Failed(Exception):
    """The audit itself failed; the text says how."""


def report_of(service: Sequence[str], locks: Sequence[Path], *, limit_s: float = LIMIT_S) -> dict[str, Any]:
    """pip-audit's report.  Raises NobodyThere, Failed."""
    command = [sys.executable, "-m", "pip_audit", *service, "--disable-pip", "--require-hashes"]
    command += ["--format", "json", "--progress-spinner", "off", "--timeout", "10"]
    for lock in locks:
        command += ["-r", str(lock)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        raise NobodyThere(f"no answer within {limit_s:g} s") from None
    try:
        found: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        kind = NobodyThere if any(word in last for word in _NO_WAY) else Failed
        raise kind(last[:300]) from None
    skipped = [each["name"] for each in found["dependencies"] if "skip_reason" in each]
    if found["dependencies"] and len(skipped) == len(found["dependencies"]):
        raise NobodyThere("it knows none of the packages (a mirror without advisories?)")
    if skipped:
        raise Failed(f"not audited: {', '.join(skipped)}")
    return found


def vulnerable(report: dict[str, Any]) -> list[str]:
    """A line for each known vulnerability."""
    return [
        f"{each['name']} {each['version']}: {known['id']}"
        + (f", fixed in {', '.join(known['fix_versions'])}" if known["fix_versions"] else ", not fixed yet")
        for each in report["dependencies"]
        for known in each["vulns"]
    ]


def audit(locks: Sequence[Path], services: Sequence[Sequence[str]] = SERVICES) -> int:
    """Ask until one answers, and say what came of it; the exit code."""
    reasons = []
    for service in services:
        try:
            report = report_of(service, locks)
        except NobodyThere as none:
            reasons.append(f"{service[1]}: {none}")
            continue
        except Failed as failure:
            print(f"audit failed: {service[1]}: {failure}")
            return 2
        lines = vulnerable(report)
        print(
            "\n".join(
                [f"audited {len(report['dependencies'])} packages: {len(lines)} vulnerabilities", *lines]
            )
        )
        return 1 if lines else 0
    print(f"not audited: no way to a vulnerability service from here ({'; '.join(reasons)})")
    return 0


if __name__ == "__main__":
    root = Path(__file__).parent.parent
    sys.exit(audit([root / name for name in LOCKS]))

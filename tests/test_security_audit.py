"""`make audit`: pip-audit over a local service that knows what a test says."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from tests.pages import ROOT
from tests.raw_server import Answer, Arrived, answer, document, raw_server

LOCK = """\
aiohttp==3.14.0 --hash=sha256:0000000000000000000000000000000000000000000000000000000000000000
attrs==25.1.0 --hash=sha256:0000000000000000000000000000000000000000000000000000000000000000
"""
KNOWN = {
    "vulns": [
        {
            "id": "PYSEC-0000-1",
            "summary": "an invented one",
            "published": "2025-01-01T00:00:00Z",
            "affected": [
                {
                    "package": {"name": "aiohttp", "ecosystem": "PyPI"},
                    "ranges": [
                        {"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "3.14.1"}]},
                    ],
                }
            ],
        }
    ]
}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci/audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def ran(script: ModuleType, folder: Path, answers: Callable[[Arrived], Answer]) -> int:
    lock = folder / "some.lock"
    lock.write_text(LOCK)
    async with raw_server(answers) as server:
        services = (("-s", "osv", "--osv-url", f"{server.url}/v1/query"),)
        return int(await asyncio.to_thread(script.audit, [lock], services))


async def test_what_nobody_knows_anything_of_passes(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await ran(script, tmp_path, lambda _r: document({})) == 0
    assert capsys.readouterr().out == "audited 2 packages: 0 vulnerabilities\n"


async def test_a_known_vulnerability_fails(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def answers(request: Arrived) -> Answer:
        return document(KNOWN if request.document["package"]["name"] == "aiohttp" else {})

    assert await ran(script, tmp_path, answers) == 1
    told = capsys.readouterr().out
    assert "audited 2 packages: 1 vulnerabilities" in told
    assert "aiohttp 3.14.0: PYSEC-0000-1, fixed in 3.14.1" in told


async def test_an_answer_that_is_none_is_no_pass(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await ran(script, tmp_path, lambda _r: answer("?", status=500)) == 2
    assert "audit failed" in capsys.readouterr().out


def test_where_nobody_can_be_asked_that_is_said(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = tmp_path / "some.lock"
    lock.write_text(LOCK)
    nobody = (("-s", "osv", "--osv-url", "http://127.0.0.1:9/v1/query"),)
    assert script.audit([lock], nobody) == 0
    assert capsys.readouterr().out.startswith(
        "not audited: no way to a vulnerability service from here (osv: "
    )


def test_a_lock_that_cannot_be_read_is_no_pass(script: ModuleType, tmp_path: Path) -> None:
    lock = tmp_path / "some.lock"
    lock.write_text("aiohttp\n")
    assert script.audit([lock]) == 2


def test_the_locks_that_are_audited_are_those_that_are_installed(script: ModuleType) -> None:
    assert set(script.LOCKS) == {path.name for path in ROOT.glob("*.lock")}
    assert "make audit" in (ROOT / ".ci/run").read_text()

"""The nine servers of the emulated AIHub: paths, tokens, TLS of the S3 relay, start and end.

What belongs here: which path leads to which handler, and running it all.  What does not: what is
answered (services.py).
"""

from __future__ import annotations

import json
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web

from tests.emulators.aihub.data import Data
from tests.emulators.aihub.platform import Cluster, Platform, Switches, User
from tests.emulators.aihub.services import NUMBER, ONLY, Emulator, Handlers, Request, Storage
from tests.emulators.faults import FAULT, Fault, Faults
from tests.emulators.processes import Machine

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def _applications(emulator: Emulator) -> dict[str, web.Application]:
    h = Handlers(emulator)

    def known(handler: Callable[[web.Request, User], Awaitable[web.StreamResponse]]) -> Answer:
        async def answer(request: web.Request) -> web.StreamResponse:
            if request.method == "GET" and await request.read():
                emulator.complain(request, "a GET has no body")
            user = emulator.user_of(request)
            if user is None and "Authorization" not in request.headers:
                emulator.complain(request, "no Authorization header")
            if user is None or emulator.doomed(request, Fault.EXPIRED_SESSION):
                emulator.issued.discard(request.headers.get("Authorization", "").removeprefix("Bearer "))
                emulator.requests[request[NUMBER] - 1].turned_away = True
                return emulator.expired()
            return await handler(request, user)

        return answer

    mtp, quota = "/model-training-platform/api/v1", "/quota-schedule-management/api/v1"
    data, flow = "/dataset-mng/api/v2", "/workflow-center/api/v1"
    store = "/data-warehouse/api/v1"
    table: dict[str, list[tuple[str, str, str, Answer]]] = {
        "user": [("POST", "/api/v1/auth/login", "login", h.login)],
        "tag": [
            ("GET", "/tag-resource-management/api/v1/select-clusters", "clusters", known(h.clusters)),
        ],
        "training": [
            ("GET", f"{mtp}/storages", "storages", known(h.storages)),
            ("POST", f"{mtp}/trainings", "create_training", known(h.create(quota=False))),
            ("GET", f"{mtp}/trainings/{{id:[0-9]+}}", "training", known(h.detail(quota=False))),
            ("GET", f"{mtp}/trainings/{{id:[0-9]+}}/pods", "training_pods", known(h.pods(quota=False))),
            ("POST", f"{mtp}/trainings/{{id:[0-9]+}}/stop", "stop_training", known(h.stop(quota=False))),
        ],
        "quota": [
            ("POST", f"{quota}/tasks", "create_quota_task", known(h.create(quota=True))),
            ("GET", f"{quota}/tasks/{{id:[0-9]+}}", "quota_task", known(h.detail(quota=True))),
            ("GET", f"{quota}/tasks/{{id:[0-9]+}}/pods", "quota_pods", known(h.pods(quota=True))),
            ("POST", f"{quota}/tasks/{{id:[0-9]+}}/stop", "stop_quota_task", known(h.stop(quota=True))),
        ],
        "dataset": [
            ("POST", f"{data}/datasets", "create_dataset", known(h.create_dataset)),
            ("POST", f"{data}/dataset-versions-upload", "create_version", known(h.create_version)),
            ("GET", f"{data}/dataset-versions-detail", "version", known(h.version)),
        ],
        "workflow": [
            ("POST", f"{flow}/runs", "create_run", known(h.create_run)),
            ("GET", f"{flow}/runs/{{id:[0-9]+}}", "run", known(h.run)),
            ("POST", f"{flow}/runs/{{id:[0-9]+}}", "run_by_post", known(h.run)),
        ],
        "warehouse": [
            ("POST", f"{store}/searches", "create_search", known(h.create_search)),
            ("GET", f"{store}/searches/{{id:[0-9]+}}", "search", known(h.search)),
            ("GET", "/results/{name}", "search_result", h.csv),
        ],
        "evaluation": [("POST", "/api/v2/tasks/import_result", "import_result", known(h.import_result))],
        "s3": [
            ("POST", "/upload", "upload", h.upload),
            ("GET", "/get/{bucket}/{key:.+}", "download", h.download),
        ],
    }
    return {service: _application(emulator, routes) for service, routes in table.items()}


def _application(emulator: Emulator, routes: list[tuple[str, str, str, Answer]]) -> web.Application:
    @web.middleware
    async def recorded(request: web.Request, handler: Answer) -> web.StreamResponse:
        body = await request.read()
        try:
            said = json.loads(body) if body and request.content_type == "application/json" else None
        except ValueError:
            said = body
        arrived = Request(request.match_info.route.name or "", request.method, request.path_qs, said)
        emulator.requests.append(arrived)
        request[NUMBER] = len(emulator.requests)
        try:
            return await handler(request)
        finally:
            arrived.fault = request.get(FAULT)

    app = web.Application(middlewares=[recorded, emulator.faults.middleware], client_max_size=1 << 28)
    for method, path, name, answer in routes:
        app.router.add_route(method, path, answer, name=name)
    return app


@asynccontextmanager
async def serve(
    folder: Path,
    clusters: Sequence[Cluster],
    *,
    switches: Switches | None = None,
    speed: float = 20.0,
    seed: int = 0,
    storages: Sequence[Storage] | None = None,
) -> AsyncIterator[Emulator]:
    """A running installation whose files are in `folder`."""
    switches = switches or Switches()
    storage = folder / "storage"
    storage.mkdir(parents=True, exist_ok=True)
    machine = Machine(folder / "pods", speed=speed)
    emulator = Emulator(
        Platform(clusters, machine=machine, switches=switches, seed=seed),
        Data(),
        Faults(seed=seed, only=ONLY),
        switches,
        storages or (Storage(1, "13-160-data1", str(storage)),),
    )
    emulator.ca_file, tls = _certificate(folder)
    runners = []
    try:
        for service, app in _applications(emulator).items():
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
            await runner.setup()
            runners.append(runner)
            secure = tls if service == "s3" else None
            site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=secure)
            await site.start()
            port = runner.addresses[0][1]
            emulator.urls[service] = f"{'https' if secure else 'http'}://127.0.0.1:{port}"
        yield emulator
    finally:
        for runner in runners:
            await runner.cleanup()
        await emulator.platform.aclose()


def _certificate(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """A self-signed certificate for 127.0.0.1, and the server's context with it."""
    cert, key = folder / "s3.pem", folder / "s3.key"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-nodes", "-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(cert)),
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return cert, context

"""The composition root: builds the parts, holds the lease, runs the loops, minds the signals.

What belongs here: who gets what, in which order things start and end.  What does not: any of the
work.  Only this module names adapters.
"""

from __future__ import annotations

import asyncio
import faulthandler
import fcntl
import importlib
import os
import secrets
import signal
import socket
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from aiohttp import web
from argon2 import PasswordHasher

from broker import config as configuration
from broker import service, telemetry
from broker.adapter import Adapter, AdapterFactory, Connection
from broker.api.app import application, finish
from broker.api.context import Context
from broker.chores import Chores
from broker.clock import ClockWatch
from broker.collect import Collect
from broker.companions import read_settings
from broker.config import CenterSettings, ConfigError, Settings
from broker.connections import Connections
from broker.core.hops import hop
from broker.core.identity import base32
from broker.core.model import Role, Spec
from broker.core.policy import PolicySet
from broker.core.problem import class_key
from broker.core.resources import Catalogue, spec_id
from broker.cycle import Cycle
from broker.desk import MemoryDesk
from broker.dispatch import Dispatch
from broker.files import DataDirectory
from broker.interpreter import take_turns
from broker.leader import Lease
from broker.loops import COLLECT_PERIOD_S, DISPATCH_PERIOD_S, Loops
from broker.mirror import Mirror
from broker.reconcile import Reconcile
from broker.stage import Stage
from broker.store import LostLease, Rejected, Store, StoreUnavailable, accounts, centers, outbox, purses, runs
from broker.store.centers import CenterEntry
from broker.store.purses import Billing
from broker.store.schema import SchemaTooNew
from broker.telemetry import log

ADAPTERS = {
    "local": "adapters.local",
    "aihub": "adapters.aihub",
    "cecstack": "adapters.cecstack",
    "ampha": "adapters.ampha",
    "tai123": "adapters.tai123",
}
"""Modules with a `connect(connection)`, by the configuration's word; loaded when first used."""

IDENTITY = (
    *("work_dir", "base_url", "endpoint", "user_url", "url", "kubeconfig", "context", "namespace"),
    *("region", "project_id", "user", "username", "access_key"),
)
"""Connection and credential keys that say whose account at which platform a center is."""

CLOCK_PERIOD_S = 1.0

SIGNING_KEY = "signing_key"
INSTALLATION = "installation"


class StartupError(Exception):
    """The daemon cannot start; the text says why and what to do."""


def serve(config: Path | None) -> int:
    """Run the daemon in the foreground; its exit code."""
    try:
        settings, catalogue, policies = read_settings(config, os.environ)
    except ConfigError as error:
        print(configuration.render_errors(error, config or Path("broker.toml")), file=sys.stderr)
        return 2
    telemetry.configure(settings.server.log_level)
    faulthandler.enable()  # a watchdog's SIGABRT leaves the stack of every thread in the log
    if config is None:
        print(
            f"no --config: using the embedded default below {settings.store.data_dir.parent}", file=sys.stderr
        )
    try:
        lock = _lock(settings)
        daemon = Daemon(settings, catalogue, policies, embedded=config is None)
        return asyncio.run(daemon.run(alone=lock is not None))
    except (StartupError, StoreUnavailable, SchemaTooNew, Rejected, OSError) as error:
        print(f"broker: {error}", file=sys.stderr)
        return 1


def _lock(settings: Settings) -> IO[str] | None:
    """An exclusive lock beside a SQLite file; None for a database server.

    Raises StartupError when another daemon holds it.
    """
    prefix = "sqlite:///"
    if not settings.store.url.startswith(prefix):
        return None
    path = Path(settings.store.url.removeprefix(prefix) + ".lock")
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = path.open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise StartupError(
            f"another broker runs on {settings.store.url} (it holds {path}): stop it, or use another store"
        ) from error
    return lock


async def _adapter(module: str, connection: Connection) -> Adapter:
    adapter: Adapter = await importlib.import_module(module).connect(connection)
    return adapter


def factories() -> Mapping[str, AdapterFactory]:
    """What opens an adapter, by the configuration's word."""

    def factory(module: str) -> AdapterFactory:
        return lambda connection: _adapter(module, connection)

    return {name: factory(module) for name, module in ADAPTERS.items()}


def _platform_paths(configured: Iterable[CenterSettings]) -> tuple[tuple[str, str], ...]:
    """Method and path of every callback that the adapters in use may have: their CALLBACK_PATHS.

    The API needs them before it starts; the adapters themselves are opened later.
    """
    modules = {ADAPTERS[center.adapter] for center in configured if center.adapter in ADAPTERS}
    found = {
        path for name in modules for path in getattr(importlib.import_module(name), "CALLBACK_PATHS", ())
    }
    return tuple(sorted(found))


@dataclass(slots=True)
class Parts:
    """What one running daemon is made of."""

    store: Store
    installation: str
    files: DataDirectory
    lease: Lease
    connections: Connections
    cycle: Cycle
    dispatch: Dispatch
    collect: Collect
    stage: Stage
    reconcile: Reconcile
    desk: MemoryDesk
    chores: Chores


class Daemon:
    """One run of the service, from the open store to the closed one."""

    def __init__(
        self, settings: Settings, catalogue: Catalogue, policies: PolicySet, *, embedded: bool = False
    ) -> None:
        self._settings = settings
        self._catalogue = catalogue
        self._policies = policies
        self._embedded = embedded
        self._stopping = asyncio.Event()
        self._started = False

    async def run(self, *, alone: bool) -> int:
        """Start, serve until a signal, end.  `alone`: the store's file lock is ours."""
        store = Store(self._settings.store.url, max_batch=self._settings.store.commit_batch)
        await store.open()
        try:
            parts = await self._build(store)
            key = await self._prepare(parts, alone=alone)
            runner = await self._listen(parts, key)
            try:
                return await self._work(parts, runner)
            finally:
                await runner.cleanup()
                await parts.connections.aclose()
        finally:
            await store.close()

    async def _build(self, store: Store) -> Parts:
        settings = self._settings
        files = DataDirectory(settings.store.data_dir)
        files.create()
        holder = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        lease = Lease(store, holder=holder, ttl_s=settings.scheduler.lease_s)
        desk = MemoryDesk(store=store, catalogue=self._catalogue, zone=settings.server.zone)
        drawn = base32(secrets.randbits(50), 10)
        installation = await store.write(accounts.setting, INSTALLATION, drawn)
        own = hop(settings.server.name, installation)
        connections = Connections(factories(), prefix=settings.server.name, desk=desk, broker=own)
        return Parts(
            store=store,
            installation=installation,
            files=files,
            lease=lease,
            connections=connections,
            cycle=Cycle(
                store=store,
                lease=lease,
                mirror=Mirror(),
                policies=self._policies,
                catalogue=self._catalogue,
                zone=settings.server.zone,
                solve_limit_s=settings.scheduler.solve_limit_s,
                learn=settings.scheduler.learn_run_times,
            ),
            dispatch=Dispatch(
                store=store,
                lease=lease,
                connections=connections,
                concurrency=settings.scheduler.dispatch_concurrency,
            ),
            collect=Collect(store=store, lease=lease, connections=connections, files=files),
            stage=Stage(store=store, lease=lease, connections=connections, files=files),
            desk=desk,
            reconcile=Reconcile(store=store, lease=lease, connections=connections),
            chores=Chores(store=store, lease=lease, files=files, settings=settings.store),
        )

    async def _prepare(self, parts: Parts, *, alone: bool) -> bytes:
        """Bring the store in line with the configuration and take the lead; the signing key."""
        store = parts.store
        key = await store.write(accounts.setting, SIGNING_KEY, secrets.token_hex(32))
        await store.write(runs.fix_prefix, self._settings.server.name)
        if await store.read(accounts.count_accounts) == 0:
            await self._first_account(store)
        while not await parts.lease.acquire(alone=alone):
            log.info("waiting_for_lease")
            await asyncio.sleep(parts.lease.ttl_s / 3)
        doubtful = await store.write(outbox.doubt_unfinished, epoch=parts.lease.epoch)
        if doubtful:
            log.warning("submissions_in_doubt", runs=doubtful)
        await self._configure(parts)
        return bytes.fromhex(key)

    async def _first_account(self, store: Store) -> None:
        if not self._embedded:
            log.warning("no_accounts", hint="add one: broker user add NAME --role operator --config FILE")
            return
        password = secrets.token_urlsafe(12)
        await store.write(
            accounts.add_account,
            name="admin",
            tenant="default",
            role=Role.OPERATOR,
            password_hash=await asyncio.to_thread(PasswordHasher().hash, password),
        )
        print(
            f"first account (shown once): user admin, password {password}\n"
            f"log in with: broker login --url {self._settings.server.public_url} --user admin",
            file=sys.stderr,
        )

    async def _configure(self, parts: Parts) -> None:
        entries = [_entry(center) for center in self._settings.centers]
        await parts.store.write(centers.configure, entries)
        await parts.store.write(purses.set_billing, _billing(self._settings))
        await parts.connections.configure(self._settings.centers)

    async def _listen(self, parts: Parts, key: bytes) -> web.AppRunner:
        server = self._settings.server
        context = Context(
            store=parts.store,
            files=parts.files,
            catalogue=self._catalogue,
            class_key=class_key,
            signing_key=key,
            ready=lambda: self._started,
            adapter=parts.connections.adapter,
            open_adapters=parts.connections.opened,
            platform_paths=_platform_paths(self._settings.centers),
            server_name=server.name,
            installation=parts.installation,
            public_url=server.public_url.rstrip("/"),
            timezone=server.zone,
            policies=lambda: parts.cycle.policies,
            learn=lambda: parts.cycle.learn,
            max_page_size=server.max_page_size,
            max_body_bytes=server.max_body_bytes,
            max_upload_bytes=server.max_upload_bytes,
            token_ttl_s=self._settings.auth.token_ttl_s,
            freeze_after=self._settings.auth.freeze_after_failures,
            link_ttl_s=self._settings.auth.log_link_ttl_s,
            submit_image=self._settings.submit.image,
            limits=self._settings.limits,
            trusted_proxies=server.trusted_proxies,
            cors_origins=server.cors_origins,
            registration_tenant=(
                self._settings.auth.registration_tenant
                if self._settings.auth.registration == "open"
                else None
            ),
            services=self._settings.services,
            extra_specs=tuple(
                Spec(spec_id(spec.shape), spec.name, spec.shape) for spec in self._settings.specs
            ),
        )
        runner = web.AppRunner(application(context), access_log=None, shutdown_timeout=server.shutdown_s)
        await runner.setup()
        host, port = server.address
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            await runner.cleanup()
            raise StartupError(f"cannot listen on {server.listen}: {error.strerror}") from error
        log.info("listening", address=server.listen, url=server.public_url)
        return runner

    # ------------------------------------------------------------ running

    async def _work(self, parts: Parts, runner: web.AppRunner) -> int:
        take_turns()
        events = asyncio.get_running_loop()
        reload = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            events.add_signal_handler(number, self._stopping.set)
        events.add_signal_handler(signal.SIGHUP, reload.set)
        try:
            async with asyncio.TaskGroup() as group:
                loops = self._start_loops(parts, group)
                await loops.mind_removed(self._settings.scheduler)
                parts.chores.start()
                self._started = True
                service.ready(self._status())
                log.info("started", centers=len(self._settings.centers))
                watcher = group.create_task(self._reloads(parts, loops, reload), name="reload")
                await self._stopping.wait()
                log.info("stopping")
                service.stopping()
                watcher.cancel()
                for site in list(runner.sites):  # no new connections
                    await site.stop()
                await finish(runner.app, self._settings.server.shutdown_s)
                await runner.cleanup()
                await self._finish(parts)
        except BaseExceptionGroup as ended:
            if (lost := ended.subgroup(LostLease)) is None:
                raise
            log.error("lease_lost", error=str(lost.exceptions[0]))
            return 1
        log.info("stopped")
        return 0

    async def _finish(self, parts: Parts) -> None:
        """What is in flight ends, within `shutdown_s`; what is left is in the store."""
        try:
            async with asyncio.timeout(self._settings.server.shutdown_s):
                await parts.chores.stop()
                await parts.dispatch.drain()
        except TimeoutError:
            log.warning("shutdown_cut_short", after_s=self._settings.server.shutdown_s)
        await parts.collect.drain()
        await parts.lease.release()

    def _start_loops(self, parts: Parts, group: asyncio.TaskGroup) -> Loops:
        loops = Loops(
            group,
            self._stopping,
            store=parts.store,
            lease=parts.lease,
            connections=parts.connections,
            files=parts.files,
            catalogue=self._catalogue,
        )
        scheduler = self._settings.scheduler
        for name, once, period_s in (
            ("cycle", service.watched(parts.cycle.once), scheduler.interval_s),
            ("dispatch", parts.dispatch.once, DISPATCH_PERIOD_S),
            ("collect", parts.collect.once, COLLECT_PERIOD_S),
            ("stage", parts.stage.once, COLLECT_PERIOD_S),
            ("reconcile", parts.reconcile.once, COLLECT_PERIOD_S),
            ("desk", parts.desk.once, COLLECT_PERIOD_S),
            ("clock", ClockWatch(parts.store.clock).once, CLOCK_PERIOD_S),
            ("lease", parts.lease.renew, parts.lease.ttl_s / 3),
        ):
            loops.start(name, once, period_s)
        loops.turn(self._settings.centers, scheduler)
        return loops

    # ------------------------------------------------------------ reload

    async def _reloads(self, parts: Parts, loops: Loops, asked: asyncio.Event) -> None:
        while True:
            await asked.wait()
            asked.clear()
            service.reloading()
            await self._reload(parts, loops)
            service.ready(self._status())

    def _status(self) -> str:
        return f"at {self._settings.server.public_url}, {len(self._settings.centers)} centers"

    async def _reload(self, parts: Parts, loops: Loops) -> None:
        """Apply the file anew; a file with errors changes nothing."""
        source = self._settings.source
        if source is None:
            log.warning("reload_without_file", hint="the embedded default has no file to reload")
            return
        try:
            new, _catalogue, policies = await asyncio.to_thread(read_settings, source, os.environ)
        except ConfigError as error:
            log.error("reload_refused", errors=configuration.render_errors(error, source).splitlines())
            return
        restart = configuration.changes_needing_restart(self._settings, new)
        if restart:
            log.warning("reload_needs_restart", keys=list(restart))
        before = self._settings.centers
        self._settings = configuration.keeping_restart_keys(self._settings, new)
        parts.cycle.policies = policies
        parts.cycle.learn = new.scheduler.learn_run_times
        parts.chores.settings = new.store
        try:
            await self._configure(parts)
        except Rejected as error:
            log.error("reload_refused", errors=[str(error)])
            return
        loops.turn(new.centers, self._settings.scheduler, unchanged=before)
        log.info("reloaded", centers=len(new.centers))


def _entry(center: CenterSettings) -> CenterEntry:
    """A center as the store keeps it.  The account is what must not change under live runs."""
    known = {**center.connection, **center.credentials}
    account = [center.adapter, *(str(known[key]) for key in IDENTITY if key in known)]
    return CenterEntry(
        id=center.id,
        name=center.name,
        province=center.province,
        city=center.city,
        desc=center.desc,
        adapter=center.adapter,
        account=" ".join(account),
        state=center.state,
        max_in_flight=center.max_in_flight,
    )


def _billing(settings: Settings) -> Billing:
    """How runs are billed, as the store keeps it."""
    billing = settings.billing
    return Billing(settings.server.zone, billing.interrupted, billing.record == "center")

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
from functools import partial
from pathlib import Path
from typing import IO

from aiohttp import web
from argon2 import PasswordHasher

from broker import config as configuration
from broker import service, telemetry
from broker.adapter import MAY_CALL, Adapter, AdapterFactory, Connection, Unavailable
from broker.api.app import application, finish
from broker.api.context import Context
from broker.api.listener import Listener
from broker.api.reach import own_hosts
from broker.companions import read_settings
from broker.config import CenterSettings, ConfigError, Settings
from broker.core.hops import hop
from broker.core.identity import base32
from broker.core.model import CenterId, Role, Spec
from broker.core.policy import PolicySet
from broker.core.problem import class_key
from broker.core.resources import Catalogue, spec_id
from broker.files import DataDirectory
from broker.interpreter import take_turns
from broker.leader import Lease
from broker.leading import Leading, Shared
from broker.store import LostLease, Rejected, Store, StoreUnavailable, accounts, runs
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

LINGER_S = 10.0
"""So long the rest of a body is read that nobody wants, so that the client sees its answer."""

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
    lock = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a")
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
        self._leading: Leading | None = None
        self._started = False

    async def run(self, *, alone: bool) -> int:
        """Start, serve until a signal, end.  `alone`: the store's file lock is ours."""
        store = Store(self._settings.store.url, max_batch=self._settings.store.commit_batch)
        await store.open()
        try:
            installation, key = await self._prepare(store)
            shared = self._share(store, installation)
            runner = await self._listen(shared, installation, key)
            try:
                return await self._work(shared, runner, alone=alone)
            finally:
                await self._close(runner)
        finally:
            await store.close()

    async def _prepare(self, store: Store) -> tuple[str, bytes]:
        """What the installation is known by among brokers, and the key that signs its links."""
        drawn = base32(secrets.randbits(50), 10)
        installation = await store.write(accounts.setting, INSTALLATION, drawn)
        key = await store.write(accounts.setting, SIGNING_KEY, secrets.token_hex(32))
        await store.write(runs.fix_prefix, self._settings.server.name)
        if await store.read(accounts.count_accounts) == 0:
            await self._first_account(store)
        return installation, bytes.fromhex(key)

    def _share(self, store: Store, installation: str) -> Shared:
        kept = self._settings.store
        files = DataDirectory(
            kept.data_dir, max_log_bytes=kept.max_log_bytes, max_result_bytes=kept.max_result_bytes
        )
        files.create()
        holder = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        return Shared(
            store=store,
            lease=Lease(store, holder=holder, ttl_s=self._settings.scheduler.lease_s),
            files=files,
            catalogue=self._catalogue,
            own=hop(self._settings.server.name, installation),
        )

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

    async def _listen(self, shared: Shared, installation: str, key: bytes) -> web.AppRunner:
        server = self._settings.server
        context = Context(
            store=shared.store,
            files=shared.files,
            catalogue=self._catalogue,
            class_key=class_key,
            signing_key=key,
            ready=lambda: self._started,
            leader=self._leader,
            adapter=self._adapter,
            open_adapters=self._open_adapters,
            platform_paths=_platform_paths(self._settings.centers),
            own_hosts=self._own_hosts,
            server_name=server.name,
            installation=installation,
            public_url=server.public_url.rstrip("/"),
            timezone=server.zone,
            policies=lambda: self._policies,
            learn=lambda: self._settings.scheduler.learn_run_times,
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
        limits = self._settings.limits
        runner = web.AppRunner(
            application(context),
            access_log=None,
            keepalive_timeout=limits.idle_connection_s,
            lingering_time=min(LINGER_S, limits.stalled_s),
            shutdown_timeout=server.shutdown_s,
        )
        await runner.setup()
        host, port = server.address
        try:
            await Listener(runner, host, port, limits).start()
        except OSError as error:
            await runner.cleanup()
            raise StartupError(f"cannot listen on {server.listen}: {error.strerror}") from error
        log.info("listening", address=server.listen, url=server.public_url)
        return runner

    async def _close(self, runner: web.AppRunner) -> None:
        """Requests under way end; no new ones.  Twice is no harm."""
        for site in list(runner.sites):
            await site.stop()
        await finish(runner.app, self._settings.server.shutdown_s)
        await runner.cleanup()

    # ------------------------------------------------------------ what the API sees of the leader

    def _leader(self) -> bool:
        return self._leading is not None and self._leading.may_call()

    async def _adapter(self, center: CenterId) -> Adapter:
        if self._leading is None or not self._leading.may_call():
            raise Unavailable(f"this daemon is a standby: only the leader talks to centers, {center!r} too")
        MAY_CALL.set(self._leading.may_call)  # for the rest of this request
        return await self._leading.connections.adapter(center)

    def _open_adapters(self) -> list[Adapter]:
        return [] if self._leading is None else self._leading.connections.opened()

    def _own_hosts(self, center: str) -> frozenset[str]:
        return own_hosts(next((each for each in self._settings.centers if each.id == center), None))

    # ------------------------------------------------------------ running

    async def _work(self, shared: Shared, runner: web.AppRunner, *, alone: bool) -> int:
        take_turns()
        events = asyncio.get_running_loop()
        reload = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            events.add_signal_handler(number, self._stopping.set)
        events.add_signal_handler(signal.SIGHUP, reload.set)
        watcher = asyncio.create_task(self._reloads(reload), name="reload")
        try:
            while await shared.lease.stand_by(self._stopping, alone=alone, told=self._stands_by):
                await self._lead(shared, runner)
        finally:
            watcher.cancel()
        log.info("stopped")
        return 0

    def _stands_by(self, leader: str) -> None:
        self._started = True
        log.info("standing_by", leader=leader)
        service.ready(self._status())

    async def _lead(self, shared: Shared, runner: web.AppRunner) -> None:
        """One term as the leader, to its end or the daemon's."""
        leading = Leading(
            shared, self._settings, self._policies, factories=factories(), stopping=self._stopping
        )
        try:
            await leading.prepare()
            self._leading, self._started = leading, True
            service.ready(self._status())
            log.info("started", centers=len(self._settings.centers))
            await leading.run(closing=partial(self._close, runner))
        except (LostLease, StoreUnavailable) as error:
            log.error("lease_lost", error=str(error))
            self._leading = None
            await leading.step_down()
        finally:
            self._leading = None
            await leading.aclose()

    # ------------------------------------------------------------ reload

    async def _reloads(self, asked: asyncio.Event) -> None:
        while True:
            await asked.wait()
            asked.clear()
            service.reloading()
            await self._reload()
            service.ready(self._status())

    def _status(self) -> str:
        role = "" if self._leading is not None else ", standing by"
        return f"at {self._settings.server.public_url}, {len(self._settings.centers)} centers{role}"

    async def _reload(self) -> None:
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
        self._settings = configuration.keeping_restart_keys(self._settings, new)
        self._policies = policies
        try:
            if self._leading is not None:
                await self._leading.reload(self._settings, policies)
        except Rejected as error:
            log.error("reload_refused", errors=[str(error)])
            return
        log.info("reloaded", centers=len(new.centers))

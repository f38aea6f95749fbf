"""A T/AI 123.8 service as a center: another broker of this kind, or any service of the standard.

Here: the adapter's protocol over the parts.  Not here: calls and codes (tai123_wire.py), capacity
(tai123_capacity.py), jobs as objects (tai123_jobs.py), bytes (tai123_files.py), what `broker doctor`
asks (tai123_checks.py).

A run is a job there that is named after it.  Names are unique, so a create whose answer was lost is
found by its name, and a broker of this kind also gives the same job for the same Idempotency-Key.  A
job takes its origin and the brokers it has passed along in its labels (core/hops.py); the other side
refuses one that it has had before.
"""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

from adapters.http import Limits, Request, open_http
from adapters.nodes import misfit
from adapters.tai123_capacity import Found, Offer, Sizes, behind_broker, offer_of, priced, wanted
from adapters.tai123_checks import checks
from adapters.tai123_files import Files
from adapters.tai123_jobs import PATHS, datasets_of, images_of, last_task, parted, sighting, with_data
from adapters.tai123_wire import JOBS, SERVICES, Rejected, Wire
from broker.adapter import (
    Adapter,
    Catalogue,
    Check,
    Connection,
    CopyRef,
    CopySighting,
    Inventory,
    Lookup,
    PoolReport,
    RawAnswer,
    Refused,
    RemoteState,
    ResultFile,
    RunRef,
    RunSpec,
    Sighting,
    Throttled,
    Traits,
    Unavailable,
    Unsupported,
)
from broker.core.hops import center_behind, passed_on
from broker.core.model import Accuracy, RemoteId, RunId

TRAITS = Traits(
    gang=True,
    logs=True,
    results=True,
    idle=Accuracy.EXACT,
    lookup=Lookup.FIND_BY_NAME,
    max_batch=100,
    report_lag_s=60,
    lookup_lag_s=10,
    submit_timeout_s=32,
)
"""At a service that knows the standard alone; a broker of this kind can do more."""
WORD: Final = "tai123"
"""What a broker calls a center of this kind."""
BROKER_LAG_S: Final = 10
"""A broker's figures say when they were true; this is for the centers behind it."""
SPECS_S: Final = 60.0
PRICES_S: Final = 600.0
AGAIN_S: Final = 60.0
"""A run that goes on is looked at in full that often: it may have begun anew there."""
FEW: Final = 4
"""So many runs are asked for one by one; more by lists of those that live."""
RETRY_S: Final = 5.0
PRIORITIES: Final = ("low", "normal", "high")
_LIVE: Final = ("PENDING", "RUNNING", "UNKNOWN")
NO_NEWS: Final = "UNKNOWN"
"""The other side does not know either."""


async def connect(connection: Connection) -> Adapter:
    """The adapter of a center, after one look at what is on the other side.

    Raises ValueError for a `base_url` that leads back here, and adapter errors.
    """
    http = await open_http(connection)
    adapter = Tai123(connection, Wire(connection, http))
    try:
        await adapter.find_out()
    except BaseException:
        await http.aclose()
        raise
    return adapter


class Tai123:
    """One account at one service.  `clock` gives milliseconds since the epoch."""

    def __init__(
        self,
        connection: Connection,
        wire: Wire,
        *,
        clock: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self.center = connection.center
        self.wire = wire
        self._clock = clock
        self._broker = connection.broker
        self._public_services = bool(connection.options.get("public_services"))
        self._timeout_s = math.ceil(Limits.of(connection).timeout_s) + 2
        self._sizes = Sizes(connection.pools)
        self._files = Files(wire)
        self._serves = False
        self._pools: dict[str, list[PoolReport]] = {}
        self._offers: dict[str, list[Offer]] = {}
        self._offers_ms = 0
        self._prices: dict[str, dict[str, Mapping[str, Any]]] = {}
        self._prices_ms = 0
        self._images: frozenset[str] = frozenset()
        self._brokers: frozenset[str] = frozenset()  # centers there that are brokers again
        self._seen: dict[RunId, tuple[str, int, Sighting]] = {}
        self.traits = TRAITS

    async def find_out(self) -> None:
        """What the other side is; the traits follow."""
        await self.wire.find_out()
        other = self.wire.other
        if other is not None and other.installation == self._broker.rpartition(".")[2]:
            raise ValueError(f"base_url is {self.wire.base!r}, which is this broker itself")
        try:
            await self.wire.get("online.list", SERVICES, {"pageSize": 1})
            self._serves = other is None or self._public_services
        except Refused:
            self._serves = False
        traits = replace(
            TRAITS, services=self._serves, address=self._serves, submit_timeout_s=self._timeout_s
        )
        if other is not None:
            traits = replace(
                traits,
                priority=True,
                vip_wait=other.vip,
                vip_kill=other.vip,
                look_pause_s=1.0,
                report_lag_s=BROKER_LAG_S,
                lookup_lag_s=0,
            )
        self.traits = traits

    # ------------------------------------------------------------ capacity

    async def probe(self) -> Inventory:
        now_ms = self._clock()
        found = await self._found()
        pools = [priced(pool, self._prices.get(center_behind(pool.native), {})) for pool in found.pools]
        self._pools = {}
        for pool in pools:
            self._pools.setdefault(pool.native, []).append(pool)
        as_of_ms = now_ms if found.as_of_ms is None else min(found.as_of_ms, now_ms)
        return Inventory(as_of_ms, self.traits.idle, tuple(pools), quarantined=tuple(found.quarantined))

    async def _found(self) -> Found:
        """§7.3.1 to §7.3.3: centers, what is idle, and specs now and then."""
        centers = [row async for row in self.wire.rows("centers", "/centers", "centers")]
        self._brokers = frozenset(str(row.get("centerId")) for row in centers if row.get("adapter") == WORD)
        idle = (await self.wire.get("idle", "/resource/idle")).get("centerResources")
        if not isinstance(idle, list) or not all(isinstance(row, dict) for row in idle):
            raise Unavailable("centerResources is no list of objects")
        reported = {str(row.get("centerId") or "") for row in idle}
        await self._read_offers(reported)
        await self._read_prices()
        usable = [
            str(row.get("centerId"))
            for row in centers
            if row.get("connected") is True and row.get("state", "active") == "active"
        ]
        if (other := self.wire.other) is not None:
            own = self._broker.rpartition(".")[2]
            return behind_broker(idle, self._offers, other=other.installation, own=own, open_centers=usable)
        return self._sizes.behind_service(
            [row for row in idle if row.get("centerId") in usable], self._offers
        )

    async def _read_offers(self, centers: set[str]) -> None:
        now_ms = self._clock()
        if centers == self._offers.keys() and now_ms - self._offers_ms < SPECS_S * 1000:
            return
        found: dict[str, list[Offer]] = {}
        for center in sorted(centers):
            rows = self.wire.rows("specs", "/resource/specs", "resourceSpecs", {"centerId": center})
            found[center] = [offer_of(row) async for row in rows]
        self._offers, self._offers_ms = found, now_ms

    async def _read_prices(self) -> None:
        """§7.1 names prices and defines no call; this one is what brokers of this kind have."""
        now_ms = self._clock()
        if self._prices_ms and now_ms - self._prices_ms < PRICES_S * 1000:
            return
        found: dict[str, dict[str, Mapping[str, Any]]] = {}
        with suppress(Refused):
            async for row in self.wire.rows("prices", "/resource/prices", "prices"):
                if row.get("currency", "CNY") == "CNY" and row.get("unit", "nodeHour") == "nodeHour":
                    specs = found.setdefault(str(row.get("centerId")), {})
                    specs[str(row.get("resourceSpecId"))] = row
        self._prices, self._prices_ms = found, now_ms

    async def catalogue(self) -> Catalogue:
        """§7.3.4, §7.3.5.  An image has the same id here as there."""
        images = await images_of(self.wire)
        self._images = frozenset(image.id for image in images)
        return Catalogue(images, datasets=await datasets_of(self.wire, self._brokers))

    # ------------------------------------------------------------ a run's life

    async def submit(self, run: RunSpec) -> RemoteId:
        """§7.4.1, §7.4.8."""
        path = JOBS if run.port is None else SERVICES
        if run.port is not None and not self._serves:
            raise Unsupported("online services: the other side has none, or public_services is not set")
        center, spec = await self._fitting(run)
        config: dict[str, Any] = {
            "centerId": [center],
            "specId": spec,
            "nodeCount": run.nodes,
            **self._image(run.image),
        }
        config |= self._beyond(run) if self.wire.other is not None else self._plain(run)
        document = {"jobName": run.id, "jobDesc": f"{self._broker} {run.job}".strip(), "config": config}
        headers = {"Idempotency-Key": run.id} if self.wire.other is not None else {}
        request = Request("create", "POST", self.wire.base + path, effect=True, headers=headers)
        try:
            found = await self.wire.json(request, document)
        except Rejected as no:
            if run.vip and no.code == "0202" and await self._lost_the_right():
                return await self.submit(replace(run, vip=False, preempt_policy=1))
            if no.code != "0208":
                raise
            if (there := await self.find(run.id)) is None:
                raise Unavailable(f"the name is taken there, and the job cannot be found: {no}") from no
            return there
        metadata = found.get("metadata")
        id = metadata.get("id") if isinstance(metadata, dict) else None
        if not isinstance(id, str) or not id:
            raise Unavailable("the create was answered without an id")
        return RemoteId(f"{'job' if path == JOBS else 'svc'}:{id}")

    async def _lost_the_right(self) -> bool:
        """Whether the account there makes no VIP jobs any more; the traits follow.  Nothing was created."""
        await self.find_out()
        return not self.traits.vip_wait

    async def _fitting(self, run: RunSpec) -> tuple[str, str]:
        """The center there and its word for the spec.  Raises Refused when it can never hold the run."""
        if not self._pools:
            try:
                await self.probe()
            except Unavailable as error:  # nothing has been created: this is no doubt
                raise Throttled(f"what is there is not known: {error}", retry_after_s=RETRY_S) from error
        pools = self._pools.get(run.native_pool)
        if pools is None:
            raise Refused(f"pool is {run.native_pool!r}, expected one of {sorted(self._pools)}")
        center = center_behind(run.native_pool) if self.wire.other is not None else run.native_pool
        offer = wanted(self._offers.get(center, ()), run.spec.shape)
        if offer is None:
            raise Refused(f"center {center} there offers no spec {run.spec.name} ({run.spec.id})")
        why = [misfit(offer.spec.shape, pool.shape) for pool in pools]
        if all(why):
            raise Refused(f"center {center} there: {why[0]}")
        nodes = max(pool.nodes for pool, no in zip(pools, why, strict=True) if not no)
        if run.nodes > nodes:
            raise Refused(f"center {center} there: nodes is {run.nodes}, it has {nodes}")
        return center, offer.native

    def _image(self, image: str) -> dict[str, str]:
        """By id where the other side lists it or it cannot be an address."""
        by_id = image in self._images or not any(char in image for char in "/:")
        return {"imageId" if by_id else "imageUrl": image}

    def _beyond(self, run: RunSpec) -> dict[str, Any]:
        """What a broker of this kind takes beyond the standard.  Retries stay on this side."""
        found: dict[str, Any] = {
            "command": with_data(run.command, run.datasets),
            "priority": PRIORITIES[min(run.priority, len(PRIORITIES) - 1)],
            "stopGrace": min(run.stop_grace_s, 3600),
            "env": [{"key": key, "value": value} for key, value in run.env],
            "datasetIds": [there for _, there in run.datasets],
            "labels": passed_on(run.labels, run.job, self._broker),
            "maxRetries": 0,
        }
        if run.max_run_time_s is not None:
            found["maxRunTime"] = run.max_run_time_s
        if run.vip:
            found |= {"isVip": True, "preemptPolicy": run.preempt_policy}
        if run.port is not None:
            found |= {"port": run.port, "public": True}
        return found

    def _plain(self, run: RunSpec) -> dict[str, Any]:
        """The standard has a command and no environment."""
        if run.datasets:
            raise Unsupported("data sets: the standard has no way to give them to a job")
        if not run.env:
            return {"command": run.command}
        words = ["env", *(f"{key}={value}" for key, value in run.env), "sh", "-c", run.command]
        return {"command": shlex.join(words)}

    async def start(self, run: RunRef) -> None:
        raise Unsupported("a job starts by itself there")

    async def find(self, run: RunId) -> RemoteId | None:
        """By its name; the standard has no search, so elsewhere all of the account's jobs are read."""
        query = {"query": str(run), "owner": "me"} if self.wire.other is not None else {}
        for kind, path in PATHS.items():
            if path == SERVICES and not self._serves:
                continue
            async for row in self.wire.rows("find", path, "items", query):
                metadata = row.get("metadata")
                if isinstance(metadata, dict) and metadata.get("name") == run and metadata.get("id"):
                    return RemoteId(f"{kind}:{metadata['id']}")
        return None

    async def observe(self, runs: Collection[RunRef]) -> Mapping[RunId, Sighting]:
        """Those whose status is what it was are not asked for again: cost follows changes."""
        seen: dict[RunId, Sighting] = {}
        known: dict[RunId, tuple[str, str]] = {}
        for run in runs:
            path, id = parted(run.remote)
            if path:
                known[run.id] = path, id
            else:
                seen[run.id] = Sighting(RemoteState.GONE)
        listed = await self._listed(known.values()) if len(known) > FEW else {}
        for run_id, (path, id) in known.items():
            status = listed.get((path, id))
            before = self._seen.get(run_id)
            if before is not None and status == before[0] and self._clock() < before[1] + AGAIN_S * 1000:
                seen[run_id] = before[2]
            elif status == NO_NEWS:
                continue
            elif (told := await self._look(run_id, path, id)) is not None:
                seen[run_id] = told
        return seen

    async def _listed(self, jobs: Collection[tuple[str, str]]) -> dict[tuple[str, str], str]:
        """The status of the account's jobs that live; what is in no list is asked for by itself."""
        found: dict[tuple[str, str], str] = {}
        mine = {"owner": "me"} if self.wire.other is not None else {}
        for path in {path for path, _ in jobs}:
            for status in _LIVE:
                async for row in self.wire.rows("list", path, "items", {"status": status, **mine}):
                    metadata = row.get("metadata")
                    if isinstance(metadata, dict):
                        found[path, str(metadata.get("id"))] = str(row.get("status"))
        return found

    async def _look(self, run: RunId, path: str, id: str) -> Sighting | None:
        """One job in full; None: no news."""
        try:
            found = await self._detail(path, id)
        except Rejected as no:
            if no.code != "0240":
                raise Unavailable(f"the job cannot be seen: {no}") from no
            self._seen.pop(run, None)
            return Sighting(RemoteState.GONE)
        status = str(found.get("status"))
        if status == NO_NEWS:
            return None
        told = sighting(status, found)
        if told.state is RemoteState.RUNNING and path == SERVICES:
            told = replace(told, address=await self._address(found, id))
        if status in _LIVE:
            self._seen[run] = status, self._clock(), told
        else:
            self._seen.pop(run, None)
        return told

    async def _detail(self, path: str, id: str) -> Mapping[str, Any]:
        beyond = self.wire.other is not None
        found: Mapping[str, Any] = await self.wire.get(
            "show", f"{'/broker/v1/jobs' if beyond else path}/{id}"
        )
        return found

    async def _address(self, found: Mapping[str, Any], id: str) -> str:
        """§7.4.8: a service's metadata has its url."""
        if self.wire.other is not None:
            found = await self.wire.get("online.show", f"{SERVICES}/{id}")
        metadata = found.get("metadata")
        return str(metadata.get("url") or "") if isinstance(metadata, dict) else ""

    async def stop(self, run: RunRef, *, grace_s: int) -> None:
        """§7.4.5.  The grace went with the create; the standard's stop takes none."""
        path, id = parted(run.remote)
        if not path:
            return
        url = f"{self.wire.base}{path}/{id}/stop"
        try:
            await self.wire.json(Request("stop", "POST", url, effect=True, urgent=True))
        except Rejected as no:
            if no.code == "0240":
                return
            seen = await self._look(run.id, path, id)
            if seen is None or seen.state in (RemoteState.PENDING, RemoteState.RUNNING, RemoteState.UNKNOWN):
                raise Unavailable(f"the stop was refused: {no}") from no

    async def delete(self, run: RunRef) -> None:
        """§7.4.6."""
        path, id = parted(run.remote)
        if not path:
            return
        try:
            await self.wire.delete("delete", f"{path}/{id}")
        except Rejected as no:
            if no.code != "0240":
                raise Unavailable(f"the deletion was refused: {no}") from no

    # ------------------------------------------------------------ files

    async def logs(self, run: RunRef, node: int, offset: int) -> AsyncIterator[bytes]:
        path, id = parted(run.remote)
        if not path:
            return
        try:
            found = await self._detail(path, id)
        except Rejected as no:
            if no.code == "0240":
                return
            raise
        if self.wire.other is not None:
            chunks = self._files.broker_log(id, found, node, offset)
        elif node == 0 and (task := last_task(found)):
            chunks = self._files.service_log(id, task, offset)
        else:
            return
        async for chunk in chunks:
            yield chunk

    async def results(self, run: RunRef) -> AsyncIterator[ResultFile]:
        path, id = parted(run.remote)
        if path != JOBS:  # the standard has a download of training jobs only
            return
        async for result in self._files.results(path, id):
            yield result

    async def stage(self, copy: CopyRef) -> CopySighting:
        self._data_sets()
        return await self._files.stage(copy)

    async def unstage(self, copy: CopyRef) -> None:
        """Remove what `stage` has brought; what is not there is done."""
        self._data_sets()
        await self._files.unstage(copy)

    def _data_sets(self) -> None:
        if self.wire.other is None:
            raise Unsupported("data sets: the standard has no way to give them to a job")

    # ------------------------------------------------------------ the rest

    async def checks(self) -> AsyncIterator[Check]:
        async for check in checks(self):
            yield check

    async def call(self, method: str, path: str, body: bytes | None) -> RawAnswer:
        return await self.wire.raw(method, path, body)

    async def aclose(self) -> None:
        await self.wire.session.aclose()
        await self.wire.http.aclose()

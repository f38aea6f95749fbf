"""Polls one center's capacity into the store.

What belongs here: the probe, prices in force, products by their canonical names, and whether a
center is fresh, suspect or down.  What does not: what a report may say (broker.reports) and runs
(broker.track).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace

from broker.adapter import Adapter, AdapterError, Asset, AssetKind, Image, Inventory, PoolReport, Traits
from broker.config import CenterSettings, SchedulerSettings
from broker.connections import Connections, timed
from broker.core.model import CenterId, CenterState, Health, NodeShape, Price, Spec
from broker.core.resources import Catalogue, make_spec
from broker.leader import Lease
from broker.reports import catalogued, checked, distinct
from broker.store import Store, assets, centers
from broker.telemetry import CENTER_UP, log

CATALOGUE_PERIOD_S = 600
"""What else a center lists changes rarely."""


class Poll:
    """One center's poll; `once()` makes one."""

    def __init__(
        self,
        center: CenterId,
        *,
        store: Store,
        lease: Lease,
        connections: Connections,
        catalogue: Catalogue,
        settings: SchedulerSettings,
    ) -> None:
        self._center = center
        self._store = store
        self._lease = lease
        self._connections = connections
        self._catalogue = catalogue
        self._settings = settings
        self._health = Health.UNKNOWN
        self._listed_ms: int | None = None
        self._quarantined: Mapping[str, str] = {}

    async def once(self) -> None:
        """Probe and record; a failure is recorded too."""
        settings = self._connections.settings(self._center)
        if settings.state is CenterState.INACTIVE:
            return
        try:
            adapter = await self._connections.adapter(self._center)
            inventory = await timed(self._center, "probe", adapter.probe, self._settings.probe_timeout_s)
            sound = checked(inventory, self._store.clock())
        except (AdapterError, TimeoutError) as error:
            await self._silent(f"{type(error).__name__}: {error}".rstrip(": "))
        except Exception as error:
            log.exception("probe_defect", center=self._center)
            await self._silent(f"defect in the adapter: {type(error).__name__}: {error}")
        else:
            await self._record(adapter.traits, sound, settings)
            await self._catalogue_of(adapter, settings)

    async def _record(self, traits: Traits, inventory: Inventory, settings: CenterSettings) -> None:
        known, unknown = canonical(inventory.pools, self._catalogue)
        known, repeated = distinct(known)
        report = replace(inventory, pools=known, quarantined=(*inventory.quarantined, *unknown, *repeated))
        self._tell(dict(report.quarantined))
        await self._store.write(
            centers.record_inventory,
            self._center,
            report,
            epoch=self._lease.epoch,
            traits=_stored(traits, settings),
            prices=[(pool, prices_of(pool, settings)) for pool in known],
        )
        if self._health is not Health.FRESH:
            log.info("center_fresh", center=self._center, pools=len(known))
        self._health = Health.FRESH
        CENTER_UP.labels(self._center).set(1)

    def _tell(self, quarantined: Mapping[str, str]) -> None:
        """Log what changed."""
        for name, reason in quarantined.items():
            if self._quarantined.get(name) != reason:
                log.warning("pool_quarantined", center=self._center, pool=name, reason=reason)
        for name in self._quarantined.keys() - quarantined.keys():
            log.info("pool_recovered", center=self._center, pool=name)
        self._quarantined = quarantined

    async def _silent(self, error: str) -> None:
        health = await self._store.write(
            centers.record_silence,
            self._center,
            error,
            epoch=self._lease.epoch,
            down_after=self._settings.down_after_polls,
        )
        if health is not self._health:
            log.warning("center_silent", center=self._center, health=health, error=error)
        self._health = health
        CENTER_UP.labels(self._center).set(0)

    async def _catalogue_of(self, adapter: Adapter, settings: CenterSettings) -> None:
        """Images, data sets, models and applications: the platform's and the operator's."""
        now = self._store.clock()
        if self._listed_ms is not None and now - self._listed_ms < CATALOGUE_PERIOD_S * 1000:
            return
        try:
            found = await timed(self._center, "catalogue", adapter.catalogue, self._settings.probe_timeout_s)
        except (AdapterError, TimeoutError) as error:
            log.warning("catalogue_failed", center=self._center, error=str(error) or type(error).__name__)
            return  # the last one stands; capacity is there all the same
        except Exception:
            log.exception("catalogue_defect", center=self._center)
            return
        images = merged(found.images, settings.images)
        await self._store.write(centers.record_images, self._center, images, epoch=self._lease.epoch)
        own = {
            AssetKind.DATASET: combined(found.datasets, settings.datasets),
            AssetKind.MODEL: combined(found.models, settings.models),
            AssetKind.APP: combined(found.apps, settings.apps),
        }
        await self._store.write(assets.record_assets, self._center, own, epoch=self._lease.epoch)
        self._listed_ms = now


def _stored(traits: Traits, settings: CenterSettings) -> dict[str, object]:
    """What rounds and people need of the traits.  A platform's own kills count where they are allowed."""
    kept = asdict(traits)
    names = (
        "gang",
        "services",
        "metering",
        "logs",
        "results",
        "any_image_url",
        "node_hold",
        "two_phase_create",
    )
    facts = {name: kept[name] for name in (*names, "report_lag_s", "max_run_time_s")}
    allowed = bool(settings.connection.get("allow_preempt_kill"))
    first = traits.priority or traits.vip_wait
    return {**facts, "vip_kill": traits.vip_kill and allowed, "vip_first": first}


def merged(listed: Iterable[Image], stated: Iterable[Image]) -> tuple[Image, ...]:
    """The platform's images and the operator's; the operator's word wins for the same id."""
    by_id = {image.id: image for image in catalogued(listed)} | {image.id: image for image in stated}
    return tuple(by_id.values())


def combined(listed: Iterable[Asset], stated: Iterable[Asset]) -> tuple[Asset, ...]:
    """The platform's and the operator's; the operator's word wins for the same native id, but for what
    jobs are told, which the platform knows."""
    by_native = {asset.native: asset for asset in catalogued(listed)}
    for asset in stated:
        known = by_native.get(asset.native)
        if known is not None:
            asset = replace(asset, remote=known.remote, bytes=asset.bytes or known.bytes, owner=known.owner)
        by_native[asset.native] = asset
    return tuple(by_native.values())


def canonical(
    pools: Iterable[PoolReport], catalogue: Catalogue
) -> tuple[tuple[PoolReport, ...], tuple[tuple[str, str], ...]]:
    """Pools with canonical product names and the memory of their cards, and those where either is not
    known, with the reason (law 10)."""
    known, unknown = [], []
    for pool in pools:
        said = pool.shape.accelerator
        if not said:
            known.append(pool)
            continue
        product = catalogue.get(catalogue.canonical(said) or "")
        if product is None:
            unknown.append((pool.native, f"the product {said!r} is not in accelerators.toml"))
            continue
        memory_gib = pool.shape.accelerator_memory_gib
        if memory_gib == 0 and len(product.memory_gib) > 1:
            sizes = ", ".join(map(str, product.memory_gib))
            text = f"{product.name} is sold with {sizes} GiB: state the pool in [[centers.pools]]"
            unknown.append((pool.native, text))
            continue
        memory_gib = memory_gib or product.memory_gib[0]
        shape = _told(pool.shape, product.name, memory_gib)
        specs = tuple(
            _renamed(spec, _told(spec.shape, product.name, memory_gib))
            if spec.shape.accelerator == said
            else spec
            for spec in pool.specs
        )
        known.append(replace(pool, shape=shape, specs=specs))
    return tuple(known), tuple(unknown)


def _told(shape: NodeShape, accelerator: str, memory_gib: int) -> NodeShape:
    """A shape with the canonical name, and with the memory of its cards where it lacks it."""
    memory_gib = shape.accelerator_memory_gib or memory_gib
    return replace(shape, accelerator=accelerator, accelerator_memory_gib=memory_gib)


def _renamed(spec: Spec, shape: NodeShape) -> Spec:
    """A spec with another shape: its id follows from it, and its name unless the platform gave one."""
    new = make_spec(shape)
    return new if spec.name == make_spec(spec.shape).name else replace(new, name=spec.name)


def prices_of(pool: PoolReport, settings: CenterSettings) -> tuple[Price, ...]:
    """The operator's prices for the pool's product (or architecture), else the platform's."""
    shape = pool.shape
    stated = tuple(
        price.price
        for price in settings.prices
        if (price.accelerator and price.accelerator == shape.accelerator)
        or (price.arch and not shape.accelerator and price.arch == shape.arch)
    )
    return stated or pool.prices

"""The options of an AIHub center, and what it can do by them.

Here: [centers.connection] and stated pools, checked.  Not here: their types and defaults where the
file is read (broker.config.platforms).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from adapters.aihub_services import Service
from adapters.aihub_tasks import Fields
from adapters.output import Output
from broker.adapter import Connection, Lookup, StatedPool, Traits
from broker.core.model import Accuracy

TRAITS = Traits(
    gang=True,
    vip_wait=True,
    node_hold=True,
    idle=Accuracy.ESTIMATED,
    lookup=Lookup.EVIDENCE,
    max_batch=20,  # details in one look: one call each, and a stop waits for its turn behind them
)
"""With the required keys only."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The options of an AIHub center, checked."""

    urls: Mapping[Service, str]
    fields: Fields
    pools: Mapping[str, StatedPool]  # by virtual cluster; "" is the only one that the account sees
    usual: Service  # where jobs that are not VIP go
    sku_cards: int
    bucket: str

    @classmethod
    def read(cls, connection: Connection) -> Settings:
        """Raises ValueError, naming the key."""
        options = connection.options
        urls = {s: options[f"{s}_url"] for s in Service if options.get(f"{s}_url")}
        if Service.USER not in urls:
            raise ValueError("user_url is missing, expected the address of the user service")
        usual = Service.QUOTA if options.get("mode") == "quota" else Service.TRAINING
        if usual not in urls:
            raise ValueError(f"{usual}_url is missing, expected an address: mode is {usual.value!r}")
        if not options.get("project_id"):
            raise ValueError(
                "project_id is missing, expected the id of a project as the web menu 研发项目 shows it"
            )
        pools = _pools(connection, listed=Service.TAG in urls)
        fields = Fields(
            project_id=int(options["project_id"]),
            storage_ids=tuple(options.get("storage_ids", ())),
            category_id=int(options.get("category_id", 1)),
            framework=str(options.get("framework", "PyTorchJob")),
            shm_gib=options.get("shm_gib"),
            per_instance=options.get("sku_cnt", "per-instance") == "per-instance",
            allow_preempt_kill=bool(options.get("allow_preempt_kill", False)),
        )
        bucket = str(options.get("s3_bucket", "broker"))
        return cls(urls, fields, pools, usual, int(options.get("sku_cards", 1)), bucket)


def _pools(connection: Connection, *, listed: bool) -> dict[str, StatedPool]:
    """The stated pools.  `listed`: the platform can tell which clusters there are."""
    pools: dict[str, StatedPool] = {}
    for pool in connection.pools:
        if not pool.native and not (listed and len(connection.pools) == 1):
            why = "several pools are stated" if listed else "without tag_url nothing tells which it is"
            raise ValueError(f"pools: native is missing, expected the id of a virtual cluster: {why}")
        if pool.native and not pool.native.isdecimal():
            raise ValueError(
                f"pools: native is {pool.native!r}, expected the id of a virtual cluster such as 29"
            )
        if pool.native in pools:
            raise ValueError(f"pools: native {pool.native!r} is stated twice, expected one pool of each")
        pools[pool.native] = pool
    return pools


def traits_of(settings: Settings, output: Output | None) -> Traits:
    """What this center can do."""
    training = Service.TRAINING in settings.urls
    return replace(
        TRAITS,
        priority=settings.usual is Service.QUOTA,
        vip_wait=training,
        vip_kill=training and settings.fields.allow_preempt_kill,
        node_hold=training,
        resume=output is not None,
        logs=output is not None,
        results=output is not None,
    )

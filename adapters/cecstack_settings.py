"""The options of a CECSTACK center, checked.

Here: what [centers.connection] says, as the parts of the adapter want it.  Not here: what they do with it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final
from zoneinfo import ZoneInfo

from adapters.cecstack_packages import PackageRules
from adapters.cecstack_services import Network
from adapters.cecstack_wire import SIGNERS
from adapters.http import Limits
from adapters.output import Output
from broker.adapter import Connection

LOOKUP_LAG_S: Final = 10
"""Default of `lookup_lag_s`: how late lists, states and rest* may be."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The options of a CECSTACK center, checked."""

    signature: str
    project_id: int | None
    packages: PackageRules
    zone: ZoneInfo
    node_selector: str
    multi_node: bool
    lookup_lag_s: int
    network: Network | None
    output: Output | None
    submit_timeout_s: int

    @classmethod
    def read(cls, connection: Connection) -> Settings:
        options = connection.options
        signature = str(options.get("signature", "none"))
        if signature not in SIGNERS:
            raise ValueError(f"signature is {signature!r}, expected one of {', '.join(SIGNERS)}")
        project = options.get("project_id")
        if project is not None and not str(project).isdecimal():
            raise ValueError(f"project_id is {project!r}, expected a number")
        zone = ZoneInfo(str(options.get("timezone", "Asia/Shanghai")))
        packages = PackageRules(
            wanted=tuple(options.get("resource_ids") or ()),
            stated={pool.native: pool for pool in connection.pools},
            arch=str(options.get("cpu_arch") or ""),
            zone=zone,
        )
        return cls(
            signature=signature,
            project_id=None if project is None else int(project),
            packages=packages,
            zone=zone,
            node_selector=str(options.get("node_selector") or "train=true"),
            multi_node=options.get("multi_node") == "fine-tuning",
            lookup_lag_s=math.ceil(options.get("lookup_lag_s", LOOKUP_LAG_S)),
            network=Network.of(options),
            output=Output.of(connection),
            # One call and the wait for its turn.
            submit_timeout_s=math.ceil(Limits.of(connection).timeout_s) + 2,
        )

"""What is idle, pool by pool, as the objects of the wire.

What belongs here: the whole nodes behind the standard's nodeResources, which another broker needs to
place runs here.  What does not: a center's sums (wire.py).
"""

from __future__ import annotations

from typing import Any

from broker.api import wire
from broker.core.model import Accuracy, Pool
from broker.store.centers import CenterView


def pools(view: CenterView) -> list[dict[str, Any]]:
    """As last reported; nothing is free where nobody knows."""
    return [_pool(pool, known=wire.connected(view)) for pool in view.pools]


def _pool(pool: Pool, *, known: bool) -> dict[str, Any]:
    accuracy = pool.accuracy if known else Accuracy.UNKNOWN
    told = pool.free if accuracy is not Accuracy.UNKNOWN else ()
    return {
        "native": pool.native,
        "node": wire.shape(pool.shape),
        "splitPermille": pool.shape.split_permille,
        "nodeCount": str(pool.nodes),
        "accuracy": accuracy.value,
        "observedAtMs": pool.as_of_ms,
        "freeNodes": [
            {
                "resourceSpec": wire.shape(wire.available(pool.shape, group)),
                "nodeCount": str(group.nodes),
                **({"freeParts": list(group.parts)} if group.parts else {}),
            }
            for group in sorted(told, reverse=True)
        ],
    }

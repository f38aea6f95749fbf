"""An AIHub installation: nine services on nine ports, queues, nodes, real processes, ground truth.

async with serve(folder, [Cluster(29, "vc", nodes)]) as hub:
    hub.urls["training"], hub.platform.executions, hub.complaints, hub.faults.plan(…)
"""

from tests.emulators.aihub.platform import Cluster, Execution, Node, Platform, Switches, Task, User
from tests.emulators.aihub.server import serve
from tests.emulators.aihub.services import (
    ONLY,
    S3_TOKEN,
    USERS,
    WITH_EFFECT,
    Emulator,
    Request,
    Storage,
)

__all__ = [
    "ONLY",
    "S3_TOKEN",
    "USERS",
    "WITH_EFFECT",
    "Cluster",
    "Emulator",
    "Execution",
    "Node",
    "Platform",
    "Request",
    "Storage",
    "Switches",
    "Task",
    "User",
    "serve",
]

"""An Ampha center (cloudos), written from the platform's document.

parts.py   settings, nodes, groups, tasks, pods, executions
world.py   the queue, the life of tasks, what really ran
wire.py    envelopes, times, sessions, what a request must look like
tasks.py   three training APIs over two stores
pods.py    their pods, logs, events
operations.py  what the platform asks of its operator before it creates
market.py  images, data sets, models, algorithms
files.py   users' private files
office.py  accounts, capacity, quotas, priorities, metering, monitoring
orders.py  work orders
rooms.py   notebooks and online services
server.py  the server; `async with Ampha(groups)`
"""

from tests.emulators.ampha.parts import Execution, Group, Node, Settings, State
from tests.emulators.ampha.server import Ampha, group, nodes
from tests.emulators.ampha.world import World

__all__ = [
    "Ampha",
    "Execution",
    "Group",
    "Node",
    "Settings",
    "State",
    "World",
    "group",
    "nodes",
]

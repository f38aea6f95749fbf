"""The only part with database sessions; a module per noun.

What belongs here: queries and transactions as plain functions, `op(tx, …)` for writes and
`query(session, …)` for reads, run by Store in its threads.  They take and return frozen facts and
plain values; rows never leave.  What does not: decisions (broker.core) and the network (law 1: no
network inside a transaction).
"""

from broker.store.store import Store
from broker.store.writer import LostLease, Rejected, StoreUnavailable, Tx

__all__ = ["LostLease", "Rejected", "Store", "StoreUnavailable", "Tx"]

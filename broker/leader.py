"""The lease as its holder knows it: the epoch that fences writes, and the end after which no call
may leave."""

from __future__ import annotations

from broker.store import LostLease, Store
from broker.store import lease as rows
from broker.telemetry import log


class Lease:
    """Use: `await lease.acquire()`, then `renew` well before `ttl_s` has passed."""

    def __init__(self, store: Store, *, holder: str, ttl_s: float) -> None:
        self._store = store
        self._holder = holder
        self.ttl_s = ttl_s
        self.epoch = 0
        self.expires_ms = 0

    async def acquire(self, *, alone: bool) -> bool:
        """Take the lease; False while another holds it."""
        got = await self._store.write(rows.acquire, self._holder, self.ttl_s, alone=alone)
        if got is None:
            return False
        self.epoch, self.expires_ms = got
        log.info("lease_acquired", holder=self._holder, epoch=self.epoch)
        return True

    async def renew(self) -> None:
        """Hold it longer.  Raises LostLease."""
        self.expires_ms = await self._store.write(rows.renew, self._holder, self.epoch, self.ttl_s)

    def check(self) -> None:
        """Right before a call with an effect.  Raises LostLease once the lease may have run out."""
        if self._store.clock() >= self.expires_ms:
            raise LostLease(f"the lease of epoch {self.epoch} has run out")

    async def release(self) -> None:
        await self._store.write(rows.release, self._holder, self.epoch)

"""Adding arrays up over the nodes of one job, on TCP.

What belongs here: how the nodes find each other and the sum.  What does not: what is summed.
"""

from __future__ import annotations

import hashlib
import socket
import time

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

MEET_S, ANSWER_S, HELLO_S = 60.0, 60.0, 5.0  # for all nodes to come; for each answer; for a hello
PORTS = 16  # candidates from `port` on, in case another program has the first


class Gang:
    """The nodes of one job.  Node 0 adds in the order of ranks, so every node gets the same bits."""

    def __init__(self, rank: int, count: int, *, address: str, port: int, job: str) -> None:
        """Meet at node 0's `address`; TimeoutError when a node does not come, OSError without a port.

        `job` names the gang: another one may be listening at one of the candidates.
        """
        self.rank, self.count = rank, count
        self._address, self._ports = address, range(port, port + PORTS)
        self._key = hashlib.sha256(job.encode()).digest()
        self._peers: list[socket.socket] = []
        if count > 1:
            self._peers = self._gather() if rank == 0 else [self._join()]
        for peer in self._peers:
            peer.settimeout(ANSWER_S)
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def sum(self, mine: Array) -> Array:
        """The sum of every node's array, of one shape; ConnectionError or TimeoutError without one."""
        if self.count == 1:
            return mine
        if self.rank > 0:
            self._peers[0].sendall(mine.tobytes())
            return _array(self._peers[0], mine)
        total = mine.copy()
        for peer in self._peers:
            total += _array(peer, mine)
        for peer in self._peers:
            peer.sendall(total.tobytes())
        return total

    def _gather(self) -> list[socket.socket]:
        """Node 0: one connection per other node, in the order of ranks."""
        peers: dict[int, socket.socket] = {}
        deadline = time.monotonic() + MEET_S
        with self._listener() as listener:
            while len(peers) < self.count - 1:
                listener.settimeout(max(0.01, deadline - time.monotonic()))
                peer, _ = listener.accept()
                try:
                    peer.settimeout(HELLO_S)
                    hello = _receive(peer, len(self._key) + 4)
                    if hello[:-4] != self._key:
                        raise ConnectionError("a node of another job")
                    peer.sendall(self._key)
                    peers[int.from_bytes(hello[-4:], "big")] = peer
                except OSError:
                    peer.close()  # not ours; our own nodes come again
        return [peers[rank] for rank in sorted(peers)]

    def _listener(self) -> socket.socket:
        for port in self._ports:
            try:
                return socket.create_server((self._address, port))
            except OSError as error:
                refused = error
        raise refused

    def _join(self) -> socket.socket:
        """The others: try every candidate until node 0 answers with this job's key."""
        deadline = time.monotonic() + MEET_S
        while time.monotonic() < deadline:
            for port in self._ports:
                try:
                    peer = socket.create_connection((self._address, port), timeout=HELLO_S)
                except OSError:
                    continue  # nobody there yet
                try:
                    peer.sendall(self._key + self.rank.to_bytes(4, "big"))
                    if _receive(peer, len(self._key)) == self._key:
                        return peer
                except OSError:
                    pass  # somebody else
                peer.close()
            time.sleep(0.1)
        raise TimeoutError(f"node 0 did not answer at {self._address} within {MEET_S:.0f} s")


def _array(peer: socket.socket, like: Array) -> Array:
    return np.frombuffer(_receive(peer, like.nbytes)).reshape(like.shape)


def _receive(peer: socket.socket, size: int) -> bytes:
    """Exactly `size` bytes; ConnectionError when the other side has ended."""
    data = b""
    while len(data) < size:
        piece = peer.recv(size - len(data))
        if not piece:
            raise ConnectionError("another node of the gang has ended")
        data += piece
    return data

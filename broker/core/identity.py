"""Names that the broker chooses.

A job id sorts by the time it was made.  A run id is also the remote name at the center and the
standard's taskId: the broker's prefix and ten base32 characters, lower case, at most twenty.
Randomness comes in as bytes: the core draws none.
"""

from __future__ import annotations

from collections.abc import Iterable

from broker.core.model import CenterId, JobId, RunId

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base32: no i, l, o, u


def base32(value: int, length: int) -> str:
    """`value` in `length` characters, most significant first."""
    return "".join([_ALPHABET[value >> shift & 31] for shift in range(5 * length - 5, -1, -5)])


def job_id(now_ms: int, entropy: bytes) -> JobId:
    """``j-`` + nine characters of time + six of `entropy` (4 bytes)."""
    return JobId(f"j-{base32(now_ms, 9)}{base32(int.from_bytes(entropy[:4], 'big'), 6)}")


def run_id(prefix: str, entropy: bytes) -> RunId:
    """`prefix` + ``-`` + ten characters of `entropy` (7 bytes, 50 bits used)."""
    return RunId(f"{prefix}-{base32(int.from_bytes(entropy[:7], 'big'), 10)}")


_AVOIDING = "~"
_HOLDER = "!"


def avoiding_key(key: str, centers: Iterable[CenterId]) -> str:
    """The key of those jobs of class `key` that keep away from `centers` for now."""
    avoided = ",".join(sorted(set(centers)))
    return f"{key}{_AVOIDING}{avoided}" if avoided else key


def holder_key(key: str, job: JobId) -> str:
    """The key of the one job of class `key` that capacity is held for."""
    return f"{key}{_HOLDER}{job}"


def base_key(key: str) -> str:
    """The class key of a job, from the key of a class in a snapshot."""
    return key.partition(_HOLDER)[0].partition(_AVOIDING)[0]

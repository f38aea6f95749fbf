"""`python -m tests.cheap_hashes serve …`: the daemon, and a password costs it next to nothing to hash.

What belongs here: that one change, for tests that send passwords by the thousand.  A tenth of a second
of a processor for each, as it is in service, would be most of what they take.
"""

from __future__ import annotations

import runpy

import argon2
from argon2.profiles import CHEAPEST


class CheapHasher(argon2.PasswordHasher):
    """As the real one, with the library's parameters for tests."""

    def __init__(self) -> None:
        super().__init__(CHEAPEST.time_cost, CHEAPEST.memory_cost, CHEAPEST.parallelism)


if __name__ == "__main__":
    argon2.PasswordHasher = CheapHasher  # type: ignore[assignment, misc]  # before anybody takes it from there
    runpy.run_module("broker", run_name="__main__", alter_sys=True)

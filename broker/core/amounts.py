"""Sums of money that stay inside int64, whatever a job asks for and a policy file says.

What belongs here: the largest sum there is, the largest job it is made for, and arithmetic that ends
there instead of going round.  What does not: prices and rates (core/resources.py), which are checked
where they come in, and policies.

No sum that a round adds up is above `LARGEST_MICRO`, 2^60 micro-CNY (a million million CNY): an
eighth of int64, so that two of them, and a worth beside its gain, can still be added and compared.
A policy file is refused when a policy could come to more for the largest job, because beyond it jobs
could not be told apart any more; a job that is larger still counts as that much.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]

LARGEST_MICRO = 1 << 60
LARGEST_CARDS = 131_072
"""Accelerators of the largest job that sums are made for: more than any machine on earth has."""
LARGEST_HOURS = 30 * 24
"""Run time or wait of that job."""
LARGEST_RATE_MICRO = 100_000_000
"""Micro-CNY per accelerator-hour of that job: 100 CNY."""
LARGEST_GIB = 1 << 20
"""Data that it reads: a PiB."""
LARGEST_KEY = 10**15
"""Largest whole number of any key of a policy file: seconds up to it still fit as milliseconds."""


def bounded(micro: int) -> int:
    """A sum worked out in Python's integers, at most the largest there is."""
    return max(-LARGEST_MICRO, min(LARGEST_MICRO, micro))


def product(amount: int, factor: int) -> int:
    """`amount * factor` of two numbers that are not negative, ending where `times` does."""
    return min(amount, LARGEST_MICRO // max(factor, 1)) * factor


def times(amounts: IntArray, factor: int | IntArray) -> IntArray:
    """`amounts * factor`, each at most the largest sum and at least its negative."""
    most: int | IntArray
    most = LARGEST_MICRO // (max(abs(factor), 1) if isinstance(factor, int) else np.maximum(abs(factor), 1))
    return _within(amounts, most) * factor


def weighed(money: IntArray, permille: int | IntArray) -> IntArray:
    """`money * permille // 1000`, at most the largest sum."""
    most: int | IntArray
    if isinstance(permille, int):
        most = LARGEST_MICRO if permille <= 1000 else LARGEST_MICRO * 1000 // permille
        if permille == 1000:
            return _within(money, most)
    else:
        most = LARGEST_MICRO // np.maximum(permille, 1000) * 1000
    kept = _within(money, most)
    return kept // 1000 * permille + kept % 1000 * permille // 1000


def priced(rate: IntArray, seconds: int | IntArray) -> IntArray:
    """`rate * seconds // 3600`, what prices per hour come to, in steps that stay inside int64."""
    return added(times(rate // 3600, seconds), rate % 3600 * seconds // 3600)


def added(one: IntArray, other: IntArray) -> IntArray:
    """The sum of two sums, at most the largest."""
    return _within(one + other, LARGEST_MICRO)


def _within(amounts: IntArray, most: int | IntArray) -> IntArray:
    # np.clip says the same in three times the time, and this is asked for every class and policy.
    kept: IntArray = np.minimum(np.maximum(amounts, -most), most)
    return kept

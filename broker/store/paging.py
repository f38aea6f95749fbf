"""Which page of a listing is wanted, and in which order."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Paging:
    page: int = 1
    size: int = 50
    sort: str = "id"
    descending: bool = True

"""The keys of the tables of broker.toml: pools, prices, images, specs, data sets, models and applications.

What belongs here: each key with its limits and default.  What does not: what is made of a table
(broker.config), and the keys of each adapter (broker.config.platforms).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from broker.config import values as v
from broker.config.keys import Key

ARCHITECTURES: Final = ("X86", "ARM")  # the standard's values of `arch`
CORES: Final = v.whole(1, 65_536)
MEMORY_GIB: Final = v.whole(1, 1 << 20)

SHAPE_KEYS: Mapping[str, Key] = {  # per node; memory in GiB, accelerator memory per card
    "arch": Key(v.choice(*ARCHITECTURES)),
    "cores": Key(CORES),
    "memory_gib": Key(MEMORY_GIB),
    "accelerator": Key(v.accelerator, ""),
    "accelerators": Key(v.whole(0, 1024), 0),
    "accelerator_memory_gib": Key(v.whole(0, 65_536), 0),
    "card_permille": Key(v.whole(1, 1000), 1000),  # what part of a card each accelerator is
}
SPEC_KEYS: Mapping[str, Key] = {"name": Key(v.filled), **SHAPE_KEYS}
POOL_KEYS: Mapping[str, Key] = {
    "native": Key(v.text, ""),
    **SHAPE_KEYS,
    "split_permille": Key(v.whole(0, 500), 0),  # steps in which cards are given away; 0: whole cards only
    "nodes": Key(v.whole(1, 1_000_000)),
}
PRICE_KEYS: Mapping[str, Key] = {  # of accelerator and arch exactly one; from and to only together
    "accelerator": Key(v.accelerator, ""),
    "arch": Key(v.choice(*ARCHITECTURES), ""),
    "price": Key(v.price),
    "from": Key(v.minute_of_day(end=False), 0),
    "to": Key(v.minute_of_day(end=True), 24 * 60),
    "days": Key(v.weekdays, frozenset(range(7))),
}
IMAGE_KEYS: Mapping[str, Key] = {
    "id": Key(v.filled),
    "native": Key(v.text, ""),  # "": the id
    "name": Key(v.text, ""),
    "desc": Key(v.text, ""),
    "arch": Key(v.choice("", *ARCHITECTURES), ""),
    "processor": Key(v.text, ""),
    "os": Key(v.text, ""),
    "framework": Key(v.text, ""),
    "installed_lib": Key(v.array_of(v.filled), ()),
}
ASSET_KEYS: Mapping[str, Key] = {  # of datasets, models and apps
    "id": Key(v.pattern("[A-Za-z0-9][A-Za-z0-9._-]{0,63}", "1 to 64 of A-Z, a-z, 0-9, dot, _ and -")),
    "native": Key(v.text, ""),  # "": the id; of a data set the path that jobs there see, or the platform's id
    "title": Key(v.text, ""),  # "": the id
    "desc": Key(v.text, ""),
    "labels": Key(v.text, ""),  # between commas: the categories
    "bytes": Key(v.whole(0, 1 << 60), 0),
}

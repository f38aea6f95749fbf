"""broker.toml to frozen settings: every error at once, each with its key and line.

What belongs here: the rules between keys, the packaged files, the embedded default and what a reload
may change.  What does not: keys, limits and defaults (broker.config.schema, tables and platforms), kinds
of value (broker.config.values), the pass that gathers errors (broker.config.reading), positions
(broker.config.lines), policies and the accelerator catalogue.  The rest of the broker imports this one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any

from broker.adapter import Asset, Image, StatedPool
from broker.config.keys import Absent, Key, keys_of, restart_keys
from broker.config.lines import KeyPath
from broker.config.platforms import PLATFORMS, Platform
from broker.config.reading import ConfigError, Problem, Reading, document_of
from broker.config.schema import (
    POLICY_FILE,
    AuthSettings,
    BillingSettings,
    CenterSettings,
    LimitSettings,
    NodeShapeSpec,
    SchedulerSettings,
    Server,
    ServiceSettings,
    Settings,
    StatedPrice,
    StoreSettings,
    SubmitSettings,
)
from broker.config.tables import ASSET_KEYS, IMAGE_KEYS, POOL_KEYS, PRICE_KEYS, SHAPE_KEYS, SPEC_KEYS
from broker.config.values import Place, credential, shown
from broker.core.model import CenterState, NodeShape, Price

__all__ = [
    "AuthSettings",
    "CenterSettings",
    "ConfigError",
    "LimitSettings",
    "NodeShapeSpec",
    "Problem",
    "SchedulerSettings",
    "Server",
    "ServiceSettings",
    "Settings",
    "StatedPrice",
    "StoreSettings",
    "SubmitSettings",
    "changes_needing_restart",
    "data_home",
    "embedded_default",
    "file_beside",
    "find_config_file",
    "keeping_restart_keys",
    "load",
    "parse",
    "render_errors",
    "template",
]

KnownAccelerator = Callable[[str], str | None]
"""The canonical name of a product or alias; None for one that the catalogue does not have."""

SECTIONS: Mapping[str, type] = {
    "server": Server,
    "store": StoreSettings,
    "scheduler": SchedulerSettings,
    "auth": AuthSettings,
    "limits": LimitSettings,
    "submit": SubmitSettings,
    "billing": BillingSettings,
    "services": ServiceSettings,
}


def load(
    path: Path, *, environ: Mapping[str, str], known_accelerator: KnownAccelerator | None = None
) -> Settings:
    """Read a file.  ConfigError when it cannot be read or used; relative paths are relative to it."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError((Problem("", 1, f"cannot be read: {error.strerror}"),)) from error
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError((Problem("", line, "is not UTF-8 text"),)) from error
    settings = parse(text, base=path.parent, environ=environ, known_accelerator=known_accelerator)
    return replace(settings, source=path.absolute())


def parse(
    text: str,
    *,
    base: Path,
    environ: Mapping[str, str],
    known_accelerator: KnownAccelerator | None = None,
) -> Settings:
    """Settings from the text of a file in the folder `base`; ConfigError with everything wrong.

    Product names are checked and made canonical by `known_accelerator`, where given.
    """
    document, lines = document_of(text)
    place = Place(Path(os.path.abspath(base)), environ, known_accelerator)
    reading = Reading(lines, place)
    settings = _settings(reading, document)
    if reading.problems:
        raise ConfigError(tuple(sorted(reading.problems, key=lambda each: each.line)))
    return settings


def render_errors(error: ConfigError, path: Path) -> str:
    """One line per error, `FILE:LINE: key: message`, as editors and compilers write it."""
    file = error.file or path
    return "\n".join(
        f"{file}:{each.line}: {each.key + ': ' if each.key else ''}{each.message}" for each in error.errors
    )


# ---------------------------------------------------------------- from tables to settings


def _settings(reading: Reading, document: dict[str, Any]) -> Settings:
    reading.unknown(document, (), (*SECTIONS, "specs", "centers"))
    sections: dict[str, Any] = {}
    for name, section in SECTIONS.items():
        table = reading.table(document.get(name, {}), (name,))
        sections[name] = section(**reading.values(table or {}, (name,), keys_of(section)))
    scheduler: SchedulerSettings = sections["scheduler"]
    if scheduler.policy in (Path(POLICY_FILE), reading.place.base / POLICY_FILE):
        sections["scheduler"] = replace(scheduler, policy=file_beside(reading.place.base, POLICY_FILE))
    elif not scheduler.policy.is_file():
        reading.wrong(("scheduler", "policy"), f"names the file {scheduler.policy}, which does not exist")
    return Settings(
        **sections,
        specs=_specs(reading, document.get("specs", [])),
        centers=_centers(reading, document.get("centers", [])),
    )


def _specs(reading: Reading, value: Any) -> tuple[NodeShapeSpec, ...]:
    specs = []
    seen: dict[str, KeyPath] = {}
    for table, path in reading.tables(value, ("specs",)):
        found = reading.values(table, path, SPEC_KEYS)
        shape = _shape(reading, found, path)
        if "name" in found:
            reading.unique(seen, found["name"], (*path, "name"), shown_as=shown(found["name"]))
            if shape is not None:
                specs.append(NodeShapeSpec(found["name"], shape))
    return tuple(specs)


def _shape(reading: Reading, found: Mapping[str, Any], path: KeyPath) -> NodeShape | None:
    """The shape of a pool or spec, or None when something of it is wrong."""
    if not found.keys() >= SHAPE_KEYS.keys():
        return None
    split = found.get("split_permille", 0)
    shape = NodeShape(**{name: found[name] for name in SHAPE_KEYS}, split_permille=split)
    if shape.accelerator:
        for name in ("accelerators", "accelerator_memory_gib"):
            if found[name] == 0:
                reading.wrong((*path, name), "is 0 or missing; must be at least 1 beside an accelerator")
    elif shape.accelerators or shape.accelerator_memory_gib:
        reading.wrong((*path, "accelerator"), "is missing; accelerators are stated without their product")
    elif shape.card_permille != 1000:
        reading.wrong((*path, "card_permille"), "is a part of a card; must be 1000 without an accelerator")
    if split and (not shape.accelerator or shape.card_permille != 1000):
        reading.wrong((*path, "split_permille"), f"is {split}; only whole cards can be split, must be 0")
    return shape


def _centers(reading: Reading, value: Any) -> tuple[CenterSettings, ...]:
    centers = []
    seen: dict[str, KeyPath] = {}
    for table, path in reading.tables(value, ("centers",)):
        if "id" in table and isinstance(table["id"], str):
            reading.unique(seen, table["id"], (*path, "id"), shown_as=shown(table["id"]))
        center = _center(reading, table, path)
        if center is not None:
            centers.append(center)
    return tuple(centers)


def _center(reading: Reading, table: dict[str, Any], path: KeyPath) -> CenterSettings | None:
    """One center, or None when its id or adapter is wrong."""
    # 1. its own keys
    nested = ("adapter", "connection", "credentials", "pools", "prices", "images", *ASSETS)
    found = reading.values(table, path, keys_of(CenterSettings), nested=nested)
    adapter = table.get("adapter")
    platform = PLATFORMS.get(adapter) if isinstance(adapter, str) else None
    if adapter is None:
        reading.wrong((*path, "adapter"), f"is missing; must be one of {', '.join(PLATFORMS)}")
    elif platform is None:
        near = get_close_matches(str(adapter), PLATFORMS, n=1)
        hint = f"did you mean {shown(near[0])}?" if near else f"must be one of {', '.join(PLATFORMS)}"
        reading.wrong((*path, "adapter"), f"is {shown(adapter)}; {hint}")
    # 2. what is below it
    pools = _pools(reading, table.get("pools", []), (*path, "pools"))
    prices = _prices(reading, table.get("prices", []), (*path, "prices"))
    images = _images(reading, table.get("images", []), (*path, "images"))
    assets = {name: _assets(reading, table.get(name, []), (*path, name)) for name in ASSETS}
    if platform is None:  # which keys a connection may have depends on the adapter
        return None
    connection, credentials = _access(reading, table, path, platform)
    # 3. the whole
    if "id" not in found:
        return None
    found["name"] = found.get("name") or found["id"]
    if "state" in found:
        found["state"] = CenterState(found["state"])
    return CenterSettings(
        **found,
        adapter=str(adapter),
        connection=MappingProxyType(connection),
        credentials=MappingProxyType(credentials),
        pools=pools,
        prices=prices,
        images=images,
        datasets=assets["datasets"],
        models=assets["models"],
        apps=assets["apps"],
    )


def _access(
    reading: Reading, table: dict[str, Any], path: KeyPath, platform: Platform
) -> tuple[dict[str, Any], dict[str, str]]:
    """The connection and the resolved credentials of a center, checked against its adapter's keys."""
    stated = reading.table(table.get("connection", {}), (*path, "connection"))
    secrets = reading.table(table.get("credentials", {}), (*path, "credentials"))
    if stated is None or secrets is None:
        return {}, {}
    connection = reading.values(stated, (*path, "connection"), platform.connection)
    allowed = {
        name: Key(credential, Absent.REQUIRED if name in platform.required else Absent.OMITTED)
        for name in platform.credentials
    }
    credentials = reading.values(secrets, (*path, "credentials"), allowed)

    given = {("connection", name) for name in stated} | {("credentials", name) for name in secrets}
    for need in platform.needs:
        if connection.get(need.option) == need.value and need.key not in given:
            why = f"connection.{need.option} is {shown(need.value)}"
            reading.wrong((*path, *need.key), f"is missing; {why} needs it")
    for pair in platform.together:
        missing = [name for name in pair if name not in secrets]
        if len(missing) == 1:
            present = next(name for name in pair if name in secrets)
            reading.wrong((*path, "credentials", missing[0]), f"is missing; {present} needs it")
    if platform.one_of and sum(name in secrets for name in platform.one_of) != 1:
        names = " and ".join(platform.one_of)
        reading.wrong((*path, "credentials"), f"must have exactly one of {names}")
    return connection, credentials


def _pools(reading: Reading, value: Any, path: KeyPath) -> tuple[StatedPool, ...]:
    pools = []
    seen: dict[str, KeyPath] = {}
    for table, here in reading.tables(value, path):
        found = reading.values(table, here, POOL_KEYS)
        shape = _shape(reading, found, here)
        if "native" in found:
            native = found["native"]
            reading.unique(seen, native, (*here, "native"), shown_as=shown(native) if native else "missing")
        if shape is not None and found.keys() == POOL_KEYS.keys():
            pools.append(StatedPool(found["native"], shape, found["nodes"]))
    return tuple(pools)


def _prices(reading: Reading, value: Any, path: KeyPath) -> tuple[StatedPrice, ...]:
    prices = []
    for table, here in reading.tables(value, path):
        found = reading.values(table, here, PRICE_KEYS)
        if ("from" in table) != ("to" in table):
            present, missing = ("from", "to") if "from" in table else ("to", "from")
            reading.wrong((*here, missing), f"is missing; a window with {present} needs it")
        if bool(table.get("accelerator")) == bool(table.get("arch")):
            reading.wrong(
                here, "must have exactly one of accelerator (per card-hour) and arch (per core-hour)"
            )
        if found.keys() != PRICE_KEYS.keys():
            continue
        start, end = found["from"], found["to"]
        if start == end:
            reading.wrong((*here, "to"), "is the same as from; the window is empty")
        window = Price(found["price"], found["days"], start_min=start, end_min=end)
        prices.append(StatedPrice(found["accelerator"], found["arch"], window))
    return tuple(prices)


ASSETS = ("datasets", "models", "apps")


def _assets(reading: Reading, value: Any, path: KeyPath) -> tuple[Asset, ...]:
    assets = []
    seen: dict[str, KeyPath] = {}
    for table, here in reading.tables(value, path):
        found = reading.values(table, here, ASSET_KEYS)
        if found.keys() != ASSET_KEYS.keys():
            continue
        id = found["id"]
        reading.unique(seen, id, (*here, "id"), shown_as=shown(id))
        native = found["native"] or id
        remote = native if path[-1] == "datasets" else ""
        assets.append(Asset(**{**found, "native": native, "title": found["title"] or id, "remote": remote}))
    return tuple(assets)


def _images(reading: Reading, value: Any, path: KeyPath) -> tuple[Image, ...]:
    images = []
    seen: dict[tuple[str, str], KeyPath] = {}
    for table, here in reading.tables(value, path):
        found = reading.values(table, here, IMAGE_KEYS)
        if found.keys() != IMAGE_KEYS.keys():
            continue
        identity = (found["id"], found["arch"])  # one logical image may exist per architecture
        reading.unique(seen, identity, (*here, "id"), shown_as=f"{shown(found['id'])} with the same arch")
        images.append(Image(**{**found, "native": found["native"] or found["id"]}))
    return tuple(images)


# ---------------------------------------------------------------- reload


def changes_needing_restart(old: Settings, new: Settings) -> tuple[str, ...]:
    """The changed keys that a reload cannot apply, as `section.key`, in the order of the schema."""
    changed = [
        f"{name}.{key}"
        for name, section in SECTIONS.items()
        for key in restart_keys(section)
        if getattr(getattr(old, name), key) != getattr(getattr(new, name), key)
    ]
    return (*changed, *(("specs",) if old.specs != new.specs else ()))


def keeping_restart_keys(old: Settings, new: Settings) -> Settings:
    """`new` with the values of `old` for every key that a reload cannot apply."""
    kept = {
        name: replace(
            getattr(new, name),
            **{key: getattr(getattr(old, name), key) for key in restart_keys(section)},
        )
        for name, section in SECTIONS.items()
    }
    return replace(new, **kept)


# ---------------------------------------------------------------- files that come with the broker


def _packaged() -> Path:
    """The folder of the packaged files: inside an installed package, else config/ of the source tree."""
    package = Path(__file__).parent.parent
    installed = package / "config_files"
    return installed if installed.is_dir() else package.parent / "config"


def find_config_file(name: str) -> Path:
    """A file that comes with the broker, such as policy.toml; FileNotFoundError names the place."""
    file = _packaged() / name
    if not file.is_file():
        raise FileNotFoundError(f"the broker's own file {name} is not at {file}")
    return file


def file_beside(base: Path, name: str) -> Path:
    """`name` in the folder of the configuration if it is there, else the one that comes with the broker."""
    file = base / name
    return file if file.is_file() else _packaged() / name


def template() -> str:
    """What `broker init` writes: every key with its default, commented."""
    return find_config_file("broker.toml").read_text(encoding="utf-8")


def data_home(environ: Mapping[str, str]) -> Path:
    """The user's data directory by the XDG rules: $XDG_DATA_HOME if absolute, else ~/.local/share."""
    stated = Path(environ.get("XDG_DATA_HOME", ""))
    if stated.is_absolute():
        return stated
    return Path(environ.get("HOME") or Path.home()) / ".local" / "share"


def embedded_default(data_home: Path) -> tuple[str, Settings]:
    """The configuration of `broker serve` without a file, as text and read.

    One local center of this machine; everything is kept below `data_home`/computing-broker.
    """
    folder = Path(os.path.abspath(data_home)) / "computing-broker"

    def quoted(value: str) -> str:
        # JSON's escapes are TOML's, but for DEL, which JSON leaves as it is.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")

    text = f"""\
# What `broker serve` uses without a configuration file: one local center, this machine.
[store]
url = {quoted(f"sqlite:///{folder / 'broker.db'}")}
data_dir = {quoted(str(folder / "data"))}

[submit]
image = "local"

[[centers]]
id = "local"
name = "This machine"
adapter = "local"
poll_interval_s = 2

[centers.connection]
work_dir = {quoted(str(folder / "work"))}

[[centers.images]]
id = "local"
"""
    return text, parse(text, base=folder, environ={})

"""The two files beside the configuration: the policy file and the accelerator catalogue.

What belongs here: finding and reading them, with errors that name their own file and line.  What
does not: broker.toml (broker.config) and what the files mean (core.policy, core.resources).
"""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

import policies
from broker.config import ConfigError, Problem, Settings, data_home, embedded_default, file_beside, load
from broker.config.lines import key_lines
from broker.core.policy import PolicySet
from broker.core.policy_file import PolicyError, load_policies
from broker.core.resources import Catalogue, load_catalogue

CATALOGUE_FILE = "accelerators.toml"
ENTRY_POINTS = "broker.policies"


def read_settings(config: Path | None, environ: Mapping[str, str]) -> tuple[Settings, Catalogue, PolicySet]:
    """A configuration, or the embedded default, with its catalogue and policies.

    Raises ConfigError for the first bad file.
    """
    if config is None:
        _, settings = embedded_default(data_home(environ))
        policy_set = read_policies(settings.scheduler.policy)
        return settings, read_catalogue(settings.store.data_dir.parent), policy_set
    catalogue = read_catalogue(config.parent)
    settings = load(config, environ=environ, known_accelerator=catalogue.canonical)
    return settings, catalogue, read_policies(settings.scheduler.policy)


def read_catalogue(folder: Path) -> Catalogue:
    """The catalogue in a folder, else the one that comes with the broker.  Raises ConfigError."""
    file = file_beside(folder, CATALOGUE_FILE)
    try:
        return load_catalogue(_text(file))
    except ValueError as error:
        raise ConfigError((Problem("", 1, str(error)),), file) from error


def read_policies(file: Path) -> PolicySet:
    """The policies that a file puts in force, third parties' included.  Raises ConfigError."""
    text = _text(file)
    try:
        return load_policies(text, available_policies())
    except PolicyError as error:
        raise ConfigError(_with_lines(error, text), file) from error


def available_policies() -> dict[str, type]:
    """By name: the broker's own, one per module of `policies`, and those that others have registered."""
    names = [module.name for module in pkgutil.iter_modules(policies.__path__)]
    own = {name: getattr(import_module(f"policies.{name}"), name.capitalize()) for name in names}
    return own | {entry.name: entry.load() for entry in entry_points(group=ENTRY_POINTS)}


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError((Problem("", 1, f"cannot be read: {error}"),), file) from error


def _with_lines(error: PolicyError, text: str) -> tuple[Problem, ...]:
    """Each error at the line of its key, or of the nearest table above it."""
    try:
        lines = key_lines(text)
    except (ValueError, IndexError):  # not TOML at all: the message says where
        lines = {}
    problems = []
    for key, message in error.errors:
        parts = re.findall(r"[^.\[\]]+", key)  # policies.quota.shares[0].ceiling
        path: tuple[str | int, ...] = tuple(int(part) if part.isdigit() else part for part in parts)
        while path and path not in lines:
            path = path[:-1]
        stated = None if key else re.search(r"\(at line (\d+), column \d+\)", message)
        problems.append(Problem(key, int(stated[1]) if stated else lines.get(path, 1), message))
    return tuple(sorted(problems, key=lambda each: each.line))

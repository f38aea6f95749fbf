"""The create request of a job from a job file and the words of the command line.

What belongs here: reading a TOML job file, durations and amounts, the name made from a command, what
wins over what.  What does not: asking the broker (broker.cli.submit).  The broker itself judges the
values; here only what could not be sent or would be misunderstood is refused, as WrongUsage.
"""

from __future__ import annotations

import json
import math
import re
import secrets
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from broker.cli.app import WrongUsage

NAME_LENGTH = 64
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_FLOPS = {"": 1, "G": 10**9, "T": 10**12, "P": 10**15, "E": 10**18}
_DURATIONS = ("estimatedRunTime", "maxRunTime", "checkpointInterval", "stopGrace")
_TOP = ("jobName", "jobDesc", "config")
_CONFIG = (
    *("centerId", "specId", "minComputingPower", "nodeCount", "imageId", "imageUrl", "command", "datasetIds"),
    *(
        "priority",
        "isVip",
        "preemptPolicy",
        "vipNodeNames",
        "preemptible",
        "maxPrice",
        "maxRetries",
        "onLost",
    ),
    *("estimatedRunTime", "maxRunTime", "resumable", "checkpointInterval", "stopGrace", "env", "labels"),
    *("port", "public"),
)
_EXCLUSIVE = (("imageId", "imageUrl"), ("specId", "minComputingPower"))
_CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"

# ---------------------------------------------------------------- values


def seconds(text: str, *, of: str) -> int:
    """`90`, `90s`, `15m`, `2h` or `1d` in seconds; `of` names the option in the error."""
    found = re.fullmatch(r"([0-9]+)([smhd]?)", text.strip(), re.ASCII)
    if not found:
        raise WrongUsage(f"{of}: {text!r} is not a duration; write 90, 90s, 15m, 2h or 1d")
    return int(found[1]) * _SECONDS[found[2]]


def flops(text: str, *, of: str) -> int:
    """`312T`, `1.5P` or a whole number of FLOPS."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?(?:[eE]\+?[0-9]{1,2})?)([GTPE]?)", text.strip(), re.ASCII)
    value = Decimal(found[1]) * _FLOPS[found[2]] if found else Decimal("0.5")
    if value != value.to_integral_value():
        raise WrongUsage(f"{of}: {text!r} is not a number of FLOPS; write 312T, 1.5P or 312000000000000")
    return int(value)


def amount(text: str, *, of: str) -> int | float:
    """An amount of CNY, at most six decimals, as the JSON number that shows the same digits."""
    try:
        value = Decimal(text.strip())
    except InvalidOperation:
        value = Decimal("NaN")
    if not value.is_finite() or value < 0 or value != round(value, 6):
        raise WrongUsage(f"{of}: {text!r} is not an amount in CNY; write 20 or 12.50")
    return int(value) if value == value.to_integral_value() else float(value)


def pairs(texts: Sequence[str], *, of: str) -> dict[str, str]:
    """`NAME=value` words as a table; the last one of a name wins."""
    table: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise WrongUsage(f"{of}: {text!r} is not of the form NAME=value")
        table[name] = value
    return table


# ---------------------------------------------------------------- a job file


def read_job_file(path: Path) -> dict[str, Any]:
    """A create request as TOML: the standard's field names.

    Durations may be text such as "2h", and the environment a table `[config.env]`.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
        json.dumps(document)
    except OSError as error:
        raise WrongUsage(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise WrongUsage(f"{path}: is not a TOML file: {error}") from error
    except TypeError as error:
        raise WrongUsage(f"{path}: dates and times have no place in a job; write text in quotes") from error
    _known(path, document, _TOP, "")
    config = document.setdefault("config", {})
    if not isinstance(config, dict):
        raise WrongUsage(f"{path}: config: must be a table, as in [config]")
    _known(path, config, _CONFIG, "config.")
    if isinstance(config.get("env"), dict):  # as TOML writes it best; the request has a list
        config["env"] = [{"key": name, "value": value} for name, value in config["env"].items()]
    for name in _DURATIONS:
        if isinstance(config.get(name), str):
            config[name] = seconds(config[name], of=f"{path}: config.{name}")
    _finite(path, config)
    return document


def _known(path: Path, table: Mapping[str, Any], names: Sequence[str], prefix: str) -> None:
    for name in table:
        if name not in names:
            near = get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(names)}"
            raise WrongUsage(f"{path}: {prefix}{name}: there is no such field; {hint}")


def _finite(path: Path, config: Mapping[str, Any]) -> None:
    for name, value in config.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise WrongUsage(f"{path}: config.{name}: {value} is not a number that can be sent")


# ---------------------------------------------------------------- the request


def command_line(words: Sequence[str]) -> str:
    """The words of a command as one shell line; a single word is a shell line already."""
    return words[0] if len(words) == 1 else shlex.join(words)


def inside_copy(dataset: str, command: str) -> str:
    """`command` run inside a copy of an uploaded folder; it does not run when copying fails."""
    line = f"{{ {command}\n}}" if re.search(r"[;|&\n#]", command) else command
    return f'cp -R "$BROKER_DATASETS_DIR/{dataset}/." . && {line}'


def made_name(command: str) -> str:
    """A valid job name that recalls the command: `python-train-7k2zq`."""
    try:
        words = shlex.split(command)
    except ValueError:
        words = command.split()
    plain = [word for word in words if re.fullmatch(r"[\w./@:+][\w./@:+-]*", word)]
    stems = (re.sub(r"\.[A-Za-z0-9]+$", "", word.rsplit("/", 1)[-1]) for word in plain)
    kept = [slug for stem in stems if (slug := re.sub(r"[^0-9A-Za-z_]+", "-", stem).strip("-"))][:2]
    stem = "-".join(kept or ["job"])[: NAME_LENGTH - 6].strip("-")
    return f"{stem}-{''.join(secrets.choice(_CROCKFORD) for _ in range(5))}"


def merged(
    document: dict[str, Any], flags: Mapping[str, Any], *, name: str, desc: str | None
) -> dict[str, Any]:
    """The create request: `flags` (fields of config; None is not given) win over a job file.

    Of two fields that exclude each other the one given as a flag drops the other.  Environment and
    labels are joined by name.
    """
    config = dict(document.get("config", {}))
    given = {field: value for field, value in flags.items() if value is not None}
    for one, other in _EXCLUSIVE:
        if one in given and other in given:
            raise WrongUsage(f"{one} and {other} were both given; give one of them")
        for flag, dropped in ((one, other), (other, one)):
            if flag in given:
                config.pop(dropped, None)
    for field, value in given.items():
        if field == "labels":
            config[field] = {**_table(config.get(field)), **value}
        elif field == "env":
            config[field] = _joined_env(config.get(field), value)
        else:
            config[field] = value
    request = {**document, "config": config}
    if desc is not None:
        request["jobDesc"] = desc
    if name or not request.get("jobName"):
        request["jobName"] = name or made_name(str(config.get("command", "")))
    return {field: request[field] for field in _TOP if field in request}


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _joined_env(stated: Any, given: Mapping[str, str]) -> list[Any]:
    listed = stated if isinstance(stated, list) else []
    kept = [each for each in listed if not (isinstance(each, dict) and each.get("key") in given)]
    return [*kept, *({"key": name, "value": value} for name, value in given.items())]

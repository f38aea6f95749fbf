"""The frame of every command: exit codes, how an error is told, who the caller is.

What belongs here: what all commands share.  What does not: any one command, and everything heavy:
a client command imports neither the daemon nor a library but typer.
Exit codes: 0 done, 1 the request or the awaited job failed, 2 wrong usage or configuration,
3 the broker is unreachable, 130 interrupted.
"""

from __future__ import annotations

import io
import json
import os
import stat
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from broker.cli.display import json_lines
from broker.client import Client, RequestFailed, Unreachable

DEFAULT_URL = "http://127.0.0.1:8238"


class Code(IntEnum):
    DONE = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    INTERRUPTED = 130


class WrongUsage(Exception):
    """Wrong usage or configuration: exit 2.  The text says what would be right."""


class Failed(Exception):
    """What was asked for did not come about: exit 1."""


# ---------------------------------------------------------------- output


def notice(text: str) -> None:
    """Lines for the person at the terminal, beside the output; nothing in them steers the terminal."""
    harmless = "".join(char if char.isprintable() or char == "\n" else " " for char in text)
    print(harmless, file=sys.stderr, flush=True)


def print_json(document: Any) -> None:
    """The one JSON document of a command with --json."""
    print(json_lines(document))


def tell_rest(shown: int, total: int) -> None:
    """That a listing has more than its page."""
    if shown < total:
        notice(f"{shown} of {total}; more with --limit and --page")


def told(error: RequestFailed) -> str:
    """What the broker refused, in one line, with what to do about it where that is known."""
    code = f" [{error.code} {error.message}]" if error.code else ""
    request = f" (request {error.request_id})" if error.request_id else ""
    advice = ""
    if error.status == 401 and error.code in ("0101", "0102"):
        advice = "; log in with: broker login"
    elif error.retry_after_s is not None:
        advice = f"; try again in {error.retry_after_s} s"
    return f"{error}{code}{request}{advice}"


# ---------------------------------------------------------------- who is asking


@dataclass(frozen=True, slots=True)
class Credentials:
    url: str
    token: str
    user: str = ""


def credentials_file() -> Path:
    """Where login keeps the token, by the XDG rules."""
    stated = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    home = stated if stated.is_absolute() else Path.home() / ".config"
    return home / "computing-broker" / "credentials.json"


def stored() -> Credentials | None:
    """What login stored; None before the first login.  WrongUsage when it cannot be read."""
    file = credentials_file()
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        return Credentials(str(document["url"]), str(document["token"]), str(document.get("user", "")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WrongUsage(f"{file} cannot be used ({error}); log in again with: broker login") from error


def store(credentials: Credentials) -> Path:
    """Keep a login, readable by its user only."""
    file = credentials_file()
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    text = json.dumps(
        {"url": credentials.url, "token": credentials.token, "user": credentials.user}, indent=2
    )
    part = file.with_suffix(".part")
    part.unlink(missing_ok=True)
    with os.fdopen(
        os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, stat.S_IRUSR | stat.S_IWUSR), "w"
    ) as out:
        out.write(text + "\n")
    part.replace(file)
    return file


def caller() -> Credentials:
    """BROKER_URL and BROKER_TOKEN, each before what login stored, before the default address.

    A stored token is only ever sent to the address it was given by.
    """
    environ_url = os.environ.get("BROKER_URL", "").rstrip("/")
    environ_token = os.environ.get("BROKER_TOKEN", "")
    kept = None if environ_url and environ_token else stored()
    url = environ_url or (kept.url if kept else DEFAULT_URL)
    token = environ_token or (kept.token if kept and kept.url == url else "")
    return Credentials(url, token, kept.user if kept else "")


def connect(url: str | None = None, *, answer_s: float | None = None) -> Client:
    """A client for the caller; `url` overrides the address and then brings no token."""
    who = caller() if url is None else Credentials(url, "")
    try:
        return (
            Client(who.url, who.token) if answer_s is None else Client(who.url, who.token, answer_s=answer_s)
        )
    except ValueError as error:
        raise WrongUsage(f"{error}; set BROKER_URL or use --url") from error


def read_secret(prompt: str, *, from_stdin: bool) -> str:
    """A password: the next line of standard input, or typed without echo."""
    if from_stdin:
        line = sys.stdin.readline()
        if not line.strip("\r\n"):
            raise WrongUsage(f"{prompt.lower()}: nothing came on standard input; give one line")
        return line.rstrip("\r\n")
    if not sys.stdin.isatty():
        raise WrongUsage("there is no terminal to type a password at; use --password-stdin")
    from getpass import getpass

    typed = getpass(f"{prompt}: ", stream=sys.stderr)
    if not typed:
        raise WrongUsage(f"{prompt.lower()}: nothing was typed")
    return typed


# ---------------------------------------------------------------- commands


class _Words:
    """Reads text, whole numbers and paths from the command line.

    It stands in for typer's own reading, which imports pydantic: half the time of a short command.
    """

    def __init__(self, kind: type) -> None:
        self._kind = kind

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        several = param.multiple or param.nargs == -1
        if value is None:
            return () if several else None
        return [self._one(each) for each in value] if several else self._one(value)

    def _one(self, value: Any) -> Any:
        try:
            return self._kind(value)
        except ValueError as error:
            raise typer.BadParameter(f"{value!r} is not a whole number.") from error


READ_AS: dict[Any, type] = {str: str, int: int, bool: bool, Path: Path, list[str]: str}
"""What a parameter is declared as, and what reads each of its words."""


def _lighten(params: Sequence[Any]) -> None:
    """Give the parameters of a command the light reader where their type allows it."""
    for param in params:
        # typer keeps a parameter's reader in `_runtime_param` once it is made.  A typer that does
        # otherwise goes on with its own: the same result, more slowly.
        kind = READ_AS.get(getattr(getattr(param, "type_descriptor", None), "annotation", None))
        if kind is not None and getattr(param, "_runtime_param", param) is None:
            param._runtime_param = _Words(kind)


class Command(TyperCommand):
    """A command that is read without pydantic."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        _lighten(self.get_params(ctx))
        return super().parse_args(ctx, args)


class Group(TyperGroup):
    """The same for a group; its help lists the commands under their headings."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        _lighten(self.get_params(ctx))
        return super().parse_args(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        names = self.list_commands(ctx)
        room = formatter.width - 6 - max(len(name) for name in names)
        sections: dict[str, list[tuple[str, str]]] = {}
        for name in names:
            command: Any = self.get_command(ctx, name)
            heading: str = command.rich_help_panel or "Commands"
            sections.setdefault(heading, []).append((name, command.get_short_help_str(room)))
        for heading, rows in sections.items():
            with formatter.section(heading):
                formatter.write_dl(rows)


CONTEXT: dict[str, Any] = {"help_option_names": ["-h", "--help"]}

# Plain text, not rich's boxes: it wraps nothing that a script may search for, and rich is slow to import.
app = typer.Typer(cls=Group, no_args_is_help=True, rich_markup_mode=None, context_settings=CONTEXT)


def group(name: str, heading: str, help: str, *, runs_alone: bool = False) -> typer.Typer:
    """`broker NAME`, with commands of its own; `runs_alone`: without one its callback runs."""
    below = typer.Typer(
        cls=Group,
        no_args_is_help=not runs_alone,
        invoke_without_command=runs_alone,
        rich_markup_mode=None,
        context_settings=CONTEXT,
    )
    app.add_typer(below, name=name, help=help, rich_help_panel=heading)
    return below


JOBS, RESOURCES, ACCOUNT, OPERATORS, DAEMON = "Jobs", "Resources", "Account", "Operators", "Daemon"


def run(prepare: Callable[[], None]) -> NoReturn:
    """Run the command line: `prepare` registers the commands; errors become texts and exit codes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name must not end a command on a small terminal
    try:
        prepare()
        typer.main.get_command(app).main(prog_name="broker")
    except RequestFailed as error:
        _end(told(error), Code.FAILED)
    except Unreachable as error:
        _end(str(error), Code.UNREACHABLE)
    except WrongUsage as error:
        _end(str(error), Code.USAGE)
    except Failed as error:
        _end(str(error), Code.FAILED)
    except OSError as error:
        _end(f"{error.filename}: {error.strerror}" if error.filename else str(error), Code.FAILED)
    finally:
        _flush()
    sys.exit(Code.DONE)


def _flush() -> None:
    """Write out what was printed; a reader that went away, as `head` does, is no error to tell."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # The interpreter flushes once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _end(text: str, code: Code) -> NoReturn:
    if text:
        notice(f"broker: {text}")
    sys.exit(code)

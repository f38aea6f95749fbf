"""The commands of operators to one center directly: doctor, call, and those of each kind of platform.

What belongs here: the words of the command line and how answers are shown.  What does not: what the
commands are: the daemon tells, because its adapters have them, and credentials stay there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from broker.cli.app import OPERATORS, Command, Failed, WrongUsage, app, connect, notice, print_json
from broker.cli.display import clean, fields, json_lines, table
from broker.cli.options import CenterArgument, Json
from broker.client import Client, RequestFailed, Unreachable

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


@app.command("doctor", cls=Command, rich_help_panel=OPERATORS)
def doctor(center: CenterArgument, as_json: Json = False) -> None:
    """Check step by step whether a center can be used, and what to do if not."""
    checks = []
    for check in connect().doctor(center):
        checks.append(check)
        if not as_json:
            print(
                clean(f"{'ok  ' if check['ok'] else 'FAIL'}  {check['name']}: {check['detail']}"), flush=True
            )
    failed = sum(not check["ok"] for check in checks)
    if as_json:
        print_json({"centerId": center, "ok": not failed, "checks": checks})
    if failed:
        raise Failed(f"{failed} of {len(checks)} checks failed")


@app.command("call", cls=Command, rich_help_panel=OPERATORS)
def call(
    center: CenterArgument,
    method: Annotated[str, typer.Argument(metavar="METHOD", help="|".join(METHODS))],
    path: Annotated[str, typer.Argument(metavar="PATH", help="Below the center's address, with its query.")],
    body: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSON to send; - is standard input.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make one call to a center's platform with its credentials; print what it answers.

    It is made once and never repeated, whatever becomes of it.
    """
    if method.upper() not in METHODS:
        raise WrongUsage(f"METHOD: {method!r} is not one of {', '.join(METHODS)}")
    content = None if body is None else _read(body)
    answer = connect().call_center(center, method.upper(), path, content)
    if as_json:
        print_json(answer)
    else:
        notice(f"HTTP {answer['status']}, {answer['contentType']}")
        print(_pretty(answer["body"]))
    if answer["truncated"]:
        notice("the answer is longer than what is shown")
    if answer["status"] >= 400:
        raise Failed(f"center {center} answered HTTP {answer['status']}")


def _read(file: Path) -> str:
    try:
        return sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise WrongUsage(f"{file} is not UTF-8 text") from error


def _pretty(text: str) -> str:
    """JSON in lines; anything else without what would steer the terminal."""
    try:
        return json_lines(json.loads(text))
    except ValueError:
        return "\n".join(map(clean, text.splitlines()))


# ---------------------------------------------------------------- vendor commands


def _vendor(word: str, platform: str) -> None:
    """Register `broker WORD`, whose own words the daemon knows."""

    @app.command(
        word,
        cls=Command,
        rich_help_panel=OPERATORS,
        add_help_option=False,
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
        help=f"What only {platform} centers can do; broker {word} --help lists it.",
    )
    def command(ctx: typer.Context) -> None:
        run(word, platform, ctx.args)


for _word, _platform in (("aihub", "AIHub"), ("cecstack", "CECSTACK"), ("ampha", "Ampha")):
    _vendor(_word, _platform)


def run(word: str, platform: str, words: Sequence[str]) -> None:
    """One vendor command: ask the daemon what there is, read the words by that, run it."""
    # 1. which center: its daemon knows the commands
    stated, rest = _frame(word, add_help=False).parse_known_args(list(words))
    try:
        client = connect()
        center = stated.center or _only_center(client, word, platform)
        told = client.center_commands(center)
        if told["adapter"] != word:
            raise WrongUsage(f"center {center} is no {platform} center: its adapter is {told['adapter']}")
    except (WrongUsage, Unreachable, RequestFailed) as error:
        if not {"-h", "--help"} & set(rest):
            raise
        _frame(word, add_help=True).print_help()
        print(f"\nThe commands of a {platform} center are listed where its broker can be asked: {error}")
        return
    commands = {each["name"]: each for each in told["commands"]}
    if not commands:
        raise Failed(f"center {center} has no commands of its own")
    # 2. the words
    parser = _parser(word, center, commands)
    given = parser.parse_args(list(words))
    if given.command is None:
        parser.print_help()
        return
    command = commands[given.command]
    arguments = _arguments(command, vars(given))
    # 3. the call
    answer = client.run_center_command(center, given.command, arguments, timeout_s=command["timeoutS"])
    if given.as_json:
        print_json(answer)
    else:
        print(_shown(answer["result"]))
    if answer["truncated"]:
        notice("the answer is longer than what is shown")


def _frame(word: str, *, add_help: bool) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"broker {word}", add_help=add_help, allow_abbrev=False)
    parser.add_argument("--center", metavar="CENTER", help="a center's id; needed when there are several")
    parser.add_argument("--json", dest="as_json", action="store_true", help="print the answer as JSON")
    return parser


def _only_center(client: Client, word: str, platform: str) -> str:
    found = [
        each["centerId"]
        for each in client.centers({"pageSize": 1000})["centers"]
        if each.get("adapter") == word
    ]
    if len(found) != 1:
        which = f"one of {', '.join(found)}" if found else f"but there is no {platform} center"
        raise WrongUsage(f"say which center with --center, {which}")
    return str(found[0])


def _parser(word: str, center: str, commands: Mapping[str, Any]) -> argparse.ArgumentParser:
    parser = _frame(word, add_help=True)
    parser.description = f"Commands of center {center}."
    below = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for command in commands.values():
        text = _literal(command["help"])
        one = below.add_parser(command["name"], help=text, description=text, allow_abbrev=False)
        # After the command too; what is not given here must not undo what was given before it.
        one.add_argument("--center", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        one.add_argument(
            "--json", dest="as_json", action="store_true", default=argparse.SUPPRESS, help="print JSON"
        )
        for each in command["arguments"]:
            _add(one, each)
    return parser


def _add(parser: argparse.ArgumentParser, argument: Mapping[str, Any]) -> None:
    option, dest = f"--{argument['name']}", f"argument:{argument['name']}"
    text = _literal(argument["help"]) + (" (required)" if argument["required"] else "")
    if argument["kind"] == "flag":
        parser.add_argument(option, dest=dest, action="store_true", help=text)
        return
    metavar = {"whole": "N", "file": "FILE"}.get(argument["kind"], "TEXT")
    parser.add_argument(
        option,
        dest=dest,
        help=text + ("; may be repeated" if argument["many"] else ""),
        metavar=metavar if not argument["choices"] else "|".join(argument["choices"]),
        required=argument["required"],
        action="append" if argument["many"] else "store",
        type=int if argument["kind"] == "whole" else str,
        choices=argument["choices"] or None,
    )


def _literal(text: str) -> str:
    return clean(text).replace("%", "%%")


def _arguments(command: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for each in command["arguments"]:
        value = given[f"argument:{each['name']}"]
        if value is None or value is False:
            continue
        if each["kind"] == "file":
            value = [_read(Path(one)) for one in value] if each["many"] else _read(Path(value))
        found[each["name"]] = value
    return found


def _shown(result: Any) -> str:
    """A list of objects as a table, an object as lines, the rest as it is."""
    if isinstance(result, list) and result and all(isinstance(each, dict) for each in result):
        names = list(dict.fromkeys(name for each in result for name in each))
        return table(
            [name.upper() for name in names], [[_cell(each.get(n)) for n in names] for each in result]
        )
    if isinstance(result, dict) and result:
        return fields((name, _cell(value)) for name, value in result.items())
    if isinstance(result, str):
        return _pretty(result) if result[:1] in ("{", "[") else "\n".join(map(clean, result.splitlines()))
    return json_lines(result)


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list | bool) else value

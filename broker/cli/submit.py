"""`broker submit`: sends a job, with its folder if asked, and waits for it if asked.

What belongs here: the options of submit and the order of its calls.  What does not: building the
request (broker.cli.request) and waiting (broker.cli.wait).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from broker.cli import request as requests
from broker.cli.app import CONTEXT, JOBS, Command, Failed, WrongUsage, app, connect, notice, print_json
from broker.cli.options import Json
from broker.cli.request import amount, flops, pairs, seconds
from broker.client import ONLINE, TRAIN, Client, Noun


@app.command(
    "submit",
    cls=Command,
    rich_help_panel=JOBS,
    context_settings={**CONTEXT, "allow_interspersed_args": False},
    options_metavar="[OPTIONS] --",
)
def submit(
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="COMMAND", help="What the job runs; one word is taken as a shell line."),
    ] = None,
    name: Annotated[str, typer.Option(help="1 to 64 letters, digits, _ and -; made from the command.")] = "",
    desc: Annotated[str | None, typer.Option(help="A description.")] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", metavar="job.toml", help="A job file; flags win over it.")
    ] = None,
    spec: Annotated[str | None, typer.Option(metavar="ID", help="What each node gets: broker specs.")] = None,
    min_power: Annotated[
        str | None, typer.Option(metavar="FLOPS", help="Instead of --spec: FP16 FLOPS per node, as in 312T.")
    ] = None,
    nodes: Annotated[int | None, typer.Option(help="Number of nodes.")] = None,
    image: Annotated[str | None, typer.Option(metavar="ID", help="Image; default: the broker's.")] = None,
    image_url: Annotated[str | None, typer.Option(metavar="URL", help="A public image instead.")] = None,
    center: Annotated[
        list[str] | None, typer.Option(metavar="CENTER", help="A center it may run at; repeatable.")
    ] = None,
    priority: Annotated[
        str | None, typer.Option(metavar="low|normal|high", help="Order in the queue.")
    ] = None,
    vip: Annotated[bool, typer.Option("--vip", help="A VIP job; needs the right.")] = False,
    preempt_policy: Annotated[
        int | None, typer.Option(metavar="1|2", help="VIP: 1 waits for lower work to end, 2 stops it.")
    ] = None,
    preemptible: Annotated[
        bool | None, typer.Option("--preemptible/--no-preemptible", help="May be stopped for a VIP job.")
    ] = None,
    estimate: Annotated[str | None, typer.Option(metavar="2h", help="How long it will probably run.")] = None,
    max_run_time: Annotated[str | None, typer.Option(metavar="1d", help="It is stopped after that.")] = None,
    max_price: Annotated[str | None, typer.Option(metavar="CNY", help="Ceiling for the whole job.")] = None,
    retries: Annotated[int | None, typer.Option(help="Runs again so often if it fails.")] = None,
    on_lost: Annotated[
        str | None, typer.Option(metavar="wait|rerun|fail", help="When its center is silent about it.")
    ] = None,
    stop_grace: Annotated[str | None, typer.Option(metavar="30s", help="Time to end when stopped.")] = None,
    resumable: Annotated[
        bool, typer.Option("--resumable", help="It can go on from its checkpoints.")
    ] = False,
    checkpoint_interval: Annotated[str | None, typer.Option(metavar="10m", help="Time between them.")] = None,
    env: Annotated[list[str] | None, typer.Option(metavar="K=V", help="Environment; repeatable.")] = None,
    label: Annotated[list[str] | None, typer.Option(metavar="K=V", help="Labels; repeatable.")] = None,
    dataset: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Data it reads; repeatable.")
    ] = None,
    service: Annotated[
        bool, typer.Option("--service", help="An online service: it has an address and no end of its own.")
    ] = False,
    port: Annotated[
        int | None, typer.Option(help="Service: where it listens; BROKER_PORT tells it what it got.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Service: its address needs no token.")] = False,
    upload: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Send this folder and run inside a copy of it.")
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for the end; exit 0 only if it succeeded.")
    ] = False,
    as_json: Json = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the request and send nothing.")] = False,
) -> None:
    """Submit a job: broker submit [OPTIONS] -- COMMAND..."""
    flags: dict[str, Any] = {
        "command": requests.command_line(command) if command else None,
        "specId": spec,
        "minComputingPower": None if min_power is None else flops(min_power, of="--min-power"),
        "nodeCount": nodes,
        "imageId": image,
        "imageUrl": image_url,
        "centerId": center or None,
        "priority": priority,
        "isVip": vip or None,
        "preemptPolicy": preempt_policy,
        "preemptible": preemptible,
        "estimatedRunTime": _seconds(estimate, "--estimate"),
        "maxRunTime": _seconds(max_run_time, "--max-run-time"),
        "maxPrice": None if max_price is None else amount(max_price, of="--max-price"),
        "maxRetries": retries,
        "onLost": on_lost,
        "stopGrace": _seconds(stop_grace, "--stop-grace"),
        "resumable": resumable or None,
        "checkpointInterval": _seconds(checkpoint_interval, "--checkpoint-interval"),
        "env": pairs(env, of="--env") if env else None,
        "labels": pairs(label, of="--label") if label else None,
        "datasetIds": dataset or None,
        "port": port,
        "public": public or None,
    }
    if service and wait:
        raise WrongUsage("--wait: a service has no end of its own; see broker service show")
    document = requests.read_job_file(file) if file else {}
    request = requests.merged(document, flags, name=name, desc=desc)
    client = connect()
    _complete(client, request)
    if upload is not None:
        _with_folder(client, request, upload, send=not dry_run)
    if dry_run:
        print_json(request)
    else:
        _send(client, request, wait=wait, as_json=as_json, noun=ONLINE if service else TRAIN)


def _seconds(text: str | None, option: str) -> int | None:
    return None if text is None else seconds(text, of=option)


def _complete(client: Client, request: dict[str, Any]) -> None:
    """Refuse what cannot be a job, and give a request without an image the broker's default one."""
    config = request["config"]
    stated = config.get("imageId") or config.get("imageUrl")
    if not stated and not config.get("command"):
        raise WrongUsage("there is nothing to run; write the command after --, or name an image that has one")
    if not config.get("specId") and config.get("minComputingPower") is None:
        raise WrongUsage("say what each node needs, with --spec (see: broker specs) or --min-power")
    if not stated:
        config["imageId"] = client.info().get("submit", {}).get("image", "")
        if not config["imageId"]:
            raise WrongUsage("this broker has no default image; choose one with --image or --image-url")


def _with_folder(client: Client, request: dict[str, Any], folder: Path, *, send: bool) -> None:
    """Send `folder` as a data set and run the command inside a copy of it."""
    from broker.client.archive import UnsafeFolder, entries

    config = request["config"]
    if not config.get("command"):
        raise WrongUsage("--upload needs a command to run in the folder; write it after --")
    try:
        if send:
            sent = client.upload(folder, request["jobName"])
            dataset = sent["id"]
            notice(f"uploaded {sent['files']} files, {sent['bytes']} bytes, as data set {dataset}")
        else:
            entries(folder)
            dataset = "UPLOAD"
    except UnsafeFolder as error:
        raise WrongUsage(f"--upload: {error}") from error
    config["datasetIds"] = [*config.get("datasetIds", []), dataset]
    config["command"] = requests.inside_copy(dataset, config["command"])


def _send(client: Client, request: dict[str, Any], *, wait: bool, as_json: bool, noun: Noun) -> None:
    answer = client.create_job(request, noun=noun)
    job = answer["metadata"]["id"]
    if not wait:
        next_ = f"service show {job}" if noun == ONLINE else f"wait {job}"
        if as_json:
            print_json(answer)
        else:
            print(job)
            notice(f"submitted {answer['metadata']['name']}; follow it with: broker {next_}")
        return
    from broker.cli.wait import follow

    notice(f"submitted {job} ({answer['metadata']['name']})")
    (ended,) = follow(client, [job])
    if as_json:
        print_json(ended)
    else:
        print(job)
    if ended["status"] != "SUCCEEDED":
        raise Failed("")

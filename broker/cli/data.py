"""The commands about images, data sets, models and applications.

What belongs here: the calls and their tables.  What does not: centers and specs (broker.cli.centers).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from broker.cli.app import RESOURCES, Command, Failed, app, connect, group, notice, print_json, tell_rest
from broker.cli.display import fields, table
from broker.cli.options import Json, Limit, OnlyCenter, Page

if TYPE_CHECKING:
    from broker.client.answers import AssetItem

Query = Annotated[str | None, typer.Option(metavar="TEXT", help="Only with this in title or description.")]
Category = Annotated[str | None, typer.Option(metavar="LABEL", help="Only with this label.")]
DatasetArgument = Annotated[str, typer.Argument(metavar="ID", help="A data set's id: broker datasets.")]


@app.command("images", cls=Command, rich_help_panel=RESOURCES)
def images(
    center: OnlyCenter = None,
    processor: Annotated[str | None, typer.Option(metavar="TYPE", help="GPU, NPU and so on.")] = None,
    framework: Annotated[str | None, typer.Option(metavar="NAME", help="Such as PyTorch.")] = None,
    limit: Limit = None,
    page: Page = None,
    as_json: Json = False,
) -> None:
    """List the images that centers offer: the ids for submit --image."""
    query = {"centerId": center, "processor": processor, "framework": framework}
    answer = connect().images({**query, "sort": "imageId", "order": "asc", "pageSize": limit, "page": page})
    if as_json:
        print_json(answer)
        return
    rows = [
        (
            each["imageId"],
            each["imageName"],
            each["arch"],
            each["processor"],
            each["framework"],
            each["operationSystem"],
            " ".join(each.get("centerIds", [])),
        )
        for each in answer["images"]
    ]
    print(table(("IMAGE", "NAME", "ARCH", "TYPE", "FRAMEWORK", "SYSTEM", "CENTERS"), rows))
    tell_rest(len(rows), answer["totalSize"])


datasets = group("datasets", RESOURCES, "List, show, upload and delete data sets.", runs_alone=True)


@datasets.callback()
def list_by_default(context: typer.Context, as_json: Json = False) -> None:
    """List, show, upload and delete data sets; without a command: list."""
    if context.invoked_subcommand is None:
        list_datasets(as_json=as_json)


@datasets.command("list", cls=Command)
def list_datasets(
    query: Query = None,
    category: Category = None,
    mine: Annotated[bool, typer.Option("--mine", help="One's own, the private ones too.")] = False,
    limit: Limit = None,
    page: Page = None,
    as_json: Json = False,
) -> None:
    """List the public data sets: the ids for submit --dataset."""
    wanted = _assets_query(query, category, limit, page)
    answer = connect().datasets({**wanted, "owner": "me" if mine else None})
    if as_json:
        print_json(answer)
        return
    rows = [
        (
            each["id"],
            each["title"],
            each["owner"],
            each["size"],
            each["labels"],
            "" if each.get("public", True) else "private",
            " ".join(each.get("centerIds", [])),
        )
        for each in answer["datasets"]
    ]
    print(table(("DATASET", "TITLE", "OWNER", "BYTES", "LABELS", "ACCESS", "CENTERS"), rows))
    tell_rest(len(rows), answer["totalSize"])


@datasets.command("show", cls=Command)
def show_dataset(dataset: DatasetArgument, as_json: Json = False) -> None:
    """Show a data set and where it is."""
    answer = connect().dataset(dataset)
    if as_json:
        print_json(answer)
        return
    print(
        fields(
            [
                ("id", answer["id"]),
                ("title", answer["title"]),
                ("description", answer["desc"]),
                ("owner", answer["owner"]),
                ("bytes", answer["size"]),
                ("MD5", answer.get("md5")),
                ("labels", answer["labels"]),
                ("access", "public" if answer.get("public", True) else "private"),
                ("created", answer.get("createTime")),
            ]
        )
    )
    rows = [
        (each["centerId"], each["state"], each["sizeDone"], each["size"], each["usedTime"], each["message"])
        for each in answer["copies"]
    ]
    if rows:
        print()
        print(table(("CENTER", "STATE", "DONE", "BYTES", "USED", "MESSAGE"), rows))


@datasets.command("upload", cls=Command)
def upload_dataset(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="One file; pack a folder first.")],
    title: Annotated[str, typer.Option(metavar="TEXT", help="Default: the file's name.")] = "",
    desc: Annotated[str, typer.Option(metavar="TEXT", help="A description.")] = "",
    labels: Annotated[str, typer.Option(metavar="LABELS", help="Between commas.")] = "",
    private: Annotated[bool, typer.Option("--private", help="For oneself and the tenant's admins.")] = False,
    as_json: Json = False,
) -> None:
    """Upload a file as a data set; its MD5 and size are checked."""
    from broker.client.form import FileChanged

    if not file.is_file():
        raise Failed(f"{file} is not a file; a folder is packed first, or sent with submit --upload")
    try:
        answer = connect().upload_dataset(
            file, title or file.name, desc=desc, labels=labels, public=not private
        )
    except FileChanged as error:
        raise Failed(str(error)) from error
    print_json(answer) if as_json else print(answer["id"])


@datasets.command("delete", cls=Command)
def delete_dataset(dataset: DatasetArgument) -> None:
    """Delete a data set that no job reads which has not ended; its copies at centers go too."""
    connect().delete_dataset(dataset)
    notice(f"{dataset} is deleted")


@app.command("models", cls=Command, rich_help_panel=RESOURCES)
def models(
    query: Query = None,
    category: Category = None,
    limit: Limit = None,
    page: Page = None,
    as_json: Json = False,
) -> None:
    """List the models that centers have."""
    answer = connect().models(_assets_query(query, category, limit, page))
    if as_json:
        print_json(answer)
    else:
        _print_assets("MODEL", answer["models"], answer["totalSize"])


@app.command("apps", cls=Command, rich_help_panel=RESOURCES)
def apps(
    query: Query = None,
    category: Category = None,
    limit: Limit = None,
    page: Page = None,
    as_json: Json = False,
) -> None:
    """List the applications that centers have."""
    answer = connect().apps(_assets_query(query, category, limit, page))
    if as_json:
        print_json(answer)
    else:
        _print_assets("APP", answer["apps"], answer["totalSize"])


def _assets_query(
    query: str | None, category: str | None, limit: int | None, page: int | None
) -> dict[str, str | int | None]:
    return {"query": query, "category": category, "order": "asc", "pageSize": limit, "page": page}


def _print_assets(heading: str, assets: Sequence[AssetItem], total: int) -> None:
    rows = [(e["id"], e["title"], e["owner"], e["labels"], " ".join(e.get("centerIds", []))) for e in assets]
    print(table((heading, "TITLE", "OWNER", "LABELS", "CENTERS"), rows))
    tell_rest(len(rows), total)

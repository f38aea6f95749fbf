"""Jobs that a command names, each by its id or, among one's own, by its name.

What belongs here: what training jobs and online services have in common there, stopping and deleting
included.  What does not: the commands (broker.cli.jobs, broker.cli.services).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from broker.cli.app import Failed, WrongUsage, notice, told
from broker.client import ONLINE, TRAIN, Client, Noun, RequestFailed

Result = TypeVar("Result")


def with_job(client: Client, job: str, call: Callable[[str], Result]) -> Result:
    """`call` with a job id; where the broker knows no such id, `job` is the name of an own job."""
    try:
        return call(job)
    except RequestFailed as error:
        if error.code != "0240":
            raise
        return call(_id_of(client, job, error))


def _id_of(client: Client, name: str, unknown: RequestFailed) -> str:
    ids: list[str] = []
    for noun in (TRAIN, ONLINE):  # they share their names
        mine = client.all_jobs({"query": name, "owner": "me"}, noun=noun)
        ids = ids or [item["metadata"]["id"] for item in mine if item["metadata"]["name"] == name]
    if not ids:
        raise unknown
    if len(ids) > 1:
        raise WrongUsage(f"{name!r} is the name of {len(ids)} jobs; say which by id: {', '.join(ids)}")
    return ids[0]


def _each(client: Client, jobs: Sequence[str], call: Callable[[str], None]) -> None:
    """`call` for every job, whatever became of the others; Failed at the end if one failed."""
    failed = 0
    for job in jobs:
        try:
            with_job(client, job, call)
        except RequestFailed as error:
            failed += 1
            notice(f"{job}: {told(error)}")
    if failed:
        raise Failed(f"{failed} of {len(jobs)} failed" if len(jobs) > 1 else "")


def stop_each(client: Client, jobs: Sequence[str], noun: Noun) -> None:
    def stop(job: str) -> None:
        answer = client.stop_job(job, noun=noun)
        print(f"{answer['id']} {'stopped' if answer['stoppedTime'] else 'is being stopped'}")

    _each(client, jobs, stop)


def delete_each(client: Client, jobs: Sequence[str], noun: Noun) -> None:
    def delete(job: str) -> None:
        client.delete_job(job, noun=noun)
        print(f"{job} deleted")

    _each(client, jobs, delete)

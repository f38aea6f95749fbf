"""A synchronous client of the HTTP API, on the standard library.

What belongs here: the client, put together of its calls by subject, and what it is used with.  What does
not: one exchange (broker.client.exchange), the shapes of the answers (broker.client.answers), credentials
files, texts for people, waiting loops (broker.cli.*).
"""

from __future__ import annotations

from broker.client.daemon import DaemonCalls
from broker.client.data import DataCalls
from broker.client.errors import EventsEnded, RequestFailed, Unreachable
from broker.client.exchange import Query
from broker.client.jobs import ONLINE, TRAIN, JobCalls, Noun
from broker.client.money import MoneyCalls
from broker.client.people import PeopleCalls
from broker.client.resources import ResourceCalls

__all__ = [
    "ONLINE",
    "TRAIN",
    "Client",
    "EventsEnded",
    "Noun",
    "Query",
    "RequestFailed",
    "Unreachable",
]


class Client(JobCalls, ResourceCalls, DataCalls, PeopleCalls, MoneyCalls, DaemonCalls):
    """Every call of the API; one method each."""

"""Rows of the store and the indexes that keep its promises.

What belongs here: columns, keys, indexes, one module per noun.  What does not: any query
(broker.store).  Rows never leave the store.  Times are int64 milliseconds since the epoch UTC (`ms`),
money is int64 micro-CNY, states are the words of broker.core.model, documents are JSON.
"""

from broker.tables.centers import Center, Image, Pool
from broker.tables.data import Asset, Copy, Dataset, JobDataset
from broker.tables.installation import Counter, Lease, Setting
from broker.tables.jobs import Event, Idempotency, Job, JobLabel, Outbox, Run
from broker.tables.money import Bill, LedgerEntry, Meter, Purse, UserLink
from broker.tables.people import Account, ApiKey, Tenant, Token
from broker.tables.rounds import Deferral, Forecast, Reservation, Round, RunHistory

__all__ = [
    "Account",
    "ApiKey",
    "Asset",
    "Bill",
    "Center",
    "Copy",
    "Counter",
    "Dataset",
    "Deferral",
    "Event",
    "Forecast",
    "Idempotency",
    "Image",
    "Job",
    "JobDataset",
    "JobLabel",
    "Lease",
    "LedgerEntry",
    "Meter",
    "Outbox",
    "Pool",
    "Purse",
    "Reservation",
    "Round",
    "Run",
    "RunHistory",
    "Setting",
    "Tenant",
    "Token",
    "UserLink",
]

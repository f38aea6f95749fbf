"""The client's calls about money: prices, bills, budgets, balances.

What belongs here: one method per call, which broker.client.Client has.  What does not: the exchange.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, cast

from broker.client.exchange import Exchange, Query, segment

if TYPE_CHECKING:
    from broker.client.answers import (
        Balance,
        BillPage,
        BillSummary,
        LedgerItem,
        LedgerPage,
        PricePage,
    )


def _amount(cny: Decimal) -> int | float:
    """CNY as a JSON number: fen up to a million million CNY are exact."""
    return int(cny) if cny == cny.to_integral_value() else float(cny)


class MoneyCalls(Exchange):
    """The part of the client that is about money."""

    def prices(self, query: Query | None = None) -> PricePage:
        return cast("PricePage", self._json("GET", "/resource/prices", query=query))

    def bills(self, query: Query | None = None) -> BillPage:
        return cast("BillPage", self._json("GET", "/bills", query=query))

    def bill_summary(self, group_by: str, query: Query | None = None) -> BillSummary:
        asked = {"groupBy": group_by, **(query or {})}
        return cast("BillSummary", self._json("GET", "/bills/summary", query=asked))

    def balance(self, tenant: str) -> Balance:
        return cast("Balance", self._json("GET", f"/broker/v1/tenants/{segment(tenant)}/balance"))

    def ledger(self, tenant: str, query: Query | None = None) -> LedgerPage:
        return cast(
            "LedgerPage", self._json("GET", f"/broker/v1/tenants/{segment(tenant)}/ledger", query=query)
        )

    def set_budget(self, tenant: str, cny: Decimal, *, per: str = "total") -> Balance:
        """`per` is month or total."""
        body = {"cny": _amount(cny), "per": per}
        return cast("Balance", self._json("POST", f"/broker/v1/tenants/{segment(tenant)}/budget", body=body))

    def remove_budget(self, tenant: str) -> None:
        self._json("DELETE", f"/broker/v1/tenants/{segment(tenant)}/budget")

    def add_to_balance(self, tenant: str, cny: Decimal, *, note: str = "") -> LedgerItem:
        body = {"amount": _amount(cny), "note": note}
        return cast(
            "LedgerItem", self._json("POST", f"/broker/v1/tenants/{segment(tenant)}/ledger", body=body)
        )

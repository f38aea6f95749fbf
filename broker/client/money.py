"""The client's calls about money: prices, bills, budgets, balances, links of platform users."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

if TYPE_CHECKING:
    from broker.client.answers import (
        Balance,
        BillPage,
        BillSummary,
        LedgerItem,
        LedgerPage,
        LinkPage,
        PricePage,
    )

Query = Mapping[str, str | int | Sequence[str] | None]


def _amount(cny: Decimal) -> int | float:
    """CNY as a JSON number: fen up to a million million CNY are exact."""
    return int(cny) if cny == cny.to_integral_value() else float(cny)


class MoneyCalls:
    """A part of broker.client.Client, which has `_json`."""

    def _json(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        answer_s: float | None = None,
    ) -> Any:
        raise NotImplementedError

    def prices(self, query: Query | None = None) -> PricePage:
        return cast("PricePage", self._json("GET", "/resource/prices", query=query))

    def bills(self, query: Query | None = None) -> BillPage:
        return cast("BillPage", self._json("GET", "/bills", query=query))

    def bill_summary(self, group_by: str, query: Query | None = None) -> BillSummary:
        asked = {"groupBy": group_by, **(query or {})}
        return cast("BillSummary", self._json("GET", "/bills/summary", query=asked))

    def balance(self, tenant: str) -> Balance:
        return cast("Balance", self._json("GET", f"/broker/v1/tenants/{_word(tenant)}/balance"))

    def ledger(self, tenant: str, query: Query | None = None) -> LedgerPage:
        return cast(
            "LedgerPage", self._json("GET", f"/broker/v1/tenants/{_word(tenant)}/ledger", query=query)
        )

    def set_budget(self, tenant: str, cny: Decimal, *, per: str = "total") -> Balance:
        """`per` is month or total."""
        body = {"cny": _amount(cny), "per": per}
        return cast("Balance", self._json("POST", f"/broker/v1/tenants/{_word(tenant)}/budget", body=body))

    def remove_budget(self, tenant: str) -> None:
        self._json("DELETE", f"/broker/v1/tenants/{_word(tenant)}/budget")

    def add_to_balance(self, tenant: str, cny: Decimal, *, note: str = "") -> LedgerItem:
        body = {"amount": _amount(cny), "note": note}
        return cast("LedgerItem", self._json("POST", f"/broker/v1/tenants/{_word(tenant)}/ledger", body=body))

    def links(self, account: str) -> LinkPage:
        return cast("LinkPage", self._json("GET", f"/broker/v1/accounts/{_word(account)}/links"))

    def link_user(self, account: str, center: str, user: str, *, unlink: bool = False) -> LinkPage:
        there = f"/broker/v1/accounts/{_word(account)}/link"
        other = f"/broker/v1/accounts/{_word(account)}/unlink"
        body = {"centerId": center, "user": user}
        return cast("LinkPage", self._json("POST", other if unlink else there, body=body))


def _word(text: str) -> str:
    return quote(text, safe="")

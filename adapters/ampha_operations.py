"""What an Ampha platform asks of whoever operates it: may a user create a task, and what does it cost.

Here: proving who calls, reading the questions and writing the answers (section 12).  Not here: who may
and at what price; the broker's desk says that, from memory.  Nothing here calls the platform or
waits for a call that does: it asks while it creates a task, and who waits for that may be this broker.

The signature is the same in every call, a secret like a password: these paths belong behind TLS.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from decimal import Decimal
from typing import Any

from adapters.ampha_specs import Preset, same_product
from adapters.ampha_wire import BLOCK_BYTES, KEY_BYTES, encrypted, key_bytes
from broker.adapter import Callback, Connection, Desk, PlatformRequest, RawAnswer
from broker.core.charges import cny
from broker.core.model import MICRO, CenterId, NodeShape

FEE = "/the3rdPlatform/api/hongyun/queryPresetSpecFee"
USER = "/the3rdPlatform/api/hongyun/queryUserMsg"
PATHS = (("POST", FEE), ("POST", USER))

MISSING, UNKNOWN, BROKEN = 1001, 1002, 1003
LOOK_S = 0.5
"""The platform waits for an answer, and its user for the platform."""
UNLIMITED = "999999999元"
"""The balance of a user whose tenant has no limit: the platform wants a number."""

Ask = Callable[[str, list[tuple[str, int]]], dict[str, Any]]
"""Data for a user and products, as (specId, instances)."""

_NO_SPEC = "该规格套餐不存在"
_NO_USER = "该账户不存在"
_LATER = "内部服务异常，请稍后重试"


class Refusal(Exception):
    """An answer without data."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Stale(Refusal):
    """What is asked for is not in the desk's picture, which may be some seconds old."""


class Operations:
    """The callbacks of one center; none without `callback_access_key`."""

    def __init__(self, connection: Connection) -> None:
        credentials = connection.credentials
        self._center: CenterId = connection.center
        self._desk: Desk | None = connection.desk
        self._access_key = credentials.get("callback_access_key", "")
        self._signature = _signature(credentials) if self._access_key else ""
        self._creating: dict[str, int] = {}  # the platform's user id -> tasks being created as it
        self.own: str | None = None  # the user that we are there
        self.specs: Mapping[str, NodeShape] = {}  # of whole cards, by the platform's id
        self.nodes: Collection[NodeShape] = ()  # as last reported

    @property
    def active(self) -> bool:
        return bool(self._access_key) and self._desk is not None

    def know(self, presets: Iterable[Preset]) -> None:
        """The platform's specs; parts of cards are told no price."""
        self.specs = {
            each.id: NodeShape(
                "", each.cores, each.memory_gib, each.product if each.count else "", each.count
            )
            for each in presets
            if each.share == "none"
        }

    def callbacks(self) -> tuple[Callback, ...]:
        if not self.active:
            return ()
        return (Callback("POST", FEE, self.fee), Callback("POST", USER, self.user))

    @asynccontextmanager
    async def creating(self, user: str) -> AsyncIterator[None]:
        """While the block runs, tasks of this user there are the broker's own."""
        self.own = user
        self._creating[user] = self._creating.get(user, 0) + 1
        try:
            yield
        finally:
            self._creating[user] -= 1

    # ------------------------------------------------------------ the two questions

    async def fee(self, asked: PlatformRequest) -> RawAnswer | None:
        """queryPresetSpecFee: what one instance of each product costs per hour, and all together."""
        return await self._answered(asked, self._fee) if self._proven(asked) else None

    async def user(self, asked: PlatformRequest) -> RawAnswer | None:
        """queryUserMsg: whether the user may create tasks now, and what is left to spend."""
        return await self._answered(asked, self._user) if self._proven(asked) else None

    def _proven(self, asked: PlatformRequest) -> bool:
        """Whether our center has made the request: its key and signature, in constant time."""
        headers = {name.lower(): value for name, value in asked.headers.items()}
        key, signature = headers.get("accesskeyid", ""), headers.get("signature", "")
        same_key = hmac.compare_digest(key.encode(), self._access_key.encode())
        return hmac.compare_digest(signature.upper().encode(), self._signature.upper().encode()) and same_key

    async def _answered(self, asked: PlatformRequest, ask: Ask) -> RawAnswer:
        try:
            question = _question(asked.body)
            try:
                data = ask(*question)
            except Stale:
                await self._look()
                data = ask(*question)
            answer = {"code": 200, "success": True, "message": "success", "data": data}
        except Refusal as no:
            answer = {"code": no.code, "success": False, "message": str(no), "data": None}
        return RawAnswer(200, json.dumps(answer, ensure_ascii=False).encode())

    async def _look(self) -> None:
        """A new picture: one read of the broker's own store, and no more of it than there is time for."""
        assert self._desk is not None
        try:
            async with asyncio.timeout(LOOK_S):
                await self._desk.look()
        except TimeoutError:
            raise Refusal(BROKEN, _LATER) from None

    def _fee(self, _user: str, products: list[tuple[str, int]]) -> dict[str, Any]:
        told, whole = [], 0
        for spec_id, count in products:
            one = self._rate(spec_id)
            whole += one * count
            # The document says specId in its table and orderId in its sample.
            told.append(
                {
                    "specId": spec_id,
                    "orderId": spec_id,
                    "instanceNum": count,
                    "presetSpecFee": f"{_plain(one)}元/小时",
                }
            )
        return {"productFee": f"{cny(whole):.2f}元/小时", "products": told}

    def _rate(self, spec_id: str) -> int:
        """Micro-CNY of one instance per hour, where it is cheapest."""
        spec = self.specs.get(spec_id)
        if spec is None:
            raise Refusal(UNKNOWN, _NO_SPEC)
        assert self._desk is not None
        rates = [self._desk.rate_micro(self._center, shape) for shape in self._on_nodes(spec)]
        known = [rate for rate in rates if rate is not None]
        if not known:
            raise Stale(UNKNOWN, _NO_SPEC)
        return min(known)

    def _on_nodes(self, want: NodeShape) -> set[NodeShape]:
        """A spec as the nodes spell their product."""
        return {
            replace(want, arch=node.arch, accelerator=node.accelerator)
            for node in self.nodes
            if bool(want.accelerators) is bool(node.accelerators)
            and same_product(want.accelerator, node.accelerator)
        }

    def _user(self, user: str, _products: list[tuple[str, int]]) -> dict[str, Any]:
        assert self._desk is not None
        standing = self._desk.standing(self._center, user)
        if self._creating.get(user, 0) > 0:  # the broker's own task: it was judged when it was placed
            may = True
        elif standing is not None:
            may = standing.may_create
        elif user == self.own:  # perhaps a task of ours whose creation has no answer yet
            may = True
        else:
            raise Stale(UNKNOWN, _NO_USER)
        left = None if standing is None else standing.left_micro
        return {
            "createPermission4Ai": may,
            "accountBalance": UNLIMITED if left is None else f"{cny(left):.2f}元",
        }


def _signature(credentials: Mapping[str, str]) -> str:
    """What the platform sends (1.8): the secret encrypted with `signature_key`; without one, as it is.

    Raises ValueError that names the key.
    """
    secret = credentials["callback_secret_key"]
    if not credentials.get("signature_key"):
        return secret
    key = key_bytes(credentials, "signature_key", KEY_BYTES)
    iv = bytes(BLOCK_BYTES)
    if credentials.get("signature_iv"):
        iv = key_bytes(credentials, "signature_iv", (BLOCK_BYTES,))
    return encrypted(secret, key, iv)


def _question(body: bytes) -> tuple[str, list[tuple[str, int]]]:
    """The user, and products as (specId, instances).  Raises Refusal."""
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        asked = None
    if not isinstance(asked, dict):
        asked = {}
    _text(asked, "tenantId")
    user, rows = _text(asked, "userId"), asked.get("products")
    if not isinstance(rows, list) or not rows:
        raise _missing("products")
    return user, [_product(row) for row in rows]


def _product(row: Any) -> tuple[str, int]:
    if not isinstance(row, dict):
        raise _missing("products")
    count = row.get("instanceNum")
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MICRO:
        raise _missing("instanceNum")
    return _text(row, "specId"), count


def _text(row: Mapping[str, Any], name: str) -> str:
    """A text; the platform's ids are also numbers."""
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise _missing(name)
    return str(value)


def _missing(name: str) -> Refusal:
    return Refusal(MISSING, f"参数（{name}）不能为空")


def _plain(micro: int) -> str:
    """CNY without zeros at the end: 10, 12.5."""
    return f"{(Decimal(micro) / MICRO).normalize():f}"

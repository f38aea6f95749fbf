"""The platform asks whoever operates it before it creates a task of a preset spec (spec 12).

What belongs here: the two calls with their headers, and what follows from their answers.  What does
not: who answers.  A denial, an answer other than 200 or none in time refuses the creation.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tests.emulators.ampha.wire import Call, No

FEE = "/the3rdPlatform/api/hongyun/queryPresetSpecFee"
USER = "/the3rdPlatform/api/hongyun/queryUserMsg"
MONEY = re.compile(r"-?[0-9]+(\.[0-9]+)?元(/小时)?")


@dataclass
class Operations:
    """What capabilitySetting has set.  `answers` are all that were given: path, question, answer."""

    url: str
    access_key: str
    signature: str
    timeout_s: float = 3.0
    answers: list[tuple[str, Any, Any]] = field(default_factory=list)

    async def permit(self, call: Call) -> None:
        """Raises No unless the operator lets the user create this task and tells what it costs."""
        items = call.body["resource"]
        products = [{"specId": item["specId"], "instanceNum": item["numbers"]} for item in items]
        question = {"tenantId": "101", "userId": str(call.user), "products": products}
        told = await self.ask(USER, question)
        if told["createPermission4Ai"] is not True:
            raise No(f"没有创建权限，余额{told['accountBalance']}")
        fees = await self.ask(FEE, question)
        if len(fees["products"]) != len(products):
            raise No("第三方运营平台套餐费用查询失败")
        for amount in (told["accountBalance"], fees["productFee"], *_fees(fees)):
            if not MONEY.fullmatch(amount):
                call.center.complain(call.operation, f"{amount!r} is no amount")

    async def ask(self, path: str, question: dict[str, Any]) -> Any:
        headers = {"AccessKeyId": self.access_key, "Signature": self.signature}
        timeout = aiohttp.ClientTimeout(total=self.timeout_s)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.post(self.url + path, json=question, headers=headers) as got,
            ):
                answer = await got.json()
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            self.answers.append((path, question, repr(error)))
            raise No("第三方运营平台服务异常") from None
        self.answers.append((path, question, answer))
        if answer.get("code") != 200 or answer.get("success") is not True:
            raise No(f"第三方运营平台：{answer.get('message')}")
        return answer["data"]


def _fees(fees: dict[str, Any]) -> list[str]:
    return [each["presetSpecFee"] for each in fees["products"]]

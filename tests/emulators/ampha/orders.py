"""Work orders of the emulated platform (spec 14)."""

from __future__ import annotations

import json
from typing import Any

from tests.emulators.ampha.office import PAGE
from tests.emulators.ampha.wire import (
    SYS,
    TEN,
    USR,
    Answer,
    Call,
    Fields,
    No,
    Route,
    e2,
    e3,
    maybe,
    number,
    text,
    thing,
    zoned,
)


def _order(call: Call) -> dict[str, Any]:
    order = call.center.orders.get(call.body.get("id") or call.body.get("workOrderId", ""))
    if order is None:
        raise No("工单不存在")
    return order


async def add_order(call: Call) -> Answer:
    json.loads(call.body["content"])
    id = call.center.world.hex()
    call.center.orders[id] = {
        **call.body,
        "id": id,
        "createTime": zoned(call.center.world.now()),
        "enableStatus": "--",
        "isEditOrder": 1,
    }
    return e2({"orderId": None, "tradeAmount": None, "thirdPayment": None}, "申请成功")


async def my_orders(call: Call) -> Answer:
    criteria = call.body["queryCriteria"]
    rows = [o for o in call.center.orders.values() if o["creator"] == criteria["creator"]]
    return e3({"total": len(rows), "rows": [call.page(rows)]}, "resource.workorder.querySuccess")


async def orders_to_approve(call: Call) -> Answer:
    rows = list(call.center.orders.values())
    return e3({"total": len(rows), "rows": [call.page(rows)]}, "resource.workorder.querySuccess")


async def find_order(call: Call) -> Answer:
    return e3({**_order(call), "tenantId": "200"}, "resource.workorder.querySuccess")


async def withdraw_order(call: Call) -> Answer:
    _order(call)["status"] = 4
    return e3({"flag": "success", "info": "revocation.success"}, "resource.workorder.revokedFail")


async def approve_order(call: Call) -> Answer:
    asked = call.body["workOrder"]
    if call.body["approvalId"] != call.user:
        raise No("审批人错误")
    order = call.center.orders.get(asked["id"])
    if order is None:
        raise No("工单不存在")
    order["status"] = asked["status"]
    content = json.loads(order["content"])
    if order["type"] == 5 and asked["status"] == 2:
        for remain, wanted in (("remainGpu", "gpuMemory"), ("remainJobNum", "maxOperation")):
            if wanted in content:
                call.center.quota[remain] = content[wanted]
    return e3(None)


ORDER: Fields = {
    "applyReason": text(),
    "approvalStatus": number(),
    "creator": text(),
    "status": number(1),
    "title": text(),
    "type": number(1, 2, 3, 4, 5, 6),
    "applyType": text("new"),
    "content": text(),
}
CRITERIA: Fields = {
    "approval": maybe(str),
    "approvalStatus": maybe(int),
    "creator": maybe(str),
    "status": maybe(int),
    "title": maybe(str),
    "type": maybe(int),
    "groupId": maybe(str),
}
APPROVAL: Fields = {
    "approvalId": text(),
    "isEditOrder": text("true", "false"),
    "editContent": text(),
    "workOrder": thing({"status": number(2, 3), "approvalReason": text(), "id": text()}),
}
WORK = "/api/resource/workOrder/"


ROUTES = (
    Route("add_order", "POST", WORK + "addWorkOrder", add_order, 2, ORDER, roles=(USR,), effect=True),
    Route(
        "my_orders",
        "POST",
        WORK + "findPageList",
        my_orders,
        3,
        {**PAGE, "queryCriteria": thing(CRITERIA)},
        roles=(USR,),
    ),
    Route("find_order", "POST", WORK + "findById", find_order, 3, {"id": text()}, roles=(USR, TEN)),
    Route(
        "withdraw_order",
        "POST",
        WORK + "deleteWorkOrder",
        withdraw_order,
        3,
        {"id": text()},
        roles=(USR,),
        effect=True,
    ),
    Route(
        "approve_order",
        "POST",
        WORK + "changeApprovalStatus",
        approve_order,
        3,
        APPROVAL,
        roles=(TEN,),
        effect=True,
    ),
    Route(
        "orders_to_approve",
        "POST",
        WORK + "findSearchByApprover",
        orders_to_approve,
        3,
        {**PAGE, "applyType": text("userOrder", "tenantOrder", "all"), "queryCriteria": thing(CRITERIA)},
        roles=(SYS, TEN),
    ),
)

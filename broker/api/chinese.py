"""Chinese meanings of the fields of bodies, for the OpenAPI document and the page made from it.

What belongs here: one text for each described field of models.py and its like, by model and name on
the wire.  What does not: anything a request is judged by.
"""

from __future__ import annotations

from collections.abc import Mapping

FIELDS: Mapping[str, Mapping[str, str]] = {
    "Login": {"authMethod": '固定为 "password"。'},
    "LoginUser": {"name": "用户名。", "password": "密码。"},
    "ChangePassword": {"old": "当前密码。", "new": "新密码。"},
    "EnvEntry": {
        "key": "以字母或 _ 开头，其后还可有数字；不得以 BROKER_ 开头。",
        "value": "最多 32 KiB。",
    },
    "Config": {
        "centerId": "候选中心；空或缺省时由 broker 选择。",
        "specId": "/resource/specs 中的规格，按节点。",
        "minComputingPower": "每节点 FP16 FLOPS，代替 specId：任何不低于此值的规格。",
        "nodeCount": "节点数。",
        "imageId": "/resource/images 中的镜像；或用 imageUrl。",
        "imageUrl": "公开镜像地址，1 到 1024 个字符；或用 imageId。",
        "command": "运行的命令，最多 64 KiB。",
        "priority": "排队顺序；本身不会触发抢占。",
        "isVip": "VIP 作业；需要权限。",
        "preemptPolicy": "仅限 VIP。1（默认）：等待低级别作业结束；2：停止它们。",
        "vipNodeNames": "仅限 VIP。平台支持时为其保留的节点。",
        "preemptible": "可否被抢占。low 与 normal 的训练作业默认 true，其余默认 false。",
        "estimatedRunTime": "预计运行秒数，用于规划。",
        "maxRunTime": "秒；超过后停止。",
        "maxPrice": "元，整个作业按预计时间计算的价格上限；最多六位小数。",
        "maxRetries": "训练作业：自身失败后再试的次数，默认 0。在线服务：自行结束后再启动的次数，默认 10。",
        "onLost": "中心对某次运行没有消息时：等待；再运行一次，可能运行两次；或判为失败。",
        "resumable": "能否从 BROKER_CHECKPOINT_DIR 继续。",
        "checkpointInterval": "检查点间隔秒数。",
        "stopGrace": "停止前的宽限秒数，受中心上限约束。",
        "env": "环境变量。",
        "datasetIds": "作业读取的数据集。",
        "port": "仅限在线服务：希望监听的端口；见 BROKER_PORT。",
        "public": "仅限在线服务：访问其地址不需要 token。默认 false。",
        "labels": "标签，可用于查询。",
    },
    "CreateTrainJob": {
        "jobName": "1 到 64 个字符：数字、字母、_ 和 -。",
        "jobDesc": "最多 256 个字符。",
    },
    "CreateOnlineJob": {
        "jobName": "1 到 64 个字符：数字、字母、_ 和 -。",
        "jobDesc": "最多 256 个字符。",
    },
    "Resolve": {
        "neverRan": "true：从未运行。",
        "remote": "它在中心的名称。",
        "ended": "它的结局。",
    },
    "CreateAccount": {
        "name": "1 到 64 个字符：字母、数字和 . _ @ -。",
        "password": "1 到 1024 个字符。",
        "role": "账号能看到什么、能做什么。",
        "tenant": "租户；不存在则创建。",
    },
    "Register": {
        "name": "1 到 64 个字符：字母、数字和 . _ @ -。",
        "password": "1 到 1024 个字符。",
        "tenant": "开放注册的租户；可省略。",
    },
    "CreateTenant": {"id": "1 到 64 个字符：字母、数字和 . _ -。"},
    "CreateKey": {
        "name": "在本账号的密钥中唯一；1 到 64 个字符。",
        "scopes": "可用于哪些操作。",
        "application": "使用此密钥的应用；可省略。",
        "expiresAt": "失效时间，须在将来；可省略。",
    },
    "SetBudget": {
        "cny": "元，最多两位小数。",
        "per": "month：每个自然月；total：从现在起总共。",
    },
    "AddEntry": {
        "amount": "元；小于 0 表示扣除。",
        "note": "原因，最多 255 个字符。",
    },
    "LinkUser": {
        "centerId": "中心。",
        "user": "该用户在中心平台上的 id。",
    },
    "Right": {"right": "权限。"},
    "SetPassword": {"password": "新密码。"},
    "CenterCall": {
        "method": "HTTP 方法。",
        "path": "中心地址之下的路径。",
        "body": "原样作为 JSON 发送。",
    },
    "RunCommand": {"arguments": "参数，按名称给出。"},
}

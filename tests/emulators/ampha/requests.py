"""What requests about tasks must look like: the tables of the platform's document (spec 6.1, 6.2)."""

from __future__ import annotations

from tests.emulators.ampha.wire import Field, Fields, array, flag, maybe, number, text, thing

KINDS = ("调优", "预训练", "强化学习", "直接偏好", "模型训练")
GPU: Fields = {
    "gpuShare": text("none", "mig", "vgpu"),
    "gpuNum": number(),
    "gpuCores": maybe(int),
    "gpuMem": maybe(int),
    "migRes": maybe(str),
    "gpuResourceType": maybe(str),
}
RESOURCE: Fields = {
    "nodeType": text("Node", "Master", "Worker", "master", "worker", need=False),
    "numbers": number(),
    "cpuNumber": number(),
    "memory": number(need=False),
    "specId": maybe(str),
    "gpuResource": thing(GPU),
}
PARAMETER: Fields = {
    "name": text(),
    "value": text(),
    "description": text(need=False),
    "visiable": text("true", "false", need=False),
    "hidden": flag(need=False),
    "custom": flag(need=False),
}
PAIR: Fields = {"key": text(), "value": text()}
CREATE: Fields = {
    **{
        name: text()
        for name in (
            *("name", "zoneId", "zoneName", "resourceGroupKey", "image", "imageId", "imageName"),
            *("imageVersion", "imageVersionId", "algorithmPath", "startupFile", "command", "inputDir"),
            *("originModelDir", "fineTuneStrategy", "llmTrainFramework", "userId", "userName"),
        )
    },
    **{
        name: text(need=False)
        for name in (
            *("resourceName", "algorithmId", "algorithmName", "algorithmVersion", "algorithmVersionId"),
            *("datasetId", "datasetName", "datasetVersion", "datasetVersionId", "outputDir", "workingDir"),
            *("modelId", "modelName", "modelVersion", "modelVersionId", "fineTuneStrategyId", "describe"),
        )
    },
    "type": text("TensorFlow", "PyTorch", "scikit-learn", "MPI"),
    "isPretrain": number(0, 1, 2, 3, 4, 5, 6),
    "createWay": text("custom", "system", "userDefined"),
    "resourceType": text("standard", "advanced", need=False),
    "resource": array(RESOURCE),
    "rdma": flag(need=False),
    "algorithmOriginType": text("local", "aiAssets"),
    "modelOriginType": text("local", "aiAssets", ""),
    "inputType": text("local", "dataset", "aiAssets"),
    "storageMedium": text("1201", "1203"),
    "isUrgentTask": text("Y", "N", need=False),
    "autoRecovery": number(0, 1, need=False),
    "eventNotification": flag(need=False),
    "eventTypes": array(need=False),
    "commonHyperParameters": array(PARAMETER, need=False),
    "fineTuneHyperParameters": array(PARAMETER, need=False),
    "variable": array(need=False),
    "extraModelParamsBo": thing(need=False),
}
DIRECTORIES = thing(
    {"extraMultipleInputDirs": array(PAIR), "extraMultipleOutputDirs": array(PAIR)}, need=False
)
CREATE_A: Fields = {**CREATE, "taskType": text("1", "2", "3"), "extraMultipleDirBo": DIRECTORIES}
CREATE_C: Fields = {
    **CREATE,
    "taskType": Field((int, str), False),
    "createWay": text("custom", "userDefined"),
    "scenario": text(*(f"算力任务（{kind}）" for kind in KINDS)),
}
LIST: Fields = {
    "userId": text(),
    "pageNum": number(),
    "pageSize": number(),
    "status": text(need=False),
    "taskName": text(need=False),
}
LIST_C: Fields = {**LIST, "userName": text(), "status": text(), "taskName": text()}
TASK: Fields = {"taskId": text()}
TASKS: Fields = {"taskIds": array()}
WAY: Fields = {"createWay": text("custom", "userDefined")}

"""The OpenAPI 3.1 document, made from the routes, the bodies that validate and the answers' types.

What belongs here: putting together what is declared elsewhere.  What does not: facts about a single
endpoint (its Route), a field (models.py, fields.py) or an answer (broker.client.answers).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from broker.api.chinese import FIELDS
from broker.api.errors import ANNEX_B
from broker.api.fields import QueryField
from broker.api.routes import Media, Part, Route
from broker.client.answers import Refusal

REF = "#/components/schemas/{model}"
JSON = "application/json"
IN_PATH = re.compile(r"\{(\w+)\}")

PATH_FIELDS: Mapping[tuple[str, str], tuple[str, str]] = {
    ("trainjob", "id"): ("Id of the job.", "作业 ID。"),
    ("jobs", "id"): ("Id of the job.", "作业 ID。"),
    ("centers", "id"): ("Id of the center.", "智算中心 ID。"),
    ("tasks", "taskId"): ("Id of the task.", "任务 ID。"),
    ("logs", "taskId"): ("Id of the task.", "任务 ID。"),
    ("commands", "name"): ("Name of the command.", "命令名称。"),
    ("accounts", "name"): ("Name of the account.", "账号名称。"),
    ("apikeys", "id"): ("Id of the key.", "密钥 ID。"),
    ("applications", "name"): ("Name of the application.", "应用名称。"),
    ("datasets", "id"): ("Id of the data set.", "数据集 ID。"),
    ("onlineJob", "id"): ("Id of the service.", "在线服务 ID。"),
    ("services", "id"): ("Id of the service.", "在线服务 ID。"),
    ("tenants", "id"): ("Id of the tenant.", "租户 ID。"),
}
"""Meanings of path parameters, by the word before them and their name."""

TAGS: Sequence[tuple[str, str, str]] = (
    (r"/auth/.*", "Accounts and tokens", "账号与令牌"),
    (r"/(centers|resource/.*)", "Resources", "资源"),
    (r"/datasets.*", "Data sets", "数据集"),
    (r"/trainjob.*", "Training jobs", "训练作业"),
    (r"/onlineJob.*|/services/.*", "Online services", "在线服务"),
    (r"/broker/v1/(jobs|rounds|logs).*|/logs/.*", "Jobs, beyond the standard", "作业（标准之外）"),
    (r"/broker/v1/centers.*", "Centers, for operators", "智算中心（运维）"),
    (r"/broker/v1/accounts.*", "Accounts, for operators", "账号（运维）"),
    (r"/broker/v1/.*|/[A-Za-z]+", "Further", "其他"),
    (r".*", "The daemon", "守护进程"),
)
"""Groups of endpoints: the first pattern that a path matches."""

_DAEMON = re.compile(r"/(healthz|readyz|metrics|openapi\.json|docs|ui)?")


def tag_of(path: str) -> tuple[str, str]:
    if _DAEMON.fullmatch(path):
        return TAGS[-1][1:]
    return next((en, zh) for pattern, en, zh in TAGS if re.fullmatch(pattern, path))


# ---------------------------------------------------------------- schemas


class _Schemas(GenerateJsonSchema):
    """A field that may be left out may be null as well (models.Body)."""

    def model_schema(self, schema: Any) -> dict[str, Any]:
        made: dict[str, Any] = super().model_schema(schema)
        required = made.get("required", ())
        for name, field in made.get("properties", {}).items():
            if name not in required:
                made["properties"][name] = _nullable(field)
            if (meaning := FIELDS.get(schema["cls"].__name__, {}).get(name)) is not None:
                made["properties"][name]["x-description-zh"] = meaning
        return made

    def get_title_from_name(self, name: str) -> str:
        return ""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


_OUTER = ("default", "description", "x-description-zh")
_NULL = {"type": "null"}


def _nullable(field: dict[str, Any]) -> dict[str, Any]:
    """The schema, null allowed; a default of null is said by leaving the field out."""
    outer = {key: field.pop(key) for key in _OUTER if key in field}
    if outer.get("default", ...) is None:
        del outer["default"]
    options = [each for each in field.get("anyOf", (field,)) if each != _NULL]
    (only,) = options if len(options) == 1 else ({},)
    if isinstance(only.get("type"), str):
        words = {"enum": [*only["enum"], None]} if "enum" in only else {}
        return {**only, "type": [only["type"], "null"], **words, **outer}
    return {"anyOf": [*options, _NULL], **outer}


def _bounded(schema: Any) -> Any:
    """Pydantic leaves ge and le as they are where a function comes before the type."""
    if isinstance(schema, dict):
        names = {"ge": "minimum", "le": "maximum"} if "integer" in schema.get("type", ()) else {}
        return {names.get(key, key): _bounded(value) for key, value in schema.items()}
    return [_bounded(each) for each in schema] if isinstance(schema, list) else schema


def _schemas(routes: Iterable[Route]) -> tuple[dict[Any, dict[str, Any]], dict[str, Any]]:
    """The schema of every body and answer by its type, and the definitions these refer to."""
    types: dict[Any, str] = {Refusal: "serialization"}
    for route in routes:
        if route.body is not None:
            types[route.body] = "validation"
        if route.answer is not None and not isinstance(route.answer, Media):
            types[route.answer] = "serialization"
    inputs = [(kind, mode, TypeAdapter(kind)) for kind, mode in types.items()]
    made, defined = TypeAdapter.json_schemas(inputs, ref_template=REF, schema_generator=_Schemas)  # type: ignore[arg-type]
    return {kind: schema for (kind, _), schema in made.items()}, _bounded(defined["$defs"])


# ---------------------------------------------------------------- operations


def _path_parameters(route: Route) -> list[dict[str, Any]]:
    words = route.path.split("/")
    found = []
    for before, word in pairwise(words):
        if (name := IN_PATH.fullmatch(word)) is None:
            continue
        en, zh = PATH_FIELDS.get((before, name[1]), ("", ""))
        found.append(
            {
                "name": name[1],
                "in": "path",
                "required": True,
                "description": en,
                "x-description-zh": zh,
                "schema": {"type": "string", "minLength": 1},
            }
        )
    return found


def _query_parameter(field: QueryField, max_page_size: int) -> dict[str, Any]:
    schema = field.schema()
    if field.name == "pageSize":
        schema = {**schema, "maximum": max_page_size, "default": min(schema["default"], max_page_size)}
    return {
        "name": field.name,
        "in": "query",
        "required": field.required,
        "description": field.en,
        "x-description-zh": field.zh,
        "schema": schema,
    }


def _header(name: str, meaning: tuple[str, str]) -> dict[str, Any]:
    return {
        "name": name,
        "in": "header",
        "required": False,
        "description": meaning[0],
        "x-description-zh": meaning[1],
        "schema": {"type": "string"},
    }


def _media(media: Media) -> dict[str, Any]:
    """Bytes have no schema; a text is one, and a form is an object of its parts."""
    if media.parts:
        return {kind: _form(media.parts) for kind in media.types}
    return {kind: {"schema": {"type": "string"} if "text" in kind else {}} for kind in media.types}


def _form(parts: Sequence[Part]) -> dict[str, Any]:
    properties = {
        part.name: {**part.schema, "description": part.en, "x-description-zh": part.zh} for part in parts
    }
    return {
        "schema": {
            "type": "object",
            "properties": properties,
            "required": [part.name for part in parts if part.required],
            "additionalProperties": False,
        },
        "encoding": {part.name: {"contentType": ", ".join(part.types)} for part in parts},
    }


def _responses(route: Route, schemas: Mapping[Any, dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if route.answer is None:
        found["204"] = {"description": "Done; no body.", "x-description-zh": "完成，无响应体。"}
    elif isinstance(route.answer, Media):
        media = route.answer
        found["200"] = {"description": media.en, "x-description-zh": media.zh, "content": _media(media)}
    else:
        content: dict[str, Any] = {"schema": schemas[route.answer]}
        if route.answer_example is not None:
            content["example"] = route.answer_example
        found["200"] = {"description": route.en, "x-description-zh": route.zh, "content": {JSON: content}}
    for status in route.others:
        found[str(status)] = {**found["200"], "description": f"{route.en}: not so"}
    for status in sorted({status for status, _ in route.codes}):
        found[str(status)] = _refusals([pair for pair in route.codes if pair[0] == status], schemas)
    if route.body is not None or route.sent is not None:
        found["408"] = {"$ref": "#/components/responses/TooSlow"}
    found["429"] = {"$ref": "#/components/responses/TooMany"}
    if 503 not in route.others:
        found["503"] = {"$ref": "#/components/responses/Unavailable"}
    return found


def _refusals(pairs: Sequence[tuple[int, str]], schemas: Mapping[Any, dict[str, Any]]) -> dict[str, Any]:
    codes = [code for _, code in pairs]
    return {
        "description": "; ".join(f"{code} {MEANINGS[pair]}" for pair, code in zip(pairs, codes, strict=True)),
        "x-description-zh": "；".join(f"{pair[1]} {ANNEX_B[pair]}" for pair in pairs),
        "content": {
            JSON: {"schema": {"allOf": [schemas[Refusal], {"properties": {"errorCode": {"enum": codes}}}]}}
        },
    }


def _later(en: str, zh: str, schemas: Mapping[Any, dict[str, Any]]) -> dict[str, Any]:
    """A refusal that tells when to come again."""
    return {
        "description": en,
        "x-description-zh": zh,
        "headers": {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}},
        "content": {JSON: {"schema": schemas[Refusal]}},
    }


MEANINGS: Mapping[tuple[int, str], str] = {
    (401, "0101"): "authentication failed",
    (401, "0102"): "the token has expired",
    (401, "0103"): "the account is frozen",
    (400, "0201"): "wrong type",
    (400, "0202"): "illegal value",
    (400, "0203"): "missing",
    (400, "0204"): "out of range",
    (400, "0205"): "illegal character in the job's name",
    (400, "0206"): "length of the job's name",
    (400, "0207"): "length of the job's description",
    (400, "0208"): "the job's name exists",
    (400, "0210"): "the center is not available",
    (400, "0211"): "the spec is not available",
    (400, "0220"): "no image is given",
    (400, "0221"): "the image is not available",
    (400, "0230"): "the start is later than the end",
    (400, "0240"): "no such job",
    (400, "0241"): "no such task",
    (500, "0100"): "a defect of the broker",
    (500, "0101"): "the center did not answer",
}
"""Annex B in English."""


def _operation(route: Route, schemas: Mapping[Any, dict[str, Any]], max_page_size: int) -> dict[str, Any]:
    words = re.findall(r"\w+", route.path)
    operation: dict[str, Any] = {
        "operationId": route.method.lower() + "".join(word[0].upper() + word[1:] for word in words),
        "summary": route.en,
        "x-summary-zh": route.zh,
        "tags": [tag_of(route.path)[0]],
        "security": [] if route.open else [{"token": []}, {"bearer": []}],
        "x-scope": route.needs.value,
        "parameters": [
            *_path_parameters(route),
            *(_query_parameter(each, max_page_size) for each in route.query),
            *(_header(name, meaning) for name, meaning in route.headers.items()),
        ],
        "responses": _responses(route, schemas),
    }
    if route.operators:
        operation["x-operators"] = True
    if route.body is not None:
        content: dict[str, Any] = {"schema": schemas[route.body]}
        if route.example is not None:
            content["example"] = route.example
        operation["requestBody"] = {"required": True, "content": {JSON: content}}
    elif route.sent is not None:
        operation["requestBody"] = {
            "required": True,
            "description": route.sent.en,
            "x-description-zh": route.sent.zh,
            "content": _media(route.sent),
        }
    return operation


def document(routes: Sequence[Route], *, version: str, max_page_size: int) -> dict[str, Any]:
    """The whole document.  `version` is the broker's."""
    schemas, definitions = _schemas(routes)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        operation = _operation(route, schemas, max_page_size)
        paths.setdefault(route.path, {})[route.method.lower()] = operation
    used = {tag_of(route.path) for route in routes}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Computing broker",
            "x-title-zh": "算力网络调度器",
            "version": version,
            "summary": "The queue API by T/AI 123.8, and what the standard leaves out.",
            "x-summary-zh": "符合 T/AI 123.8 的作业队列接口，以及标准之外的接口。",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": en, "x-name-zh": zh} for _, en, zh in TAGS if (en, zh) in used],
        "paths": paths,
        "components": {
            "schemas": definitions,
            "securitySchemes": {
                "token": {"type": "apiKey", "in": "header", "name": "X-Auth-Token"},
                "bearer": {"type": "http", "scheme": "bearer"},
            },
            "responses": {
                "TooMany": _later(
                    "Too many requests; errorCode is empty.", "请求过多，errorCode 为空。", schemas
                ),
                "TooSlow": _later(
                    "The body did not come in time; errorCode is empty.",
                    "请求体未按时到达，errorCode 为空。",
                    schemas,
                ),
                "Unavailable": _later(
                    "The broker is overloaded or its database does not answer; errorCode is empty.",
                    "服务过载或数据库暂不可用，errorCode 为空。",
                    schemas,
                ),
            },
        },
    }

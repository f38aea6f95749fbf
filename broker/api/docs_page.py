"""The page about the API: HTML from the OpenAPI document, in English or Chinese.

What belongs here: one self-contained page, without a script and without anything from elsewhere.
What does not: facts about the API; they are in the document.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --accent: #2563eb; }
* { box-sizing: border-box; }
body { margin: 0; font: 15px/1.55 system-ui, "Noto Sans CJK SC", "Microsoft YaHei", sans-serif; }
header { padding: 1rem 1.5rem; border-bottom: 1px solid var(--line); display: flex; gap: 1rem;
  align-items: baseline; flex-wrap: wrap; }
h1 { font-size: 1.3rem; margin: 0; }
header nav { margin-left: auto; display: flex; gap: 1rem; }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
.columns { display: grid; grid-template-columns: 23rem minmax(0, 1fr); }
aside { padding: 1rem 1.5rem; border-right: 1px solid var(--line); position: sticky; top: 0;
  height: 100vh; overflow: auto; font-size: .85rem; }
aside ul { list-style: none; padding: 0; margin: 0 0 1rem; }
aside li { padding: .1rem 0; overflow-wrap: anywhere; }
main { padding: 1rem 2rem 6rem; max-width: 70rem; }
h2 { margin: 2rem 0 .5rem; border-bottom: 1px solid var(--line); }
section { margin: 1.5rem 0 2.5rem; }
h3 { font-size: 1.05rem; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h4 { margin: 1rem 0 .25rem; font-size: .9rem; }
code, pre { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: .85em; }
pre { background: var(--soft); padding: .75rem; overflow: auto; border-radius: .3rem; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; vertical-align: top; padding: .25rem .6rem .25rem 0;
  border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }
th { font-weight: 600; }
td:not(:last-child) { overflow-wrap: normal; }
.method { display: inline-block; min-width: 3.6rem; font-weight: 700; font-size: .8rem; }
.get { color: #15803d; } .post { color: #b45309; } .delete { color: #b91c1c; }
.note { opacity: .75; font-size: .85rem; }
details { margin: .25rem 0; }
summary { cursor: pointer; }
@media (max-width: 50rem) {
  .columns { grid-template-columns: minmax(0, 1fr); }
  aside { position: static; height: auto; border-right: 0; }
  main { padding: 1rem; }
}
"""

_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
POLICY = (
    f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'"
)
"""The page may load nothing, run nothing and be framed by nobody."""

METHODS = ("get", "post", "put", "patch", "delete")


@dataclass(frozen=True)
class Words:
    """What the page itself says, in one language."""

    html: str
    suffix: str
    parameters: str
    body: str
    answer: str
    errors: str
    example: str
    name: str
    place: str
    kind: str
    meaning: str
    required: str
    status: str
    code: str
    open: str
    operators: str
    fields: str
    document: str
    other: str
    other_code: str


WORDS = {
    "en": Words(
        html="en",
        suffix="",
        parameters="Parameters",
        body="Body",
        answer="Answer",
        errors="Errors",
        example="Example",
        name="Name",
        place="In",
        kind="Type",
        meaning="Meaning",
        required="required",
        status="Status",
        code="Codes",
        open="no token needed",
        operators="operators only",
        fields="fields",
        document="OpenAPI document",
        other="中文",
        other_code="zh",
    ),
    "zh": Words(
        html="zh-CN",
        suffix="-zh",
        parameters="参数",
        body="请求体",
        answer="响应",
        errors="错误",
        example="示例",
        name="名称",
        place="位置",
        kind="类型",
        meaning="含义",
        required="必填",
        status="状态码",
        code="错误码",
        open="无需 Token",
        operators="仅限运维人员",
        fields="字段",
        document="OpenAPI 文档",
        other="English",
        other_code="en",
    ),
}


def page(document: Mapping[str, Any], language: str) -> str:
    """The whole page; `language` is en or zh."""
    return _Page(document, WORDS[language]).text()


class _Page:
    def __init__(self, document: Mapping[str, Any], words: Words) -> None:
        self._document = document
        self._words = words
        self._groups: dict[str, list[tuple[str, str, Mapping[str, Any]]]] = {}
        for path, methods in document["paths"].items():
            for method in METHODS:
                if method in methods:
                    (tag,) = methods[method]["tags"]
                    self._groups.setdefault(tag, []).append((method, path, methods[method]))

    def _said(self, of: Mapping[str, Any], name: str) -> str:
        """A text in the page's language, in English where there is no other."""
        own = f"x-{name}-zh" if self._words.suffix else name
        return escape(str(of.get(own) or of.get(name) or ""))

    def text(self) -> str:
        info, words = self._document["info"], self._words
        title = self._said(info, "title")
        return (
            f'<!DOCTYPE html><html lang="{words.html}"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{title} {escape(info['version'])}</title><style>{STYLE}</style></head><body>"
            f'<header><h1>{title}</h1><span class="note">{self._said(info, "summary")}'
            f" {escape(info['version'])}</span><nav>"
            f'<a href="openapi.json">{words.document}</a>'
            f'<a href="?lang={words.other_code}" hreflang="{words.other_code}">{words.other}</a>'
            "</nav></header>"
            f'<div class="columns"><aside>{"".join(self._contents())}</aside>'
            f"<main>{''.join(self._sections())}</main></div></body></html>\n"
        )

    def _tags(self) -> Iterator[tuple[str, str]]:
        for tag in self._document["tags"]:
            yield tag["name"], self._said(tag, "name")

    def _contents(self) -> Iterator[str]:
        for name, shown in self._tags():
            yield f"<strong>{shown}</strong><ul>"
            for method, path, operation in self._groups[name]:
                link = f'<a href="#{operation["operationId"]}">{escape(path)}</a>'
                yield f"<li>{_method(method)}{link}</li>"
            yield "</ul>"

    def _sections(self) -> Iterator[str]:
        for name, shown in self._tags():
            yield f"<h2>{shown}</h2>"
            for method, path, operation in self._groups[name]:
                yield self._section(method, path, operation)

    def _section(self, method: str, path: str, operation: Mapping[str, Any]) -> str:
        words = self._words
        notes = [f"scope: {operation['x-scope']}"] if operation["security"] else [words.open]
        if operation.get("x-operators"):
            notes.append(words.operators)
        parts = [
            f'<section id="{operation["operationId"]}"><h3>{_method(method)}<code>{escape(path)}</code></h3>',
            f'<div>{self._said(operation, "summary")} <span class="note">({", ".join(notes)})</span></div>',
        ]
        if operation["parameters"]:
            parts.append(f"<h4>{words.parameters}</h4>{self._parameters(operation['parameters'])}")
        if (body := operation.get("requestBody")) is not None:
            parts.append(f"<h4>{words.body}</h4>{self._content(body)}")
        parts.append(f"<h4>{words.answer}</h4>")
        refusals = []
        for status, answer in operation["responses"].items():
            if status.startswith("2"):
                parts.append(f"<div><code>{status}</code></div>{self._content(answer)}")
            else:
                refusals.append((status, self._resolved(answer)))
        rows = ((f"<code>{status}</code>", self._said(answer, "description")) for status, answer in refusals)
        parts.append(f"<h4>{words.errors}</h4>{_table((words.status, words.code), rows)}</section>")
        return "".join(parts)

    def _resolved(self, part: Mapping[str, Any]) -> Mapping[str, Any]:
        while "$ref" in part:
            found: Any = self._document
            for word in part["$ref"].removeprefix("#/").split("/"):
                found = found[word]
            part = {**found, **{key: value for key, value in part.items() if key != "$ref"}}
        return part

    def _parameters(self, parameters: Iterable[Mapping[str, Any]]) -> str:
        words = self._words
        rows = (
            (
                f"<code>{escape(each['name'])}</code>",
                escape(each["in"]),
                self._kind(each["schema"], required=each["required"]),
                self._said(each, "description"),
            )
            for each in parameters
        )
        return _table((words.name, words.place, words.kind, words.meaning), rows)

    def _content(self, holder: Mapping[str, Any]) -> str:
        """Description, media types, fields and example of a body or an answer."""
        shown = [f"<div>{self._said(holder, 'description')}</div>" if "description" in holder else ""]
        for media, content in holder.get("content", {}).items():
            if media != "application/json":
                shown.append(f"<div><code>{escape(media)}</code></div>")
            shown.append(self._fields(content["schema"], seen=()))
            if "example" in content:
                text = json.dumps(content["example"], ensure_ascii=False, indent=2)
                shown.append(f'<div class="note">{self._words.example}</div><pre>{escape(text)}</pre>')
        return "".join(shown)

    def _fields(self, schema: Mapping[str, Any], *, seen: tuple[str, ...]) -> str:
        """A table of an object's fields, with the objects in them below it."""
        schema = self._resolved(schema)
        required = schema.get("required", ())
        rows, inner = [], []
        for name, field in schema.get("properties", {}).items():
            field = self._described(field)
            rows.append(
                (
                    f"<code>{escape(name)}</code>",
                    self._kind(field, required=name in required),
                    self._said(field, "description"),
                )
            )
            part = self._object_in(field)
            title = part.get("title", "") if part else ""
            if part and title not in seen:
                fields = self._fields(part, seen=(*seen, title))
                summary = f"<summary><code>{escape(name)}</code>: {self._words.fields}</summary>"
                inner.append(f"<details>{summary}{fields}</details>")
        if not rows:
            return ""
        words = self._words
        return _table((words.name, words.kind, words.meaning), rows) + "".join(inner)

    def _described(self, field: Mapping[str, Any]) -> Mapping[str, Any]:
        """A field; what it refers to keeps its own description for its own table."""
        if "$ref" in field:
            target = {k: v for k, v in self._resolved({"$ref": field["$ref"]}).items() if k != "description"}
            return {**target, **{key: value for key, value in field.items() if key != "$ref"}}
        return field

    def _object_in(self, field: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """The object that a field is, is a list of, or may be."""
        for option in (field, field.get("items", {}), *field.get("anyOf", ())):
            found = self._resolved(option)
            if found.get("properties"):
                return found
            if "items" in found and self._resolved(found["items"]).get("properties"):
                return self._resolved(found["items"])
        return None

    def _kind(self, schema: Mapping[str, Any], *, required: bool) -> str:
        shown = escape(self._type(schema))
        limits = [
            f"{sign} {schema[key]}"
            for key, sign in (("minimum", "≥"), ("maximum", "≤"), ("maxLength", "≤"), ("maxItems", "≤"))
            if key in schema
        ]
        if limits:
            shown += f' <span class="note">{escape(", ".join(limits))}</span>'
        if schema.get("default") not in (None, "", [], {}):
            default = json.dumps(schema["default"], ensure_ascii=False)
            shown += f' <span class="note">= {escape(default)}</span>'
        return shown + (f" <strong>{self._words.required}</strong>" if required else "")

    def _type(self, schema: Mapping[str, Any]) -> str:
        schema = self._described(schema)
        if "enum" in schema:
            return " | ".join(
                json.dumps(each, ensure_ascii=False) for each in schema["enum"] if each is not None
            )
        if "anyOf" in schema:
            kinds = [self._type(each) for each in schema["anyOf"]]
            return " | ".join(dict.fromkeys(kinds))
        kind = schema.get("type", "any")
        kinds = [each for each in ([kind] if isinstance(kind, str) else kind) if each != "null"]
        if kinds == ["array"] and "items" in schema:
            return f"[{self._type(schema['items'])}]"
        return " | ".join(kinds) or "null"


def _method(method: str) -> str:
    return f'<span class="method {method}">{method.upper()}</span>'


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    top = "".join(f"<th>{each}</th>" for each in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"

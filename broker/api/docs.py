"""The API about itself: its OpenAPI document, and a page for people made from it.

What belongs here: serving the two.  What does not: making them (openapi.py, docs_page.py).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from aiohttp import web

from broker.api import docs_page, openapi
from broker.api.context import Context
from broker.api.fields import Choice
from broker.api.reading import Query, no_query
from broker.api.routes import Media, Route

LANGUAGES = ("en", "zh")


@dataclass
class Description:
    """The document and its pages, made when they are first asked for."""

    routes: Sequence[Route]
    context: Context
    pages: dict[str, str] = field(default_factory=dict)

    @cached_property
    def document(self) -> dict[str, Any]:
        return openapi.document(
            self.routes, version=self.context.version, max_page_size=self.context.max_page_size
        )

    @cached_property
    def text(self) -> str:
        return json.dumps(self.document, ensure_ascii=False)

    def page(self, language: str) -> str:
        if language not in self.pages:
            self.pages[language] = docs_page.page(self.document, language)
        return self.pages[language]


DESCRIPTION = web.AppKey("description", Description)


async def document(request: web.Request) -> web.Response:
    """GET /openapi.json"""
    no_query(request)
    return web.json_response(text=request.app[DESCRIPTION].text)


async def page(request: web.Request) -> web.Response:
    """GET /docs: in the language asked for, else in the one the browser prefers."""
    with Query(request) as query:
        language = query.choice("lang") or _preferred(request)
    headers = {
        "Content-Security-Policy": docs_page.POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Vary": "Accept-Language",
    }
    text = request.app[DESCRIPTION].page(language)
    return web.Response(text=text, content_type="text/html", charset="utf-8", headers=headers)


def _preferred(request: web.Request) -> str:
    """Chinese where it is the first of Accept-Language, else English."""
    first = request.headers.get("Accept-Language", "").partition(",")[0].strip().lower()
    return "zh" if first.startswith("zh") else "en"


# ---------------------------------------------------------------- routes

ROUTES = (
    Route(
        "GET",
        "/openapi.json",
        document,
        "This API as an OpenAPI 3.1 document",
        "本接口的 OpenAPI 3.1 文档",
        answer=dict[str, Any],
        open=True,
    ),
    Route(
        "GET",
        "/docs",
        page,
        "This API as a page to read",
        "本接口的说明页面",
        query=(Choice("lang", "Language of the page.", "页面语言。", options=LANGUAGES),),
        answer=Media(("text/html",), "The page.", "页面。"),
        open=True,
    ),
)

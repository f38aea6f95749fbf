"""Secrets in texts, errors and answers."""

from __future__ import annotations

import json

import pytest

from adapters.http import MAX_RAW_BYTES, Unintelligible
from adapters.redaction import Redaction
from tests.http_center import (
    SECRET,
    call,
    failing,
    opened,
)
from tests.raw_server import Answer, Arrived, answer

# ---------------------------------------------------------------- secrets


FORMS = (
    f"plain {SECRET} text",
    "url correct%20horse and correct+horse",
    '{"x": "correct horse"}',
    "Authorization: Bearer abcdef.ghi.jkl",
    '{"token":"abc", "data": {"secretKey": "k1", "n": 1}}',
    r'{"inner": "{\"password\": \"hunter2\"}"}',
    "{'access_key': 'AKIA', 'b': 1}",
    "http://h/x?token=abc123&page=1",
    "https://user:hunter2@h/x",
    '{"password": "cut off he',
    "Set-Cookie: sid=abc123; Path=/",
)


@pytest.mark.parametrize("text", FORMS)
def test_secrets_are_taken_out(text: str) -> None:
    clean = Redaction([SECRET])(text)
    for secret in ("correct", "horse", "abc", "k1", "hunter2", "AKIA", "cut off"):
        assert secret not in clean
    assert "***" in clean


def test_what_is_not_secret_stays() -> None:
    redact = Redaction([SECRET, "7"])
    text = '{"tokens": 0, "name": "pass", "n": 17, "path": "/token/list", "page": 7}'
    assert redact('{"name": "pass", "n": 17, "m": 7}') == '{"name": "pass", "n": 17, "m": ***}'
    assert '"name": "pass"' in redact(text)
    assert "/token/list" in redact(text)
    for kept in ('{"tokens": 5, "max_tokens": 7, "tokenizer": "llama"}', "a tokenizer: llama"):
        assert Redaction([SECRET])(kept) == kept
    redact.add("later-one")
    assert redact("a later-one b") == "a *** b"


def test_a_secret_at_the_cut_does_not_show_its_half() -> None:
    redact = Redaction(["0123456789abcdef" * 4])
    for start in range(3000, 3400):
        shown_text = redact.excerpt(" " * start + "0123456789abcdef" * 4 + " " * 400)
        assert "0123" not in shown_text


async def test_an_error_page_that_echoes_everything() -> None:
    def echo(request: Arrived) -> Answer:
        headers = "".join(f"{name}: {value}\n" for name, value in request.headers.items())
        page = f"<pre>{request.method} {request.path}\n{headers}\n{request.body.decode()}</pre>"
        return answer(page, status=500, kind="text/html")

    async with opened(echo) as (server, made):
        made.redact.add("tok-abcdef")
        request = call(
            server.url,
            "POST",
            effect=True,
            query={"sign": SECRET},
            headers={"Authorization": "Bearer tok-abcdef", "x-secret-key": "sk1"},
        )
        text = await failing(made, request, Unintelligible, document={"password": SECRET, "pw": SECRET})
        assert "***" in text
        raw = await made.raw(call(server.url, "POST", effect=True, body=json.dumps({"p": SECRET}).encode()))
        assert raw.status == 500
        for secret in ("correct", "horse", "tok-abcdef", "sk1"):
            assert secret not in text
            assert secret.encode() not in raw.body


async def test_a_long_answer_to_an_operator_is_cut() -> None:
    async with opened(answer("x" * (3 << 20), kind="text/plain")) as (server, made):
        found = await made.raw(call(server.url, effect=True))
        assert found.body == b"x" * MAX_RAW_BYTES

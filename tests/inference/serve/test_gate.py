"""What the gate lets through, by the rules of ASGI and against an application that takes all."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

pytest.importorskip("gradio", reason="the extra dogmed[serve] is missing")
from starlette.exceptions import HTTPException

from dogmed.inference.serve.gate import ENVELOPE, Gate

MAX_BYTES = 1000
URL = "http://127.0.0.1:7860"
LOCAL = ("localhost", "127.0.0.1", "::1")


def ask(
    path: str = "/", method: str = "GET", *, body: Sequence[bytes] = (b"",), hosts: Any = LOCAL,
    url: str = URL, **headers: str,
) -> tuple[int, str]:  # fmt: skip
    """Status and message of a request; 200 if it came through to the end."""
    sent = list[Any]()
    chunks = list(body)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": chunks.pop(0), "more_body": bool(chunks)}

    async def send(message: Any) -> None:
        sent.append(message)

    async def application(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["more_body"]:
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    given = {"host": "127.0.0.1:7860", **{k.replace("_", "-"): v for k, v in headers.items()}}
    scope = {
        "type": "http", "path": path, "method": method,
        "headers": [(k.encode(), v.encode()) for k, v in given.items()],
    }  # fmt: skip
    gate = Gate(application, max_bytes=MAX_BYTES, hosts=hosts, url=url)
    try:
        asyncio.run(gate(scope, receive, send))
    except HTTPException as error:  # told by the application's handler
        return error.status_code, str(error.detail)
    return sent[0]["status"], json.loads(sent[1]["body"]).get("error", "")


@pytest.mark.parametrize(
    "name", ["localhost", "localhost:1", "LOCALHOST", "127.0.0.1", "[::1]:7860", "127.0.0.1:7860"]
)
def test_this_machine_may_ask(name: str) -> None:
    assert ask(host=name) == (200, "")
    assert ask(host=name, origin=f"http://{name}") == (200, "")


@pytest.mark.parametrize(
    "headers, status",
    [
        ({"host": "evil.example"}, 403),
        ({"host": "localhost.evil.example"}, 403),
        ({"host": "localhost@evil.example"}, 403),
        ({"host": ""}, 403),
        ({"host": "[x"}, 403),
        ({"host": "evil@localhost"}, 403),
        ({"host": "localhost#@evil"}, 403),
        ({"host": "localhost/evil"}, 403),
        ({"host": "127.0.0.1:abc"}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "http://127.0.0.1:8000"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://[x"}, 400),
    ],
)
def test_pages_of_others_may_not(headers: dict[str, str], status: int) -> None:
    for path, method in (("/", "GET"), ("/model", "GET"), ("/predict", "POST"), ("/page", "POST")):
        answer, why = ask(path, method, **headers)
        assert answer == status and why


def test_a_public_server_has_any_name_but_no_pages_of_others() -> None:
    assert ask(hosts=None, host="lab.example") == (200, "")
    assert ask(hosts=None, host="lab.example", origin="http://lab.example") == (200, "")
    assert ask(hosts=None, host="lab.example", origin="http://evil.example")[0] == 403


@pytest.mark.parametrize("host", ["lab.example", "127.0.0.1:7860"])
def test_what_stands_in_front_may_keep_the_name_or_not(host: str) -> None:
    assert ask(url="https://lab.example", host=host, origin="https://lab.example") == (200, "")
    assert ask(url="https://lab.example", host=host, origin="https://evil.example")[0] == 403


@pytest.mark.parametrize(
    "method, path",
    [
        ("POST", "/gradio_api/upload"),
        ("POST", "/gradio_api/queue/join"),
        ("GET", "/gradio_api/queue/data"),
        ("POST", "/gradio_api/run/predict"),
        ("GET", "/gradio_api/file=https://example.org/a.png"),
        ("GET", "/gradio_api/file=/etc/passwd"),
        ("GET", "/gradio_api/proxy=https://example.org/"),
        ("GET", "/gradio_api/info"),
        ("GET", "/monitoring"),
        ("GET", "/docs"),
        ("GET", "/assets/../gradio_api/info"),
        ("GET", "//gradio_api/info"),
        ("GET", "/PREDICT"),
        ("POST", "/predict/"),
    ],
)
def test_what_gradio_has_beside_the_page_is_closed(method: str, path: str) -> None:
    assert ask(path, method) == (404, f"nothing here at {path}")


def test_each_address_has_its_method() -> None:
    assert ask("/predict") == (405, "POST a form: curl -F image=@scan.png")
    assert ask("/predict", "POST") == (200, "")
    assert ask("/model", "POST") == (405, "/model is read by GET")
    assert ask("/model", "HEAD") == (200, "")


def test_size_is_what_comes_and_not_what_is_announced() -> None:
    most = MAX_BYTES + ENVELOPE
    assert ask("/predict", "POST", content_length=str(most)) == (200, "")
    for length in (str(most + 1), "-1", "many", "1" * 5000):
        status, why = ask("/predict", "POST", content_length=length)
        assert status == 413 and "too large" in why
    assert ask("/predict", "POST", body=[b"x" * 1000] * (most // 1000)) == (200, "")
    status, why = ask(
        "/predict", "POST", body=[b"x" * 1000] * (most // 1000 + 1), content_length="5"
    )
    assert status == 413 and "too large" in why

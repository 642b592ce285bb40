"""What stands before the server's application, and refuses."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dogmed.errors import printable

ENVELOPE = 65_536
"""Bytes of a request beside its images."""
OPEN = ("/", "/model", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt")
OPEN_BELOW = ("/assets/", "/static/", "/svelte/")
ASKED = ("/predict", "/page")
"""Where images go."""


class Gate:
    """Refuses what is too large, comes from elsewhere, or asks for what is not served here.

    Gradio brings addresses that take files, fetch URLs and run functions: what is let through is named one by
    one, and is what its page needs to be drawn.

    Args:
        app: behind it.
        max_bytes: of an upload.
        hosts: that the server may be called by, beside that of ``url``, against web pages that rename it (DNS
            rebinding); None for any.
        url: of the server, as people call it.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int, hosts: tuple[str, ...] | None, url: str):
        self.app, self.max_bytes = app, max_bytes + ENVELOPE
        self.hosts = None if hosts is None else {*hosts, urlsplit(url).hostname}
        self.origin = urlsplit(url).netloc

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        if scope["type"] != "http":
            return
        refused = self._refuse(scope)
        if refused is not None:
            await refused(scope, receive, send)
            return
        taken = 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self.max_bytes:  # more than was announced
                raise HTTPException(413, self._too_large())
            return message

        await self.app(scope, counted, send)

    def _refuse(self, scope: Scope) -> JSONResponse | None:
        headers, path, method = Headers(scope=scope), scope["path"], scope["method"]
        host, origin = headers.get("host", ""), headers.get("origin")
        called = re.fullmatch(r"(?:\[([0-9a-f:.]+)\]|([\w.-]+))(?::\d*)?", host.lower())
        name = called and (called[1] or called[2])
        try:
            elsewhere = origin is not None and urlsplit(origin).netloc not in (host, self.origin)
        except ValueError:
            return refusal(400, "the header Origin is damaged")
        if self.hosts is not None and name not in self.hosts:
            return refusal(403, f"this server is not called {printable(host)}: see --address")
        if elsewhere:
            return refusal(403, f"not for pages of {printable(origin or '')}: see --address")
        if path in ASKED:
            if method != "POST":
                return refusal(405, "POST a form: curl -F image=@scan.png")
        elif ".." in path or not (path in OPEN or path.startswith(OPEN_BELOW)):
            return refusal(404, f"nothing here at {printable(path)}")
        elif method not in ("GET", "HEAD"):
            return refusal(405, f"{printable(path)} is read by GET")
        length = headers.get("content-length", "0")
        if not (length.isdecimal() and len(length) < 20 and int(length) <= self.max_bytes):
            return refusal(413, self._too_large())
        return None

    def _too_large(self) -> str:
        return f"the request is too large: at most {self.max_bytes / 1e6:.1f} MB (--max-mb)"


def refusal(status: int, message: str) -> JSONResponse:
    """An answer that says why there is none."""
    return JSONResponse({"error": printable(message)}, status)

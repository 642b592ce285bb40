"""The web application of ``dogmed serve``: JSON, the page, and a gate before both.

- ``GET /model``: what the network is.
- ``POST /predict``: multipart form with one or more files ``image``; ``?raw=true`` for probabilities at
  temperature 1, ``?overlay=true`` for Grad-CAM as PNG (base64), ``?class=NAME`` for that of another class.

Gradio brings many more addresses: one fetches any URL, others take files. The gate lets through what the page
asks for and nothing else.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from itertools import chain
from typing import Any
from urllib.parse import urlsplit

import gradio as gr
import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from PIL import Image
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dogmed import __version__
from dogmed.errors import ConfigError, DataError, DogmedError, printable
from dogmed.inference.card import NO_DEVICE
from dogmed.inference.explain_pictures import overlay
from dogmed.inference.pictures import Picture
from dogmed.inference.serve_answers import Answers, rows
from dogmed.inference.serve_page import CSS, make_page

MAX_IMAGES = 64
"""Files of a request."""
ENVELOPE = 65_536
"""Bytes of a request beside its images."""
OPEN = (
    "/",
    "/model",
    "/predict",
    "/config",
    "/theme.css",
    "/favicon.ico",
    "/manifest.json",
    "/robots.txt",
)
OPEN_BELOW = ("/assets/", "/static/", "/svelte/")
GRADIO = (
    "/gradio_api/startup-events", "/gradio_api/heartbeat/", "/gradio_api/queue/", "/gradio_api/reset",
    "/gradio_api/app_id", "/gradio_api/theme.css",
)  # fmt: skip
OPTIONS = ("raw", "overlay", "class")


def make_app(answers: Answers, *, max_bytes: int, address: str, local: bool) -> ASGIApp:
    """Put the application together.

    Args:
        answers: of the network.
        max_bytes: of an upload.
        address: of the server, without a slash at its end.
        local: whether it is for this machine alone.
    """
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)

    @app.exception_handler(HTTPException)
    async def tell(request: Request, error: HTTPException) -> JSONResponse:
        return _refused(error.status_code, str(error.detail))

    @app.get("/model")
    def model() -> dict[str, Any]:
        return _facts(answers)

    @app.post("/predict")
    async def predict(request: Request) -> JSONResponse:
        try:
            options = _options(answers, request.query_params)
            form = await request.form(max_files=MAX_IMAGES, max_fields=8)
        except DogmedError as error:
            return _refused(400, str(error))
        files = [entry for _, entry in form.multi_items() if isinstance(entry, UploadFile)]
        if not files:
            return _refused(400, "no file in the form: curl -F image=@scan.png")
        try:
            uploads = [(file.filename or "upload", await file.read()) for file in files]
        finally:
            await form.close()
        try:
            return await run_in_threadpool(_predict, answers, uploads, options)
        except DogmedError as error:
            return _refused(422, str(error))

    page = make_page(answers, max_bytes=max_bytes, address=address)
    font = [
        "system-ui",
        "-apple-system",
        "Segoe UI",
        "Roboto",
        "Helvetica Neue",
        "Arial",
        "sans-serif",
    ]
    theme = gr.themes.Default(
        font=font, font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"]
    )
    gr.mount_gradio_app(
        app, page, path="/", footer_links=[], run_history=False, ssr_mode=False, pwa=False,
        enable_monitoring=False, mcp_server=False, theme=theme, css=CSS,
    )  # fmt: skip
    hosts = ("localhost", "127.0.0.1", "::1", urlsplit(address).hostname) if local else None
    return Gate(app, max_bytes=max_bytes, hosts=hosts)


class Gate:
    """Refuses what is too large, comes from elsewhere, or asks for what is not served here.

    Args:
        app: behind it.
        max_bytes: of an upload.
        hosts: that the server may be called by, against web pages that rename it (DNS rebinding); None
            for any.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int, hosts: tuple[str | None, ...] | None):
        self.app, self.hosts = app, hosts
        self.max_bytes = max_bytes + ENVELOPE
        self.max_encoded = max_bytes * 4 // 3 + ENVELOPE  # in base64, as the page sends it

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        most = self.max_bytes if scope["path"] == "/predict" else self.max_encoded
        refused = self._refuse(scope, headers, most)
        if refused is not None:
            await refused(scope, receive, send)
            return
        taken = 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > most:  # more than was announced
                raise HTTPException(413, _too_large(most))
            return message

        await self.app(scope, counted, send)

    def _refuse(self, scope: Scope, headers: Headers, most: int) -> JSONResponse | None:
        path, host = scope["path"], headers.get("host", "")
        name = urlsplit(f"//{host}").hostname
        if self.hosts is not None and name not in self.hosts:
            return _refused(403, f"this server is for {', '.join(filter(None, self.hosts))} only")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return _refused(403, f"not for pages of {printable(origin)}")
        known = path in OPEN or path.startswith(OPEN_BELOW + GRADIO)
        if not known or ".." in path.split("/"):
            return _refused(404, f"nothing here at {printable(path)}")
        if path == "/predict" and scope["method"] != "POST":
            return _refused(405, "POST a form: curl -F image=@scan.png")
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > most:
            return _refused(413, _too_large(most))
        return None


def _too_large(most: int) -> str:
    return f"the request is too large: at most {most / 1e6:.1f} MB (--max-mb)"


def _refused(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": printable(message)}, status)


def _options(answers: Answers, given: Mapping[str, str]) -> dict[str, Any]:
    for name in given:
        if name not in OPTIONS:
            raise ConfigError(f"no option {name}: there are {', '.join(OPTIONS)}")
    options: dict[str, Any] = {}
    for name in ("raw", "overlay"):
        value = given.get(name, "false").lower()
        if value not in ("true", "false", "1", "0"):
            raise ConfigError(f"{name}={value}: expected true or false")
        options[name] = value in ("true", "1")
    if options["overlay"]:
        answers.explainer  # noqa: B018 - raises where there is none
    label = given.get("class")
    if label is not None and not options["overlay"]:
        raise ConfigError("class is for an overlay: overlay=true&class=NAME")
    options["label"] = None if label is None else answers.label(label)
    return options


def _predict(
    answers: Answers, uploads: list[tuple[str, bytes]], options: Mapping[str, Any]
) -> JSONResponse:
    body: dict[str, Any] = {"model": _name(answers), "predictions": [], "not_read": []}

    def note(name: str, error: DataError) -> None:
        body["not_read"].append({"file": name, "error": printable(str(error))})

    try:
        body["predictions"] = rows(answers.predict(uploads, raw=options["raw"], on_error=note))
    except DataError:
        return JSONResponse(body, 422)
    if options["overlay"]:
        pictures = chain.from_iterable(_readable(answers, *upload) for upload in uploads)
        for row, picture in zip(body["predictions"], pictures, strict=True):
            row["overlays"] = _overlays(answers, picture, options["label"])
    return JSONResponse(body)


def _readable(answers: Answers, name: str, content: bytes) -> list[Picture]:
    try:
        return list(answers.read(content, name))
    except DataError:  # told already
        return []


def _overlays(answers: Answers, picture: Picture, label: int | None) -> list[dict[str, Any]]:
    return [
        {
            "class": one.name,
            "layer": answers.explainer.layer.name,
            "peak": None if one.peak is None else {"x": one.peak.x, "y": one.peak.y},
            "png": _png(overlay(picture.pixels, one.heat)),
        }
        for one in answers.explain(picture, label)
    ]


def _png(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def _name(answers: Answers) -> str:
    record = answers.classifier.trained.record
    return f"{record.model} for {answers.classifier.task}, sha256 {record.sha256[:12]}"


def _facts(answers: Answers) -> dict[str, Any]:
    asked = answers.classifier
    record = asked.trained.record
    return {
        "model": record.model, "task": asked.task, "kind": asked.kind, "classes": list(asked.classes),
        "size": asked.size, "temperature": record.temperature, "sha256": record.sha256,
        "dogmed": __version__, "notes": answers.notes, "intended_use": NO_DEVICE,
    }  # fmt: skip

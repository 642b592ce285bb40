"""The web application of ``dogmed serve``: answers as JSON, and the page.

- ``GET /model``: what the network is.
- ``POST /predict``: multipart form with one or more files ``image``; ``?raw=true`` for probabilities at
  temperature 1, ``?overlay=true`` for Grad-CAM as PNG (base64), ``?overlay=true&class=NAME`` for that of a class.
- ``POST /page``: what the page asks of one image; ``?label=K`` for the map of a class.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import gradio as gr
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from dogmed.errors import ConfigError, DogmedError, printable
from dogmed.inference.reading.pictures import Picture
from dogmed.inference.serve.answers import Answers
from dogmed.inference.serve.gate import refusal
from dogmed.inference.serve.page import CSS, THEME, figures, make_page, warning

MOST = 64
"""Images of a request, and files; each page of a file is an image."""
OPTIONS = ("raw", "overlay", "class")
NO_FILE = "no file in a form: curl -F image=@scan.png"
GONE = 499
"""The status for those who do not wait any more; nobody reads it."""
T = TypeVar("T")


class _GoneError(Exception):
    """Nobody waits for the answer any more."""


def make_app(answers: Answers) -> FastAPI:
    """Put the application together; ``Gate`` belongs before it."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.get("/model")(answers.facts)

    @app.post("/predict")
    async def predict(request: Request) -> Response:
        return await _predict(request, answers)

    @app.post("/page")
    async def page(request: Request) -> Response:
        return await _page(request, answers)

    @app.exception_handler(DogmedError)
    async def tell(request: Request, error: DogmedError) -> Response:
        return refusal(400, str(error))

    @app.exception_handler(HTTPException)
    async def refuse(request: Request, error: HTTPException) -> Response:
        return refusal(error.status_code, str(error.detail))

    @app.exception_handler(_GoneError)
    @app.exception_handler(ClientDisconnect)
    async def leave(request: Request, error: Exception) -> Response:
        return Response(status_code=GONE)

    @app.exception_handler(Exception)
    async def fail(request: Request, error: Exception) -> Response:
        traceback.print_exception(error, file=sys.stderr)
        return refusal(500, f"the server failed: {type(error).__name__}")

    gr.mount_gradio_app(
        app, make_page(answers), path="/", footer_links=[], run_history=False, ssr_mode=False, pwa=False,
        enable_monitoring=False, mcp_server=False, theme=THEME, css=CSS,
    )  # fmt: skip
    return app


async def _predict(request: Request, answers: Answers) -> Response:
    options = _options(answers, request.query_params)
    pictures, unread = list[Picture](), list[dict[str, str]]()
    for name, content in await _uploads(request):
        try:
            pictures += await _step(request, answers.read, content, name, MOST - len(pictures))
        except DogmedError as error:
            unread.append({"file": printable(name), "error": printable(str(error))})
    record = answers.classifier.trained.record
    body: dict[str, Any] = {
        "model": f"{record.model} for {answers.classifier.task}, sha256 {record.sha256[:12]}",
        "predictions": [],
        "not_read": unread,
    }
    if not pictures:
        return JSONResponse({"error": "no image could be read"} | body, 422)
    predicted = await _step(request, answers.classify, pictures, raw=options["raw"])
    body["predictions"] = predicted.rows()
    if options["overlay"]:
        for row, picture in zip(body["predictions"], pictures, strict=True):
            row["overlays"] = await _step(request, answers.overlays, picture, options["label"])
    return JSONResponse(body)


async def _page(request: Request, answers: Answers) -> Response:
    text, classes = request.query_params.get("label"), len(answers.classifier.classes)
    if text is not None and text not in map(str, range(classes)):
        raise ConfigError(f"label={text:.20}: there are {classes} classes")
    label = None if text is None else int(text)
    (name, content), *_ = await _uploads(request)
    picture, *more = await _step(request, answers.read, content, name, MOST)
    predicted = await _step(request, answers.classify, [picture])
    found = await _step(request, answers.explain, picture, label)
    told = [predicted.warnings[0], f"the first of {len(more) + 1} pages" if more else ""]
    (row,) = predicted.rows()
    body = {
        "probabilities": row["probabilities"],
        "warning": warning("; ".join(filter(None, told))),
        "html": figures(answers.explainer, picture, found),
    }
    return JSONResponse(body)


async def _step(request: Request, work: Callable[..., T], *args: Any, **named: Any) -> T:
    """Do a part of an answer in a thread, unless nobody waits for it."""
    if await request.is_disconnected():
        raise _GoneError
    return await run_in_threadpool(work, *args, **named)


async def _uploads(request: Request) -> list[tuple[str, bytes]]:
    """The files of a form, by name and content.

    Raises:
        ConfigError: there is none.
    """
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise ConfigError(NO_FILE)
    async with request.form(max_files=MOST, max_fields=8) as form:
        files = [entry for _, entry in form.multi_items() if isinstance(entry, UploadFile)]
        if not files:
            raise ConfigError(NO_FILE)
        return [(file.filename or "upload", await file.read()) for file in files]


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
    if options["overlay"] and answers.explainer is None:
        raise ConfigError(answers.notes[-1])
    label = given.get("class")
    if label is not None and not options["overlay"]:
        raise ConfigError("class is for an overlay: overlay=true&class=NAME")
    options["label"] = None if label is None else answers.classifier.label(label)
    return options

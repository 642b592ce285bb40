"""``dogmed serve``: a page to drop an image on, and the same answers as JSON."""

from __future__ import annotations

import os
import threading
from dataclasses import field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

from annotated_types import Ge, Gt, Le

from dogmed.config import configclass, recipe
from dogmed.errors import ConfigError
from dogmed.server import address, is_loopback, listen, terminable

if TYPE_CHECKING:  # PyTorch: not for --help
    import socket

    from dogmed.inference.serve.answers import Answers

STOP_SECONDS = 3
"""How long a request may take when the server is to end; it is given up then, and cut off after as long again."""
LOCAL = ("localhost", "127.0.0.1", "::1")
"""What a server that listens on the loopback address may be called."""


@configclass
class ServeConfig:
    """Serve a trained network on a web page, and as JSON; uploads are kept in memory only."""

    model: str
    """Folder of a finished run or of an export to timm, .safetensors file, name of the store or MLflow run's id;
    comes first, bare."""
    host: str = "127.0.0.1"
    """Address to listen on. There is no password: a public address is open to everyone."""
    port: Annotated[int, Ge(0), Le(65535)] = 7860
    """Port to listen on; a free one is taken when it is busy."""
    address: str | None = None
    """URL that people call it by, if something in front of it (with a password) has another."""
    max_mb: Annotated[float, Gt(0), Le(1000)] = 32
    """Largest upload in MB (of 1,000,000 bytes)."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    weights_dir: Path | None = None
    """Where named weights are found; None is the user's data folder."""
    runs: Path = field(default_factory=lambda: Path(recipe("finetune/default")["out"]))
    """Folder with the MLflow store that an MLflow run's id is looked up in; MLFLOW_TRACKING_URI comes first."""


def serve(**options: Any) -> None:
    """Answer until Ctrl-C or SIGTERM.

    Raises:
        ConfigError: Gradio is not installed, or this machine cannot listen on the address.
        WeightsError: there is no such model, or it is no classifier.
    """
    config = ServeConfig(**options)
    try:
        version("gradio")
    except PackageNotFoundError:
        raise ConfigError("dogmed serve needs Gradio: pip install 'dogmed[serve]'") from None
    from dogmed.inference.classifier import load
    from dogmed.inference.serve.answers import Answers

    if config.address is not None and not urlsplit(config.address).hostname:
        raise ConfigError(f"--address {config.address}: expected a URL, as https://lab.example")
    with listen(config.host, config.port) as bound:  # who calls meanwhile waits
        print(f"opening {config.model} ...", flush=True)
        classifier = load(
            config.model, device=config.device, weights_dir=config.weights_dir, out=config.runs
        )
        _run(bound, Answers(classifier), config)


def _run(bound: socket.socket, answers: Answers, config: ServeConfig) -> None:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when it is imported
    import uvicorn

    from dogmed.inference.serve.app import make_app
    from dogmed.inference.serve.gate import Gate

    port, url = bound.getsockname()[1], (config.address or address(bound)).rstrip("/")
    app = Gate(
        make_app(answers),
        max_bytes=round(config.max_mb * 1e6),
        hosts=LOCAL if is_loopback(bound) else None,
        url=url,
    )
    if config.port not in (0, port):
        print(f"port {config.port} is busy, using {port}")
    asked = answers.classifier
    print(f"{asked.trained.title}: {asked.introduction()} on {asked.device}")
    for note in answers.notes:
        print(f"note: {note}")
    if not is_loopback(bound):
        print("note: whoever reaches this machine can use it: there is no password")
    print(f"Drop images at {url}")
    print(f"JSON: curl -F image=@scan.png {url}/predict")
    print("Ctrl-C stops the server.", flush=True)

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            last = threading.Timer(2 * STOP_SECONDS, os._exit, (0,))  # threads cannot be stopped
            last.daemon = True
            last.start()
            super().handle_exit(sig, frame)

    uvicorn_config = uvicorn.Config(
        app, log_level="critical", access_log=False, timeout_graceful_shutdown=STOP_SECONDS
    )
    with terminable():
        try:
            Server(uvicorn_config).run(sockets=[bound])
        except KeyboardInterrupt:
            return

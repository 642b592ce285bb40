"""``dogmed serve``: a page to drop an image on, and the same answers as JSON."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Gt, Le

from dogmed.config import configclass, recipe
from dogmed.errors import ConfigError
from dogmed.server import is_loopback, listen, terminable

if TYPE_CHECKING:  # PyTorch: not for --help
    import socket

    from dogmed.inference.serve_answers import Answers

STOP_SECONDS = 3
"""How long an answer that is on its way may take when the server is to end."""


@configclass
class ServeConfig:
    """Serve a trained network on a web page, and as JSON; uploads are kept in memory only."""

    model: str
    """Finished run's folder, .safetensors file, name of the store or MLflow run's id; comes first, bare."""
    host: str = "127.0.0.1"
    """Address to listen on. There is no password: a public address is open to everyone."""
    port: Annotated[int, Ge(0), Le(65535)] = 7860
    """Port to listen on; a free one is taken when it is busy."""
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
    if importlib.util.find_spec("gradio") is None:
        raise ConfigError("dogmed serve needs Gradio: pip install 'dogmed[serve]'")
    from dogmed.inference.classifier import load
    from dogmed.inference.serve_answers import Answers

    with listen(config.host, config.port) as bound:  # before the model is opened: that takes longer
        classifier = load(
            config.model, device=config.device, weights_dir=config.weights_dir, out=config.runs
        )
        _run(bound, Answers(classifier), config)


def _run(bound: socket.socket, answers: Answers, config: ServeConfig) -> None:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when it is imported
    import uvicorn

    from dogmed.inference.serve_app import make_app

    port = bound.getsockname()[1]
    name = config.host if ":" not in config.host else f"[{config.host}]"
    address = f"http://{'localhost' if config.host in ('0.0.0.0', '::') else name}:{port}"
    local = is_loopback(config.host)
    app = make_app(answers, max_bytes=round(config.max_mb * 1e6), address=address, local=local)
    uvicorn_config = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=STOP_SECONDS
    )
    if config.port not in (0, port):
        print(f"port {config.port} is busy, using {port}")
    print(f"{answers.title} on {answers.classifier.device}")
    for note in answers.notes:
        print(f"note: {note}")
    if not local:
        print("note: whoever reaches this machine can use it: there is no password")
    bound.listen()  # from now on requests wait instead of being refused
    print(f"Drop images at {address}")
    print(f"JSON: curl -F image=@scan.png {address}/predict")
    print("Ctrl-C stops the server.", flush=True)
    with terminable():
        try:
            uvicorn.Server(uvicorn_config).run(sockets=[bound])
        except KeyboardInterrupt:
            return

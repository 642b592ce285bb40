"""``dogmed ui``: MLflow's own web page on this project's runs, opened where they are compared."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import field
from pathlib import Path
from typing import IO, Annotated

from annotated_types import Ge, Le

from dogmed.config import configclass, recipe
from dogmed.errors import DataError, DogmedError
from dogmed.server import address, listen, terminable
from dogmed.tracking import (
    ENVIRONMENT,
    default_uri,
    find_comparison,
    is_server,
    open_store,
    share_comparison,
    shown,
    store_errors,
)

START_SECONDS = 120
STOP_SECONDS = 10


@configclass
class UiConfig:
    """What ``dogmed ui`` shows, and where."""

    out: Path = field(default_factory=lambda: Path(recipe("finetune/default")["out"]))
    """Where the runs are; MLFLOW_TRACKING_URI comes first."""
    host: str = "127.0.0.1"
    """Address to listen on. There is no password: a public address is open to everyone."""
    port: Annotated[int, Ge(0), Le(65535)] = 5000
    """Port to listen on; a free one is taken when it is busy."""


def comparison_url(server: str, experiment_id: str, query: str) -> str:
    """Address of the page that compares an experiment's runs, as ``share_comparison`` left it."""
    return f"{server.rstrip('/')}/#/experiments/{experiment_id}/runs?{query}"


def serve(out: Path, *, host: str = "127.0.0.1", port: int = 5000) -> None:
    """Serve the runs under ``out`` until Ctrl-C or SIGTERM; print the address of their comparison.

    With a remote ``MLFLOW_TRACKING_URI`` there is nothing to serve: its address is printed.

    Args:
        out: folder of the runs.
        host: address to listen on.
        port: port to listen on; a free one is taken when it is busy.

    Raises:
        DataError: there are no runs yet, or the store cannot be read.
        ConfigError: this machine cannot listen on the address.
        DogmedError: the server does not start.
    """
    uri = default_uri(out)
    comparison = _comparison(uri, out)
    if is_server(uri):
        print(comparison_url(uri, *comparison))
        return
    with listen(host, port) as free:
        wanted, port, url = port, int(free.getsockname()[1]), address(free)
    if wanted not in (0, port):
        print(f"port {wanted} is busy, using {port}", flush=True)
    with (
        tempfile.TemporaryFile("w+") as log,
        terminable(),
        _server(uri, out, host, port, log) as server,
    ):
        try:
            print("starting MLflow ...", flush=True)
            _wait_until_healthy(server, url, log)
            print(f"Compare the runs at {comparison_url(url, *comparison)}", flush=True)
            print("Ctrl-C stops the server.", flush=True)
            server.wait()
        except KeyboardInterrupt:
            return
        raise DogmedError(f"the MLflow server has ended by itself: {_last_line(log)}")


def _comparison(uri: str, out: Path) -> tuple[str, str]:
    """The experiment to open and the query of its page: the newest benchmark's, if there is one."""
    nothing = f"no runs yet in {shown(uri)}: start one with 'dogmed finetune --task breastmnist'"
    if uri.startswith("sqlite:") and not Path(uri.partition(":///")[2]).exists():
        raise DataError(nothing)
    try:
        client = open_store(uri, out)
        experiment = find_comparison(client)
        query = "" if experiment is None else share_comparison(client, experiment)
    except store_errors() as error:
        reason = shown(str(error).partition("\n")[0])
        raise DataError(f"the MLflow store {shown(uri)} cannot be read: {reason}") from error
    if experiment is None:
        raise DataError(nothing)
    return experiment, query


@contextlib.contextmanager
def _server(
    uri: str, out: Path, host: str, port: int, log: IO[str]
) -> Iterator[subprocess.Popen[str]]:
    """Run ``mlflow server`` in a session of its own, and end all its processes at the end."""
    command = [sys.executable, "-P", "-m", "mlflow", "server", "--workers", "1"]
    command += ["--backend-store-uri", uri, "--host", host, "--port", str(port)]
    command += ["--artifacts-destination", str(out.resolve() / "mlartifacts")]
    process = subprocess.Popen(
        command,
        cwd=out,
        env=ENVIRONMENT | os.environ,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_until_healthy(server: subprocess.Popen[str], url: str, log: IO[str]) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if server.poll() is not None:
            raise DogmedError(f"the MLflow server did not start: {_last_line(log)}")
        with contextlib.suppress(OSError):
            urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
                f"{url}/health", timeout=2
            ).close()
            return
        time.sleep(0.2)
    raise DogmedError(f"the MLflow server has not answered at {url} for {START_SECONDS} s")


def _last_line(log: IO[str]) -> str:
    log.seek(0)
    lines = [line for line in log.read().splitlines() if line.strip()]
    return lines[-1] if lines else "it has printed nothing"

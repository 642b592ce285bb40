"""Fixtures shared by all tests."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

COMMAND = """
import os, sys
from dogmed.cli import main
os.environ |= environment
if "RANK" in environment:
    import torch
    torch.set_num_threads(1)  # as torchrun
output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
os.dup2(output, 1)
os.dup2(output, 2)
sys.stdout.reconfigure(line_buffering=True)
sys.exit(main(words))
"""


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data named by DOGMED_TEST_DATA; tests that need it are skipped without it."""
    folder = os.environ.get("DOGMED_TEST_DATA")
    if not folder:
        pytest.skip("DOGMED_TEST_DATA is not set: no real data to test on")
    path = Path(folder).resolve()
    assert path.is_dir(), f"DOGMED_TEST_DATA names {path}, which is not a folder"
    return path


@pytest.fixture(scope="session")
def warm() -> ForkServerContext:
    """Starts processes at once: forked from one that has imported the pipelines, which takes seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dogmed.finetune.run", "dogmed.pretrain.run"])
    return context


@pytest.fixture(scope="session")
def start_dogmed(warm: ForkServerContext) -> Callable[..., ForkServerProcess]:
    """Start ``dogmed WORDS`` as a process of its own that adds what it says to a file."""

    def start(words: Sequence[str], log: Path, **environment: str) -> ForkServerProcess:
        names = {"words": list(words), "log": str(log), "environment": environment}
        process = warm.Process(target=exec, args=(COMMAND, names))
        process.start()
        return process

    return start


@pytest.fixture(scope="session")
def run_pair(
    start_dogmed: Callable[..., ForkServerProcess],
) -> Callable[..., list[tuple[int | None, str]]]:
    """Run ``dogmed WORDS`` as two processes of a group: what each said, and its exit code."""

    def run(words: Sequence[str], folder: Path) -> list[tuple[int | None, str]]:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = str(free.getsockname()[1])
        group = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": "2"}  # as torchrun
        logs = {rank: folder / f"rank{rank}.log" for rank in "01"}
        pair = [
            start_dogmed(words, log, **group, RANK=rank, LOCAL_RANK=rank)
            for rank, log in logs.items()
        ]
        for process in pair:
            process.join(300)
        codes = [process.exitcode for process in pair]
        return list(zip(codes, (log.read_text() for log in logs.values()), strict=True))

    return run


@pytest.fixture(scope="session")
def fresh_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty store of MLflow, set up once: that takes seconds."""
    from dogmed.tracking import default_uri, open_store

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        folder = tmp_path_factory.mktemp("store")
        open_store(default_uri(folder), folder)
    return folder / "mlflow.db"


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """The URL, without a database, of a PostgreSQL server that lives as long as the tests."""
    psycopg2 = pytest.importorskip("psycopg2", reason="the extra dogmed[postgresql] is missing")
    newest = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: path.parent.name)
    where = os.pathsep.join([os.environ["PATH"], *map(str, reversed(newest))])
    initdb, postgres = shutil.which("initdb", path=where), shutil.which("postgres", path=where)
    if not (initdb and postgres):
        pytest.skip("PostgreSQL (initdb, postgres) is not installed")
    folder = Path(tempfile.mkdtemp(prefix="dogmed-postgresql-"))
    log = folder / "log"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    login: dict[str, Any] = {"cwd": folder}
    if os.geteuid() == 0:  # the server refuses to be root
        known = {user.pw_name: user for user in pwd.getpwall()}
        user = known.get("postgres") or known["nobody"]
        os.chown(folder, user.pw_uid, user.pw_gid)
        login |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    data = str(folder / "data")
    create = [initdb, "-D", data, "-U", "dogmed", "-A", "trust", "--no-sync", "-E", "UTF8"]
    subprocess.run(create, check=True, stdout=subprocess.DEVNULL, **login)
    options = ["-p", str(port), "-h", "127.0.0.1", "-k", "", "-F"]
    with log.open("wb") as output:
        server = subprocess.Popen(
            [postgres, "-D", data, *options], stdout=output, stderr=output, **login
        )
    url = f"postgresql://dogmed@127.0.0.1:{port}"
    try:
        for _ in range(300):
            assert server.poll() is None, log.read_text()
            with contextlib.suppress(psycopg2.OperationalError):
                psycopg2.connect(f"{url}/postgres").close()
                break
            time.sleep(0.1)
        yield url
    finally:
        server.send_signal(signal.SIGINT)  # drops its connections and ends
        server.wait(timeout=60)
        shutil.rmtree(folder)


@pytest.fixture
def postgresql(postgresql_server: str) -> str:
    """The URL of a fresh, empty PostgreSQL database."""
    import psycopg2

    name = f"test_{uuid.uuid4().hex}"
    connection = psycopg2.connect(f"{postgresql_server}/postgres")
    connection.autocommit = True
    with contextlib.closing(connection), connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name}")
    return f"{postgresql_server}/{name}"

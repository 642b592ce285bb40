"""Fixtures shared by all tests."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


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

"""Where MLflow's store is, whether it answers, and how it is set up once.

A store is a database (an sqlite file by default) or a tracking server. MLflow's own set-up of a fresh
database is a race among processes: it is done under a lock here.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import socket
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

STORE_SECONDS = 10  # a store that does not answer for so long is down
LOCK_SECONDS = 120  # setting up a database takes seconds, and many processes may wait for it
ADVISORY_LOCK = int.from_bytes(b"dogmed")  # the number that all of us lock in PostgreSQL
SECRETS = "password|passwd|pwd|sslpassword|token|access_token|secret|api_?key"  # in a URL's query
KEY_TAG = "dogmed.key"
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": str(STORE_SECONDS),
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}
DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


def default_uri(out: Path) -> str:
    """Name the store: ``MLFLOW_TRACKING_URI`` if set, else the sqlite file under ``out``.

    PostgreSQL without a driver is PostgreSQL by psycopg2, the one of the extra ``postgresql``.
    """
    given = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    given = re.sub(r"^postgresql://", "postgresql+psycopg2://", given)
    return given or f"sqlite:///{(out / 'mlflow.db').resolve().as_posix()}"


def quiet() -> None:
    """Keep MLflow from phoning home, writing to the terminal and retrying for minutes.

    What the user has set stays. Telemetry is decided when mlflow is imported, and MONAI imports it:
    call this before importing either.
    """
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    for name in ("mlflow", "alembic", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(os.environ["MLFLOW_LOGGING_LEVEL"].upper())


def is_server(uri: str) -> bool:
    """Whether the store is behind a tracking server, which places artifacts itself."""
    return uri.lower().startswith(("http://", "https://"))


def open_store(uri: str, out: Path) -> MlflowClient:
    """Return a client of a store that is known to answer and, if it is a database, to be set up.

    A fresh database is set up by one process while others wait: MLflow's own migrations race. What
    goes wrong is one of ``store_errors()``.
    """
    quiet()
    _probe(uri)
    from mlflow import MlflowClient

    with one_at_a_time(uri, out):
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    return client


@functools.cache
def store_errors() -> tuple[type[Exception], ...]:
    """What a store raises that is down, locked, full, of another version, without driver or none."""
    from alembic.util.exc import CommandError
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    database = (SQLAlchemyError, CommandError, sqlite3.Error)
    return MlflowException, *database, OSError, ValueError, ImportError


def shown(uri: str) -> str:
    """Print a store's address without the password or token it may hold, and as the user wrote it."""
    uri = uri.replace("postgresql+psycopg2://", "postgresql://")  # as in default_uri
    text = re.sub(r"(://[^:/?#@]*):(?:[^/?#]*|[^@]*)@", r"\1:***@", uri)
    text = re.sub(
        r"(https?)://[^:/?#@\s]+@", r"\1://***@", text
    )  # a token; elsewhere a user's name
    return re.sub(rf"(?i)\b({SECRETS})=[^&\s]*", r"\1=***", text)


def _probe(uri: str) -> None:
    """Fail at once where MLflow would try for minutes: a database that is down, locked or none."""
    parts = urlsplit(uri)
    scheme = parts.scheme.partition("+")[0]
    if scheme == "sqlite":
        path = Path(uri.partition(":///")[2])
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(path, timeout=STORE_SECONDS)) as connection:
            connection.execute("PRAGMA schema_version").fetchone()
    elif scheme in DATABASE_PORTS and parts.hostname:
        address = (parts.hostname, parts.port or DATABASE_PORTS[scheme])
        socket.create_connection(address, timeout=STORE_SECONDS).close()


@contextlib.contextmanager
def one_at_a_time(uri: str, out: Path) -> Iterator[None]:
    """Hold the lock of ``out`` and, in PostgreSQL, one that other machines see; a server has its own."""
    if is_server(uri):
        yield
        return
    from filelock import FileLock

    out.mkdir(parents=True, exist_ok=True)
    with FileLock(out / "mlflow.lock", timeout=LOCK_SECONDS), _advisory_lock(uri):
        yield


@contextlib.contextmanager
def _advisory_lock(uri: str) -> Iterator[None]:
    if not urlsplit(uri).scheme.startswith("postgresql"):
        yield
        return
    from sqlalchemy import create_engine, pool, text

    engine = create_engine(uri, poolclass=pool.NullPool)
    with engine.connect() as connection:  # the lock ends with the connection
        connection.execute(text(f"SET lock_timeout = '{LOCK_SECONDS}s'"))
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": ADVISORY_LOCK})
        connection.commit()  # keeps the lock, ends the transaction
        yield


def find_experiment(client: MlflowClient, name: str, uri: str, out: Path) -> str:
    """Find or create an experiment; without a server its artifacts go under ``out``."""
    from mlflow.exceptions import MlflowException

    with one_at_a_time(uri, out):
        if (found := client.get_experiment_by_name(name)) is not None:
            return str(found.experiment_id)
        folder = (out / "mlartifacts" / quote(name, safe="")).resolve()
        try:
            return client.create_experiment(name, None if is_server(uri) else folder.as_uri())
        except MlflowException:  # another client of the server was faster, unless there is none
            if (found := client.get_experiment_by_name(name)) is None:
                raise
            return str(found.experiment_id)


def find_run(client: MlflowClient, key: str) -> Run | None:
    """Return the active run that has this id, or was given this key when it was made; or None."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(key)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
    else:
        if run.info.lifecycle_stage == "active":
            return run
    return _keyed(client, key, deleted=False)


def is_deleted(client: MlflowClient, key: str) -> bool:
    """Whether someone has deleted the run of this key."""
    return _keyed(client, key, deleted=True) is not None


def _keyed(client: MlflowClient, key: str, *, deleted: bool) -> Run | None:
    from mlflow.entities import ViewType

    experiments = [e.experiment_id for e in client.search_experiments()]
    found = client.search_runs(
        experiments,
        f"tags.`{KEY_TAG}` = '{key}'",
        ViewType.DELETED_ONLY if deleted else ViewType.ACTIVE_ONLY,
        max_results=1,
    )
    return found[0] if found else None

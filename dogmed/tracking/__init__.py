"""MLflow: the runs of this project, and the web page that compares them.

By default everything lives under ``--out``: an sqlite file and a folder of artifacts. A remote
server or a database is named by ``MLFLOW_TRACKING_URI``. Local files (``metrics.jsonl``,
``result.json``) are the truth and MLflow is a copy of it: a store that fails costs one warning and
a short wait, never the training. mlflow is imported here and nowhere else, on first use.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
import os
import re
import socket
import sqlite3
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar
from urllib.parse import quote, urlsplit

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger("dogmed.tracking")

STORE_SECONDS = 10  # a store that does not answer for so long is down
LOCK_SECONDS = 120  # setting up a database takes seconds, and many processes may wait for it
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": str(STORE_SECONDS),
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}
PARAMS_PER_CALL = 100
PARAM_LENGTH = 6000
DIGEST_LENGTH = 36
DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}

P = ParamSpec("P")
R = TypeVar("R")


def default_uri(out: Path) -> str:
    """Name the store: ``MLFLOW_TRACKING_URI`` if set, else the sqlite file under ``out``."""
    given = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
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


def _guarded(
    method: Callable[Concatenate[Run, P], R],
) -> Callable[Concatenate[Run, P], R | None]:
    """Let a method that talks to the store fail once, with a warning, and skip it from then on."""

    @functools.wraps(method)
    def call(self: Run, *args: P.args, **kwargs: P.kwargs) -> R | None:
        if self.lost:
            return None
        try:
            return method(self, *args, **kwargs)
        except store_errors() as error:
            self._lose(error)
            return None

    return call


class Run:
    """One MLflow run, started or continued; made by ``Run.start``.

    Attributes:
        run_id: the run's name in the store; None when the store could not be reached.
        lost: whether something could not be logged. From then on nothing is tried but ``end``.
    """

    _client: MlflowClient

    def __init__(self, uri: str):
        self.uri = uri
        self.run_id: str | None = None
        self.lost = False
        self._experiment_id = ""
        self._logged: dict[str, int] = {}  # metric -> last step logged in an earlier sitting
        self._opened = False

    @classmethod
    def start(
        cls,
        uri: str,
        experiment: str,
        name: str,
        *,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        out: Path,
        run_id: str | None = None,
    ) -> Run:
        """Start a run, or continue one; a store that cannot be used is a warning, not an error.

        Args:
            uri: of the store, as ``default_uri`` gives it.
            experiment: created when it does not exist.
            name: what the UI calls the run.
            params: logged once. A continued run keeps its own; one whose value has changed since
                becomes a tag ``resumed.<param>``.
            tags: of the run; ``mlflow.parentRunId`` nests it under another.
            out: folder for the artifacts of a store that has no server, and for its lock.
            run_id: the run to continue. If it is gone, a new one is tagged ``continues``.
        """
        run = cls(uri)
        run.run_id = run_id
        run._open(experiment, name, params, dict(tags), out)
        return run

    @_guarded
    def log_metrics(self, metrics: Mapping[str, float | None], step: int) -> None:
        """Log the finite ones of ``metrics`` in one call.

        An undefined value is a gap in the curve. Steps that an earlier sitting of a continued run
        has logged are left as they are: MLflow would keep both.
        """
        self._log_batch(metrics, step)

    @_guarded
    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Copy a file into the run's ``folder``; pictures there are shown by the UI."""
        self._client.log_artifact(self._id, str(path), folder)

    @_guarded
    def log_dataset(self, name: str, source: str, digest: str, context: str) -> None:
        """Name the data of a ``context`` (``"train"``, ``"test"``), without copying any.

        ``source`` is a URL or a path; of ``digest``, the content's hash, 36 characters are kept.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag

        kind, key = ("http", "url") if "://" in source else ("local", "uri")
        dataset = Dataset(name, digest[:DIGEST_LENGTH], kind, json.dumps({key: source}))
        tag = InputTag("mlflow.data.context", context)
        self._client.log_inputs(self._id, datasets=[DatasetInput(dataset, [tag])])

    @_guarded
    def log_weights(self, path: Path, name: str, metrics: Mapping[str, float | None]) -> str:
        """Copy a .safetensors file as a logged model; returns its id, and ``models:/<id>`` registers.

        The model's ``metrics`` join the run's, at step 0: name them unlike the curves.
        """
        from mlflow.entities import LoggedModelOutput

        client = self._client
        model = client.create_logged_model(self._experiment_id, name, source_run_id=self._id)
        client.log_model_artifact(model.model_id, str(path))
        client.finalize_logged_model(model.model_id, "READY")
        client.log_outputs(self._id, [LoggedModelOutput(model.model_id, step=0)])
        self._log_batch(metrics, 0, model.model_id)
        return str(model.model_id)

    def end(self, status: str) -> None:
        """Close the run as ``FINISHED``, ``FAILED`` or ``KILLED``; tried even after a loss."""
        assert status in ("FINISHED", "FAILED", "KILLED"), status
        if not self._opened:
            return
        try:
            if self.lost:
                self._client.set_tag(self._id, "incomplete", "true")
            self._client.set_terminated(self._id, status)
        except store_errors() as error:
            self._lose(error)

    @_guarded
    def _open(
        self, experiment: str, name: str, params: Mapping[str, Any], tags: dict[str, str], out: Path
    ) -> None:
        client = self._client = open_store(self.uri, out)
        self._experiment_id = _experiment(client, experiment, self.uri, out)
        earlier = _find_run(client, self.run_id) if self.run_id else None
        if earlier is None:
            more = {"continues": self.run_id} if self.run_id else {}
            created = client.create_run(self._experiment_id, run_name=name, tags=tags | more)
            self.run_id, known = created.info.run_id, {}
        else:
            self._experiment_id, known = earlier.info.experiment_id, earlier.data.params
            client.update_run(self._id, status="RUNNING")
            for key in earlier.data.metrics:
                self._logged[key] = max(m.step for m in client.get_metric_history(self._id, key))
        self._opened = True
        self._log_params(params, known)

    def _log_params(self, params: Mapping[str, Any], known: Mapping[str, str]) -> None:
        from mlflow.entities import Param, RunTag

        texts = {key: str(value)[:PARAM_LENGTH] for key, value in params.items()}
        new = [Param(key, text) for key, text in texts.items() if key not in known]
        changed = [key for key, text in texts.items() if known.get(key, text) != text]
        for start in range(0, len(new), PARAMS_PER_CALL):
            self._client.log_batch(self._id, params=new[start : start + PARAMS_PER_CALL])
        tags = [RunTag(f"resumed.{key}", texts[key]) for key in changed]
        self._client.log_batch(self._id, tags=tags)

    def _log_batch(
        self, metrics: Mapping[str, float | None], step: int, model_id: str | None = None
    ) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        batch = [
            Metric(key, float(value), now, step, model_id=model_id)
            for key, value in metrics.items()
            if value is not None and math.isfinite(value) and step > self._logged.get(key, -1)
        ]
        self._client.log_batch(self._id, metrics=batch)

    def _lose(self, error: BaseException) -> None:
        if not self.lost:
            reason = str(error).strip().partition("\n")[0][:250] or type(error).__name__
            what = "cannot be used; the run goes on without it, and its own files stay complete"
            logger.warning("MLflow at %s %s (%s)", shown(self.uri), what, shown(reason))
        self.lost = True

    @property
    def _id(self) -> str:
        assert self.run_id is not None, "Run.start opens a run"
        return self.run_id


class NoRun:
    """Track nothing, with the surface of ``Run``: for ``--tracking off`` and ranks other than 0."""

    run_id: str | None = None
    lost = False

    def log_metrics(self, metrics: Mapping[str, float | None], step: int) -> None: ...

    def log_artifact(self, path: Path, folder: str | None = None) -> None: ...

    def log_dataset(self, name: str, source: str, digest: str, context: str) -> None: ...

    def log_weights(self, path: Path, name: str, metrics: Mapping[str, float | None]) -> None: ...

    def end(self, status: str) -> None: ...


def open_store(uri: str, out: Path) -> MlflowClient:
    """Return a client of a store that is known to answer and, if it is a database, to be set up.

    A fresh database is set up by one process while others wait: MLflow's own migrations race. What
    goes wrong is one of ``store_errors()``.
    """
    quiet()
    _probe(uri)
    from mlflow import MlflowClient

    with _one_at_a_time(uri, out):
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
    """Print a store's address without the password it may hold."""
    return re.sub(r"(://[^:/?#@]*):(?:[^/?#]*|[^@]*)@", r"\1:***@", uri)


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


def _one_at_a_time(uri: str, out: Path) -> contextlib.AbstractContextManager[Any]:
    """Hold the lock under which a store without a server is set up."""
    if is_server(uri):
        return contextlib.nullcontext()
    from filelock import FileLock

    out.mkdir(parents=True, exist_ok=True)
    return FileLock(out / "mlflow.lock", timeout=LOCK_SECONDS)


def _experiment(client: MlflowClient, name: str, uri: str, out: Path) -> str:
    """Find or create an experiment; without a server its artifacts go under ``out``."""
    from mlflow.exceptions import MlflowException

    with _one_at_a_time(uri, out):
        if (found := client.get_experiment_by_name(name)) is not None:
            return str(found.experiment_id)
        folder = (out / "mlartifacts" / quote(name, safe="")).resolve()
        try:
            return client.create_experiment(name, None if is_server(uri) else folder.as_uri())
        except MlflowException:  # another client of the server was faster, unless there is none
            if (found := client.get_experiment_by_name(name)) is None:
                raise
            return str(found.experiment_id)


def _find_run(client: MlflowClient, run_id: str) -> Any:
    """Return a run that is still there, or None."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return run if run.info.lifecycle_stage == "active" else None

"""One run's way into the store while it works; a store that fails never stops it."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from dogmed.tracking import entries
from dogmed.tracking.entries import finite
from dogmed.tracking.ledger import Ledger
from dogmed.tracking.store import find_experiment, find_run, open_store, shown, store_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger("dogmed.tracking")

ENDS = ("FINISHED", "FAILED", "KILLED")

P = ParamSpec("P")
R = TypeVar("R")


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
        lost: whether something could not be logged. From then on nothing is tried but ``end``, and
            ``dogmed sync`` logs the rest from the run's folder.
    """

    _client: MlflowClient

    def __init__(self, uri: str, ledger: Ledger):
        self.uri = uri
        self.ledger = ledger
        self.run_id: str | None = None
        self.lost = False
        self._experiment_id = ""
        self._model_id: str | None = None
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
        ledger: Path,
    ) -> Run:
        """Start a run, or continue one; a store that cannot be used is a warning, not an error.

        Args:
            uri: of the store, as ``default_uri`` gives it.
            experiment: created when it does not exist; a continued run stays in its own.
            name: what the UI calls the run.
            params: logged once. A continued run keeps its own; one whose value has changed since
                becomes a tag ``resumed.<param>``.
            tags: of the run; a continued one takes the new values. ``mlflow.parentRunId``, an id or
                a key, nests it under another.
            out: folder for the artifacts of a store that has no server, and for its lock.
            ledger: file, in the run's folder, that remembers the run. If it exists and the store has
                its run, that one is continued.

        Raises:
            DogmedError: the ledger is damaged.
        """
        run = cls(uri, Ledger.open(ledger))
        book = run.ledger
        texts = {key: str(value)[: entries.PARAM_LENGTH] for key, value in params.items()}
        changed = {f"resumed.{k}": v for k, v in texts.items() if book.params.get(k, v) != v}
        book.params = texts | book.params
        book.experiment, book.name = book.experiment or experiment, name
        book.tags |= dict(tags) | changed
        book.status = "RUNNING"
        book.save()
        run._open(out)
        return run

    @_guarded
    def log_metrics(self, metrics: Mapping[str, float | None], step: int) -> None:
        """Log a point of each curve: the finite ones of ``metrics``, in one call.

        An undefined value is a gap in the curve. Steps that an earlier sitting of a continued run
        has logged are left as they are: MLflow would keep both.
        """
        self._log_batch(metrics, step)

    def log_scores(self, scores: Mapping[str, float | None]) -> None:
        """Log figures of the whole run, at step 0: name them unlike the curves."""
        self.ledger.scores |= finite(scores)
        self.ledger.save()
        self._log_scores()

    def log_artifact(self, path: Path, folder: str | None = None, name: str | None = None) -> None:
        """Copy a file into the run's ``folder``; pictures there are shown by the UI.

        ``name`` is where the file will lie in the run's folder, if it is not there yet.
        """
        entry = [name or self.ledger.relative(path), folder or ""]
        if entry not in self.ledger.artifacts:
            self.ledger.artifacts.append(entry)
            self.ledger.save()
        self._log_artifact(path, folder)

    def log_dataset(self, name: str, source: str, digest: str, context: str) -> None:
        """Name the data of a ``context`` (``"train"``, ``"test"``), without copying any.

        ``source`` is a URL or a path; of ``digest``, the content's hash, 36 characters are kept.
        """
        entry = [name, source, digest[: entries.DIGEST_LENGTH], context]
        if entry not in self.ledger.datasets:
            self.ledger.datasets.append(entry)
            self.ledger.save()
        self._log_dataset(entry)

    def log_weights(self, path: Path, name: str, scores: Mapping[str, float | None]) -> None:
        """Copy a .safetensors file as a logged model.

        Its ``scores`` join the run's, at step 0: name them unlike the curves.
        """
        self.ledger.weights = [self.ledger.relative(path), name]
        self.ledger.scores |= finite(scores)
        self.ledger.save()
        self._log_weights(path)

    def propose(self, model: str, score: float | None, tags: Mapping[str, str]) -> None:
        """Note what the weights would be in the registry, for ``promote`` to choose from.

        Args:
            model: registered model that they would be a version of.
            score: on val; the highest is best, None is not to be registered.
            tags: of the version.
        """
        facts = {"model": model, "score": score, "tags": dict(tags)}
        self.ledger.candidate = facts if score is not None else {}
        self.ledger.save()

    def end(self, status: str) -> None:
        """Close the run as ``FINISHED``, ``FAILED`` or ``KILLED``; tried even after a loss."""
        assert status in ENDS, status
        self.ledger.status = status
        self.ledger.save()
        if not self._opened:
            return
        try:
            if self.lost:
                self._client.set_tag(self._id, "incomplete", "true")
            self._client.set_terminated(self._id, status)
        except store_errors() as error:
            self._lose(error)

    # ---- what talks to the store --------------------------------------------------------------

    @_guarded
    def _open(self, out: Path) -> None:
        book, client = self.ledger, open_store(self.uri, out)
        self._client = client
        for key in book.replaces:
            entries.close(client, key)
        self._experiment_id = find_experiment(client, book.experiment, self.uri, out)
        earlier = find_run(client, book.key)
        if earlier is None:
            run_id, known = entries.create_run(client, self._experiment_id, book), {}
        else:
            run_id, known = earlier.info.run_id, earlier.data.params
            self._experiment_id = earlier.info.experiment_id
            self._model_id = entries.model_of(earlier)
            client.update_run(run_id, status="RUNNING")
            for key in earlier.data.metrics:
                self._logged[key] = max(m.step for m in client.get_metric_history(run_id, key))
        self.run_id = run_id
        if run_id not in book.run_ids:
            book.run_ids.append(run_id)
            book.save()
        self._opened = True
        entries.log_params(client, run_id, {k: v for k, v in book.params.items() if k not in known})
        if earlier is not None:
            wanted = entries.resolved_tags(client, book)
            changed = entries.changed_tags(earlier.data.tags, wanted)
            entries.set_tags(client, run_id, changed)

    @_guarded
    def _log_scores(self) -> None:
        self._log_batch(self.ledger.scores, 0)

    @_guarded
    def _log_artifact(self, path: Path, folder: str | None) -> None:
        self._client.log_artifact(self._id, str(path), folder)

    @_guarded
    def _log_dataset(self, entry: list[str]) -> None:
        entries.log_dataset(self._client, self._id, entry)

    @_guarded
    def _log_weights(self, path: Path) -> None:
        if self._model_id is None:  # else a sitting that died afterwards has logged them
            name = self.ledger.weights[1]
            self._model_id = entries.log_model(
                self._client, self._experiment_id, self._id, path, name
            )
        self._log_batch(self.ledger.scores, 0, self._model_id)

    def _log_batch(
        self, metrics: Mapping[str, float | None], step: int, model_id: str | None = None
    ) -> None:
        new = {k: v for k, v in finite(metrics).items() if step > self._logged.get(k, -1)}
        entries.log_points(self._client, self._id, [(k, v, step) for k, v in new.items()], model_id)

    def _lose(self, error: BaseException) -> None:
        if not self.lost:
            reason = str(error).strip().partition("\n")[0][:250] or type(error).__name__
            what = "cannot be used; the run goes on without it, its own files stay complete, and "
            what += "'dogmed sync' logs the rest later"
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

    def log_scores(self, scores: Mapping[str, float | None]) -> None: ...

    def log_artifact(
        self, path: Path, folder: str | None = None, name: str | None = None
    ) -> None: ...

    def log_dataset(self, name: str, source: str, digest: str, context: str) -> None: ...

    def log_weights(self, path: Path, name: str, scores: Mapping[str, float | None]) -> None: ...

    def propose(self, model: str, score: float | None, tags: Mapping[str, str]) -> None: ...

    def end(self, status: str) -> None: ...

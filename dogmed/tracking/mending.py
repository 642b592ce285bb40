"""Make a store hold what a run's folder says, and nothing twice."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from dogmed.errors import DogmedError
from dogmed.tracking import entries
from dogmed.tracking.ledger import Ledger
from dogmed.tracking.run import ENDS
from dogmed.tracking.store import find_experiment, find_run, is_deleted, open_store, store_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

DELETED = "deleted in MLflow, left alone"


def mend(client: MlflowClient, uri: str, out: Path, book: Ledger) -> list[str]:
    """Log what the store lacks of a run that no process is working on.

    Args:
        client: of the store at ``uri``.
        uri: for the place of a new experiment's artifacts.
        out: likewise.
        book: the run's ledger; a run that was cut off becomes KILLED in it.

    Returns:
        What was done, in words; empty when all was there.

    Raises:
        DogmedError: files of the run are missing or damaged; what could be logged, is.
        Exception: one of ``store_errors()``.
    """
    if book.status not in ENDS:
        book.status = "KILLED"
        book.save()
    curves = book.curves()
    done = []
    for key in book.replaces:
        if entries.close(client, key):
            done.append("closed the run that it replaces")
    run = find_run(client, book.key)
    if run is None:
        if is_deleted(client, book.key):
            return [*done, DELETED]
        experiment = find_experiment(client, book.experiment, uri, out)
        run = client.get_run(entries.create_run(client, experiment, book, _began(book)))
        done.append("created")
    if run.info.run_id not in book.run_ids:
        book.run_ids.append(run.info.run_id)
        book.save()
    done += _mend_facts(client, run, book)
    done += _mend_points(client, run, curves)
    missing: list[str] = []
    done += _mend_artifacts(client, run, book, missing)
    done += _mend_weights(client, run, book, missing)
    done += _mend_status(client, run, book)
    if missing:
        raise DogmedError(f"{', '.join(missing)} of the run cannot be found; all else is logged")
    return done


def close_dead(uri: str, out: Path, ledgers: Iterable[Path]) -> None:
    """End the runs that the store believes to be running though nobody holds their folders.

    What cannot be ended is left to ``dogmed sync``.
    """
    for path in ledgers:
        if not path.is_file():
            continue
        alone = FileLock(path.parent / ".lock", timeout=0)
        with contextlib.suppress(Timeout, DogmedError, *store_errors()), alone:
            book = Ledger.open(path)
            if book.status not in ENDS:
                entries.close(open_store(uri, out), book.key)
                book.status = "KILLED"
                book.save()


def _mend_facts(client: MlflowClient, run: Run, book: Ledger) -> Iterator[str]:
    run_id = run.info.run_id
    if params := {k: v for k, v in book.params.items() if k not in run.data.params}:
        entries.log_params(client, run_id, params)
        yield _count(len(params), "parameter")
    tags = entries.changed_tags(run.data.tags, entries.resolved_tags(client, book))
    if tags:
        entries.set_tags(client, run_id, tags)
        yield (
            "moved to its parent"
            if list(tags) == [entries.PARENT_TAG]
            else _count(len(tags), "tag")
        )
    known = {
        (i.dataset.name, i.dataset.digest, tag.value)
        for i in (run.inputs.dataset_inputs if run.inputs else ())
        for tag in i.tags
    }
    new = [entry for entry in book.datasets if (entry[0], entry[2], entry[3]) not in known]
    for entry in new:
        entries.log_dataset(client, run_id, entry)
    if new:
        yield _count(len(new), "dataset")


def _mend_points(
    client: MlflowClient, run: Run, curves: dict[str, dict[int, float]]
) -> Iterator[str]:
    points = []
    for metric, values in curves.items():
        values = {step: value for step, value in values.items() if entries.finite({"": value})}
        known: set[int] = set()
        if metric in run.data.metrics:
            known = {m.step for m in client.get_metric_history(run.info.run_id, metric)}
        points += [(metric, value, step) for step, value in values.items() if step not in known]
    entries.log_points(client, run.info.run_id, points)
    if points:
        yield _count(len({step for _, _, step in points}), "epoch")


def _mend_artifacts(
    client: MlflowClient, run: Run, book: Ledger, missing: list[str]
) -> Iterator[str]:
    folders = {folder for _, folder in book.artifacts}
    known = {
        entry.path: entry.file_size
        for folder in folders
        for entry in client.list_artifacts(run.info.run_id, folder or None)
        if not entry.is_dir
    }
    logged = 0
    for name, folder in book.artifacts:
        path = book.file(name)
        if not path.is_file():
            missing.append(name)
        elif known.get("/".join(filter(None, (folder, path.name)))) != path.stat().st_size:
            client.log_artifact(run.info.run_id, str(path), folder or None)
            logged += 1
    if logged:
        yield _count(logged, "file")


def _mend_weights(
    client: MlflowClient, run: Run, book: Ledger, missing: list[str]
) -> Iterator[str]:
    model_id = entries.model_of(run)
    if book.weights:
        name, title = book.weights
        path = book.file(name)
        if not path.is_file():
            missing += [name] if model_id is None else []
        elif model_id is None:
            experiment, run_id = run.info.experiment_id, run.info.run_id
            model_id = entries.log_model(client, experiment, run_id, path, title)
            yield "weights"
        else:
            yield from entries.complete_model(client, model_id, path)
    scores = {k: v for k, v in book.scores.items() if k not in run.data.metrics}
    entries.log_points(client, run.info.run_id, [(k, v, 0) for k, v in scores.items()], model_id)
    if scores:
        yield _count(len(scores), "score")


def _mend_status(client: MlflowClient, run: Run, book: Ledger) -> Iterator[str]:
    if run.data.tags.get("incomplete"):
        client.delete_tag(run.info.run_id, "incomplete")
        yield "complete now"
    if run.info.status != book.status:
        ended = run.info.end_time or int(_ended(book) * 1000)
        client.set_terminated(run.info.run_id, book.status, max(ended, run.info.start_time))
        yield f"{run.info.status} -> {book.status}"


def _began(book: Ledger) -> float:
    return min(path.stat().st_mtime for path in _files(book))


def _ended(book: Ledger) -> float:
    return max(path.stat().st_mtime for path in _files(book))


def _files(book: Ledger) -> list[Path]:
    """Files whose age tells when the run was done."""
    files = [book.file(name) for name, _ in book.artifacts]
    return [path for path in files if path.is_file()] or [book.path]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"

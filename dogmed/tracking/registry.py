"""The model registry: for each task and size one registered model, whose alias ``best`` is the best on val."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from dogmed.errors import DogmedError
from dogmed.tracking.entries import model_of
from dogmed.tracking.ledger import Ledger
from dogmed.tracking.store import LOCK_SECONDS, find_run, open_store, store_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

ALIAS = "best"
SCORE_TAG = "val_auc"


def promote(client: MlflowClient, out: Path, books: Iterable[Ledger]) -> list[str]:
    """Register the best finished run of each registered model, if it beats all of its versions.

    Chosen by the score that the run proposed, which is one on val, never on test. A model thus has a
    version for each time that a better one was found, and runs of other folders count too.

    Args:
        client: of the store.
        out: where the lock is.
        books: ledgers of runs; those that propose nothing or have no weights in the store are passed over.

    Returns:
        What was done, in words.
    """
    best: dict[str, Ledger] = {}
    for book in books:
        offer = book.candidate
        if book.status != "FINISHED" or not offer:
            continue
        rival = best.get(offer["model"])
        if rival is None or offer["score"] > rival.candidate["score"]:
            best[offer["model"]] = book
    done = []
    with FileLock(out / "mlflow.lock", timeout=LOCK_SECONDS):
        for name, book in sorted(best.items()):
            done += _promote(client, name, book)
    return done


def promote_files(uri: str, out: Path, ledgers: Iterable[Path]) -> None:
    """``promote`` for ledgers in files; what cannot be done now is left to ``dogmed sync``."""
    with contextlib.suppress(Timeout, DogmedError, *store_errors()):
        books = [Ledger.open(path) for path in ledgers if path.is_file()]
        promote(open_store(uri, out), out, books)


def _promote(client: MlflowClient, name: str, book: Ledger) -> list[str]:
    done = []
    versions = _versions(client, name)
    top = max(map(_score, versions), default=float("-inf"))
    run = find_run(client, book.key)
    if run is not None and book.candidate["score"] > top and (model_id := model_of(run)):
        versions.append(_register(client, name, book, run.info.run_id, model_id))
        done.append(
            f"{name}: version {versions[-1].version}, {SCORE_TAG} {_score(versions[-1]):.4f}"
        )
    if not versions:
        return done
    # once more from the store: another machine may have registered a better one meanwhile
    winner = max(_versions(client, name), key=lambda v: (_score(v), -int(v.version)))
    aliases = client.get_registered_model(name).aliases
    if str(aliases.get(ALIAS)) != str(winner.version):
        client.set_registered_model_alias(name, ALIAS, winner.version)
        done.append(f"{name}@{ALIAS} -> version {winner.version}")
    return done


def _versions(client: MlflowClient, name: str) -> list[ModelVersion]:
    found = client.search_model_versions(f"name = '{name}'")
    return [version for version in found if SCORE_TAG in version.tags]


def _score(version: ModelVersion) -> float:
    return float(version.tags[SCORE_TAG])


def _register(
    client: MlflowClient, name: str, book: Ledger, run_id: str, model_id: str
) -> ModelVersion:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    offer = book.candidate
    tags = {**offer["tags"], SCORE_TAG: repr(float(offer["score"]))}
    source = client.get_logged_model(model_id).artifact_location  # models:/ID asks another store
    return client.create_model_version(name, source, run_id, tags=tags, model_id=model_id)

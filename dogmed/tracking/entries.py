"""The single things that are written to a store, as ``Run`` and ``dogmed sync`` both write them."""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dogmed.tracking import servable
from dogmed.tracking.ledger import Ledger
from dogmed.tracking.store import KEY_TAG, find_run

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run

PARENT_TAG = "mlflow.parentRunId"
KIND_TAG = "dogmed.kind"
PARAM_LENGTH = 6000
DIGEST_LENGTH = 36
PER_CALL = 100  # of parameters; MLflow takes no more
POINTS_PER_CALL = 1000


def finite(metrics: Mapping[str, float | None]) -> dict[str, float]:
    """Those that a curve can show."""
    return {k: float(v) for k, v in metrics.items() if v is not None and math.isfinite(v)}


def create_run(
    client: MlflowClient, experiment_id: str, book: Ledger, began: float | None = None
) -> str:
    """Make a run with the ledger's key, name and tags; returns its id.

    Args:
        client: of the store.
        experiment_id: where.
        book: the run's ledger.
        began: seconds since the epoch, if that was not just now.
    """
    tags = resolved_tags(client, book) | {KEY_TAG: book.key}
    start = None if began is None else int(began * 1000)
    run = client.create_run(experiment_id, start_time=start, run_name=book.name, tags=tags)
    return str(run.info.run_id)


def resolved_tags(client: MlflowClient, book: Ledger) -> dict[str, str]:
    """The ledger's tags, with the parent's id in this store in place of its key."""
    tags = dict(book.tags)
    if (parent := tags.get(PARENT_TAG)) and (found := find_run(client, parent)) is not None:
        tags[PARENT_TAG] = found.info.run_id
    return tags


def changed_tags(known: Mapping[str, str], wanted: Mapping[str, str]) -> dict[str, str]:
    """Those of ``wanted`` that the store has not, or has otherwise."""
    return {key: value for key, value in wanted.items() if known.get(key) != value}


def set_tags(client: MlflowClient, run_id: str, tags: Mapping[str, str]) -> None:
    """Give a run tags, in one call."""
    from mlflow.entities import RunTag

    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])


def log_params(client: MlflowClient, run_id: str, params: Mapping[str, str]) -> None:
    """Log parameters that the run does not have yet: MLflow lets none be changed."""
    from mlflow.entities import Param

    new = [Param(key, text) for key, text in params.items()]
    for start in range(0, len(new), PER_CALL):
        client.log_batch(run_id, params=new[start : start + PER_CALL])


def log_points(
    client: MlflowClient,
    run_id: str,
    points: Sequence[tuple[str, float, int]],
    model_id: str | None = None,
) -> None:
    """Log (metric, value, step) that the run does not have yet: MLflow would keep both."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    batch = [Metric(key, value, now, step, model_id=model_id) for key, value, step in points]
    for start in range(0, len(batch), POINTS_PER_CALL):
        client.log_batch(run_id, metrics=batch[start : start + POINTS_PER_CALL])


def log_dataset(client: MlflowClient, run_id: str, entry: Sequence[str]) -> None:
    """Log one (name, source, digest, context) of a ledger."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    name, source, digest, context = entry
    kind, key = ("http", "url") if "://" in source else ("local", "uri")
    dataset = Dataset(name, digest, kind, json.dumps({key: source}))
    tag = InputTag("mlflow.data.context", context)
    client.log_inputs(run_id, datasets=[DatasetInput(dataset, [tag])])


def log_model(client: MlflowClient, experiment_id: str, run_id: str, path: Path, name: str) -> str:
    """Copy a weights file as a logged model of a run, one that MLflow can serve; returns its id."""
    from mlflow.entities import LoggedModelOutput

    model = client.create_logged_model(experiment_id, name, source_run_id=run_id)
    _log_files(client, model, path, known=set())
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    return str(model.model_id)


def complete_model(client: MlflowClient, model_id: str, path: Path) -> list[str]:
    """Log the files that a logged model lacks, as those do that earlier versions logged; returns their names."""
    known = {file.path for file in client.list_logged_model_artifacts(model_id)}
    return _log_files(client, client.get_logged_model(model_id), path, known)


def _log_files(client: MlflowClient, model: LoggedModel, path: Path, known: set[str]) -> list[str]:
    logged = []
    if path.name not in known:
        client.log_model_artifact(model.model_id, str(path))
        logged.append(path.name)
    if servable.NAME not in known and (record := servable.servable(path)) is not None:
        with tempfile.TemporaryDirectory(prefix="dogmed-") as folder:
            description = Path(folder, servable.NAME)
            servable.write(description, path.name, record, model)
            client.log_model_artifact(model.model_id, str(description))
        logged.append(servable.NAME)
    return logged


def model_of(run: Run) -> str | None:
    """The run's logged model, if its files have arrived."""
    outputs = run.outputs.model_outputs if run.outputs else []
    return str(outputs[-1].model_id) if outputs else None


def close(client: MlflowClient, key: str) -> bool:
    """End a run that is known to be dead, if the store believes it is running."""
    run = find_run(client, key)
    if run is None or run.info.status != "RUNNING":
        return False
    client.set_terminated(run.info.run_id, "KILLED")
    return True

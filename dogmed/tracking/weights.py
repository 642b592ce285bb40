"""The weights that a run has logged, by the run's id."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dogmed.errors import WeightsError
from dogmed.tracking.entries import model_of
from dogmed.tracking.store import default_uri, open_store, shown, store_errors


@contextmanager
def weights_of_run(run_id: str, out: Path) -> Iterator[Path]:
    """Give the weights file of an MLflow run, in a folder that goes with the context.

    Args:
        run_id: 32 hexadecimal digits.
        out: folder with the store, unless MLFLOW_TRACKING_URI names it.

    Raises:
        WeightsError: the store cannot be used, has no such run, or the run has logged no weights.
    """
    uri = default_uri(out)
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        raise WeightsError(
            f"no MLflow store at {shown(uri)} to find run {run_id} in: --runs (of the analyses, --out) names "
            "the folder of the runs, or MLFLOW_TRACKING_URI the store"
        )
    try:
        client = open_store(uri, out)
        run = client.get_run(run_id)
        model_id = model_of(run)
        if model_id is None:
            raise WeightsError(f"MLflow run {run_id} ({run.info.run_name}) has logged no weights")
        source = str(client.get_logged_model(model_id).artifact_location)
    except WeightsError:
        raise
    except store_errors() as error:
        why = shown(str(error).strip().partition("\n")[0])
        raise WeightsError(f"MLflow at {shown(uri)} has no run {run_id} ({why})") from error
    with tempfile.TemporaryDirectory(prefix="dogmed-") as folder:
        try:
            from mlflow.artifacts import download_artifacts

            download_artifacts(artifact_uri=source, dst_path=folder, tracking_uri=uri)
        except store_errors() as error:
            why = shown(str(error).strip().partition("\n")[0])
            raise WeightsError(
                f"the weights of MLflow run {run_id} cannot be had ({why})"
            ) from error
        found = sorted(Path(folder).rglob("*.safetensors"))
        if not found:
            raise WeightsError(f"MLflow run {run_id} has logged a model without .safetensors")
        yield found[0]

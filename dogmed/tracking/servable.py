"""What makes weights a model that MLflow can serve: the file ``MLmodel`` beside them."""

from __future__ import annotations

import contextlib
import platform
from pathlib import Path
from typing import TYPE_CHECKING

from dogmed.errors import WeightsError
from dogmed.weights.records import WeightsRecord, read_record

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.models import ModelSignature

NAME = "MLmodel"
LOADER = "dogmed.inference.mlflow_model"
COLUMN = "image"
"""Of the table that is asked."""


def servable(weights: Path) -> WeightsRecord | None:
    """The record of a weights file, if a classifier can be opened from it; else None."""
    with contextlib.suppress(WeightsError):
        record = read_record(weights)
        if (
            record is not None
            and record.recipe == "finetune"
            and record.data.kind
            and record.data.classes
        ):
            return record
    return None


def write(path: Path, weights: str, record: WeightsRecord, model: LoggedModel) -> None:
    """Write an ``MLmodel``: which module opens the weights, and what it takes and gives.

    It names no environment: MLflow would install one's packages from an index, and this package is installed
    from its sources. So MLflow is to be told ``--env-manager local``.

    Args:
        path: of the file.
        weights: name of the weights file, in the same folder of the store.
        record: of the weights.
        model: that they belong to.
    """
    from mlflow.models import Model

    meta = Model(
        artifact_path=model.artifact_location,
        run_id=model.source_run_id,
        model_id=model.model_id,
        signature=_signature(record),
    )
    python = platform.python_version()
    meta.add_flavor("python_function", loader_module=LOADER, data=weights, python_version=python)
    meta.save(str(path))


def _signature(record: WeightsRecord) -> ModelSignature:
    """The columns of ``dogmed.inference.mlflow_model``."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema, TensorSpec

    image = ColSpec(
        DataType.string, COLUMN
    )  # base64: MLflow's own decoding passes over what is none
    told: list[ColSpec | TensorSpec] = [ColSpec(DataType.string, "predicted", required=False)]
    told += [ColSpec(DataType.double, f"p_{name}", required=False) for name in record.data.classes]
    told += [ColSpec(DataType.string, "warning", required=False), ColSpec(DataType.string, "error")]
    return ModelSignature(Schema([image]), Schema(told))

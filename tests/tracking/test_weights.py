"""From an MLflow run's id to the network that it has logged."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import timm
import torch

from dogmed.errors import WeightsError
from dogmed.models.locate import open_model
from dogmed.models.weights import save_weights
from dogmed.tracking import Run, default_uri
from dogmed.weights.records import DataRecord, WeightsRecord


def log(out: Path, name: str, weights: Path | None = None) -> str:
    ledger = out / name / "mlflow.json"
    run = Run.start(default_uri(out), "x", name, params={}, tags={}, out=out, ledger=ledger)
    if weights is not None:
        run.log_weights(weights, "best", {})
    run.end("FINISHED")
    assert run.run_id is not None and not run.lost
    return run.run_id


def test_the_weights_of_a_run_are_found_by_its_id(
    tmp_path: Path, fresh_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    model = timm.create_model("dognext_test", num_classes=3)
    data = DataRecord("x", 28, 28, None, (0.5,) * 3, (0.5,) * 3, None)
    record = WeightsRecord("dognext_test", 3, 1, "finetune", "scratch", 1, {}, data, None)
    save_weights(tmp_path / "best.safetensors", model.state_dict(), record)
    out = tmp_path / "runs"
    out.mkdir()
    shutil.copy(fresh_store, out)
    run_id = log(out, "one", tmp_path / "best.safetensors")
    (tmp_path / "best.safetensors").unlink()
    found = open_model(run_id, out=out)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in found.model.state_dict().items())
    with pytest.raises(WeightsError, match="has no run 0000"):
        open_model("0" * 32, out=out)
    with pytest.raises(WeightsError, match="has logged no weights"):
        open_model(log(out, "other"), out=out)
    with pytest.raises(WeightsError, match="no MLflow store at") as error:
        open_model(run_id, out=tmp_path / "elsewhere")
    assert "\n" not in str(error.value) and not (tmp_path / "elsewhere").exists()

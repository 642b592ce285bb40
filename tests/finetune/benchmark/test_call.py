"""A benchmark's calls in MLflow: parents, children, what is known to be dead, the registry."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from dogmed.finetune.benchmark.call import tracked_call
from dogmed.finetune.benchmark.cells import find_cells
from dogmed.finetune.run import finetune
from dogmed.tracking import PARENT_TAG, Run, default_uri, open_store


def test_each_call_is_the_parent_of_what_it_has_done(make_config, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    out = tmp_path / "runs"
    shared = {"tracking": "mlflow", "experiment": "bench", "epochs": 1, "eval__resamples": 0}
    runs = [make_config(seed=seed, device="cpu", **shared) for seed in (0, 1)]
    dead = Run.start(
        default_uri(out), "bench", "dead call", params={}, tags={}, out=out,
        ledger=out / "benchmark" / "calls" / "dead" / "mlflow.json",
    )  # fmt: skip

    def do(numbers: list[int], stop: bool) -> None:
        cells = find_cells(runs)
        with tracked_call(cells, out):
            for number in numbers:
                finetune(cells[number].config)
                cells[number].look()
            if stop:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        do([0], stop=True)
    do([1], stop=False)

    client = open_store(default_uri(out), out)
    experiment = client.get_experiment_by_name("bench").experiment_id
    found = client.search_runs([experiment], order_by=["attributes.start_time"])
    assert found[0].info.run_id == dead.run_id and found[0].info.status == "KILLED"
    parents = [run for run in found if run.data.tags.get("dogmed.kind") == "benchmark"]
    children = [run for run in found if PARENT_TAG in run.data.tags]
    assert [run.info.status for run in parents] == ["KILLED", "FINISHED"]
    assert [run.info.status for run in children] == ["FINISHED"] * 2
    assert [run.data.tags[PARENT_TAG] for run in children] == [p.info.run_id for p in parents]
    assert [run.data.tags["seed"] for run in children] == ["0", "1"]
    first, last = parents
    assert first.data.metrics["cells_done"] == 1 and last.data.metrics["cells_done"] == 2
    group = "breastmnist-synthetic/dognext_test-scratch-28"
    for name in ("acc", "auc"):
        values = [run.data.metrics[f"test_{name}"] for run in children]
        assert last.data.metrics[f"mean_test_{name}/{group}"] == pytest.approx(sum(values) / 2)
    assert last.data.params["seed"] == "0, 1" and last.data.params["cells"] == "2"
    table = client.download_artifacts(last.info.run_id, "results.csv", str(tmp_path))
    with Path(table).open() as file:
        assert [row["state"] for row in csv.DictReader(file)] == ["done", "done"]

    version = client.get_model_version_by_alias("dogmed-breastmnist-synthetic-28", "best")
    versions = client.search_model_versions("name = 'dogmed-breastmnist-synthetic-28'")
    assert float(version.tags["val_auc"]) == max(float(v.tags["val_auc"]) for v in versions)
    assert version.run_id in {run.info.run_id for run in children}


def test_without_tracking_nothing_is_made(make_config, tmp_path):
    cells = find_cells([make_config()])
    with tracked_call(cells, tmp_path / "runs"):
        assert cells[0].config.parent_run is None
    assert not (tmp_path / "runs" / "benchmark").exists()

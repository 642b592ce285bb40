"""A tracking server on PostgreSQL that dies in the middle of a real training."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import dogmed
from dogmed import config, tracking
from dogmed.finetune.config import FinetuneConfig
from dogmed.finetune.run import finetune
from dogmed.runs import RunFolder
from dogmed.sync import sync
from dogmed.tracking import Run, default_uri, open_store

pytestmark = pytest.mark.slow


class Server:
    """``mlflow server`` that can be stopped and started again at the same address."""

    def __init__(self, store: str, folder: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.store, self.folder = store, folder
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-P", "-m", "mlflow", "server", "--workers", "1"]
        command += ["--backend-store-uri", self.store, "--port", str(self.port)]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=tracking.ENVIRONMENT | os.environ, stdout=log,
                stderr=log, start_new_session=True,
            )  # fmt: skip
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        for _ in range(600):
            assert self.process.poll() is None, (self.folder / "log").read_text()
            try:
                direct.open(f"{self.address}/health", timeout=2).close()
                return
            except OSError:
                time.sleep(0.2)
        raise AssertionError((self.folder / "log").read_text())

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, 9)
            self.process.wait()
            self.process = None


@pytest.fixture(scope="module")
def server(postgresql_server, tmp_path_factory) -> Iterator[Server]:
    import psycopg2

    connection = psycopg2.connect(f"{postgresql_server}/postgres")
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute("CREATE DATABASE mlflow")
    connection.close()
    store = postgresql_server.replace("postgresql:", "postgresql+psycopg2:") + "/mlflow"
    running = Server(store, tmp_path_factory.mktemp("server"))
    running.start()
    yield running
    running.kill()


def test_training_goes_on_without_the_server_and_sync_mends_it(
    server, tmp_path, monkeypatch, caplog, capsys
):
    out = tmp_path / "runs"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    values = {
        "task": "breastmnist", "data": "synthetic", "model": "dognext_test", "size": 28,
        "epochs": 4, "batch_size": 128, "eval.resamples": 0, "device": "cpu", "out": str(out),
        "cache_dir": str(tmp_path / "cache"),
    }  # fmt: skip
    options = config.build(FinetuneConfig, config.merge(config.recipe("finetune/default"), values))
    append_row = RunFolder.append_row

    def kill_and_append(folder, row):  # the server dies within the third epoch
        if row["epoch"] == 3:
            server.kill()
        append_row(folder, row)

    monkeypatch.setattr(RunFolder, "append_row", kill_and_append)
    result = finetune(options)
    warnings = [r for r in caplog.records if r.name == "dogmed.tracking"]
    assert len(warnings) == 1 and "dogmed sync" in warnings[0].getMessage()
    server.start()
    client = open_store(server.address, out)
    before = client.get_run(result["mlflow_run_id"])
    assert before.info.status == "RUNNING"
    steps = [m.step for m in client.get_metric_history(before.info.run_id, "val_loss")]
    assert steps == [1, 2]

    capsys.readouterr()
    assert sync((), out) == 0
    assert "RUNNING -> FINISHED" in capsys.readouterr().out
    run = client.get_run(result["mlflow_run_id"])
    (folder,) = (out / "finetune").glob("*/*/seed0")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for metric in ("val_loss", "train_loss", "lr"):
        history = client.get_metric_history(run.info.run_id, metric)
        assert [(m.step, m.value) for m in history] == [(r["epoch"], r[metric]) for r in rows]
    assert run.info.status == "FINISHED"
    assert run.data.metrics["test_acc"] == result["test"]["acc"]
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert files == {"figures", "result.json", "config.yaml", "predictions_test.csv"}
    assert len(client.list_artifacts(run.info.run_id, "figures")) == 3
    version = client.get_model_version_by_alias("dogmed-breastmnist-synthetic-28", "best")
    assert version.run_id == run.info.run_id
    assert float(version.tags["val_auc"]) == result["val"]["auc"]
    weights = list(server.folder.rglob("best.safetensors"))
    assert [w.read_bytes() for w in weights] == [
        (folder / "checkpoints" / "best.safetensors").read_bytes()
    ]
    import mlflow

    model = mlflow.pyfunc.load_model("models:/dogmed-breastmnist-synthetic-28@best")
    grey = np.full((28, 28), 90, dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(grey).save(file, "PNG")
    told = model.predict(pd.DataFrame({"image": [file.getvalue()]}))
    expected = dogmed.load(folder, device="cpu").predict(grey).probabilities
    assert np.allclose(told.filter(like="p_").to_numpy(float), expected)
    assert sync((), out) == 0
    assert "1 runs, nothing to do" in capsys.readouterr().out
    assert len(client.search_model_versions("name = 'dogmed-breastmnist-synthetic-28'")) == 1


def _log(out: Path, address: str, barrier, results) -> None:
    os.environ["MLFLOW_TRACKING_URI"] = address
    barrier.wait(120)
    uri = default_uri(out)
    run = Run.start(uri, "e", "n", params={}, tags={}, out=out, ledger=out / "mlflow.json")
    run.log_metrics({"a": 1.0}, 1)
    run.end("FINISHED")
    results.put(run.lost)


def test_machines_may_meet_on_a_fresh_postgresql(postgresql, warm, tmp_path, monkeypatch):
    """Each has an ``out`` of its own, as machines without a shared disk have."""
    barrier, results = warm.Barrier(2), warm.Queue()
    processes = [
        warm.Process(target=_log, args=(tmp_path / out, postgresql, barrier, results))
        for out in "ab"
    ]
    for process in processes:
        process.start()
    lost = [results.get(timeout=240) for _ in processes]
    for process in processes:
        process.join(60)
    assert lost == [False] * 2
    monkeypatch.setenv("MLFLOW_TRACKING_URI", postgresql)
    client = open_store(default_uri(tmp_path), tmp_path)
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert [run.info.status for run in runs] == ["FINISHED"] * 2

"""The model that a run logs, as MLflow itself opens and serves it."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import dogmed
from dogmed import config, tracking
from dogmed.finetune.config import FinetuneConfig
from dogmed.finetune.run import finetune
from dogmed.inference.classifier import Predictions
from dogmed.models.weights import read_weights, save_weights
from dogmed.sync import sync
from dogmed.tracking import Ledger, Run, default_uri, open_store
from dogmed.tracking.servable import servable

NAME = "dogmed-breastmnist-synthetic-28"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, fresh_store: Path) -> Iterator[Path]:
    """``--out`` with one run of ``dogmed finetune``, which is in the registry."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        out = tmp_path_factory.mktemp("served") / "runs"
        out.mkdir()
        shutil.copy(fresh_store, out)
        values = {
            "task": "breastmnist", "data": "synthetic", "model": "dognext_test", "size": 28,
            "epochs": 1, "batch_size": 128, "eval.resamples": 0, "device": "cpu", "out": str(out),
            "cache_dir": str(out.parent / "cache"),
        }  # fmt: skip
        values = config.merge(config.recipe("finetune/default"), values)
        assert finetune(config.build(FinetuneConfig, values)) is not None
        assert sync((), out) == 0
        patch.setenv("MLFLOW_TRACKING_URI", default_uri(out))  # as MLflow's commands are told
        yield out


@pytest.fixture
def copy(
    trained: Path, tmp_path: Path, fresh_store: Path, monkeypatch: pytest.MonkeyPatch
) -> SimpleNamespace:
    """The run's folder, and another store that has nothing of it."""
    folder = tmp_path / "runs" / "finetune" / "copy"
    shutil.copytree(folder_of(trained), folder)
    out = folder.parents[1]
    shutil.copy(fresh_store, out)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    uri = default_uri(out)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return SimpleNamespace(folder=folder, out=out, uri=uri)


def folder_of(out: Path) -> Path:
    (folder,) = (out / "finetune").glob("*/*/seed0")
    return folder


def the_run(out: Path):
    client = open_store(default_uri(out), out)
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    return run


def files_of_model(out: Path) -> dict[str, Path]:
    (folder,) = (out / "mlartifacts").glob("*/models/*/artifacts")
    return {path.name: path for path in folder.rglob("*") if path.is_file()}


def image_files() -> list[bytes]:
    files = []
    for seed, side in enumerate((28, 64)):
        pixels = np.random.default_rng(seed).integers(0, 200, (side, side), dtype=np.uint8)
        file = BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        files.append(file.getvalue())
    return files


def assert_as_dogmed(told: pd.DataFrame, expected: Predictions) -> None:
    columns = [f"p_{name}" for name in expected.classes]
    assert np.array_equal(told[columns].to_numpy(float), expected.probabilities)
    assert told["predicted"].tolist() == [name for (name,) in expected.names]
    assert told["warning"].tolist() == list(expected.warnings)
    assert told["error"].tolist() == [""] * len(expected)


def test_mlflow_opens_the_model_by_each_of_its_names(trained: Path) -> None:
    import mlflow

    run = the_run(trained)
    expected = dogmed.load(folder_of(trained), device="cpu").predict(image_files())
    table = pd.DataFrame({"image": image_files()})
    model_id = run.outputs.model_outputs[0].model_id
    for uri in (f"models:/{model_id}", f"runs:/{run.info.run_id}/best", f"models:/{NAME}@best"):
        model = mlflow.pyfunc.load_model(uri)
        told = model.predict(table)
        assert_as_dogmed(told, expected)
        assert model.metadata.signature.inputs.input_names() == ["image"]
        assert model.metadata.signature.outputs.input_names() == list(told.columns)
        assert (model.metadata.run_id, model.metadata.model_id) == (run.info.run_id, model_id)
    in_text = [base64.b64encode(file).decode() for file in image_files()]
    assert model.predict(pd.DataFrame({"image": in_text})).equals(told)
    assert {"MLmodel", "best.safetensors"} <= set(files_of_model(trained))
    assert not [name for name in files_of_model(trained) if "pkl" in name]


def test_temperature_and_calibration_are_figures_of_run_and_model(trained: Path) -> None:
    run = the_run(trained)
    told = json.loads((folder_of(trained) / "result.json").read_text())["calibration"]
    expected = {"temperature": told["temperature"]}
    for how in ("raw", "calibrated"):
        expected[f"test_ece_{how}"] = told["test"][how]["ece"]
        expected[f"test_nll_{how}"] = told["test"][how]["nll"]
    assert expected.items() <= run.data.metrics.items()
    client = open_store(default_uri(trained), trained)
    model = client.get_logged_model(run.outputs.model_outputs[0].model_id)
    assert expected.items() <= {m.key: m.value for m in model.metrics}.items()


def test_sync_completes_the_model_of_an_earlier_version(copy: SimpleNamespace, capsys) -> None:
    import mlflow

    assert sync((), copy.out) == 0
    files_of_model(copy.out)["MLmodel"].unlink()
    with pytest.raises(mlflow.MlflowException, match="MLmodel"):
        mlflow.pyfunc.load_model(f"models:/{NAME}@best")
    capsys.readouterr()
    assert sync((), copy.out) == 0
    assert "finetune/copy: MLmodel\n" in capsys.readouterr().out
    told = mlflow.pyfunc.load_model(f"models:/{NAME}@best").predict(
        pd.DataFrame({"image": image_files()})
    )
    assert_as_dogmed(told, dogmed.load(copy.folder, device="cpu").predict(image_files()))
    assert sync((), copy.out) == 0
    assert "1 runs, nothing to do" in capsys.readouterr().out


def _die_while_logging(folder: Path, out: Path) -> None:
    from mlflow import MlflowClient

    log = MlflowClient.log_model_artifact

    def log_and_die(client, model_id, path, *rest):
        log(client, model_id, path, *rest)
        os.kill(os.getpid(), signal.SIGKILL)

    MlflowClient.log_model_artifact = log_and_die
    book = Ledger.open(folder / "mlflow.json")
    run = Run.start(
        default_uri(out), book.experiment, book.name, params=book.params, tags=book.tags, out=out,
        ledger=book.path,
    )  # fmt: skip
    run.log_weights(book.file(book.weights[0]), book.weights[1], {})


@pytest.mark.slow
def test_a_process_killed_between_two_files_leaves_what_sync_makes_whole(
    copy: SimpleNamespace, warm
) -> None:
    import mlflow

    process = warm.Process(target=_die_while_logging, args=(copy.folder, copy.out))
    process.start()
    process.join(100)
    assert process.exitcode == -signal.SIGKILL
    assert set(files_of_model(copy.out)) == {"best.safetensors"}
    assert not the_run(copy.out).outputs.model_outputs
    assert sync((), copy.out) == 0
    (output,) = the_run(copy.out).outputs.model_outputs
    model = mlflow.pyfunc.load_model(f"models:/{output.model_id}")
    assert len(model.predict(pd.DataFrame({"image": image_files()}))) == 2


@pytest.mark.parametrize("what", ["pretrained", "no names", "damaged"])
def test_weights_that_are_no_classifier_are_logged_without_it(
    what: str, trained: Path, tmp_path: Path, fresh_store: Path
) -> None:
    from dataclasses import replace

    state, record, _ = read_weights(folder_of(trained) / "checkpoints" / "best.safetensors")
    assert record is not None
    if what == "pretrained":
        record = replace(record, recipe="imagenet")
    elif what == "no names":
        record = replace(record, data=replace(record.data, classes=()))
    path = tmp_path / "best.safetensors"
    save_weights(path, state, record)
    if what == "damaged":
        path.write_bytes(path.read_bytes()[:100])
    assert servable(path) is None
    shutil.copy(fresh_store, tmp_path)
    uri = f"sqlite:///{tmp_path / fresh_store.name}"
    book = tmp_path / "mlflow.json"
    run = Run.start(uri, "e", "n", params={}, tags={}, out=tmp_path, ledger=book)
    run.log_weights(path, "best", {})
    assert not run.lost and set(files_of_model(tmp_path)) == {"best.safetensors"}


@contextmanager
def serving(model: str, folder: Path) -> Iterator[str]:
    """``mlflow models serve`` as a user starts it; gives its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-P", "-m", "mlflow", "models", "serve", "-m", model]
    command += ["--env-manager", "local", "--port", str(port)]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # for uvicorn
    environment = tracking.ENVIRONMENT | os.environ | {"PATH": path}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert process.poll() is None, (folder / "log").read_text()
            try:
                fetch(f"{address}/ping")
                break
            except OSError:
                time.sleep(0.2)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def fetch(address: str, question: dict | None = None) -> bytes:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    data = None if question is None else json.dumps(question).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    with direct.open(request, timeout=60) as answer:
        return answer.read()


@pytest.mark.slow
def test_mlflow_serves_the_best_model(trained: Path, tmp_path: Path) -> None:
    good, other = (base64.b64encode(file).decode() for file in image_files())
    rows = [{"image": good}, {"image": other}]
    with serving(f"models:/{NAME}@best", tmp_path) as address:
        told = json.loads(fetch(f"{address}/invocations", {"dataframe_records": rows}))
        broken = {"dataframe_records": [{"image": good[:-1]}, {"image": good}, {"image": None}]}
        text = fetch(f"{address}/invocations", broken).decode()
    expected = dogmed.load(folder_of(trained)).predict(image_files())
    assert_as_dogmed(pd.DataFrame(told["predictions"]), expected)
    answers = json.loads(text)["predictions"]
    assert "NaN" not in text
    assert answers[0]["error"] == "row 0 is not base64 of an image file (incorrect padding)"
    assert answers[0]["p_malignant"] is None and answers[0]["predicted"] is None
    first = told["predictions"][0]
    close = {k: pytest.approx(v, rel=1e-5) for k, v in first.items() if k.startswith("p_")}
    assert answers[1] == first | close  # classified with others before
    assert "received nan" in answers[2]["error"]

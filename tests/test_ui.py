"""``dogmed ui``: a real server on a real store."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from dogmed import config
from dogmed.errors import ConfigError, DataError
from dogmed.tracking import Run, default_uri
from dogmed.ui import UiConfig, comparison_url, serve


@pytest.fixture(autouse=True)
def _no_server_of_the_user(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_the_address_opens_the_charts_of_the_runs():
    url = comparison_url("http://127.0.0.1:5000/", "3", "workflowType=machine_learning")
    assert url == "http://127.0.0.1:5000/#/experiments/3/runs?workflowType=machine_learning"


def test_without_runs_it_says_what_to_run(tmp_path):
    with pytest.raises(DataError, match="dogmed finetune --task"):
        serve(tmp_path / "nothing")
    assert not list(tmp_path.iterdir())
    from dogmed.tracking import open_store

    open_store(default_uri(tmp_path), tmp_path)
    with pytest.raises(DataError, match="dogmed finetune --task"):
        serve(tmp_path)


def test_a_damaged_store_is_told_in_one_line(tmp_path):
    (tmp_path / "mlflow.db").write_bytes(b"not a database" * 100)
    with pytest.raises(DataError, match=r"mlflow\.db cannot be read") as error:
        serve(tmp_path)
    assert "\n" not in str(error.value)


def test_the_flags_have_the_recipes_folder():
    parsed = config.parse(UiConfig, ["--port", "6000"], prog="dogmed ui")
    assert parsed.out == Path(config.recipe("finetune/default")["out"])
    assert parsed.port == 6000
    with pytest.raises(ConfigError, match="port: Input should be less than or equal to 65535"):
        config.parse(UiConfig, ["--port", "70000"], prog="dogmed ui")


@pytest.mark.parametrize("uri", ["http://[bad", "postgresql://h:abc/x"])
def test_an_address_that_is_none_is_told_in_one_line(uri, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(DataError, match="cannot be read: ") as error:
        serve(tmp_path)
    assert uri in str(error.value) and "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_the_runs_and_leaves_nothing_behind(stop, tmp_path):
    run = Run.start(default_uri(tmp_path), "finetune", "n", params={}, tags={}, out=tmp_path,
                    ledger=tmp_path / "run" / "mlflow.json")  # fmt: skip
    run.log_metrics({"val_auc": 0.5}, 1)
    run.end("FINISHED")
    with socket.socket() as busy:  # the port asked for is taken: another one is
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        code = "import sys; from pathlib import Path; from dogmed.ui import serve\n"
        code += "serve(Path(sys.argv[1]), port=int(sys.argv[2]))"
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), str(port)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=dict(os.environ),
        )  # fmt: skip
        try:
            busy_line = process.stdout.readline()
            assert re.fullmatch(rf"port {port} is busy, using \d+\n", busy_line)
            assert process.stdout.readline() == "starting MLflow ...\n"
            line = process.stdout.readline()
            address = re.search(r"http://127\.0\.0\.1:(\d+)", line)
            assert address, line + process.stdout.read()
            assert int(address[1]) != port
            server, direct = (
                address[0],
                urllib.request.build_opener(urllib.request.ProxyHandler({})),
            )
            assert direct.open(f"{server}/health").read() == b"OK"
            page = direct.open(server).read()
            assert b"mlflow" in page.lower()
        finally:
            process.send_signal(stop)
            process.wait(60)
    assert process.returncode == 0
    with pytest.raises(OSError):
        direct.open(f"{server}/health", timeout=2)
    assert {p.name for p in tmp_path.iterdir()} <= {
        "mlflow.db",
        "mlflow.lock",
        "mlartifacts",
        "run",
    }


@pytest.mark.slow
def test_a_tracking_server_is_used_and_its_address_is_printed(tmp_path, monkeypatch, capsys):
    """Runs through HTTP: artifacts go where the server keeps them."""
    from dogmed import ui

    embedded = Run.start(default_uri(tmp_path), "first", "n", params={}, tags={}, out=tmp_path,
                    ledger=tmp_path / "run" / "mlflow.json")  # fmt: skip
    embedded.end("FINISHED")
    port = ui._free_port("127.0.0.1", 0)
    server = f"http://127.0.0.1:{port}"
    with (tmp_path / "log").open("w+") as log, ui._server(
        default_uri(tmp_path), tmp_path, "127.0.0.1", port, log
    ) as process:  # fmt: skip
        ui._wait_until_healthy(process, server, log)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
        run = Run.start(
            default_uri(tmp_path), "remote", "n", params={"a": 1}, tags={}, out=tmp_path,
            ledger=tmp_path / "other" / "mlflow.json",
        )  # fmt: skip
        weights = tmp_path / "other" / "best.safetensors"
        weights.write_bytes(b"weights")
        run.log_metrics({"val_auc": 0.5}, 1)
        run.log_artifact(weights, "figures")
        run.log_weights(weights, "best", {"best_auc": 0.5})
        run.end("FINISHED")
        assert not run.lost
        serve(tmp_path)
        assert capsys.readouterr().out.startswith(f"{server}/#/experiments/2/runs?")
    assert len(list((tmp_path / "mlartifacts").rglob("best.safetensors"))) == 2


def test_it_opens_the_benchmark_and_groups_by_what_differs(tmp_path):
    """The newest benchmark's experiment comes before that of a newer run."""
    import json

    from dogmed.tracking import KIND_TAG, find_comparison, open_store, share_comparison

    def run(experiment: str, name: str, **tags: str) -> None:
        ledger = tmp_path / experiment / name / "mlflow.json"
        Run.start(default_uri(tmp_path), experiment, name, params={}, tags=tags, out=tmp_path,
                  ledger=ledger).end("FINISHED")  # fmt: skip

    run("bench", "parent", **{KIND_TAG: "benchmark"})
    for seed in ("0", "1"):
        for model in ("a", "b"):
            for task, size in (("x", "28"), ("y", "64")):
                run("bench", f"{task}{model}{seed}", task=task, size=size, model=model, seed=seed)
    run("other", "newer", model="c")
    client = open_store(default_uri(tmp_path), tmp_path)
    experiment = find_comparison(client)
    assert client.get_experiment(experiment).name == "bench"
    assert share_comparison(client, experiment).endswith("viewStateShareKey=dogmed")
    state = json.loads(client.get_experiment(experiment).tags["mlflow.sharedViewState.dogmed"])
    groups = [key["groupByData"] for key in state["groupBy"]["groupByKeys"]]
    assert groups == ["task", "model"], "size follows from the task, seeds are averaged"
    assert "parent" not in {
        run.info.run_name for run in client.search_runs([experiment], state["searchFilter"])
    }

"""``dogmed ui``: a real server on a real store."""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import psutil
import pytest

from dogmed import config
from dogmed.errors import ConfigError, DataError
from dogmed.tracking import Run, default_uri
from dogmed.ui import UiConfig, comparison_url, serve


@pytest.fixture(autouse=True)
def _no_server_of_the_user(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def out(tmp_path, fresh_store) -> Path:
    folder = tmp_path / "runs"
    folder.mkdir()
    shutil.copy(fresh_store, folder)
    return folder


def test_the_address_opens_the_charts_of_the_runs():
    url = comparison_url("http://127.0.0.1:5000/", "3", "workflowType=machine_learning")
    assert url == "http://127.0.0.1:5000/#/experiments/3/runs?workflowType=machine_learning"


def test_without_runs_it_says_what_to_run(tmp_path, out):
    with pytest.raises(DataError, match="dogmed finetune --task"):
        serve(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    with pytest.raises(DataError, match="dogmed finetune --task"):
        serve(out)


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


SERVE = """
import signal, sys
from pathlib import Path
from dogmed.ui import serve
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
serve(Path(sys.argv[1]), port=int(sys.argv[2]))
"""


def start_run(out: Path, experiment: str) -> Run:
    ledger = out / experiment / "mlflow.json"
    return Run.start(
        default_uri(out), experiment, "n", params={"a": 1}, tags={}, out=out, ledger=ledger
    )


@contextlib.contextmanager
def serving(out: Path, port: int, stop: signal.Signals) -> Iterator[IO[str]]:
    """What ``serve`` says as a process, until a signal ends it, and with it all that it has started."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(out), str(port)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    started: list[psutil.Process] = []
    try:
        yield process.stdout
        started = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.send_signal(stop)
        process.wait(60)
    assert started and process.returncode == 0
    _, alive = psutil.wait_procs(started, 10)
    assert {process.status() for process in alive} <= {psutil.STATUS_ZOMBIE}


@pytest.mark.slow
def test_it_serves_the_runs_takes_those_of_others_and_leaves_nothing_behind(
    out, monkeypatch, capsys
):
    """A run through HTTP too: its artifacts go where the server keeps them."""
    start_run(out, "first").end("FINISHED")
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with socket.socket() as busy:  # the port asked for is taken: another one is
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        with serving(out, port, signal.SIGTERM) as said:
            assert re.fullmatch(rf"port {port} is busy, using \d+\n", said.readline())
            assert said.readline() == "starting MLflow ...\n"
            line = said.readline()
            address = re.search(r"http://127\.0\.0\.1:(\d+)", line)
            assert address, line + said.read()
            assert int(address[1]) != port
            server = address[0]
            assert direct.open(f"{server}/health").read() == b"OK"
            assert b"mlflow" in direct.open(server).read().lower()

            monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
            run = start_run(out, "remote")
            weights = out / "remote" / "best.safetensors"
            weights.write_bytes(b"weights")
            run.log_metrics({"val_auc": 0.5}, 1)
            run.log_artifact(weights, "figures")
            run.log_weights(weights, "best", {"best_auc": 0.5})
            run.end("FINISHED")
            assert not run.lost
            serve(out)
            assert capsys.readouterr().out.startswith(f"{server}/#/experiments/2/runs?")
    with pytest.raises(OSError):
        direct.open(f"{server}/health", timeout=2)
    assert len(list((out / "mlartifacts").rglob("best.safetensors"))) == 2
    assert {path.name for path in out.iterdir()} <= {
        "mlflow.db", "mlflow.lock", "mlartifacts", "first", "remote",
    }  # fmt: skip


@pytest.mark.slow
def test_ctrl_c_ends_it_while_the_server_starts(out):
    start_run(out, "first").end("FINISHED")
    with serving(out, 0, signal.SIGINT) as said:
        assert said.readline() == "starting MLflow ...\n"


def test_it_opens_the_benchmark_and_groups_by_what_differs(out):
    """The newest benchmark's experiment comes before that of a newer run."""
    import json

    from dogmed.tracking import KIND_TAG, find_comparison, open_store, share_comparison

    def run(experiment: str, name: str, **tags: str) -> None:
        ledger = out / experiment / name / "mlflow.json"
        Run.start(default_uri(out), experiment, name, params={}, tags=tags, out=out,
                  ledger=ledger).end("FINISHED")  # fmt: skip

    run("bench", "parent", **{KIND_TAG: "benchmark"})
    for seed in ("0", "1"):
        for model in ("a", "b"):
            for task, size in (("x", "28"), ("y", "64")):
                run("bench", f"{task}{model}{seed}", task=task, size=size, model=model, seed=seed)
    run("other", "newer", model="c")
    client = open_store(default_uri(out), out)
    experiment = find_comparison(client)
    assert client.get_experiment(experiment).name == "bench"
    assert share_comparison(client, experiment).endswith("viewStateShareKey=dogmed")
    state = json.loads(client.get_experiment(experiment).tags["mlflow.sharedViewState.dogmed"])
    groups = [key["groupByData"] for key in state["groupBy"]["groupByKeys"]]
    assert groups == ["task", "model"], "size follows from the task, seeds are averaged"
    assert "parent" not in {
        run.info.run_name for run in client.search_runs([experiment], state["searchFilter"])
    }

"""Tracking on real sqlite stores, and on stores that are not there."""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from dogmed.tracking import PARENT_TAG, Ledger, NoRun, Run, default_uri, open_store, shown


@pytest.fixture(autouse=True)
def _no_server_of_the_user(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def out(tmp_path: Path, fresh_store: Path) -> Path:
    folder = tmp_path / "runs of mine"
    folder.mkdir()
    shutil.copy(fresh_store, folder)
    return folder


def start(out: Path, folder: str = "run", **changes) -> Run:
    options = {"params": {"optim.lr": 1e-4, "kind": None}, "tags": {"task": "breastmnist"}}
    options |= {"out": out, "ledger": out / folder / "mlflow.json"}
    return Run.start(default_uri(out), "finetune", "seed0", **(options | changes))


def stored(out: Path, run_id: str | None):
    assert run_id is not None
    return open_store(default_uri(out), out).get_run(run_id)


def history(out: Path, run: Run, key: str) -> list[tuple[int, float]]:
    metrics = open_store(default_uri(out), out).get_metric_history(run.run_id, key)
    return [(m.step, m.value) for m in metrics]


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_a_run_ends_as_it_ended(out, status):
    run = start(out)
    assert stored(out, run.run_id).info.status == "RUNNING"
    run.end(status)
    kept = stored(out, run.run_id)
    assert kept.info.status == status and kept.info.run_name == "seed0"
    assert kept.data.params == {"optim.lr": "0.0001", "kind": "None"}
    assert kept.data.tags["task"] == "breastmnist"
    assert not run.lost


def test_undefined_metrics_are_gaps(out):
    run = start(out)
    run.log_metrics({"val_auc": None, "val_acc": 0.5, "val_loss": float("nan")}, 1)
    run.log_metrics({"val_auc": 0.7, "val_acc": 0.6, "val_loss": float("inf")}, step=2)
    assert history(out, run, "val_auc") == [(2, 0.7)]
    assert history(out, run, "val_acc") == [(1, 0.5), (2, 0.6)]
    assert history(out, run, "val_loss") == []


def test_continuing_repeats_no_step(out):
    run = start(out)
    for epoch in (1, 2, 3):
        run.log_metrics({"val_acc": epoch / 10}, epoch)
    run.end("KILLED")
    again = start(out, params={"optim.lr": 2e-4, "kind": None, "new": 1}, tags={"task": "other"})
    assert again.run_id == run.run_id
    assert stored(out, run.run_id).info.status == "RUNNING"
    for epoch in (2, 3, 4):
        again.log_metrics({"val_acc": epoch / 10, "val_auc": 0.9}, epoch)
    again.end("FINISHED")
    assert history(out, again, "val_acc") == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)]
    assert [step for step, _ in history(out, again, "val_auc")] == [2, 3, 4]
    kept = stored(out, again.run_id)
    assert kept.info.status == "FINISHED" and not again.lost
    assert kept.data.params == {"optim.lr": "0.0001", "kind": "None", "new": "1"}
    assert kept.data.tags["resumed.optim.lr"] == "0.0002"
    assert "resumed.kind" not in kept.data.tags and kept.data.tags["task"] == "other"


@pytest.mark.parametrize("how", ["deleted", "another store"])
def test_continuing_a_run_that_is_gone_starts_another(out, how, fresh_store, monkeypatch):
    first = start(out).run_id
    if how == "deleted":
        open_store(default_uri(out), out).delete_run(first)
    else:
        shutil.copy(fresh_store, out / "other.db")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{out / 'other.db'}")
    run = start(out)
    assert run.run_id not in (first, None) and not run.lost
    assert start(out).run_id == run.run_id
    assert Ledger.open(out / "run" / "mlflow.json").run_ids == [first, run.run_id]


def test_a_run_begun_anew_with_other_settings_closes_the_earlier_one(out):
    first = start(out)
    first.ledger.renew()
    run = start(out)
    assert run.run_id != first.run_id
    assert stored(out, first.run_id).info.status == "KILLED"
    assert stored(out, run.run_id).info.status == "RUNNING"


def test_a_parent_is_found_by_its_key(out):
    parent = start(out, "parent")
    child = start(out, "child", tags={PARENT_TAG: parent.ledger.key})
    assert stored(out, child.run_id).data.tags[PARENT_TAG] == parent.run_id
    other = start(out, "other")
    again = start(out, "child", tags={PARENT_TAG: other.run_id})
    assert again.run_id == child.run_id
    assert stored(out, child.run_id).data.tags[PARENT_TAG] == other.run_id, "it has moved"


def test_many_and_long_parameters_are_kept(out):
    params = {f"p{k}": k for k in range(250)} | {"long": "x" * 7000}
    run = start(out, params=params)
    kept = stored(out, run.run_id).data.params
    assert not run.lost and len(kept) == 251 and len(kept["long"]) == 6000
    again = start(out, params=params)
    assert not again.lost
    assert not any(tag.startswith("resumed.") for tag in stored(out, run.run_id).data.tags)


def test_everything_stays_under_out(out, tmp_path, monkeypatch):
    elsewhere = tmp_path / "cwd"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    run = start(out)
    picture, weights = out / "run" / "roc.png", out / "run" / "best.safetensors"
    picture.write_bytes(b"picture")
    weights.write_bytes(b"weights")
    run.log_artifact(picture, "figures")
    run.log_artifact(weights)
    run.log_weights(weights, "best", {})
    run.end("FINISHED")
    assert not run.lost and not list(elsewhere.iterdir())
    assert {p.name for p in out.iterdir()} == {"mlflow.db", "mlflow.lock", "mlartifacts", "run"}
    files = {p.name: p for p in (out / "mlartifacts" / "finetune").rglob("*") if p.is_file()}
    assert set(files) == {"roc.png", "best.safetensors"}
    assert files["roc.png"].parent.name == "figures"


def test_weights_round_trip_as_a_logged_model(out, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    run = start(out)
    path = out / "run" / "best.safetensors"
    save_file({"w": torch.arange(5.0)}, path)
    run.log_weights(path, "dognext_test", {"best_auc": 0.9, "best_map": None})
    client = open_store(default_uri(out), out)
    (output,) = stored(out, run.run_id).outputs.model_outputs
    model_id = output.model_id
    model = client.get_logged_model(model_id)
    assert (model.name, str(model.status), model.source_run_id) == (
        "dognext_test", "READY", run.run_id)  # fmt: skip
    assert {m.key: m.value for m in model.metrics} == {"best_auc": 0.9}
    copies = list((out / "mlartifacts").rglob("best.safetensors"))
    assert len(copies) == 1 and model_id in str(copies[0])
    assert torch.equal(load_file(copies[0])["w"], torch.arange(5.0))


def test_a_sitting_that_scores_once_more_logs_no_second_model(out):
    path = out / "run" / "best.safetensors"
    for _ in range(2):  # the first is killed before it could say that the run is finished
        run = start(out)
        path.write_bytes(b"weights")
        run.log_weights(path, "best", {"test_auc": 0.9})
    (output,) = stored(out, run.run_id).outputs.model_outputs
    model = open_store(default_uri(out), out).get_logged_model(output.model_id)
    assert {m.key: m.value for m in model.metrics} == {"test_auc": 0.9}


def test_datasets_are_named_with_their_use(out):
    run = start(out)
    run.log_dataset("breastmnist-224", "https://example.org/b.npz", "a" * 64, "train")
    run.log_dataset("mine", "/data/my.npz", "b" * 64, "test")
    inputs = stored(out, run.run_id).inputs.dataset_inputs
    seen = {i.dataset.name: (i.dataset.source_type, i.tags[0].value) for i in inputs}
    assert seen == {"breastmnist-224": ("http", "train"), "mine": ("local", "test")}
    assert not run.lost


def _start_and_log(out: Path, barrier, results) -> None:
    barrier.wait(60)
    run = start(out, str(os.getpid()))
    for epoch in range(5):
        run.log_metrics({"val_acc": 0.5}, epoch)
    run.end("FINISHED")
    results.put((run.run_id, run.lost))


@pytest.mark.slow
def test_processes_may_meet_on_a_fresh_store(warm, tmp_path):
    out = tmp_path / "runs"
    barrier, results = warm.Barrier(3), warm.Queue()
    processes = [warm.Process(target=_start_and_log, args=(out, barrier, results)) for _ in "123"]
    for process in processes:
        process.start()
    ended = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(60)
    assert [lost for _, lost in ended] == [False] * 3
    assert {stored(out, run_id).info.status for run_id, _ in ended} == {"FINISHED"}
    assert len({run_id for run_id, _ in ended}) == 3


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("scheme", ["http://", "postgresql://me:secret@", "postgresql+psycopg2://"])
def test_a_dead_server_is_one_warning(scheme, out, caplog, tmp_path):
    ledger = out / "run" / "mlflow.json"
    run = Run.start(
        f"{scheme}127.0.0.1:{unused_port()}", "e", "n", params={}, tags={}, out=out, ledger=ledger
    )
    run.log_metrics({"a": 1.0}, 1)
    run.log_artifact(out / "run" / "roc.png")
    run.log_weights(out / "run" / "w", "w", {"best_auc": 0.5})
    run.log_dataset("d", "s", "0", "train")
    run.end("FAILED")
    assert run.lost and run.run_id is None
    book = Ledger.open(ledger)
    assert (book.status, book.weights, book.artifacts) == ("FAILED", ["w", "w"], [["roc.png", ""]])
    assert book.scores == {"best_auc": 0.5} and len(book.datasets) == 1
    assert len(caplog.records) == 1
    line = caplog.records[0].getMessage()
    assert "127.0.0.1" in line and "\n" not in line and "secret" not in line


@pytest.mark.parametrize(
    "uri",
    [
        "http://[bad",
        "http://me:secret@a b",
        "http://me:sec/ret@host",
        "postgresql://h:abc/x",
        "postgresql+psycopg9://me:secret@127.0.0.1:PORT/x",
        "mysql://127.0.0.1:PORT/x",
        "mssql://127.0.0.1:PORT/x",
    ],
)
def test_an_address_that_is_none_or_has_no_driver_is_one_warning(uri, out, caplog):
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        uri = uri.replace("PORT", str(listening.getsockname()[1]))
        run = Run.start(uri, "e", "n", params={}, tags={}, out=out, ledger=out / "mlflow.json")
    run.log_metrics({"a": 1.0}, 1)
    run.end("FINISHED")
    assert run.lost and run.run_id is None and len(caplog.records) == 1
    line = caplog.records[0].getMessage()
    assert "\n" not in line and "secret" not in line and "sec/ret" not in line


def test_a_server_that_dies_later_is_one_warning_and_marks_the_run(out, caplog, monkeypatch):
    monkeypatch.setattr("dogmed.tracking.store.STORE_SECONDS", 1)
    run = start(out)
    run.log_metrics({"a": 1.0}, 1)
    (out / "mlflow.db").rename(out / "away.db")
    with sqlite3.connect(out / "mlflow.db") as empty:
        empty.execute("create table other (x)")
    run.log_metrics({"a": 2.0}, 2)
    assert run.lost and len(caplog.records) == 1
    (out / "away.db").replace(out / "mlflow.db")
    run.log_metrics({"a": 3.0}, 3)
    run.end("FINISHED")
    kept = stored(out, run.run_id)
    assert kept.info.status == "FINISHED" and kept.data.tags["incomplete"] == "true"
    assert history(out, run, "a") == [(1, 1.0)]
    assert len(caplog.records) == 1


@pytest.mark.parametrize("damage", ["garbage", "locked", "folder"])
def test_a_damaged_or_locked_store_is_one_warning(damage, out, caplog, monkeypatch):
    monkeypatch.setattr("dogmed.tracking.store.STORE_SECONDS", 0.2)
    (out / "mlflow.db").unlink()
    held = None
    if damage == "garbage":
        (out / "mlflow.db").write_bytes(b"not a database" * 100)
    elif damage == "locked":
        held = sqlite3.connect(out / "mlflow.db", isolation_level=None)
        held.execute("begin exclusive")
    else:
        (out / "mlflow.db").mkdir()
    run = start(out)
    run.log_metrics({"a": 1.0}, 1)
    run.end("FINISHED")
    assert run.lost and run.run_id is None and len(caplog.records) == 1
    if held is not None:
        held.close()


def test_a_file_that_is_missing_is_told_and_survived(out, tmp_path, caplog):
    run = start(out)
    run.log_artifact(out / "run" / "missing.png")
    assert run.lost and "missing.png" in caplog.records[0].getMessage()
    run.end("FINISHED")
    assert stored(out, run.run_id).info.status == "FINISHED"


def test_no_run_has_the_whole_surface_and_does_nothing(tmp_path):
    run = NoRun()
    public = {name for name in vars(Run) if not name.startswith("_")} - {"start"}
    assert public <= {name for name in dir(run) if not name.startswith("_")}
    run.log_metrics({"a": 1.0}, 1)
    run.log_artifact(tmp_path)
    run.log_dataset("d", "s", "0", "train")
    run.log_weights(tmp_path, "w", {})
    run.log_scores({})
    run.propose("m", 0.5, {})
    run.end("FINISHED")
    assert run.run_id is None and not run.lost


def test_the_users_server_comes_first(out, monkeypatch):
    assert default_uri(Path("x")) == f"sqlite:///{Path.cwd() / 'x' / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example.org")
    assert default_uri(out) == "https://mlflow.example.org"


def test_passwords_are_not_shown():
    assert shown("postgresql://me:secret@host:5432/db") == "postgresql://me:***@host:5432/db"
    assert shown("http://me:se@cr:et@host/x") == "http://me:***@host/x"
    assert shown("http://token@host/x") == "http://***@host/x"
    assert shown("postgresql://h/d?user=me&Password=secret&a=b") == (
        "postgresql://h/d?user=me&Password=***&a=b"
    )
    for plain in ("sqlite:////a/b.db", "http://localhost:5000/x", "postgresql://me@h/db"):
        assert shown(plain) == plain


def test_nothing_is_printed_and_mlflow_waits_for_its_use(tmp_path):
    code = (
        "import sys; from pathlib import Path\n"
        "from dogmed.tracking import Run, default_uri\n"
        "assert 'mlflow' not in sys.modules\n"
        "out = Path(sys.argv[1])\n"
        "run = Run.start(default_uri(out), 'e', 'n', params={}, tags={}, out=out,"
        " ledger=out / 'r/mlflow.json')\n"
        "run.log_metrics({'a': 1}, 1); run.end('FINISHED'); assert not run.lost"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW")}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "runs")],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

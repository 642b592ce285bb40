"""``dogmed sync``, the registry and runs that died, on real stores: what MLflow returns is compared."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from dogmed.errors import DataError
from dogmed.sync import sync
from dogmed.tracking import PARENT_TAG, Ledger, Run, close_dead, default_uri, open_store, promote

CODE = "import sys; from dogmed.cli import main; sys.exit(main())"


@pytest.fixture(autouse=True)
def _no_server_of_the_user(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def out(tmp_path: Path, fresh_store: Path) -> Path:
    folder = tmp_path / "runs"
    folder.mkdir()
    shutil.copy(fresh_store, folder)
    return folder


@pytest.fixture
def elsewhere(tmp_path: Path, fresh_store: Path) -> str:
    """A second, empty store."""
    shutil.copy(fresh_store, tmp_path / "second.db")
    return f"sqlite:///{tmp_path / 'second.db'}"


def make_run(out: Path, name: str, uri: str | None = None, **options) -> Run:
    """A run whose folder is whole, whatever becomes of the store."""
    folder = out / "finetune" / name
    score, parent = options.get("score", 0.75), options.get("parent")
    tags = {"task": "breastmnist"} | ({PARENT_TAG: parent} if parent else {})
    run = Run.start(
        uri or default_uri(out), "benchmark", name, params={"lr": 1e-3, "kind": None}, tags=tags,
        out=out, ledger=folder / "mlflow.json",
    )  # fmt: skip
    run.log_dataset("breastmnist-28-train", "https://example.org/b.npz", "a" * 64, "train")
    rows = [{"epoch": e, "val_auc": None if e == 1 else e / 10} for e in (1, 2, 3)]
    for row in rows:
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        run.log_metrics({"val_auc": row["val_auc"]}, row["epoch"])
    for file in ("roc.png", "best.safetensors", "result.json"):
        (folder / file).write_text(file)
    run.log_artifact(folder / "roc.png", "figures")
    run.log_weights(folder / "best.safetensors", "best", {"test_auc": 0.7})
    run.propose("dogmed-breastmnist-28", score, {"seed": name})
    run.log_artifact(folder / "result.json")
    run.end("FINISHED")
    return run


def facts(uri: str, out: Path) -> dict[str, dict]:
    """All that a store holds, by the names of the runs."""
    client = open_store(uri, out)
    experiments = [e.experiment_id for e in client.search_experiments()]
    runs = client.search_runs(experiments)
    names = {run.info.run_id: run.info.run_name for run in runs}
    found = {}
    for run in runs:
        tags = {k: v for k, v in run.data.tags.items() if k in ("task", "dogmed.key", "incomplete")}
        tags["parent"] = names.get(run.data.tags.get(PARENT_TAG))
        files = {
            file.path: file.file_size
            for folder in (None, "figures")
            for file in client.list_artifacts(run.info.run_id, folder)
        }
        models = [client.get_logged_model(o.model_id) for o in run.outputs.model_outputs]
        assert run.info.run_name not in found, "twice"
        found[run.info.run_name] = {
            "experiment": client.get_experiment(run.info.experiment_id).name,
            "status": run.info.status,
            "params": run.data.params,
            "tags": tags,
            "datasets": [
                (i.dataset.name, i.dataset.digest, i.tags[0].value)
                for i in run.inputs.dataset_inputs
            ],
            "points": {
                key: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, key)]
                for key in run.data.metrics
            },
            "files": files,
            "models": [
                (m.name, str(m.status), {x.key: x.value for x in m.metrics}) for m in models
            ],
        }
    return found


def test_a_store_that_has_nothing_gets_what_the_first_has(out, elsewhere, monkeypatch, capsys):
    parent = make_run(out, "parent")
    make_run(out, "child", parent=parent.run_id)
    make_run(out, "best", parent=parent.ledger.key, score=0.9)
    first = facts(default_uri(out), out)
    assert first["child"]["points"] == {"val_auc": [(2, 0.2), (3, 0.3)], "test_auc": [(0, 0.7)]}
    assert first["child"]["tags"]["parent"] == first["best"]["tags"]["parent"] == "parent"
    assert sync((), out) == 0
    assert "registry: dogmed-breastmnist-28@best" in capsys.readouterr().out
    assert facts(default_uri(out), out) == first
    monkeypatch.setenv("MLFLOW_TRACKING_URI", elsewhere)
    assert sync((), out) == 0
    assert facts(elsewhere, out) == first
    client = open_store(elsewhere, out)
    version = client.get_model_version_by_alias("dogmed-breastmnist-28", "best")
    assert version.tags == {"seed": "best", "val_auc": "0.9"}
    assert client.get_run(version.run_id).info.run_name == "best"
    capsys.readouterr()
    assert sync((), out) == 0
    assert "4 changes" not in (said := capsys.readouterr().out)
    assert "3 runs, nothing to do" in said and said.count("in order") == 3
    assert facts(elsewhere, out) == first
    assert len(client.search_model_versions("name = 'dogmed-breastmnist-28'")) == 1


def test_what_is_missing_is_added_and_nothing_twice(out, capsys):
    run = make_run(out, "run")
    whole = facts(default_uri(out), out)
    client = open_store(default_uri(out), out)
    client.set_tag(run.run_id, "incomplete", "true")
    client.set_tag(run.run_id, "task", "wrong")
    client.update_run(run.run_id, status="RUNNING")
    (picture,) = (out / "mlartifacts").rglob("roc.png")
    picture.unlink()
    folder = out / "finetune" / "run"
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 4, "val_auc": 0.4}\n')
    assert sync([folder], out) == 0
    whole["run"]["points"]["val_auc"].append((4, 0.4))
    assert facts(default_uri(out), out) == whole
    assert "1 epoch, 1 file, complete now, RUNNING -> FINISHED" in capsys.readouterr().out


def test_only_the_folders_asked_for_and_their_parents(out, elsewhere, monkeypatch):
    parent = make_run(out, "parent")
    make_run(out, "child", parent=parent.run_id)
    make_run(out, "other")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", elsewhere)
    assert sync([out / "finetune" / "child"], out) == 0
    assert set(facts(elsewhere, out)) == {"parent", "child"}


def test_one_broken_run_does_not_keep_back_the_others(out, elsewhere, monkeypatch, capsys):
    for name in ("a", "b", "c", "d", "e"):
        make_run(out, name)
    runs = out / "finetune"
    (runs / "a" / "mlflow.json").write_text("{")
    (runs / "b" / "metrics.jsonl").write_text('{"epoch": 1, "val_auc"')
    (runs / "c" / "best.safetensors").unlink()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", elsewhere)
    with FileLock(runs / "e" / ".lock"):
        assert sync((), out) == 1
    told = capsys.readouterr()
    assert set(facts(elsewhere, out)) == {"c", "d"}
    assert facts(elsewhere, out)["c"]["status"] == "FINISHED"
    assert len(told.err.splitlines()) == 3 and "best.safetensors" in told.err
    assert "finetune/e: at work now, left alone" in told.out


def test_a_run_deleted_in_mlflow_stays_deleted(out, capsys):
    run = make_run(out, "run")
    open_store(default_uri(out), out).delete_run(run.run_id)
    assert sync((), out) == 0
    assert "deleted in MLflow, left alone" in capsys.readouterr().out
    assert facts(default_uri(out), out) == {}


def test_nothing_to_sync_and_no_store_are_told_in_one_line(out, monkeypatch):
    with pytest.raises(DataError, match=r"has an mlflow\.json"):
        sync((), out)
    with pytest.raises(DataError, match="is not a folder"):
        sync([out / "nothing"], out)
    make_run(out, "run")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql+psycopg2://me:secret@127.0.0.1:9/x")
    with pytest.raises(DataError, match=r"me:\*\*\*@.* cannot be used") as error:
        sync((), out)
    assert "\n" not in str(error.value)


def test_the_registry_takes_the_best_on_val_once(out):
    client, name = open_store(default_uri(out), out), "dogmed-breastmnist-28"
    books = [make_run(out, str(score), score=score).ledger for score in (0.7, 0.8, 0.75)]
    books.append(make_run(out, "undefined", score=None).ledger)
    unfinished = make_run(out, "unfinished", score=0.99)
    unfinished.end("KILLED")
    promote(client, out, [*books, unfinished.ledger])
    assert promote(client, out, books) == []
    assert client.get_model_version_by_alias(name, "best").tags["val_auc"] == "0.8"
    promote(client, out, [make_run(out, "0.9", score=0.9).ledger])
    promote(client, out, books)
    assert client.get_model_version_by_alias(name, "best").tags["val_auc"] == "0.9"
    assert len(client.search_model_versions(f"name = '{name}'")) == 2
    client.delete_registered_model_alias(name, "best")
    assert promote(client, out, books) == [f"{name}@best -> version 2"]


def test_the_dead_are_closed_and_the_living_are_not(out):
    dead, alive = (
        Run.start(default_uri(out), "e", name, params={}, tags={}, out=out,
                  ledger=out / name / "mlflow.json")
        for name in ("dead", "alive")
    )  # fmt: skip
    with FileLock(out / "alive" / ".lock"):
        close_dead(default_uri(out), out, [run.ledger.path for run in (dead, alive)])
    assert {n: f["status"] for n, f in facts(default_uri(out), out).items()} == {
        "dead": "KILLED", "alive": "RUNNING"}  # fmt: skip
    assert Ledger.open(dead.ledger.path).status == "KILLED"


def test_the_command_takes_folders_as_words(out):
    make_run(out, "run")
    command = [sys.executable, "-c", CODE, "sync", "--out", str(out), str(out / "finetune" / "run")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "finetune/run: in order" in done.stdout
    with pytest.raises(DataError, match=r"^--out .*missing is not a folder"):
        sync([], out / "missing")


@pytest.mark.parametrize(
    "text", ['{"key": "k", "params": 5, "tags": [1]}', '{"key": "k", "run_ids": 5}', "[" * 100_000]
)
def test_a_damaged_ledger_is_told_and_keeps_nothing_back(out, capsys, text):
    make_run(out, "sound")
    damaged = make_run(out, "damaged").ledger.path
    damaged.write_text(text)
    assert sync([], out) == 1
    printed = capsys.readouterr()
    assert "finetune/sound: in order" in printed.out
    assert f"{damaged} is damaged" in printed.err

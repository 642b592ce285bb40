"""Runs that are killed, as processes of their own, and continued by the same command."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from dogmed import checkpoint, cli
from dogmed.options import scale_options

FLAGS = ("--epochs=6", "--batch-size=32", "--net.drop-path=0.2")
OFTEN = "--checkpoint.minutes=0.00001"
TIMES = {"epoch_seconds", "images_per_second"}
VARYING = {"seconds", "images_per_second", "peak_memory", "mlflow_run_id"}
Words = Callable[..., list[str]]
Start = Callable[..., ForkServerProcess]


def run_folder(out: Path) -> Path:
    (config,) = out.glob("finetune/*/*/seed0/config.yaml")
    return config.parent


def read_rows(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def read_result(folder: Path) -> dict[str, Any]:
    result = json.loads((folder / "result.json").read_text())
    return {key: value for key, value in result.items() if key not in VARYING}


def signal_when_saved(process: ForkServerProcess, out: Path, number: int) -> None:
    """Wait until a run has saved something new, and send a signal at a random moment."""
    before = {path: path.stat().st_mtime_ns for path in out.rglob("last.pt")}
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.is_alive():
        saved = {path: path.stat().st_mtime_ns for path in out.rglob("last.pt")}
        if saved != before:
            break
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.5))
    assert process.pid is not None
    os.kill(process.pid, number)
    process.join(120)


def test_killed_and_continued_equals_undisturbed_to_the_bit(
    words: Words, start_dogmed: Start, tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert cli.main(words(whole, *FLAGS, "--tracking=off")) == 0

    tracked = words(broken, *FLAGS, "--tracking=mlflow")
    killed = start_dogmed([*tracked, OFTEN], tmp_path / "killed.log")
    signal_when_saved(killed, broken, signal.SIGKILL)
    said = (tmp_path / "killed.log").read_text()
    assert killed.exitcode == -signal.SIGKILL, said
    stopped = start_dogmed([*tracked, OFTEN], tmp_path / "stopped.log")
    signal_when_saved(stopped, broken, signal.SIGTERM)
    said = (tmp_path / "stopped.log").read_text()
    assert stopped.exitcode == 128 + signal.SIGTERM, said
    assert "continuing after" in said and "Traceback" not in said
    assert "the same command continues" in said.splitlines()[-1]
    assert cli.main(tracked) == 0

    a, b = run_folder(whole), run_folder(broken)
    first, second = (checkpoint.load(f / "checkpoints" / "last.pt") for f in (a, b))
    assert first["progress"]["epoch"] == second["progress"]["epoch"] == 6
    for name, tensor in first["model"].items():
        assert torch.equal(tensor, second["model"][name]), name
    for slot, state in first["optimizer"]["state"].items():
        for name, value in state.items():
            assert torch.equal(value, second["optimizer"]["state"][slot][name]), (slot, name)
    best = [load_file(f / "checkpoints" / "best.safetensors") for f in (a, b)]
    assert best[0].keys() == best[1].keys()
    assert all(torch.equal(best[0][name], best[1][name]) for name in best[0])
    assert read_rows(a) == read_rows(b)
    assert read_result(a) == read_result(b)
    assert (a / "predictions_test.csv").read_bytes() == (b / "predictions_test.csv").read_bytes()
    check_one_whole_mlflow_run(broken, b)


def check_one_whole_mlflow_run(out: Path, folder: Path) -> None:
    """All sittings are one MLflow run, finished, with every epoch once."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{out / 'mlflow.db'}")
    experiments = [e.experiment_id for e in client.search_experiments()]
    (run,) = client.search_runs(experiments)
    assert run.info.status == "FINISHED"
    assert run.info.run_id == json.loads((folder / "result.json").read_text())["mlflow_run_id"]
    history = client.get_metric_history(run.info.run_id, "val_loss")
    assert [m.step for m in history] == [row["epoch"] for row in read_rows(folder)]
    assert [m.value for m in history] == [row["val_loss"] for row in read_rows(folder)]
    names = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"figures", "result.json", "config.yaml", "predictions_test.csv"} <= names


def test_a_finished_run_is_left_alone_and_other_settings_are_refused(
    run_tiny: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run_tiny()
    folder = run_folder(tmp_path / "runs")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert run_tiny() == first
    assert "already finished" in capsys.readouterr().out
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert {p: t for p, t in after.items() if p.name != ".lock"} == {
        p: t for p, t in before.items() if p.name != ".lock"
    }
    with pytest.raises(ValueError, match=r"other settings \(--epochs 2 -> 3\)"):
        run_tiny(epochs=3)
    again = run_tiny(epochs=3, resume="never")
    assert again["epochs"] == 3
    kept = json.loads((folder.with_name("seed0.old1") / "result.json").read_text())
    assert kept == first


def test_a_run_from_before_an_option_existed_counts_and_goes_on(
    run_tiny: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    first = run_tiny()
    folder = run_folder(tmp_path / "runs")
    options = yaml.safe_load((folder / "config.yaml").read_text())
    assert options["scale"] == {**scale_options("off", {})}  # what the word stood for
    del options["scale_aug"], options["scale"], options["net"]["order"]
    (folder / "config.yaml").write_text(yaml.safe_dump(options))
    assert run_tiny() == first
    with pytest.raises(ValueError, match=r"other settings \(--net.order None -> d1\)"):
        run_tiny(net__order="d1")
    with pytest.raises(ValueError, match=r"--scale.probability 0.0 -> 0.2"):
        run_tiny(scale_aug="scale")
    run_tiny(scale__threshold=0.6)  # the same as the word's
    (folder / "result.json").unlink()
    again = run_tiny()
    assert again["test"] == first["test"] and again["best_epoch"] == first["best_epoch"]


def test_two_processes_do_not_share_a_run(
    run_tiny: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    from filelock import FileLock

    run_tiny()
    with (
        FileLock(run_folder(tmp_path / "runs") / ".lock"),
        pytest.raises(ValueError, match="another process is running this very run"),
    ):
        run_tiny()


def test_a_finished_run_is_not_returned_for_other_data(
    run_tiny: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    for folder, n in (("a", 20), ("b", 24)):
        arrays = {}
        for split in ("train", "val", "test"):
            arrays[f"{split}_images"] = rng.integers(0, 256, (n, 28, 28)).astype(np.uint8)
            arrays[f"{split}_labels"] = np.arange(n)[:, None] % 2
        (tmp_path / folder).mkdir()
        np.savez(tmp_path / folder / "my.npz", **arrays)
    assert run_tiny(task=str(tmp_path / "a" / "my.npz"), data="official")["test"]["n"] == 20
    with pytest.raises(ValueError, match="other data"):
        run_tiny(task=str(tmp_path / "b" / "my.npz"), data="official")
    other = run_tiny(task=str(tmp_path / "b" / "my.npz"), data="official", resume="never")
    assert other["test"]["n"] == 24


def test_lost_curves_are_restored_from_the_checkpoint(
    run_tiny: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    run_tiny(epochs=3)
    folder = run_folder(tmp_path / "runs")
    rows = (folder / "metrics.jsonl").read_text()
    (folder / "result.json").unlink()
    (folder / "metrics.jsonl").write_text("garbage\n")
    run_tiny(epochs=3)
    assert (folder / "metrics.jsonl").read_text() == rows


@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
def test_a_damaged_checkpoint_is_told_in_one_line(
    run_tiny: Callable[..., dict[str, Any]], tmp_path: Path, damage: str
) -> None:
    run_tiny()
    folder = run_folder(tmp_path / "runs")
    (folder / "result.json").unlink()
    last = folder / "checkpoints" / "last.pt"
    content = last.read_bytes()
    last.write_bytes(
        {"truncated": content[: len(content) // 2], "empty": b"", "text": b"hello"}[damage]
    )
    with pytest.raises(ValueError, match=r"last\.pt") as caught:
        run_tiny()
    assert "\n" not in str(caught.value)
    assert last.exists()

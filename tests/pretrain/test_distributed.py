"""Two processes give what one gives; a group whose worker is killed ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

FLAGS = ("--epochs=6", "--batch-size=5", "--micro-batch=2", "--net.drop-path=0")
OFTEN = "--checkpoint.minutes=1e-6"
OPTIONS = {"epochs": 6, "batch_size": 5, "micro_batch": 2, "net__drop_path": 0.0}
TorchRun = Callable[..., subprocess.Popen]

pytestmark = pytest.mark.slow


def rows_of(out: Path) -> list[dict[str, Any]]:
    (file,) = out.glob("runs/pretrain/*/*/seed0/metrics.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def weights_of(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "weights" / "dognext_test.imagenet50ep.safetensors")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("two")


@pytest.fixture
def two(shared: Path, command: Callable[..., list[str]], run_pair: Callable[..., Any]) -> Path:
    """An undisturbed run of two processes."""
    if not list(shared.rglob("result.json")):
        first, second = run_pair(command(shared, *FLAGS)[3:], shared)
        assert (first[0], second[0]) == (0, 0), first[1] + second[1]
        assert (first[1] + second[1]).count("epoch 1/6") == 1  # one process speaks
    return shared


def test_two_processes_equal_one_up_to_rounding(
    run_tiny: Callable[..., dict[str, Any]], two: Path, tmp_path: Path
) -> None:
    one = run_tiny(**OPTIONS)
    for single, double in zip(rows_of(tmp_path), rows_of(two), strict=True):
        for name in ("train_loss", "val_loss"):
            assert double[name] == pytest.approx(single[name], rel=1e-4), name
        assert double["lr"] == single["lr"]
    (file,) = two.rglob("result.json")
    result = json.loads(file.read_text())
    assert (one["processes"], result["processes"]) == (1, 2)
    assert result["data"] == one["data"]


def test_a_killed_worker_costs_no_sample(torchrun: TorchRun, two: Path, tmp_path: Path) -> None:
    process = torchrun(tmp_path, *FLAGS, OFTEN, restarts=1)
    deadline = time.monotonic() + 120
    while not list(tmp_path.rglob("last.pt")) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.005)
    workers = [
        child
        for child in psutil.Process(process.pid).children()
        if {"dogmed", "pretrain"} <= set(child.cmdline())
    ]
    assert len(workers) == 2
    os.kill(workers[-1].pid, signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert "continuing after" in stdout
    times = ("epoch_seconds", "images_per_second", "data_wait")
    for undisturbed, killed in zip(rows_of(two), rows_of(tmp_path), strict=True):
        assert {k: v for k, v in killed.items() if k not in times} == {
            k: v for k, v in undisturbed.items() if k not in times
        }
    first, second = weights_of(two), weights_of(tmp_path)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_two_processes_that_are_stopped_are_continued_by_one(
    torchrun: TorchRun, run_tiny: Callable[..., dict[str, Any]], two: Path, tmp_path: Path
) -> None:
    process = torchrun(tmp_path, *FLAGS, OFTEN)
    deadline = time.monotonic() + 120
    while not list(tmp_path.rglob("last.pt")) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.005)
    process.terminate()
    process.communicate(timeout=120)
    assert not list(tmp_path.rglob("result.json"))
    result = run_tiny(**OPTIONS)
    assert result["processes"] == 1
    for undisturbed, continued in zip(rows_of(two), rows_of(tmp_path), strict=True):
        for name in ("train_loss", "val_loss"):
            assert continued[name] == pytest.approx(undisturbed[name], rel=1e-4), name
        assert continued["lr"] == undisturbed["lr"]


def test_what_one_process_refuses_is_said_once(
    command: Callable[..., list[str]], run_pair: Callable[..., Any], tmp_path: Path
) -> None:
    store = tmp_path / "weights"
    store.mkdir()
    (store / "dognext_test.imagenet50ep.safetensors").write_bytes(b"of somebody else")
    first, second = run_pair(command(tmp_path, *FLAGS)[3:], tmp_path)
    assert first[0] and second[0], "both end with an error's code"
    assert (first[1] + second[1]).count("holds weights of another run") == 1
    assert "Traceback" not in first[1] + second[1]

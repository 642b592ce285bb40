"""Two processes under torchrun give what one gives, and a run of two is continued by two."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

FLAGS = (
    "--net.drop-path=0", "--device=cpu", "--epochs=2", "--batch-size=50",
    "--net.kernel-size=9", "--scale-aug=hybrid", "--scale.probability=0.7",  # drawn alike by both
)  # fmt: skip
Command = Callable[..., list[str]]
RunCommand = Callable[..., subprocess.CompletedProcess]


def torchrun(command: list[str]) -> subprocess.CompletedProcess:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    words = command[command.index("-m") :]  # -m dogmed finetune ...
    return subprocess.run([*launcher, *words], capture_output=True, text=True, timeout=300)


def result_of(out: Path) -> dict:
    (file,) = out.glob("finetune/*/*/seed0/result.json")
    return json.loads(file.read_text())


@pytest.mark.slow
def test_two_processes_equal_one_up_to_rounding(
    command: Command, run_command: RunCommand, tmp_path: Path
) -> None:
    one = run_command(tmp_path / "one", *FLAGS)
    assert one.returncode == 0, one.stderr
    two = torchrun(command(tmp_path / "two", *FLAGS))
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("epoch 1/2") == 1  # one process speaks

    rows = []
    for out in ("one", "two"):
        (file,) = (tmp_path / out).glob("finetune/*/*/seed0/metrics.jsonl")
        rows.append([json.loads(line) for line in file.read_text().splitlines()])
    for single, double in zip(*rows, strict=True):
        for name in ("train_loss", "val_loss"):
            assert double[name] == pytest.approx(single[name], rel=1e-4), name
        assert double["lr"] == single["lr"]
    first, second = result_of(tmp_path / "one"), result_of(tmp_path / "two")
    assert second["processes"] == 2
    assert second["test"]["loss"] == pytest.approx(first["test"]["loss"], rel=1e-4)
    assert second["test"]["n"] == first["test"]["n"]

    alone = run_command(tmp_path / "two", *FLAGS)  # finished: nothing to continue
    assert "already finished" in alone.stdout


@pytest.mark.slow
def test_processes_agree_on_running_statistics(command: Command, tmp_path: Path) -> None:
    flags = ("--model=resnet18", "--device=cpu", "--epochs=1", "--eval.select=last")
    done = torchrun(command(tmp_path, *flags))
    assert done.returncode == 0, done.stderr
    result = result_of(tmp_path)
    assert result["last_epoch"]["val"]["loss"] == result["val"]["loss"]  # the saved model's own

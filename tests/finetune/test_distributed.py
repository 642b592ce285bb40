"""Two processes under torchrun give what one gives, and a run of two is continued by two."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dogmed import cli

FLAGS = (
    "--net.drop-path=0", "--device=cpu", "--epochs=2", "--batch-size=50",
    "--net.kernel-size=9", "--scale-aug=hybrid", "--scale.probability=0.7",  # drawn alike by both
)  # fmt: skip
Words = Callable[..., list[str]]

pytestmark = pytest.mark.slow


def result_of(out: Path) -> dict:
    (file,) = out.glob("finetune/*/*/seed0/result.json")
    return json.loads(file.read_text())


def test_two_processes_equal_one_up_to_rounding(
    words: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words(tmp_path / "one", *FLAGS)) == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launcher, "-m", "dogmed", *words(tmp_path / "two", *FLAGS)]
    two = subprocess.run(command, capture_output=True, text=True, timeout=300)
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

    capsys.readouterr()
    assert cli.main(words(tmp_path / "two", *FLAGS)) == 0  # finished: nothing to continue
    assert "already finished" in capsys.readouterr().out


def test_processes_agree_on_running_statistics(
    words: Words, run_pair: Callable[..., Any], tmp_path: Path
) -> None:
    flags = ("--model=resnet18", "--device=cpu", "--epochs=1", "--eval.select=last")
    for code, said in run_pair(words(tmp_path, *flags), tmp_path):
        assert code == 0, said
    result = result_of(tmp_path)
    assert result["processes"] == 2
    assert result["last_epoch"]["val"]["loss"] == result["val"]["loss"]  # the saved model's own

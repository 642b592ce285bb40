"""A benchmark that is killed twice at random ends as one that nobody disturbed."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from dogmed import config
from dogmed.finetune.benchmark.matrix import BenchmarkConfig, combine
from dogmed.finetune.benchmark.sitting import benchmark

survival = pytest.importorskip(
    "benchmarks.survival", reason="the benchmarks are in a checkout only"
)


@pytest.mark.slow
def test_killed_twice_it_ends_equal_to_an_undisturbed_one(
    tmp_path: Path,
    make_here: type[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))  # everywhere as here
    survival.save_weights(tmp_path / "weights")
    _, *argv = survival.words(tmp_path / "undisturbed", tmp_path, "breastmnist", 2)
    recipe = config.recipe("finetune/benchmark")
    runs = combine(config.parse(BenchmarkConfig, argv, prog="dogmed benchmark", base=recipe))
    here = make_here()
    assert benchmark(runs, here) == 0  # so that the command finds the undisturbed one done
    assert len(here.started) == 4
    code = survival.survive(tmp_path, "breastmnist", 2, random.Random(0))
    said = capsys.readouterr().out
    assert code == 0, said
    assert said.count("killed ") == 2
    assert said.splitlines()[-1].startswith("equal: ")

"""Cells of other settings, weights or data do not join."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dogmed.errors import ConfigError
from dogmed.finetune.benchmark.sitting import benchmark
from dogmed.finetune.config import FinetuneConfig
from dogmed.models import build_model
from dogmed.models.weights import DataRecord, WeightsRecord, save_weights

Parse = Callable[..., list[FinetuneConfig]]


def test_cells_of_other_settings_weights_or_data_do_not_join(
    parse: Parse, out: Path, tmp_path: Path, make_here: type[Any], write_npz: Callable[..., None]
) -> None:
    task = tmp_path / "my.npz"
    write_npz(task)
    store = tmp_path / "weights"
    store.mkdir()
    _save(store / "dognext_test.mine.safetensors", seed=0)
    more = (f"--task={task}", "--init=mine")
    assert benchmark(parse(*more), executor=make_here()) == 0
    with pytest.raises(ConfigError, match=r"other settings \(--epochs 1 -> 2\)"):
        benchmark(parse(*more, "--epochs=2"), make_here())
    _save(store / "dognext_test.mine.safetensors", seed=1)
    with pytest.raises(ConfigError, match="other initial weights"):
        benchmark(parse(*more), make_here())
    _save(store / "dognext_test.mine.safetensors", seed=0)
    write_npz(task, value=9)
    with pytest.raises(ConfigError, match="other data"):
        benchmark(parse(*more), make_here())
    copy = tmp_path / "elsewhere"
    copy.mkdir()
    shutil.copy(task, copy)
    with pytest.raises(ConfigError, match="two runs share the folder"):
        benchmark(parse(f"--task={task},{copy / task.name}"), make_here())


def _save(path: Path, seed: int) -> None:
    torch.manual_seed(seed)
    model, _ = build_model("dognext_test", 2)
    seen = DataRecord(
        name="x", size=28, source_size=28, interpolation=None, mean=(0.5,) * 3, std=(0.5,) * 3,
        licence=None,
    )  # fmt: skip
    record = WeightsRecord(
        model="dognext_test", num_classes=2, params=1, recipe="mine", init="scratch", epochs=1,
        score={}, data=seen, licence=None, git_commit=None, versions={},
    )  # fmt: skip
    save_weights(path, model.state_dict(), record)

"""A small benchmark: its flags, the runs they stand for, and what it leaves."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dogmed import config
from dogmed.finetune.benchmark.matrix import BenchmarkConfig, combine
from dogmed.finetune.config import FinetuneConfig

TINY = (
    "--model=dognext_test", "--init=scratch", "--size=28", "--epochs=1", "--batch-size=64",
    "--tracking=off", "--eval.resamples=20", "--device=cpu",
)  # fmt: skip


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def flags(out: Path, cache_dir: Path, tmp_path: Path) -> list[str]:
    folders = {"out": out, "cache-dir": cache_dir, "weights-dir": tmp_path / "weights"}
    return [*TINY, *(f"--{name}={folder}" for name, folder in folders.items())]


@pytest.fixture
def parse(flags: list[str]) -> Callable[..., list[FinetuneConfig]]:
    recipe = config.recipe("finetune/benchmark")

    def make(*more: str) -> list[FinetuneConfig]:
        argv = [*flags, *more]
        return combine(config.parse(BenchmarkConfig, argv, prog="dogmed benchmark", base=recipe))

    return make


@pytest.fixture(scope="session")
def read_table() -> Callable[[Path], list[dict[str, str]]]:
    """The rows of the table of results below ``out``."""

    def read(out: Path) -> list[dict[str, str]]:
        with (out / "benchmark" / "results.csv").open() as file:
            return list(csv.DictReader(file))

    return read


@pytest.fixture(scope="session")
def results() -> Callable[[Path], dict[str, tuple[int, float]]]:
    """Content and age of every result below ``out``."""

    def read(out: Path) -> dict[str, tuple[int, float]]:
        files = out.glob("finetune/*/*/seed*/result.json")
        return {str(f.relative_to(out)): (hash(f.read_text()), f.stat().st_mtime_ns) for f in files}

    return read


@pytest.fixture(scope="session")
def write_npz() -> Callable[..., None]:
    """Write a task of 16 grey images a split, all of one ``value``."""

    def write(path: Path, value: int = 7) -> None:
        arrays: dict[str, Any] = {}
        for split in ("train", "val", "test"):
            arrays[f"{split}_images"] = np.full((16, 28, 28), value, np.uint8)
            arrays[f"{split}_labels"] = np.arange(16)[:, None] % 2
        np.savez(path, **arrays)

    return write

"""Folders of finished runs, made by hand in the form that ``dogmed finetune`` leaves them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dogmed import config, metrics
from dogmed.data.prepared import Prepared
from dogmed.data.store import prepare
from dogmed.finetune.config import FinetuneConfig
from dogmed.finetune.report.assembly import Report, assemble
from dogmed.finetune.report.writing import write_csv
from dogmed.finetune.result import trivial_accuracy
from dogmed.finetune.session import FinetuneFolder

EPOCHS = 3


@pytest.fixture(scope="session")
def prepared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prepared")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture(scope="session")
def build() -> Callable[..., Report]:
    def make(out: Path, **options: Any) -> Report:
        return assemble(out, resamples=100, **options)

    return make


@pytest.fixture(scope="session")
def rows() -> Callable[[Report, Path, str], list[dict[str, str]]]:
    """The rows of one of a report's tables, as written into a folder."""

    def read(report: Report, folder: Path, name: str) -> list[dict[str, str]]:
        folder.mkdir(exist_ok=True)
        write_csv(report, folder)
        with (folder / name).open() as file:
            return list(csv.DictReader(file))

    return read


def predictions(data: Prepared, skill: float, seed: int) -> np.ndarray:
    """Probabilities (N, C) in float32 whose truth shines through the noise as strongly as ``skill``."""
    labels, rng = data.labels("test"), np.random.default_rng(seed)
    truth = (
        labels if data.task.kind == "multi-label" else np.eye(data.task.num_classes)[labels[:, 0]]
    )
    logits = skill * truth + rng.normal(size=truth.shape)
    if data.task.kind == "multi-label":
        return (1 / (1 + np.exp(skill / 2 - logits))).astype(np.float32)
    scores = np.exp(logits - logits.max(1, keepdims=True))
    return (scores / scores.sum(1, keepdims=True)).astype(np.float32)


@pytest.fixture
def add_run(out: Path, prepared_cache: Path) -> Callable[..., Path]:
    """Write one run; ``skill`` says how good it is, ``source`` what its data are said to be."""

    def add(
        skill: float = 2.0, *, source: str = "synthetic", seconds: float = 60.0, **options: Any
    ) -> Path:
        values = {
            "task": "breastmnist",
            "model": "dognext_test",
            "size": 28,
            "epochs": EPOCHS,
            "data": "synthetic",
            "out": str(out),
            "cache_dir": str(prepared_cache),
        }
        base = config.merge(config.recipe("finetune/default"), values | options)
        run = config.build(FinetuneConfig, base)
        data = prepare(
            run.task, size=run.size, data="synthetic", cache_dir=prepared_cache, samples=64
        )
        folder = FinetuneFolder.of(run, data.task.name, source)
        write_run(folder, run, data, skill, source, seconds)
        return folder.root

    return add


def write_run(
    folder: FinetuneFolder,
    run: FinetuneConfig,
    data: Prepared,
    skill: float,
    source: str,
    seconds: float,
) -> None:
    draw = [
        run.seed,
        *run.model.encode(),
        *run.init.encode(),
        *run.task.encode(),
        round(100 * run.train_fraction),
    ]
    probabilities = predictions(data, skill, np.random.SeedSequence(draw).generate_state(1)[0])
    labels, kind = data.labels("test"), data.task.kind
    test = {"n": len(labels), "loss": 0.5, **metrics.score(kind, labels, probabilities)}
    result = {
        "task": data.task.name, "kind": kind, "classes": list(data.task.classes), "model": run.model,
        "init": run.init, "weights_sha256": None if run.init == "scratch" else "ab" * 32, "seed": run.seed,
        "data": {"source": source, "size": run.size, "source_size": run.size, "interpolation": None,
                 "train_images": 40,
                 "sha256": {n: f["sha256"] for n, f in sorted(data.manifest["files"].items())}},
        "epochs": run.epochs, "best_epoch": run.epochs, "selected_on": "val_auc", "test": test,
        "trivial_test_acc": trivial_accuracy(kind, data.labels("train"), labels),
        "seconds": seconds, "images_per_second": 100.0, "peak_memory": {"host_bytes": 1}, "parameters": 3_000_000,
        "macs": 5e8 if "dog" in run.model else 4e8, "processes": 1, "versions": {"dogmed": "0.1.0"},
        "git_commit": "0" * 40, "device": "a processor",
    }  # fmt: skip
    folder.begin(config.to_dict(run))
    for epoch in range(1, run.epochs + 1):
        share = epoch / run.epochs
        row = {"val_acc": test["acc"] * share, "val_auc": (test["auc"] or 0) * share}
        pace = {"epoch_seconds": seconds / run.epochs, "images_per_second": 100.0}
        folder.append_row(
            {"epoch": epoch, "train_loss": 1.0, "val_loss": 1.0, "lr": 1e-3, **row, **pace}
        )
    metrics.write_predictions(folder.predictions, probabilities)
    folder.result.write_text(json.dumps(result))

"""What a finished run leaves behind: scores with intervals, predictions, pictures, ``result.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from dogmed import calibration, metrics, stats
from dogmed import config as configuration
from dogmed.console import duration
from dogmed.data.pixels import ranges
from dogmed.data.store import Prepared
from dogmed.distributed import World
from dogmed.finetune.build import Network
from dogmed.finetune.config import FinetuneConfig
from dogmed.finetune.folder import FinetuneFolder
from dogmed.finetune.loop import Loop, Prediction
from dogmed.metrics import write_predictions
from dogmed.models.weights import DataRecord, read_weights, save_weights
from dogmed.objective import Objective
from dogmed.options import settled

__all__ = [
    "calibrate",
    "calibration_scores",
    "complete_best",
    "data_record",
    "draw",
    "epoch_line",
    "load_best",
    "score",
    "summary",
    "training_record",
    "trivial_accuracy",
    "write_predictions",
]


def score(loop: Loop, prediction: Prediction, resamples: int) -> tuple[dict[str, Any], Any, Any]:
    """Score what the model gave for one split: metrics, labels (N, L), probabilities (N, C)."""
    labels, probabilities = loop.probabilities_of(prediction)
    kind = loop.objective.kind
    scores = {"n": len(labels), "loss": loop.loss_of(prediction)}
    scores |= metrics.score(kind, labels, probabilities)
    if resamples:
        intervals = stats.bootstrap_intervals(kind, labels, probabilities, resamples=resamples)
        scores["intervals_95"] = {name: list(interval) for name, interval in intervals.items()}
        scores["resamples"] = resamples  # behind them
    return scores, labels, probabilities


def calibrate(objective: Objective, predictions: Mapping[str, Prediction]) -> dict[str, Any]:
    """Fit a temperature on val, and say what it does for every split."""
    val = predictions["val"]
    temperature = calibration.fit_temperature(objective, val.logits, val.labels)
    told = {
        split: calibration.describe(objective, found.logits, found.labels, temperature)
        for split, found in predictions.items()
    }
    return {"temperature": temperature, **told}


def calibration_scores(report: Mapping[str, Any]) -> dict[str, float]:
    """What a report says of calibration, as figures of the whole run: the temperature, errors on test."""
    told = report["calibration"]
    return {"temperature": told["temperature"]} | {
        f"test_{name}_{how}": told["test"][how][name]
        for name in ("ece", "nll")
        for how in ("raw", "calibrated")
    }


def trivial_accuracy(kind: str, train_labels: Any, labels: Any) -> float:
    """Accuracy of always giving the answer that is most frequent in training: what a score must beat."""
    if kind == "multi-label":
        return float((labels == (train_labels.mean(0) > 0.5)).mean())
    most_frequent = np.bincount(train_labels[:, 0]).argmax()
    return float((labels[:, 0] == most_frequent).mean())


def data_record(prepared: Prepared, network: Network) -> DataRecord:
    """What the weights say of the images that they were trained on."""
    task = prepared.task
    return DataRecord(
        name=task.name,
        size=prepared.size,
        source_size=prepared.source_size,
        interpolation=prepared.interpolation,
        mean=network.mean,
        std=network.std,
        licence=task.licence or None,
        source=prepared.source,
        kind=task.kind,
        classes=task.classes,
        channels=task.channels,
        sides=_sides(prepared),
    )


def _sides(prepared: Prepared) -> tuple[int, int]:
    sizes = prepared.manifest["source_sizes"]  # (height, width) each
    return min(sizes["smallest"]), max(sizes["largest"])


def complete_best(path: Path, temperature: float, prepared: Prepared) -> None:
    """Write into the record of the best weights what is known after training only."""
    state, record, _ = read_weights(path)
    assert record is not None, path
    data = replace(record.data, pixels=ranges(prepared.images("train")))
    save_weights(path, state, replace(record, temperature=temperature, data=data))


def training_record(config: FinetuneConfig) -> dict[str, Any]:
    """The options that decided what the weights have become, and the label they go by."""
    settings = settled(configuration.to_dict(config))
    return {
        name: value
        for name, value in settings.items()
        if name == "label" or name not in FinetuneFolder.free
    }


def load_best(model: nn.Module, path: Path, world: World) -> None:
    """Give ``model`` the weights of the best epoch, on every process (the main one has the file)."""
    state = world.broadcast(read_weights(path)[0] if world.is_main else None)
    model.load_state_dict(state)


def draw(
    folder: FinetuneFolder,
    rows: list[dict[str, Any]],
    kind: str,
    classes: tuple[str, ...],
    labels: Any,
    probabilities: Any,
) -> list[Path]:
    """Draw learning curves, confusion matrix and ROC of the test split; returns the files."""
    from dogmed import plots

    curves, confusion, roc = (
        folder.root / name for name in ("learning_curves.png", "confusion_matrix.png", "roc.png")
    )
    plots.learning_curves(rows, curves)
    plots.confusion_matrix(labels, probabilities, classes, confusion)
    plots.roc(kind, labels, probabilities, classes, roc)
    return [curves, confusion, roc]


def epoch_line(row: dict[str, Any], improved: bool) -> str:
    """What the terminal says of one epoch; ``*`` marks the best so far."""
    auc = "   -  " if row["val_auc"] is None else f"{row['val_auc']:.4f}"
    return (
        f"train loss {row['train_loss']:.4f}  val loss {row['val_loss']:.4f}  "
        f"acc {row['val_acc']:.4f}  auc {auc}{'*' if improved else ' '} "
        f"lr {row['lr']:.2e}  {row['images_per_second']:,.0f} img/s"
    )


def summary(report: dict[str, Any]) -> str:
    """The result in two lines, for a person."""
    if "test" not in report:
        auc = "none" if report["val"]["auc"] is None else f"{report['val']['auc']:.4f}"
        return (
            f"val     auc {auc}   (epoch {report['best_epoch']} of {report['epochs']}, picked by "
            f"{report['selected_on']}; a trial, test was not read)"
        )
    parts = []
    for name in ("acc", "auc"):
        value, interval = report["test"][name], report["test"].get("intervals_95", {}).get(name)
        if value is not None:
            parts.append(
                f"{name} {value:.4f}"
                + (f" [{interval[0]:.4f}, {interval[1]:.4f}]" if interval else "")
            )
    count = report["test"].get("resamples")
    intervals = f", 95% bootstrap intervals, {count:,} resamples" if count else ""
    source = "SYNTHETIC data, " if report["data"]["source"] == "synthetic" else ""
    return (
        f"test    {', '.join(parts)}   ({source}n = {report['test']['n']}{intervals}; "
        f"always the most frequent answer: acc {report['trivial_test_acc']:.4f}; "
        f"epoch {report['best_epoch']} of {report['epochs']}, picked by {report['selected_on']})\n"
        f"time    {duration(report['seconds'])}, {report['images_per_second']:,.0f} img/s"
    )

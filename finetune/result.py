"""What a finished run leaves behind: scores with intervals, predictions, pictures, ``result.json``."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dogmed import __version__, metrics, stats
from dogmed.data.loader import Batches
from dogmed.distributed import World
from dogmed.finetune.console import duration
from dogmed.finetune.folder import RunFolder
from dogmed.finetune.loop import Loop
from dogmed.metrics import write_predictions
from dogmed.models.weights import read_weights

__all__ = [
    "draw",
    "load_best",
    "peak_memory",
    "provenance",
    "score_split",
    "summary",
    "write_predictions",
]

LIBRARIES = ("torch", "timm", "monai", "medmnist", "numpy", "scikit-learn")


def score_split(loop: Loop, batches: Batches, resamples: int) -> tuple[dict[str, Any], Any, Any]:
    """Score the model as it stands on one split: metrics, labels (N, L), probabilities (N, C)."""
    prediction = loop.predict(batches)
    labels, probabilities = loop.probabilities_of(prediction)
    kind = loop.objective.kind
    scores = {"n": len(labels), "loss": loop.loss_of(prediction)}
    scores |= metrics.score(kind, labels, probabilities)
    if resamples:
        intervals = stats.bootstrap_intervals(kind, labels, probabilities, resamples=resamples)
        scores["intervals_95"] = {name: list(interval) for name, interval in intervals.items()}
    return scores, labels, probabilities


def trivial_accuracy(kind: str, train_labels: Any, labels: Any) -> float:
    """Accuracy of always giving the answer that is most frequent in training: what a score must beat."""
    if kind == "multi-label":
        return float((labels == (train_labels.mean(0) > 0.5)).mean())
    most_frequent = np.bincount(train_labels[:, 0]).argmax()
    return float((labels[:, 0] == most_frequent).mean())


def load_best(model: nn.Module, path: Path, world: World) -> None:
    """Give ``model`` the weights of the best epoch, on every process (the main one has the file)."""
    state = world.broadcast(read_weights(path)[0] if world.is_main else None)
    model.load_state_dict(state)


def draw(
    folder: RunFolder,
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


def peak_memory(device: torch.device) -> dict[str, int]:
    """Largest memory of this process so far, in bytes, on the host and on the device."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if device.type == "cuda":
        peak["device_bytes"] = torch.cuda.max_memory_allocated(device)
    return peak


def provenance(device: torch.device) -> dict[str, Any]:
    """Versions, commit and machine: what one needs to know to run it again."""
    versions = {"dogmed": __version__, "python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in LIBRARIES}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return {
        "versions": versions,
        "git_commit": _git_commit(),
        "device": name,
        "threads": torch.get_num_threads(),
    }


def summary(report: dict[str, Any]) -> str:
    """The result in two lines, for a person."""
    parts = []
    for name in ("acc", "auc"):
        value, interval = report["test"][name], report["test"].get("intervals_95", {}).get(name)
        if value is not None:
            parts.append(
                f"{name} {value:.4f}"
                + (f" [{interval[0]:.4f}, {interval[1]:.4f}]" if interval else "")
            )
    intervals = ", 95% bootstrap intervals" if "intervals_95" in report["test"] else ""
    source = "SYNTHETIC data, " if report["data"]["source"] == "synthetic" else ""
    return (
        f"test    {', '.join(parts)}   ({source}n = {report['test']['n']}{intervals}; "
        f"always the most frequent answer: acc {report['trivial_test_acc']:.4f}; "
        f"epoch {report['best_epoch']} of {report['epochs']}, picked by {report['selected_on']})\n"
        f"time    {duration(report['seconds'])}, {report['images_per_second']:,.0f} img/s"
    )


def _git_commit() -> str | None:
    """The commit this code was checked out from, with ``+`` if files differ from it."""
    here = Path(__file__).resolve().parent
    try:
        _git(here, "ls-files", "--error-unmatch", Path(__file__).name)  # not just in someone's tree
        commit = _git(here, "rev-parse", "HEAD")
        return commit + ("+" if _git(here, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()

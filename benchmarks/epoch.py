"""Part 2: an epoch of ``dogmed finetune`` against a plain loop in the manner of MedMNIST's own script.

Both are processes that train on BreastMNIST at 224 px and score val after every epoch, the same model
from scratch with AdamW and the same batch size. The plain loop has medmnist's Dataset (PIL), ToTensor,
Normalize and a DataLoader without workers, as the script of MedMNIST/experiments has them; ours is the
command itself with its default recipe: MONAI's engine, checkpoints, MLflow. What is timed is the wall
time between the end of the first epoch and the end of the last. The script also scores train and
test in every epoch; neither is done here.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TIMED_EPOCHS = 1
GPU_TIMED_EPOCHS = 20


def measure(
    data_dir: Path, device: str, models: Sequence[str], batch: int, count: int
) -> list[dict[str, Any]]:
    """Return a row for each model; the two loops take turns, ``count`` times."""
    timed = GPU_TIMED_EPOCHS if device == "cuda" else TIMED_EPOCHS
    rows = []
    for model in models:
        ours, plain = [], []
        for _ in range(count):
            ours.append(ours_once(data_dir, device, model, batch, timed))
            plain.append(plain_once(data_dir, device, model, batch, timed))
        rows.append(
            {
                "model": model,
                "batch": batch,
                "device": device,
                "dogmed_s": statistics.median(ours),
                "plain_s": statistics.median(plain),
                "time_ratio": statistics.median(a / b for a, b in zip(ours, plain, strict=True)),
            }
        )
    return rows


def ours_once(data_dir: Path, device: str, model: str, batch: int, timed: int) -> float:
    """Return the seconds of one epoch of ``dogmed finetune``."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "dogmed", "finetune", "--task", "breastmnist"]
        command += ["--data-dir", str(data_dir), "--model", model, "--epochs", str(1 + timed)]
        command += ["--batch-size", str(batch), "--device", device, "--out", f"{folder}/runs"]
        command += ["--cache-dir", f"{folder}/cache", "--eval.batch-size", str(batch)]
        return seconds_an_epoch(command, timed)


def plain_once(data_dir: Path, device: str, model: str, batch: int, timed: int) -> float:
    """Return the seconds of one epoch of the plain loop."""
    command = [sys.executable, "-m", "benchmarks.epoch", str(data_dir), device, model]
    return seconds_an_epoch([*command, str(batch), str(1 + timed)], timed)


def seconds_an_epoch(command: list[str], timed: int) -> float:
    """Run a command that prints a line ``epoch ...`` after each epoch; return the time of one."""
    ends = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as p:
        assert p.stdout and p.stderr
        for line in p.stdout:
            if line.startswith("epoch "):
                ends.append(time.perf_counter())
        errors = p.stderr.read()
    if p.returncode or len(ends) != 1 + timed:
        raise SystemExit(f"{' '.join(command)} failed:\n{errors}")
    return (ends[-1] - ends[0]) / timed


def plain_loop(data_dir: str, device: str, model_name: str, batch: int, epochs: int) -> None:
    """Train as a short script would."""
    import medmnist
    import timm
    import torch
    from torch import nn
    from torch.utils.data import DataLoader
    from torchvision import transforms

    transform = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize(mean=[0.5], std=[0.5])]
    )
    loaders = {}
    for split in ("train", "val"):
        dataset = medmnist.BreastMNIST(
            split, transform=transform, as_rgb=True, root=data_dir, size=224
        )
        loaders[split] = DataLoader(dataset, batch_size=batch, shuffle=split == "train")
    model = timm.create_model(model_name, num_classes=2).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    criterion = nn.CrossEntropyLoss()
    for epoch in range(epochs):
        model.train()
        for inputs, targets in loaders["train"]:
            optimizer.zero_grad()
            outputs = model(inputs.to(device))
            loss = criterion(outputs, targets.squeeze(1).long().to(device))
            loss.backward()
            optimizer.step()
        model.eval()
        scores = []
        with torch.no_grad():
            for inputs, _ in loaders["val"]:
                scores.append(model(inputs.to(device)).softmax(1).cpu())
        print(f"epoch {epoch + 1}", float(loss), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="the plain loop")
    for name, kind in {"data_dir": str, "device": str, "model": str, "batch": int}.items():
        parser.add_argument(name, type=kind)
    parser.add_argument("epochs", type=int)
    args = parser.parse_args()
    if args.model.startswith("dognext"):
        import dogmed.models  # noqa: F401
    plain_loop(args.data_dir, args.device, args.model, args.batch, args.epochs)

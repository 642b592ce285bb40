"""Part 3: what the harness adds to a step, over a bare loop, on a model that costs next to nothing.

Both train a linear layer on the same ``Batches`` with the same optimizer. The bare loop has forward,
backward and step; the harness has MONAI's engine, the per-step schedule, the loss's record and check,
the progress display's call and the check for signals as well.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.timing import wait
from dogmed import optim
from dogmed.console import Console, Stopper
from dogmed.data.loader import Batches
from dogmed.distributed import World, find_device
from dogmed.finetune.loop import Loop, LoopSettings
from dogmed.objective import Objective

STEPS, BATCH, SIDE, CLASSES = 1000, 8, 8, 4


class Trivial(nn.Module):
    """The mean colour through a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, CLASSES)"""
        return self.fc(x.mean((2, 3)))


def measure(device: str, count: int) -> dict[str, float]:
    """Return the milliseconds of a bare step and what the harness adds to it (median of rounds)."""
    bare(device), harness(device)
    pairs = [(bare(device), harness(device)) for _ in range(count)]
    added = [ours - plain for plain, ours in pairs]
    return {
        "bare_ms": statistics.median(plain for plain, _ in pairs),
        "added_ms": statistics.median(added),
        "added_ms_least": min(added),
        "added_ms_most": max(added),
    }


def batches(device: str, steps: int = STEPS, train: bool = True) -> Batches:
    """Return small grey images with labels."""
    draw = np.random.default_rng(0)
    images = draw.integers(256, size=(steps * BATCH, SIDE, SIDE), dtype=np.uint8)
    labels = draw.integers(CLASSES, size=(len(images), 1))
    normalise = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    return Batches(images, labels, batch_size=BATCH, device=device, train=train, **normalise)


def bare(device: str) -> float:
    """Train an epoch with nothing round it; return the milliseconds of a step."""
    model = Trivial().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=device == "cuda")
    loader = batches(device)
    start = time.perf_counter()
    for batch in loader:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            logits = model(batch["image"])
        loss = F.cross_entropy(logits.float(), batch["label"][:, 0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    wait(device)
    return (time.perf_counter() - start) / STEPS * 1e3


def harness(device: str) -> float:
    """Train an epoch in the fine-tuning loop; return the milliseconds of a training step."""
    model = Trivial().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=device == "cuda")
    schedule = optim.create_scheduler(
        optimizer, name="cosine", steps=STEPS, warmup_steps=0, min_lr=0.0
    )
    loaders = {"train": batches(device), "val": batches(device, steps=1, train=False)}
    world, console = World(0, 1, find_device(device)), Console(True)
    objective, settings = Objective("multi-class", CLASSES), LoopSettings(epochs=1)
    loop = Loop(model, model, optimizer, schedule, objective, loaders, world, settings)
    with tempfile.TemporaryDirectory() as folder, Stopper(console) as stopper:
        loop.run(
            Path(folder) / "last.pt",
            on_step=lambda step, steps: console.step(1, 1, step, steps, BATCH),
            on_epoch=lambda row, improved: None,
            on_best=lambda: None,
            stop_requested=lambda: stopper.requested,
        )
    return 1e3 * BATCH / loop.progress.rows[0]["images_per_second"]

"""Checkpoints: whole whatever happens during a save, refused when damaged, exact on resuming."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from dogmed import checkpoint
from dogmed.errors import DogmedError
from dogmed.optim import create_optimizer, create_scheduler

SAVE_FOREVER = """
import torch
from dogmed import checkpoint
step = 0
while True:
    checkpoint.save(path, {"step": step, "weights": torch.full((500_000,), float(step))})
    step += 1
"""

SAVE_WITH_NO_SPACE = """
import resource, sys, torch
from dogmed import checkpoint
from dogmed.errors import DogmedError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    checkpoint.save(sys.argv[1], {"weights": torch.zeros(1_000_000)})
except DogmedError as error:
    sys.exit(str(error))
"""


def _files(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_round_trip(tmp_path: Path) -> None:
    state = {
        "tensor": torch.randn(3, 4),
        "half": torch.randn(5).bfloat16(),
        "nested": {"list": [1, 2.5, None, True], "tuple": ("a", b"b"), 7: {"empty": {}}},
    }
    checkpoint.save(tmp_path / "last.pt", state)
    loaded = checkpoint.load(tmp_path / "last.pt")
    assert torch.equal(loaded.pop("tensor"), state.pop("tensor"))
    assert torch.equal(loaded.pop("half"), state.pop("half"))
    assert loaded == state
    assert _files(tmp_path) == ["last.pt"]


def test_torch_opens_the_file_too(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "last.pt", {"step": 3})
    content = torch.load(tmp_path / "last.pt", weights_only=True)
    assert content == {"format": checkpoint.FORMAT, "state": {"step": 3}}


def test_kill_while_saving_leaves_a_whole_file(warm: ForkServerContext, tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    delays = random.Random(0)
    last_step = -1
    for _ in range(4):
        path.unlink(missing_ok=True)
        process = warm.Process(target=exec, args=(SAVE_FOREVER, {"path": str(path)}))
        process.start()
        try:
            deadline = time.monotonic() + 60
            while not path.exists() and time.monotonic() < deadline and process.is_alive():
                time.sleep(0.005)
            time.sleep(delays.uniform(0, 0.2))
        finally:
            process.kill()
            process.join()
        state = checkpoint.load(path)
        assert torch.equal(state["weights"], torch.full((500_000,), float(state["step"])))
        last_step = max(last_step, state["step"])
    assert last_step > 0, "every process was killed before its second save: nothing was tested"
    checkpoint.save(path, {"step": 0})  # also over what a killed save left
    assert _files(tmp_path) == ["last.pt"]


@pytest.mark.skipif(os.name != "posix", reason="needs a limit on file size")
def test_no_space_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"step": 1})
    run = subprocess.run(
        [sys.executable, "-c", SAVE_WITH_NO_SPACE, str(path)], capture_output=True, text=True
    )
    assert run.returncode == 1
    assert run.stderr.startswith(f"cannot write the checkpoint {path}: file too large;")
    assert run.stderr.count("\n") == 1
    assert checkpoint.load(path) == {"step": 1}
    assert _files(tmp_path) == ["last.pt"]


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(DogmedError, match=r"cannot write the checkpoint .*no such file"):
        checkpoint.save(tmp_path / "absent" / "last.pt", {})


def test_every_flipped_byte_and_every_cut_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"weights": torch.randn(50)})
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :])
        with pytest.raises(DogmedError, match="damaged"):
            checkpoint.load(path)
    for length in range(0, len(whole), 37):
        path.write_bytes(whole[:length])
        with pytest.raises(DogmedError, match="damaged"):
            checkpoint.load(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DogmedError, match="no checkpoint at"):
        checkpoint.load(tmp_path / "last.pt")


def test_other_format_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "FORMAT", 99)
    checkpoint.save(tmp_path / "last.pt", {})
    monkeypatch.undo()
    with pytest.raises(DogmedError, match="format 99, this version reads 1"):
        checkpoint.load(tmp_path / "last.pt")


@pytest.mark.parametrize("value", [np.float64(0.5), np.zeros(3), Path("x"), random.Random()])
def test_values_that_could_not_be_loaded_are_refused(tmp_path: Path, value: object) -> None:
    with pytest.raises(TypeError, match=r"state\['best'\]\[1\] is a "):
        checkpoint.save(tmp_path / "last.pt", {"best": [0, value]})
    assert _files(tmp_path) == []


def _draw() -> list[object]:
    return [
        random.random(),
        random.gauss(0, 1),
        np.random.rand(3).tolist(),
        np.random.randn(),  # leaves a second value cached
        torch.rand(3).tolist(),
        torch.randn(17).tolist(),
        torch.rand(2, device="cuda").tolist() if torch.cuda.is_available() else None,
    ]


def test_generators_resume_their_streams(tmp_path: Path) -> None:
    before = checkpoint.rng_state()
    try:
        _draw()
        checkpoint.save(tmp_path / "rng.pt", {"rng": checkpoint.rng_state()})
        expected = _draw()
        _draw()
        checkpoint.set_rng_state(checkpoint.load(tmp_path / "rng.pt")["rng"])
        assert _draw() == expected
    finally:
        checkpoint.set_rng_state(before)


class _Run:
    """A small training with drop path, dropout, augmentation by every generator and a schedule."""

    def __init__(self) -> None:
        self.model = timm.create_model(
            "test_convnext", num_classes=3, drop_path_rate=0.5, drop_rate=0.3
        )
        self.optimizer = create_optimizer(self.model, lr=1e-3, weight_decay=0.3)
        self.scheduler = create_scheduler(self.optimizer, steps=8, warmup_steps=2)
        self.step = 0

    def train(self, steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            images = torch.randn(4, 3, 32, 32) * random.random() + np.random.rand()
            labels = torch.randint(3, (4,))
            loss = torch.nn.functional.cross_entropy(self.model(images), labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.step += 1
            self.scheduler.step_update(self.step)
            losses.append(loss.item())
        return losses

    def state(self) -> dict[str, object]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "step": self.step,
            "rng": checkpoint.rng_state(),
        }

    def restore(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.step = state["step"]
        checkpoint.set_rng_state(state["rng"])


def test_resumed_training_is_bit_identical(tmp_path: Path) -> None:
    before = checkpoint.rng_state()
    try:
        torch.manual_seed(0)
        whole = _Run()
        whole.train(3)
        checkpoint.save(tmp_path / "last.pt", whole.state())
        expected = whole.train(5)
        torch.manual_seed(1)
        resumed = _Run()
        resumed.restore(checkpoint.load(tmp_path / "last.pt"))
        assert resumed.train(5) == expected
        for name, value in whole.model.state_dict().items():
            assert torch.equal(resumed.model.state_dict()[name], value), name
        assert resumed.optimizer.param_groups[0]["lr"] == whole.optimizer.param_groups[0]["lr"]
    finally:
        checkpoint.set_rng_state(before)

"""One process or many: rank, device and the few collectives the pipelines need.

Started plainly, everything runs in one process. Started by ``torchrun`` (WORLD_SIZE > 1), every
process joins the group: NCCL on CUDA, gloo on the CPU.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from dogmed.errors import ConfigError


@dataclass(frozen=True)
class World:
    """This process's place among all processes of the run, and its device."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Add ``tensor`` up over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def broadcast(self, value: Any) -> Any:
        """Hand every process the main one's ``value`` (picklable)."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Collect every process's ``value`` (picklable), in the order of ranks, on every process."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def any(self, flag: bool) -> bool:
        """Whether any process raises ``flag``."""
        if self.size == 1:
            return flag
        return bool(self.sum(torch.tensor(float(flag), device=self.device)).item())


@contextmanager
def join(device: str = "auto") -> Iterator[World]:
    """Join the processes torchrun started, or be the only one.

    Args:
        device: ``auto`` (CUDA where there is one), ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        ConfigError: the device does not exist here.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    chosen = find_device(device, local_rank if size > 1 else None)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if size > 1:
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield World(rank, size, chosen)
    finally:
        if size > 1:
            dist.destroy_process_group()


def find_device(name: str, local_rank: int | None = None) -> torch.device:
    """The device that ``name`` means here; under torchrun each process has that of its local rank.

    Raises:
        ConfigError: there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ConfigError(f"--device {name}: expected auto, cpu, cuda or cuda:N")
    if device.type == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if count == 0:
        raise ConfigError(f"--device {name}: torch finds no CUDA device here; use --device cpu")
    index = local_rank if local_rank is not None else (device.index or 0)
    if index >= count:
        raise ConfigError(
            f"--device cuda:{index}: only {count} CUDA device(s) here, 0 to {count - 1}"
        )
    return torch.device("cuda", index)

"""One process or many: rank, device and the few collectives the pipelines need.

Started plainly, everything runs in one process. Started by ``torchrun`` (WORLD_SIZE > 1), every
process joins the group: NCCL on CUDA, gloo on the CPU.
"""

from __future__ import annotations

import ctypes
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from dogmed.errors import ConfigError, TrainingError

MEETING_TIME = timedelta(minutes=15)  # the slowest node has so long to start its processes

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # glibc's malloc.h


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

    def share_buffers(self, model: torch.nn.Module) -> None:
        """Give every process the main one's running statistics, which differ between processes."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)

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

    A process that raises alone leaves its peers waiting in a collective, until it ends and with it its
    connections. So nothing here may keep it: it does not take leave of the others.

    Raises:
        ConfigError: the device does not exist here.
        TrainingError: another process ended or was lost.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    chosen = open_device(device, local_rank if size > 1 else None)
    if size > 1:
        backend = "nccl" if chosen.type == "cuda" else "gloo"
        if os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") == "0":
            dist.init_process_group(backend)
        else:
            dist.init_process_group(
                backend, store=fresh_store(rank, size), rank=rank, world_size=size
            )
    if size == 1:
        yield World(rank, size, chosen)
        return
    try:
        yield World(rank, size, chosen)
    except BaseException as error:
        if dist.group.WORLD is not None:
            dist.group.WORLD.abort()  # NCCL's way to destroy a group waits for the others otherwise
        if isinstance(error, RuntimeError) and _is_loss_of_peer(error):
            raise TrainingError(
                "another process of this run ended or was lost: what it said stands above, or in its "
                "own output; the same command continues from the last saved state"
            ) from error
        raise
    finally:
        dist.destroy_process_group()


def _is_loss_of_peer(error: RuntimeError) -> bool:
    """Whether a collective failed for want of a process; gloo raises plain RuntimeErrors."""
    return isinstance(error, dist.DistError) or "/gloo/" in str(error)


def keep_freed_memory() -> None:
    """Have the C library reuse the memory of freed tensors; with glibc only, elsewhere nothing.

    By default glibc maps every large tensor anew and gives it back when freed, and a training step
    on a CPU spends a good part of its time on the pages' first touch (docs/performance.md).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)


def fresh_store(rank: int, size: int) -> dist.Store:
    """Meet the other processes of this start in a store that no earlier start has written to.

    Processes that torchrun restarts find in its store the addresses of those that died, and wait for them
    or fail (pytorch issue 135712). Its restart counts differ between nodes, so they cannot tell starts
    apart. Here the main process opens a store of its own and tells it to whoever says hello with a name
    that is new; a hello of an earlier start is answered too, and nobody hears it.

    Args:
        rank: of this process.
        size: number of processes.

    Raises:
        torch.distributed.DistStoreError: the others did not come in time.
    """
    alone = os.environ.get("LOCAL_WORLD_SIZE") == str(size)
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    public = dist.PrefixStore("dogmed", dist.TCPStore(address, port, timeout=MEETING_TIME))
    if rank > 0:
        name = uuid.uuid4().hex
        public.set(f"hello{rank}", name)
        host, _, own_port = public.get(f"answer{name}").decode().rpartition(":")  # waits for it
        store = dist.TCPStore(host, int(own_port), timeout=MEETING_TIME)
        store.add("met", 1)
        return store
    store = dist.TCPStore("localhost", 0, is_master=True, timeout=MEETING_TIME)
    where = f"{'localhost' if alone else socket.getfqdn()}:{store.port}"
    deadline = time.monotonic() + MEETING_TIME.total_seconds()
    answered: set[str] = set()
    while store.add("met", 0) < size - 1:
        for key in (f"hello{other}" for other in range(1, size)):
            if public.check([key]) and (name := public.get(key).decode()) not in answered:
                public.set(f"answer{name}", where)
                answered.add(name)
        if time.monotonic() > deadline:
            raise dist.DistStoreError(f"{size - 1} other processes were to come, not all did")
        time.sleep(0.05)
    return store


def open_device(name: str, local_rank: int | None = None) -> torch.device:
    """Find a device as ``find_device`` does, and make it the one that all of this process computes on.

    On CUDA convolutions in float32 are then in float32, not in TF32 as by default: training is in bfloat16
    anyway, and scores are to be the same wherever they are worked out.

    Raises:
        ConfigError: there is no such device.
    """
    device = find_device(name, local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.allow_tf32 = False
    else:
        keep_freed_memory()
    return device


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

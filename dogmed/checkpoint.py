"""Checkpoint files from which a run continues exactly: atomic, checked, free of code.

A save goes to a hidden file beside the target, reaches the disk, and takes the target's name in
one step: whenever the process dies, the target is the old file or the new one, whole. One process
writes a given path at a time. A file is ``torch.save``'s, which ``torch.load`` opens too, followed
by a SHA-256 of it, because torch compares no checksum on reading. It is read with ``weights_only``:
a checkpoint cannot run code.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import random
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dogmed.errors import DogmedError, reason

FORMAT = 1
_MARK = b"dogmed:sha256:"  # ends the file, with the 32 bytes that follow it
_PLAIN = (bool, int, float, str, bytes, type(None), torch.Size, torch.dtype, torch.device)


@contextmanager
def atomic_path(path: str | Path, *, contended: bool = False) -> Iterator[Path]:
    """Give a path to write to; when the block ends well it becomes ``path``, on the disk for good.

    When the block raises, ``path`` is as it was and nothing is left beside it. A file left by a
    killed process has a fixed name and is overwritten by the next save.

    Args:
        path: in an existing folder.
        contended: other processes may write it at the same time: the last wins, whole. What a killed one
            left is then not overwritten.

    Raises:
        OSError: the folder cannot be written or the device is full.
    """
    path = Path(path)
    own = f".{os.getpid()}" if contended else ""
    temporary = path.with_name(f".{path.name}{own}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # elsewhere a folder cannot be opened, nor need be
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def save(path: str | Path, state: dict[str, Any]) -> None:
    """Write ``state`` to ``path`` in one step.

    Args:
        path: file in an existing folder.
        state: tensors and plain Python values, nested in dicts, lists and tuples.

    Raises:
        TypeError: a value that ``load`` would refuse, such as a numpy scalar (named).
        DogmedError: the disk is full or the folder cannot be written; the old file is still whole.
    """
    _refuse_unloadable(state, "state")
    try:
        # torch gets a file of Python's because that one tells why a write failed
        with atomic_path(path) as temporary, temporary.open("wb+") as file:
            torch.save({"format": FORMAT, "state": state}, file)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").digest()  # leaves the file at its end
            file.write(_MARK + digest)
    except (OSError, RuntimeError) as error:  # torch reports a failed write as RuntimeError
        raise DogmedError(
            f"cannot write the checkpoint {path}: {reason(error)}; the previous one, if any, is "
            f"untouched: free some space or choose another folder"
        ) from error


def load(path: str | Path) -> dict[str, Any]:
    """Read what ``save`` wrote, tensors on the CPU, after checking every byte.

    Raises:
        DogmedError: no such file, a damaged one, or one of another format.
    """
    path = Path(path)
    if not path.is_file():
        raise DogmedError(f"no checkpoint at {path}")
    try:
        whole = _is_whole(path)
        content = torch.load(path, map_location="cpu", weights_only=True) if whole else None
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise DogmedError(f"cannot read the checkpoint {path}: {reason(error)}") from error
    if not whole:
        raise DogmedError(f"{path} is damaged or not a dogmed checkpoint: use another one")
    if not isinstance(content, dict) or set(content) != {"format", "state"}:
        raise DogmedError(f"{path} is not a dogmed checkpoint")
    if content["format"] != FORMAT:
        raise DogmedError(
            f"{path} has checkpoint format {content['format']}, this version reads {FORMAT}: "
            f"resume with the version that wrote it"
        )
    return content["state"]


def rng_state() -> dict[str, Any]:
    """Take the state of every generator a run draws from: Python's, numpy's, torch's, CUDA's.

    CUDA is asked only where this process already uses it. Under DistributedDataParallel each rank
    has its own state, and each must be saved.
    """
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (str(name), [int(k) for k in keys], int(position), int(has_gauss), float(gauss)),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Put every generator back to what ``rng_state`` took.

    States of CUDA devices that this machine lacks are left out: a run moved to other hardware goes
    on, though not bit for bit.
    """
    random.setstate(state["python"])
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available():
        for device, cuda_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(cuda_state, device)


def _is_whole(path: Path) -> bool:
    """Whether ``path`` ends with the hash of all that comes before."""
    ending = len(_MARK) + hashlib.sha256().digest_size
    size = path.stat().st_size - ending
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while size > 0 and (chunk := file.read(min(size, 1 << 20))):
            digest.update(chunk)
            size -= len(chunk)
        return file.read() == _MARK + digest.digest()


def _refuse_unloadable(value: Any, where: str) -> None:
    """Raise TypeError where a value would be written but not read back with ``weights_only``."""
    if isinstance(value, torch.Tensor) or type(value) in _PLAIN:
        return
    if type(value) in (dict, OrderedDict):
        for key, item in value.items():
            _refuse_unloadable(key, f"{where} key {key!r}")
            _refuse_unloadable(item, f"{where}[{key!r}]")
    elif type(value) in (list, tuple, set):
        for index, item in enumerate(value):
            _refuse_unloadable(item, f"{where}[{index}]")
    else:
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise TypeError(f"{where} is a {kind}: convert it to a tensor or a plain Python value")

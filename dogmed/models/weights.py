"""Weights files: tensors with the record of what they are.

A file is safetensors with a JSON record in its header, and the same JSON beside it for people. The
record's ``sha256`` is of the tensors (names, types, shapes, bytes), not of the file: it can stand
in the file itself, and equal weights have equal hashes wherever and however often they are stored.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from dogmed.checkpoint import atomic_path
from dogmed.errors import WeightsError, reason
from dogmed.weights.records import (
    METADATA_KEY,
    SUFFIX,
    DataRecord,
    WeightsRecord,
    parse_record,
    read_record,
)

_NESTED = ("state", "model", "state_dict", "model_state_dict")  # where training scripts put weights
_AVERAGES = ("state_dict_ema", "model_ema")  # and an average of them over the training
_DTYPES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
)  # fmt: skip
_PLAIN_DATA: list[Any] = [argparse.Namespace]  # a training script's options, beside its weights
_WRAPPERS = ("module.", "_orig_mod.")  # DistributedDataParallel's and torch.compile's


def save_weights(
    path: str | Path, state: Mapping[str, Tensor], record: WeightsRecord
) -> WeightsRecord:
    """Write ``state`` with its record, and the record beside it as JSON, each in one step.

    Args:
        path: ends in .safetensors; its folder exists.
        state: as ``model.state_dict()`` gives it, on any device.
        record: ``sha256`` need not be set.

    Returns:
        The record as written.

    Raises:
        WeightsError: the files cannot be written; earlier ones are untouched.
    """
    path = Path(path)
    tensors = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in state.items()
    }
    content = dataclasses.asdict(dataclasses.replace(record, sha256=hash_tensors(tensors)))
    record = parse_record(json.dumps(content), path)
    try:
        with atomic_path(path) as temporary:
            metadata = {"format": "pt", METADATA_KEY: json.dumps(content)}
            temporary.write_bytes(safetensors.torch.save(tensors, metadata))
        with atomic_path(path.with_suffix(".json")) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise WeightsError(f"cannot write weights to {path}: {reason(error)}") from error
    return record


def verify(path: str | Path) -> WeightsRecord:
    """Check that a file's tensors are those its record speaks of, and that the JSON beside agrees.

    Raises:
        WeightsError: they are not, or there is no record.
    """
    _, record, _ = read_weights(path)
    if record is None:
        raise WeightsError(f"{path} has no record of what it holds: nothing to verify it against")
    beside = Path(path).with_suffix(".json")
    if beside.is_file():
        try:
            text = beside.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise WeightsError(f"cannot read {beside}: {reason(error)}") from error
        if parse_record(text, beside) != record:
            raise WeightsError(f"{beside} differs from the record inside {path}: one was edited")
    return record


def read_weights(
    path: str | Path, *, average: bool | None = False
) -> tuple[dict[str, Tensor], WeightsRecord | None, str]:
    """Read a .safetensors file, or what ``torch.save`` wrote, onto the CPU without running code.

    In a torch file the weights may lie under "model", "state_dict" or "model_state_dict", and may
    carry the prefixes of DistributedDataParallel and torch.compile.

    Args:
        path: of the file.
        average: whether to take the average that a training script keeps beside the weights, under
            "state_dict_ema" or "model_ema"; None takes what there is and refuses a file with both.

    Returns:
        Tensors by name, the record if there is one, and the tensors' sha256.

    Raises:
        WeightsError: no such file; a damaged one; one that needs code or holds no weights; tensors
            that are not plain numbers, or that differ from their record.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"no weights at {path}: no such file")
    record = None
    if path.suffix == SUFFIX:
        if average:
            raise WeightsError(f"{path} holds weights alone, no average beside them")
        record = read_record(path)
        try:
            state = safetensors.torch.load_file(path)
        except (OSError, safetensors.SafetensorError) as error:
            raise WeightsError(f"cannot read weights from {path}: {reason(error)}") from error
    else:
        state = _strip(_find_tensors(_chosen(_torch_load(path), average, path), path))
    if odd := [f"{name}: {_kind(v)}" for name, v in state.items() if not _is_plain(v)]:
        raise WeightsError(f"{path} holds tensors that are not plain numbers ({some(odd)})")
    sha256 = hash_tensors(state)
    if record is not None and record.sha256 != sha256:
        raise WeightsError(f"{path} is damaged: its tensors are not those of its record (sha256)")
    broken = [n for n, v in state.items() if v.is_floating_point() and not v.isfinite().all()]
    if broken:
        raise WeightsError(f"{path} holds NaN or infinite values in {some(broken)}")
    return state, record, sha256


def data_mismatch(
    data: DataRecord,
    *,
    size: int,
    source_size: int | None,
    interpolation: str | None,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> str | None:
    """Tell in one line how images in use differ from those the weights were trained on, or None.

    An enlarged 28 px image is not a 224 px image: whoever evaluates a trained model makes this an
    error or a warning. Weights that are only a start for training may well have seen other images.
    """
    used = {
        "size": size,
        "source_size": source_size,
        "interpolation": interpolation,
        "mean": tuple(mean),
        "std": tuple(std),
    }
    differing = [
        f"{name.replace('_', ' ')} {value} (trained with {getattr(data, name)})"
        for name, value in used.items()
        if value != getattr(data, name)
    ]
    if not differing:
        return None
    return f"these images are not like those of {data.name} in training: {', '.join(differing)}"


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over name, type, shape and bytes of every tensor in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _torch_load(path: Path) -> Any:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_PLAIN_DATA):
            warnings.simplefilter("ignore")  # of old formats; what is wrong is said below
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # reading a damaged pickle can fail in any way
        if code := _code_in(path):
            raise WeightsError(
                f"{path} needs code to be read ({some(code)}), which is refused: have its "
                f"author save plain weights, torch.save(model.state_dict(), PATH)"
            ) from error
        raise WeightsError(
            f"{path} cannot be read as weights: damaged, or not written by torch.save"
        ) from error


def _code_in(path: Path) -> list[str]:
    """Name the classes and functions that unpickling ``path`` would call, if it can be told."""
    try:
        with torch.serialization.safe_globals(_PLAIN_DATA):
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # as above
        return []


def _chosen(content: Any, average: bool | None, path: Path) -> Any:
    """What of a checkpoint is meant: the weights, or their average."""
    if not isinstance(content, dict):
        return content
    averages = [content[key] for key in _AVERAGES if content.get(key) is not None]
    if average is None:
        average = bool(averages)
        if averages and any(key in content for key in _NESTED):
            raise WeightsError(
                f"{path} holds weights and their average over the training: say which you mean, "
                f"--take plain or --take average"
            )
    if average and not averages:
        raise WeightsError(f"{path} holds no average of weights ({', '.join(_AVERAGES)})")
    return averages[0] if average else content


def _find_tensors(content: Any, path: Path) -> dict[str, Tensor]:
    for _ in range(1 + len(_NESTED)):  # not for ever: a dict can hold itself
        if not isinstance(content, dict) or not content:
            break
        if all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items()):
            return content
        content = next((content[key] for key in _NESTED if key in content), None)
    raise WeightsError(f"{path} holds no weights: expected tensors by name, or {some(_NESTED[1:])}")


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor's values are numbers in memory, of a type that models are made of."""
    dense = tensor.layout is torch.strided and not tensor.is_nested and not tensor.is_meta
    return dense and tensor.dtype in _DTYPES


def _kind(tensor: Tensor) -> str:
    where = "meta" if tensor.is_meta else "nested" if tensor.is_nested else tensor.layout
    return f"{tensor.dtype}, {where}"


def _strip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    while prefix := next((p for p in _WRAPPERS if all(n.startswith(p) for n in state)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def some(names: Iterable[str]) -> str:
    """Name the first three."""
    names = list(names)
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")

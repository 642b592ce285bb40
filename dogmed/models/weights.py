"""Weights as records: files that say what they are, and the store they are kept in.

A file is safetensors with a JSON record in its header, and the same JSON beside it for people. The
record's ``sha256`` is of the tensors (names, types, shapes, bytes), not of the file: it can stand
in the file itself, and equal weights have equal hashes wherever and however often they are stored.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import platformdirs
import pydantic
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from dogmed.checkpoint import atomic_path, reason
from dogmed.errors import WeightsError

FORMAT = 1
_METADATA_KEY = "dogmed"
_NESTED = ("state", "model", "state_dict", "model_state_dict")  # where training scripts put weights
_DTYPES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
)  # fmt: skip
_WRAPPERS = ("module.", "_orig_mod.")  # DistributedDataParallel's and torch.compile's


@dataclass(frozen=True)
class DataRecord:
    """The images that weights were trained on, as the network saw them."""

    name: str
    """Task or data set."""
    size: int
    """Side in pixels at training."""
    source_size: int | None
    """Side in pixels before any resizing; None where it varies."""
    interpolation: str | None
    """How images were resized to ``size``; None where they were not."""
    mean: tuple[float, ...]
    """Subtracted from pixels in [0, 1], per channel."""
    std: tuple[float, ...]
    """What they were then divided by."""
    licence: str | None
    source: str | None = None
    """official, variant, synthetic, npz or folder; None for data that is not a task's."""
    kind: str | None = None
    """binary, multi-class, multi-label or ordinal."""
    classes: tuple[str, ...] = ()
    """Names of the classes in the order of the outputs, where known."""


@dataclass(frozen=True)
class WeightsRecord:
    """All that must be known of weights to use and to judge them."""

    model: str
    """timm name of the architecture."""
    num_classes: int
    """Outputs of the classifier."""
    params: int
    """Parameters, classifier included."""
    recipe: str
    """How they were trained: a pretraining's name, or ``finetune``."""
    init: str
    """What training started from."""
    epochs: int
    """Epochs trained up to these weights."""
    score: dict[str, float]
    """Figures by name, such as ``val_auc``."""
    data: DataRecord
    licence: str | None
    """Of the weights; None where nobody has said."""
    in_chans: int = 3
    options: dict[str, Any] = field(default_factory=dict)
    """Constructor options that differ from the architecture's own."""
    temperature: float | None = None
    """Divides the logits, where calibrated."""
    git_commit: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    """Of the libraries that trained them."""
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    sha256: str = ""
    """Of the tensors; filled in on saving."""
    format: int = FORMAT


def default_weights_dir() -> Path:
    """The store that ``--init NAME`` looks in unless told otherwise."""
    return Path(platformdirs.user_data_dir("dogmed")) / "weights"


def weights_path(weights_dir: Path, model: str, name: str) -> Path:
    """Where the store keeps the weights that a pretraining called ``name`` gave ``model``."""
    return Path(weights_dir) / f"{model}.{name}.safetensors"


def list_weights(weights_dir: Path) -> dict[Path, WeightsRecord | None]:
    """List a store's files with their records, None for one that is damaged or has none."""
    found: dict[Path, WeightsRecord | None] = {}
    for path in sorted(Path(weights_dir).glob("*.safetensors")):
        try:
            found[path] = read_record(path)
        except WeightsError:
            found[path] = None
    return found


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
    record = _parse_record(json.dumps(content), path)
    try:
        with atomic_path(path) as temporary:
            metadata = {"format": "pt", _METADATA_KEY: json.dumps(content)}
            temporary.write_bytes(safetensors.torch.save(tensors, metadata))
        with atomic_path(path.with_suffix(".json")) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise WeightsError(f"cannot write weights to {path}: {reason(error)}") from error
    return record


def read_record(path: str | Path) -> WeightsRecord | None:
    """Read the record in a safetensors file; None where there is none.

    Raises:
        WeightsError: the file or its record cannot be read.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_METADATA_KEY)
    except (OSError, safetensors.SafetensorError) as error:
        raise WeightsError(f"cannot read weights from {path}: {reason(error)}") from error
    return None if text is None else _parse_record(text, path)


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
        if _parse_record(text, beside) != record:
            raise WeightsError(f"{beside} differs from the record inside {path}: one was edited")
    return record


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], WeightsRecord | None, str]:
    """Read a .safetensors file, or what ``torch.save`` wrote, onto the CPU without running code.

    In a torch file the weights may lie under "model", "state_dict" or "model_state_dict" (never an
    average beside them), and may carry the prefixes of DistributedDataParallel and torch.compile.

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
    if path.suffix == ".safetensors":
        record = read_record(path)
        try:
            state = safetensors.torch.load_file(path)
        except (OSError, safetensors.SafetensorError) as error:
            raise WeightsError(f"cannot read weights from {path}: {reason(error)}") from error
    else:
        state = _strip(_find_tensors(_torch_load(path), path))
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


def _parse_record(text: str, path: str | Path) -> WeightsRecord:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: its record cannot be read: {reason(error)}") from error
    version = content.get("format") if isinstance(content, dict) else None
    if isinstance(version, int) and version > FORMAT:
        raise WeightsError(f"{path}: record format {version} is newer than {FORMAT}: upgrade")
    try:
        return pydantic.TypeAdapter(WeightsRecord).validate_python(content)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise WeightsError(f"{path}: its record is wrong: {where}: {first['msg']}") from error


def _torch_load(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
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
        return torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # as above
        return []


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

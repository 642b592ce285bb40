"""What must be known of weights to use and to judge them, and the store that named ones are in."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import platformdirs
import pydantic
import safetensors

from dogmed.errors import ConfigError, WeightsError, nearest, reason

FORMAT = 1
METADATA_KEY = "dogmed"
"""Of a safetensors header: the record's JSON is under it."""
SUFFIX = ".safetensors"
_NO_NAMES = ("scratch", "timm", "hf-hub")  # mean something else to --init
_FILE_SUFFIXES = (SUFFIX, ".pt", ".pth", ".bin", ".ckpt", ".tar", ".onnx", ".pt2")
_LEVELS, _LOOKED_AT = 4, 200
"""Below a folder that is no run, where one is searched for; and folders at each."""
_GRAPHS = {  # other forms of dogmed export
    "model.onnx": "an ONNX graph",
    "model.pt2": "a graph of torch.export",
    "configs/inference.json": "a MONAI bundle",
}


@dataclass(frozen=True)
class DataRecord:
    """The images that weights were trained on, as the network saw them."""

    name: str
    """Task or data set."""
    size: int
    """Side in pixels at training, and to use them at; another where ``trained_size`` is stated."""
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
    images: int | None = None
    """How many were trained on."""
    crop_pct: float | None = None
    """Share of a resized image's side that the centre crop keeps at evaluation."""
    trained_size: int | None = None
    """Side in pixels at training, where ``size`` was chosen later, to spend less on an image."""
    channels: int | None = None
    """1 if the images were grey, 3 if they had colours."""
    sides: tuple[int, int] | None = None
    """Shortest and longest side in pixels of any image before resizing."""
    pixels: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Lowest and highest brightness, contrast and colour of an image (``dogmed.data.pixels``)."""

    @classmethod
    def of_timm(cls, cfg: Mapping[str, Any], name: str) -> DataRecord:
        """What timm's configuration of a model says of the images its weights were trained on."""
        return cls(
            name=name,
            size=cfg["input_size"][-1],
            source_size=None,
            interpolation=cfg["interpolation"],
            mean=tuple(cfg["mean"]),
            std=tuple(cfg["std"]),
            licence=None,
        )


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
    epochs: int | None
    """Epochs trained up to these weights; None where nobody has said."""
    score: dict[str, float]
    """Figures by name: ``val_auc``; ``val_acc1`` and ``val_acc5`` are shares, not percent."""
    data: DataRecord
    licence: str | None
    """Of the weights; None where nobody has said."""
    in_chans: int = 3
    options: dict[str, Any] = field(default_factory=dict)
    """Constructor options that differ from the architecture's own."""
    temperature: float | None = None
    """Divides the logits, where calibrated."""
    seed: int | None = None
    training: dict[str, Any] = field(default_factory=dict)
    """The configuration of the training, as it was run."""
    origin: str | None = None
    """The file they were made from, with its hash; None for those that a training wrote."""
    git_commit: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    """Of the libraries that trained them."""
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    sha256: str = ""
    """Of the tensors; filled in on saving."""
    format: int = FORMAT


def parse_record(text: str, path: str | Path) -> WeightsRecord:
    """Read a record's JSON; fields that are not known here are passed over.

    Args:
        text: of the record.
        path: of its file, for the message.

    Raises:
        WeightsError: it is not a record, or a newer one.
    """
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


def read_record(path: str | Path) -> WeightsRecord | None:
    """Read the record in a safetensors file; None where there is none.

    Raises:
        WeightsError: the file or its record cannot be read.
    """
    try:
        with safetensors.safe_open(path, framework="np") as file:  # which does not load PyTorch
            text = (file.metadata() or {}).get(METADATA_KEY)
    except (OSError, safetensors.SafetensorError) as error:
        raise WeightsError(f"cannot read weights from {path}: {reason(error)}") from error
    return None if text is None else parse_record(text, path)


def default_weights_dir() -> Path:
    """The store that ``--init NAME`` looks in unless told otherwise."""
    return Path(platformdirs.user_data_dir("dogmed")) / "weights"


def weights_path(weights_dir: Path, model: str, name: str) -> Path:
    """Where the store keeps the weights that a pretraining called ``name`` gave ``model``."""
    return Path(weights_dir) / f"{model}.{name}{SUFFIX}"


def check_name(recipe: str) -> None:
    """Make sure that weights of this name can be asked for with ``--init``.

    Raises:
        ConfigError: it would mean something else there, or cannot stand in the name of a file.
    """
    usable = re.fullmatch(r"[\w.+-]+", recipe) and not looks_like_file(recipe)
    if not usable or recipe in _NO_NAMES:
        raise ConfigError(
            f"--recipe '{recipe}' cannot be a name for --init: expected letters, digits and ._+-, "
            f"no ending of a file, and none of {', '.join(_NO_NAMES)}"
        )


def list_weights(weights_dir: Path) -> dict[Path, WeightsRecord | WeightsError | None]:
    """List a store's files with their records.

    Returns:
        By path: the record, None where the file has none, or what makes it unreadable.
    """
    found: dict[Path, WeightsRecord | WeightsError | None] = {}
    for path in sorted(Path(weights_dir).glob(f"*{SUFFIX}")):
        try:
            found[path] = read_record(path)
        except WeightsError as error:
            found[path] = error
    return found


def find_weights(name: str, weights_dir: Path) -> Path:
    """Find the file that ``name`` stands for.

    Args:
        name: ``MODEL.RECIPE`` as the store has it, RECIPE alone where one model only has it, a
            file, or the folder of a finished run or of an export to timm.
        weights_dir: the store.

    Raises:
        WeightsError: there is none, or there are several.
    """
    if looks_like_file(name):
        path = weights_file(Path(name).expanduser())
        if not path.is_file():
            raise WeightsError(f"no weights at {path}: no such file")
        return path
    stems = [path.stem for path in list_weights(weights_dir)]
    same = [stem for stem in stems if name in (stem, stem.partition(".")[2])]
    if len(same) > 1 and name not in same:
        raise WeightsError(f"'{name}' is there for several models: say {' or '.join(same)}")
    if not same and Path(name).is_dir():
        return weights_file(Path(name))
    if not same:
        recipes = [stem.partition(".")[2] for stem in stems]
        raise WeightsError(
            f"no weights '{name}' in {weights_dir}{nearest(name, [*stems, *recipes])}: "
            f"dogmed weights list shows what is there"
        )
    return Path(weights_dir) / f"{name if name in same else same[0]}{SUFFIX}"


def looks_like_file(name: str) -> bool:
    """Whether ``name`` is meant as a path, and not as a name of weights."""
    return any(sep in name for sep in {"/", os.sep}) or Path(name).suffix in _FILE_SUFFIXES


def to_give_away(record: WeightsRecord) -> WeightsRecord:
    """A record that names no folder of this machine: of a file that training started from its name alone."""

    def bare(init: object) -> object:
        path = isinstance(init, str) and looks_like_file(init) and ":" not in init.split("/")[0]
        return Path(str(init)).name if path else init

    training = {**record.training}
    if "init" in training:
        training["init"] = bare(training["init"])
    return replace(record, init=str(bare(record.init)), training=training)


def weights_file(path: Path) -> Path:
    """A weights file: ``path`` itself, or that of the folder it names, a run's or an export's to timm.

    Raises:
        WeightsError: a folder without weights, or a graph, which has no layers to look at.
    """
    if form := next((form for name, form in _GRAPHS.items() if _is_or_holds(path, name)), None):
        raise WeightsError(
            f"{path} is {form}: it is used as its README.md says, and cannot be explained, stressed or exported "
            "again; give the run that it was made from, or an export of --format timm"
        )
    if not path.is_dir():
        return path
    for candidate in (f"checkpoints/best{SUFFIX}", f"best{SUFFIX}", f"model{SUFFIX}"):
        if (path / candidate).is_file():
            return path / candidate
    raise WeightsError(
        f"{path} is no run folder with weights, and no export of --format timm: it has neither "
        f"checkpoints/best{SUFFIX} nor model{SUFFIX}{_run_below(path)}"
    )


def _run_below(folder: Path) -> str:
    """`` (did you mean RUN?)`` for a run below a folder, or nothing; a large folder is searched in part."""
    level = [folder]
    for _ in range(_LEVELS):
        level = [child for parent in level for child in _folders(parent)][:_LOOKED_AT]
        for child in level:
            if (child / "checkpoints" / f"best{SUFFIX}").is_file():
                return f" (did you mean {child}?)"
    return ""


def _folders(parent: Path) -> list[Path]:
    """Folders in a folder, hidden ones and links aside; none if it cannot be read."""
    try:
        with os.scandir(parent) as entries:
            found = [entry for entry in islice(entries, _LOOKED_AT) if entry.name[0] != "."]
            return sorted(Path(entry) for entry in found if entry.is_dir(follow_symlinks=False))
    except OSError:
        return []


def _is_or_holds(path: Path, name: str) -> bool:
    return (path / name).is_file() or (path.match(name) and path.is_file())

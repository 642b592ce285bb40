"""The tasks: the twelve of MedMNIST v2 (2D), with the facts of ``medmnist.INFO``.

The facts are read from the installed medmnist package without importing it: the import takes
seconds, pulls torch and pandas, and creates ``~/.medmnist``. ``INFO`` is a plain literal in
``medmnist/info.py``, so its syntax tree is enough; a test compares it with medmnist's own.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast, get_args

from dogmed.errors import ConfigError, DataError, nearest

Kind = Literal["binary", "multi-class", "multi-label", "ordinal"]
KINDS: tuple[Kind, ...] = get_args(Kind)
SPLITS = ("train", "val", "test")
OFFICIAL_SIZES = (28, 64, 128, 224)

_EVALUATOR_TASKS: dict[Kind, str] = {
    "binary": "binary-class",
    "multi-class": "multi-class",
    "multi-label": "multi-label, binary-class",
    "ordinal": "ordinal-regression",
}


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is to be classified: the names of the classes and how the labels are meant.

    A binary task has two classes; a multi-label task has one "class" per label, each 0 or 1.
    """

    name: str
    kind: Kind
    classes: tuple[str, ...]
    channels: int
    official: bool = False
    licence: str = ""
    description: str = ""

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def label_width(self) -> int:
        """Columns of the label array: one, or one per label of a multi-label task."""
        return len(self.classes) if self.kind == "multi-label" else 1


@dataclass(frozen=True, kw_only=True)
class OfficialFile:
    """One official npz file, as published."""

    name: str
    url: str
    md5: str


@cache
def medmnist_info() -> dict[str, dict[str, Any]]:
    """``medmnist.INFO``, read from the source text of the installed package."""
    spec = importlib.util.find_spec("medmnist")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            "the package medmnist is not installed; run: pip install 'medmnist>=3.0.2'"
        )
    source = Path(next(iter(spec.submodule_search_locations))) / "info.py"
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "INFO":
            return cast("dict[str, dict[str, Any]]", ast.literal_eval(node.value))
    version = importlib.metadata.version("medmnist")
    raise ConfigError(
        f"medmnist {version} has no INFO table in {source}; dogmed needs medmnist>=3.0.2"
    )


def _task(name: str, info: dict[str, Any]) -> Task:
    kinds = {task: kind for kind, task in _EVALUATOR_TASKS.items()}
    return Task(
        name=name,
        kind=kinds[info["task"]],
        classes=tuple(info["label"][str(i)] for i in range(len(info["label"]))),
        channels=info["n_channels"],
        official=True,
        licence=info["license"],
        description=info["description"],
    )


@cache
def official_tasks() -> dict[str, Task]:
    """The twelve 2D tasks of MedMNIST, by name, in MedMNIST's order."""
    two_d = {name: info for name, info in medmnist_info().items() if "url_224" in info}
    return {name: _task(name, info) for name, info in two_d.items()}


def get_task(name: str) -> Task:
    """The official task of this name (``pathmnist`` or ``PathMNIST``).

    Raises ConfigError for an unknown name, DataError for what looks like a path but is not there.
    """
    tasks = official_tasks()
    if name.lower() in tasks:
        return tasks[name.lower()]
    if "/" in name or "\\" in name or name.endswith(".npz"):
        raise DataError(
            f"there is no file or folder {name}; a task is one of the 12 official names "
            f"(dogmed data list), an .npz file, or a folder with train/val/test"
        )
    raise ConfigError(
        f"unknown task '{name}'{nearest(name.lower(), tasks)}; the 12 official tasks are shown by "
        f"dogmed data list, and there is no file or folder of that name either"
    )


def official_file(task: str, size: int) -> OfficialFile:
    """Name, address and MD5 of the official file of a task at a size (28, 64, 128 or 224 px)."""
    if size not in OFFICIAL_SIZES:
        sizes = ", ".join(map(str, OFFICIAL_SIZES))
        raise ConfigError(
            f"{task} is published at {sizes} px, not {size}; use one of these as --size, "
            f"or enlarge a smaller one with --upsample-from"
        )
    info = medmnist_info()[task]
    suffix = "" if size == 28 else f"_{size}"
    return OfficialFile(
        name=f"{task}{suffix}.npz", url=info[f"url{suffix}"], md5=info[f"MD5{suffix}"]
    )


def official_samples(task: str) -> dict[str, int]:
    """Number of images per split, as published."""
    return dict(medmnist_info()[task]["n_samples"])


def evaluator_task(kind: str) -> str:
    """The name that ``medmnist.evaluator.getAUC`` and ``getACC`` use for a kind of task."""
    if kind not in _EVALUATOR_TASKS:
        raise ConfigError(
            f"unknown kind '{kind}'{nearest(kind, KINDS)}; expected one of {', '.join(KINDS)}"
        )
    return _EVALUATOR_TASKS[cast(Kind, kind)]

"""Finished runs as they lie on disk: results, options, epochs, predictions and the labels they are scored by."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dogmed import config as configuration
from dogmed.data.prepared import load_prepared, prepared_folders
from dogmed.data.request import default_cache_dir
from dogmed.errors import DogmedError
from dogmed.finetune.folder import FinetuneFolder
from dogmed.metrics import Floats, Ints, read_predictions

SETUP = ("model", "init", "train_fraction", "label")
_SEED = re.compile(r"seed\d+")  # a run set aside is called seed0.old1
_FREE = FinetuneFolder.free | {"seed", "size", "kind", "model", "init", "train_fraction"}


@dataclass(frozen=True, kw_only=True)
class Run:
    """One finished run, or one file of somebody else's predictions."""

    folder: str
    """Below the folder of all runs; of a file, its name."""
    task: str
    kind: str
    classes: tuple[str, ...]
    source: str
    size: int
    source_size: int
    model: str
    init: str
    train_fraction: float
    label: str
    seed: int
    test: Mapping[str, Any]
    """Scores of the test images, as ``metrics.score`` names them."""
    sha256: Mapping[str, str]
    """Of the prepared arrays, by file name."""
    options: Mapping[str, Any]
    """What decides the result besides task, setup and seed, by dotted name."""
    result: Mapping[str, Any]
    rows: tuple[Mapping[str, Any], ...] = ()
    """Epochs."""
    probabilities: Floats | None = field(default=None, repr=False)
    theirs: bool = False
    """Somebody else's predictions: no options, no cost."""


@dataclass(frozen=True)
class Found:
    """The runs of a folder, and those that cannot be used with the reason why, by folder."""

    runs: list[Run]
    unfinished: dict[str, str]
    damaged: dict[str, str]
    incomplete: dict[str, str]
    """Runs that are used, and what they lack."""
    caches: list[Path]
    """Where the runs say that their prepared data are."""


def read_runs(out: Path) -> Found:
    """Read every run below ``<out>/finetune``; nothing there is touched, and nothing stops the reading."""
    found = Found([], {}, {}, {}, [])
    caches: dict[Path, None] = {}
    for root in sorted((out / "finetune").glob("*/*/seed*"), key=_natural):
        if not _SEED.fullmatch(root.name) or not root.is_dir():
            continue
        folder = FinetuneFolder(root)
        name = root.relative_to(out / "finetune").as_posix()
        try:
            if not folder.result.is_file():
                found.unfinished[name] = _progress(folder)
                continue
            result = json.loads(folder.result.read_text())
            options = _options(folder)
            run, lacks = _read(folder, name, result, options)
        except DogmedError as error:
            found.damaged[name] = str(error).replace(f"{root}/", "")
            continue
        except KeyError as error:
            found.damaged[name] = f"result.json has no {error}"
            continue
        except (OSError, ValueError, TypeError, AttributeError):
            found.damaged[name] = "result.json is damaged"
            continue
        found.runs.append(run)
        if lacks:
            found.incomplete[name] = "; ".join(lacks)
        cache = options.get("cache_dir")
        caches[Path(cache).expanduser() if cache else default_cache_dir()] = None
    found.caches.extend(caches)
    return found


class Labels:
    """Labels by the hash of their file, from the folders of prepared data.

    A run's ``result.json`` has the hash, so that the labels are the very ones it was scored by.
    """

    def __init__(self, caches: Iterable[Path]):
        self._known: dict[str, tuple[Path, str]] = {}
        for cache in caches:
            for folder in prepared_folders(cache):
                if (prepared := load_prepared(folder)) is None:
                    continue
                for split in ("train", "test"):
                    digest = prepared.manifest["files"][f"{split}_labels.npy"]["sha256"]
                    self._known.setdefault(digest, (folder, split))

    def of(self, digest: str) -> Ints | None:
        """(N, L) labels, or None where no prepared folder has them."""
        if digest not in self._known:
            return None
        folder, split = self._known[digest]
        return np.load(folder / f"{split}_labels.npy", allow_pickle=False)


def _read(
    folder: FinetuneFolder, name: str, result: dict[str, Any], options: dict[str, Any]
) -> tuple[Run, list[str]]:
    lacks = [] if options else ["no config.yaml: its options are not known"]
    data = result["data"]
    hashes = data.get("sha256") or {"test_labels.npy": "", "train_labels.npy": ""}
    if not hashes["test_labels.npy"]:
        lacks.append("an old run without hashes of its data: no comparison")
    try:
        rows = tuple(json.loads(line) for line in folder.metrics.read_text().splitlines())
    except (OSError, ValueError):
        rows, lacks = (), [*lacks, "metrics.jsonl is missing or damaged: no learning curve"]
    probabilities = None
    try:
        probabilities = read_predictions(folder.predictions)
        if problem := misfit(
            result["kind"], len(result["classes"]), result["test"]["n"], probabilities
        ):
            lacks.append(f"{folder.predictions.name}: {problem}")
            probabilities = None
    except DogmedError:
        lacks.append(f"{folder.predictions.name} is missing or damaged: no comparison")
    return Run(
        folder=name,
        task=str(result["task"]),
        kind=str(result["kind"]),
        classes=tuple(result["classes"]),
        source=str(data["source"]),
        size=int(data["size"]),
        source_size=int(data.get("source_size") or data["size"]),
        model=str(result["model"]),
        init=str(result["init"]),
        train_fraction=float(options.get("train_fraction", 1)),
        label=str(options.get("label") or ""),
        seed=int(result["seed"]),
        test={"acc": result["test"]["acc"], **result["test"]},
        sha256=hashes,
        options={
            **{key: value for key, value in options.items() if key not in _FREE},
            "initial weights": (result.get("weights_sha256") or "")[:12],
            "data": "-".join(digest[:6] for _, digest in sorted(hashes.items())),
        },
        result=result,
        rows=rows,
        probabilities=probabilities,
    ), lacks


def misfit(kind: str, classes: int, images: int, probabilities: Floats) -> str:
    """Say why probabilities cannot be those of a test set, or nothing."""
    columns = {classes} | ({1} if kind == "binary" else set())
    if len(probabilities) == images and probabilities.shape[1] in columns:
        return ""
    return (
        f"{len(probabilities)} rows of {probabilities.shape[1]} probabilities, expected {images} "
        f"rows (test images) of {classes}"
    )


def _options(folder: FinetuneFolder) -> dict[str, Any]:
    if not folder.config.is_file():
        return {}
    return configuration.flatten(configuration.read_yaml(folder.config))


def _progress(folder: FinetuneFolder) -> str:
    done = folder.metrics.read_bytes().count(b"\n") if folder.metrics.is_file() else 0
    try:
        total = _options(folder).get("epochs", "?")
    except DogmedError:
        total = "?"
    return f"epoch {done} of {total}"


def _natural(path: Path) -> list[Any]:
    """Order seed10 after seed9."""
    return [
        [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
        for name in path.parts[-3:]
    ]

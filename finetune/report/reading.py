"""Finished runs as they lie on disk: results, options, epochs, predictions and the labels they are scored by."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dogmed import config as configuration
from dogmed import metrics
from dogmed.data.prepared import load_prepared, prepared_folders
from dogmed.data.request import default_cache_dir
from dogmed.data.tasks import official_tasks
from dogmed.errors import DataError, DogmedError
from dogmed.finetune.config import FinetuneConfig
from dogmed.finetune.folder import FinetuneFolder
from dogmed.finetune.report.schema import Options, Result, check, read_epochs, read_result
from dogmed.metrics import Floats, Ints, read_predictions

_SEED = re.compile(r"seed\d+")  # a run set aside is called seed0.old1
TOLERANCE = 1e-6  # of a score; predictions are written so that they read back exactly
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


def read_runs(out: Path, cache_dirs: Iterable[Path] = ()) -> Found:
    """Read every run below ``<out>/finetune``; nothing there is touched, and nothing stops the reading.

    A run is used only if its files agree: with each other, with the name of the folder, and the scores
    with the predictions where labels are at hand.

    Args:
        out: where the runs are.
        cache_dirs: prepared data besides where the runs say that theirs are.
    """
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
            options = _options(folder)
            known = check(Options, options, folder.config.name)
            place = _cache_dir(known)
            result = read_result(folder.result)
            _refuse_other(folder, result, known)
            run, lacks = _read(folder, name, result, options)
        except DogmedError as error:
            found.damaged[name] = str(error).replace(f"{root}/", "")
            continue
        except OSError as error:
            found.damaged[name] = f"cannot be read ({error.strerror or error})"
            continue
        found.runs.append(run)
        if lacks:
            found.incomplete[name] = "; ".join(lacks)
        caches[place] = None
    found.caches.extend(caches)
    _leave_out(found, _contradictions(found.runs, Labels(dict.fromkeys([*cache_dirs, *caches]))))
    _leave_out(found, _twins(found.runs))
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


def _leave_out(found: Found, damaged: Mapping[str, str]) -> None:
    found.damaged.update(damaged)
    found.runs[:] = [run for run in found.runs if run.folder not in damaged]
    for name in damaged:
        found.incomplete.pop(name, None)


def _refuse_other(folder: FinetuneFolder, result: Result, options: Options) -> None:
    """Make sure that the result is of the run whose options and folder these are."""
    said = {
        "model": result.model,
        "init": result.init,
        "size": result.data.size,
        "seed": result.seed,
    }
    for key, value in said.items():
        if (other := getattr(options, key)) not in (None, value):
            raise DataError(f"result.json is of another run: {key} {value}, in config.yaml {other}")
    if (
        options.task in official_tasks() and options.task != result.task
    ):  # else it is a file's place
        raise DataError(
            f"result.json is of another run: task {result.task}, in config.yaml {options.task}"
        )
    naming = {key: getattr(options, key) for key in ("upsample_from", "train_fraction", "label")}
    naming["label"] = naming["label"] or ""
    values = configuration.merge(_defaults(), said | naming | {"out": str(folder.root.parents[3])})
    config = configuration.build(FinetuneConfig, values, where="config.yaml")
    expected = FinetuneFolder.of(config, result.task, result.data.source).root.parts[-3:]
    there = folder.root.parts[-3:]
    whole = folder.config.is_file()  # else share of train and label are not known
    if expected != there and (
        whole
        or (expected[0], expected[2]) != (there[0], there[2])
        or not there[1].startswith(f"{expected[1]}-")
    ):
        raise DataError(f"result.json is of another run: {'/'.join(expected)}")


@functools.cache
def _defaults() -> dict[str, Any]:
    return configuration.recipe("finetune/default")


def _cache_dir(options: Options) -> Path:
    if not options.cache_dir:
        return default_cache_dir()
    try:
        return Path(options.cache_dir).expanduser()
    except RuntimeError:
        raise DataError(
            f"config.yaml: cache_dir: there is no such user ({options.cache_dir})"
        ) from None


def _contradictions(runs: Iterable[Run], labels: Labels) -> dict[str, str]:
    """Runs whose predictions do not have the scores of ``result.json``, and how they differ, by folder."""
    found = {}
    for run in runs:
        y = labels.of(run.sha256["test_labels.npy"]) if run.probabilities is not None else None
        if y is None:
            continue
        try:
            scores = metrics.score(run.kind, y, run.probabilities)
        except DataError as error:
            found[run.folder] = f"predictions_test.csv: {error}"
            continue
        for name in ("acc", "auc", "brier"):
            here, there = scores[name], run.test.get(name)
            same = here is there if None in (here, there) else abs(here - there) <= TOLERANCE
            if not same and (name in run.test or name == "auc"):
                found[run.folder] = (
                    f"predictions_test.csv has {name} {_short(here)}, result.json says {_short(there)}"
                )
                break
    return found


def _twins(runs: Iterable[Run]) -> dict[str, str]:
    """Runs that say to be the very run that another folder has: no replicates."""
    first: dict[str, str] = {}
    found = {}
    for run in runs:
        parts = (run.task, run.source, run.size, run.source_size, run.model, run.init,
                 run.train_fraction, run.label, run.seed, sorted(run.options.items()))  # fmt: skip
        if (other := first.setdefault(repr(parts), run.folder)) != run.folder:
            found[run.folder] = f"the same setup and seed as {other}"
    return found


def _short(score: float | None) -> str:
    return "none" if score is None else f"{score:.6g}"


def _read(
    folder: FinetuneFolder, name: str, result: Result, options: dict[str, Any]
) -> tuple[Run, list[str]]:
    lacks = [] if options else ["no config.yaml: its options are not known"]
    data = result.data
    hashes = data.sha256 or dict.fromkeys(("test_labels.npy", "train_labels.npy"), "")
    if missing := [n for n in ("test_labels.npy", "train_labels.npy") if n not in hashes]:
        raise DataError(f"result.json: data.sha256 has no {missing[0]}")
    if not hashes["test_labels.npy"]:
        lacks.append("an old run without hashes of its data: no comparison")
    try:
        rows = tuple(row.model_dump() for row in read_epochs(folder.metrics))
    except OSError:
        rows, lacks = (), [*lacks, "metrics.jsonl cannot be read: no learning curve"]
    probabilities = None
    if not folder.predictions.is_file():
        lacks.append(f"{folder.predictions.name} is missing: no comparison")
    else:
        try:
            probabilities = read_predictions(folder.predictions)
        except DataError:
            lacks.append(f"{folder.predictions.name} is damaged: no comparison")
    if probabilities is not None:
        problem = misfit(len(result.classes), result.test.n, probabilities)
        if problem:
            lacks.append(f"{folder.predictions.name}: {problem}")
            probabilities = None
        elif probabilities.min() < 0 or probabilities.max() > 1:
            raise DataError(f"{folder.predictions.name}: expected probabilities, 0 to 1")
    facts = result.model_dump(exclude_unset=True, exclude_none=True)
    fraction, label = options.get("train_fraction", 1), options.get("label")
    return Run(
        folder=name,
        task=result.task,
        kind=result.kind,
        classes=result.classes,
        source=data.source,
        size=data.size,
        source_size=data.source_size or data.size,
        model=result.model,
        init=result.init,
        train_fraction=float(fraction),
        label=label or "",
        seed=result.seed,
        test=facts["test"],
        sha256=hashes,
        options={
            **{key: value for key, value in options.items() if key not in _FREE},
            "initial weights": (result.weights_sha256 or "")[:12],
            "data": "-".join(digest[:6] for _, digest in sorted(hashes.items())),
        },
        result=facts,
        rows=rows,
        probabilities=probabilities,
    ), lacks


def misfit(classes: int, images: int, probabilities: Floats) -> str:
    """Say why probabilities cannot be those of a test set, or nothing.

    A binary task has two columns: of one alone nobody can say whether it is P(y = 0) or P(y = 1).
    """
    if probabilities.shape == (images, classes):
        return ""
    return (
        f"{len(probabilities)} rows of {probabilities.shape[1]} probabilities, expected {images} "
        f"rows (test images) of {classes}"
    )


def _options(folder: FinetuneFolder) -> dict[str, Any]:
    if not folder.config.is_file():
        return {}
    return folder.settings()


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

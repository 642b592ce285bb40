"""``dogmed predict``: classify images with a trained network, into a CSV file."""

from __future__ import annotations

import sys
import time
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tqdm import tqdm

from dogmed.config import configclass, recipe
from dogmed.console import count, duration
from dogmed.errors import ConfigError, DataError
from dogmed.options import Count

if TYPE_CHECKING:  # PyTorch: not for --help
    from collections.abc import Iterable, Sequence

    import numpy as np

    from dogmed.inference.classifier import Classifier, Predictions

SOME_FAILED = 3
"""The exit code where some images could not be read."""
PROGRESS_SECONDS = 30


@configclass
class PredictConfig:
    """Classify images with a trained network."""

    inputs: tuple[str, ...] = ()
    """MODEL (folder of a finished run or of an export to timm, .safetensors file, name of dogmed weights list, id
    of an MLflow run), then image files, folders of them, or one .npz with the images of a split; may come first,
    without --inputs."""
    out: Path
    """The .csv file to write; one that is there is replaced."""
    split: Literal["train", "val", "test"] | None = None
    """Of an .npz, whose images are classified."""
    format: Literal["dogmed", "medmnist"] = "dogmed"
    """dogmed: file, predicted, p_<class> ..., warning; medmnist: index, one column a class, without a head."""
    raw: bool = False
    """Probabilities as the network gives them, without the temperature that was fitted on val."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    batch_size: Count = 64
    """Images at once; no influence on the result beyond rounding."""
    weights_dir: Path | None = None
    """Where named weights are found; None is the user's data folder."""
    runs: Path = field(default_factory=lambda: Path(recipe("finetune/default")["out"]))
    """Folder with the MLflow store that an MLflow run's id is looked up in; MLFLOW_TRACKING_URI comes first."""


def command(**options: object) -> int:
    """Classify the images; returns 3 if some could not be read, which are listed at the end, else 0.

    Raises:
        ConfigError: an option does not fit, or ``--out`` cannot be written or is one of the inputs.
        DataError: an input is not there, or none could be read.
        WeightsError: there is no such model.
    """
    config = PredictConfig(**options)  # type: ignore[arg-type]
    if len(config.inputs) < 2:
        raise ConfigError(
            "which model, and which images? for example: dogmed predict RUN_FOLDER scans/ --out predicted.csv"
        )
    name, *words = config.inputs
    paths = [Path(word).expanduser() for word in words]
    out = config.out.expanduser()
    _refuse_unwritable(out)
    from dogmed.inference.reading.inputs import refuse_swapped

    refuse_swapped(name, paths)
    images, names, total = _open(paths, config.split, out)
    from dogmed.inference.classifier import load

    classifier = load(name, device=config.device, weights_dir=config.weights_dir, out=config.runs)
    _introduce(classifier, count(total, "file" if names is None else "image"), config.raw)
    failed: list[DataError] = []
    progress = Progress(total)
    try:
        predicted = classifier.predict(
            images,
            names=names,
            batch_size=config.batch_size,
            raw=config.raw,
            on_error=lambda _, error: failed.append(error),
            on_progress=progress.at,
        )
    finally:
        progress.close()
        for error in failed:
            print(f"not read: {error}")
    write(out, predicted, config.format)
    _conclude(out, predicted, failed, config.format)
    return SOME_FAILED if failed else 0


def _open(
    paths: Sequence[Path], split: str | None, out: Path
) -> tuple[Iterable[Path | np.ndarray], Iterable[str] | None, int]:
    """The images, their names (None: by their paths) and how many there are."""
    npz = [path for path in paths if path.suffix.lower() == ".npz"]
    if npz and len(paths) > 1:
        raise ConfigError(f"{npz[0]} is an .npz: give it alone")
    if npz and split is None:
        raise ConfigError(f"which images of {npz[0]}? --split train, val or test")
    if not npz and split is not None:
        raise ConfigError("--split is for an .npz, and these are images")
    if npz:
        assert split is not None
        return _open_split(npz[0], split)
    from dogmed.inference.reading.inputs import find_images

    found = find_images(paths)
    for file in found.files:
        if out.exists() and file.exists() and out.samefile(file):
            raise ConfigError(f"--out {out} is one of the images: give another name")
    if found.passed_over:
        print(f"passed over in folders: {count(found.passed_over, 'file')} that are no images")
    return found.files, None, len(found.files)


def _open_split(path: Path, split: str) -> tuple[Iterable[np.ndarray], Iterable[str], int]:
    from itertools import chain

    from dogmed.data.npz import open_npz

    npz = open_npz(path, [f"{split}_images"])
    total = npz.samples(split)
    names = (f"{path}[{split}][{index}]" for index in range(total))
    return chain.from_iterable(npz.images(split)), names, total


def _refuse_unwritable(out: Path) -> None:
    """Make sure that the result can be written before anything is worked out for it."""
    from dogmed.inference.reading.inputs import refuse_unreachable, refuse_unwritable

    refuse_unreachable(out, "--out ")
    if out.suffix.lower() != ".csv":
        raise ConfigError(f"--out {out}: expected the name of a .csv file")
    if out.is_dir() or not out.parent.is_dir():
        what = "is a folder" if out.is_dir() else f"there is no folder {out.parent}"
        raise ConfigError(f"--out {out}: {what}")
    if out.exists() and (out.parent / "checkpoints").is_dir():
        raise ConfigError(f"--out {out}: is the run's own record: give another name")
    refuse_unwritable(out, out.parent)


def write(out: Path, predicted: Predictions, form: str) -> None:
    """Write predictions as a table, whole or not at all.

    Args:
        out: the file.
        predicted: what to write; probabilities are rounded to six decimals for ``dogmed``, exact for
            ``medmnist``.
        form: ``dogmed`` or ``medmnist``.
    """
    from dogmed.checkpoint import atomic_path

    with atomic_path(out, contended=True) as temporary:
        if form == "medmnist":
            from dogmed.metrics import write_predictions

            write_predictions(temporary, predicted.probabilities)
        else:
            temporary.write_text(_table(predicted), encoding="utf-8")


def _table(predicted: Predictions) -> str:
    from dogmed.csvfile import csv_text

    columns = [f"p_{name}" for name in predicted.classes]
    rows = [
        {"file": row["file"], "predicted": "; ".join(row["predicted"]), "warning": row["warning"]}
        | {f"p_{name}": f"{p:.6f}" for name, p in row["probabilities"].items()}
        for row in predicted.rows()
    ]
    return csv_text(["file", "predicted", *columns, "warning"], rows)


def _introduce(classifier: Classifier, total: str, raw: bool) -> None:
    told = classifier.introduction(raw=raw)
    print(f"{classifier.trained.title}: {told}; {total} on {classifier.device}")
    for note in classifier.notes:
        print(f"note: {note}")


def _conclude(out: Path, predicted: Predictions, failed: Sequence[DataError], form: str) -> None:
    parts = [f"{count(len(predicted), 'image')} classified"]
    if warned := sum(bool(warning) for warning in predicted.warnings):
        parts.append(f"{warned:,} with a warning" + " (column warning)" * (form == "dogmed"))
    if failed:
        numbered = ", whose lines are numbered without them" if form == "medmnist" else ""
        parts.append(f"{count(len(failed), 'file')} not read{numbered}")
    print(f"{out}: {'; '.join(parts)}")


class Progress:
    """How far the command is: a bar on a terminal, elsewhere a line every half minute.

    Args:
        total: files, or images of an .npz.
    """

    def __init__(self, total: int):
        self.total, self._began = total, time.monotonic()
        self._told = self._began
        self._terminal = sys.stderr.isatty()
        self._bar = tqdm(total=total, unit="img", leave=False, disable=not self._terminal)

    def at(self, done: int) -> None:
        """Say that ``done`` are done."""
        self._bar.update(done - self._bar.n)
        now = time.monotonic()
        if not self._terminal and now - self._told > PROGRESS_SECONDS:
            self._told = now
            left = duration((now - self._began) * (self.total - done) / done)
            print(f"{done:,} of {self.total:,} done, left about {left}", flush=True)

    def close(self) -> None:
        """Take the bar away."""
        self._bar.close()

"""Somebody else's predictions in MedMNIST's official form, as one more row."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from dogmed import metrics
from dogmed.data.tasks import official_tasks
from dogmed.errors import ConfigError, DataError, nearest
from dogmed.finetune.report.grouping import TestSet
from dogmed.finetune.report.reading import Labels, Run, misfit

_OFFICIAL = re.compile(
    r"(?P<task>[a-z]+mnist)(_(?P<size>\d+))?_(?P<split>train|val|test)[_@\[.].*csv"
)
OURS = "predictions_test.csv"


def read_theirs(words: Sequence[str], sets: Sequence[TestSet], labels: Labels) -> list[Run]:
    """Read ``NAME=FILE_OR_FOLDER`` for each word: all official test files and ours in a folder.

    The task is in an official file's name (``breastmnist_224_test_[AUC]0.9_[ACC]0.8@1.csv``; without a size
    it is 28, as MedMNIST has it); ours is told by the ``result.json`` beside it or by a folder above.
    Several files of a task are replicates.

    Raises:
        ConfigError: not of that form, nothing there, or no finished run of the task to stand beside.
        DataError: a file that cannot be read, or has not one row an image and one column a class.
    """
    runs: list[Run] = []
    for word in words:
        name, equals, place = word.partition("=")
        if not (name and equals and place):
            raise ConfigError(f"--predictions {word}: expected NAME=FILE or NAME=FOLDER")
        files = _files(name, Path(place).expanduser())
        for file in files:
            where = _test_set(name, file, sets)
            seed = sum(run.model == name and run.task == where.task for run in runs)
            runs.append(_read(name, file, where, labels, seed))
    return runs


def _files(name: str, place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise ConfigError(f"--predictions {name}: there is no file or folder {place}")
    files = [f for f in sorted(place.rglob("*.csv")) if _is_test(f.name)]
    if not files:
        raise ConfigError(
            f"--predictions {name}: {place} holds no test predictions: expected files named as "
            f"medmnist's evaluator names them (breastmnist_224_test_...csv) or {OURS}"
        )
    return files


def _is_test(name: str) -> bool:
    match = _OFFICIAL.fullmatch(name)
    return name == OURS or (match is not None and match["split"] == "test")


def _test_set(name: str, file: Path, sets: Sequence[TestSet]) -> TestSet:
    match = _OFFICIAL.fullmatch(file.name)
    size: int | None
    if match:
        if match["split"] != "test":
            raise ConfigError(
                f"--predictions {name}: {file.name} is of the {match['split']} split, not test"
            )
        task, size = match["task"], int(match["size"] or 28)
    else:
        task, size = _told_beside(file, sets)
    if not task:
        raise ConfigError(
            f"--predictions {name}: cannot tell the task of {file}: name the file as medmnist does "
            f"({'breastmnist'}_224_test_NAME.csv), or put it in a folder named like the task"
        )
    known = [one for one in sets if one.task == task]
    fits = [one for one in known if size in (None, one.source_size, one.size)]
    if not fits:
        there = ", ".join(one.name for one in known or sets)
        raise ConfigError(
            f"--predictions {name}: {file.name} is of {task}{f' at {size} px' if size else ''}, of which there "
            f"is no finished run to compare with; there are {there}{nearest(task, [s.task for s in sets])}"
        )
    if len(fits) > 1:
        raise ConfigError(
            f"--predictions {name}: {file.name} may be of {' or of '.join(one.name for one in fits)}; "
            "narrow the report with --task, or say the size in the file's name"
        )
    return fits[0]


def _told_beside(file: Path, sets: Sequence[TestSet]) -> tuple[str, int | None]:
    beside = file.with_name("result.json")
    if beside.is_file():
        try:
            facts = json.loads(beside.read_text())
            return str(facts["task"]), int(facts["data"]["size"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{beside}: cannot be read as a result ({error!r})") from None
    tasks = {one.task for one in sets} | set(official_tasks())
    return next((part for part in reversed(file.resolve().parts) if part in tasks), ""), None


def _read(name: str, file: Path, where: TestSet, labels: Labels, seed: int) -> Run:
    y = labels.of(where.labels_sha256)
    if y is None:
        raise DataError(
            f"--predictions {name}: the labels of {where.name} are not on this machine; give --cache-dir, the "
            "folder of the prepared data"
        )
    probabilities = metrics.read_predictions(file)
    if problem := misfit(len(where.classes), len(y), probabilities):
        raise DataError(f"--predictions {name}: {file.name} has {problem}")
    test = metrics.score(where.kind, y, probabilities)
    reference = where.groups[0].runs[0]
    return Run(
        folder=file.name, task=where.task, kind=where.kind, classes=where.classes, source=where.source,
        size=where.size, source_size=where.source_size, model=name, init="", train_fraction=1.0, label="",
        seed=seed, test={"n": len(y), **test}, sha256=reference.sha256, options={}, result={},
        probabilities=probabilities, theirs=True,
    )  # fmt: skip

"""What the report takes from a run's files, checked once: later code can trust what it reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from annotated_types import Ge, Gt, Le, MinLen
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from dogmed.errors import DataError

Share = Annotated[FiniteFloat, Ge(0), Le(1)]
Correlation = Annotated[FiniteFloat, Ge(-1), Le(1)]
Amount = Annotated[FiniteFloat, Ge(0)]
Whole = Annotated[int, Ge(0)]
Positive = Annotated[int, Gt(0)]
Name = Annotated[str, MinLen(1)]


class _Record(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class Scores(_Record):
    """Of the test images, as ``metrics.score`` names them; None: no class is defined for it."""

    n: Positive
    acc: Share
    auc: Share | None = None
    balanced_accuracy: Share | None = None
    macro_f1: Share | None = None
    brier: Annotated[FiniteFloat, Ge(0), Le(2)] | None = None
    ece: Share | None = None
    map: Share | None = None
    quadratic_kappa: Correlation | None = None
    intervals_95: dict[str, tuple[FiniteFloat, FiniteFloat]] = {}


class Data(_Record):
    """Which images; old runs have no hashes."""

    source: Name
    size: Positive
    source_size: Positive | None = None
    sha256: dict[str, str] | None = None


class Versions(_Record):
    """Of the libraries."""

    dogmed: str | None = None


class Result(_Record):
    """``result.json``; what the report only shows may be absent."""

    task: Name
    kind: Literal["binary", "multi-class", "multi-label", "ordinal"]
    classes: Annotated[tuple[str, ...], MinLen(1)]
    model: Name
    init: Name
    weights_sha256: str | None = None
    seed: Whole
    data: Data
    test: Scores
    epochs: Positive | None = None
    best_epoch: Whole | None = None
    selected_on: str = "not stated"
    trivial_test_acc: Share | None = None
    seconds: Amount = 0
    images_per_second: Amount = 0
    peak_memory: dict[str, Amount] = {}
    parameters: Whole = 0
    macs: Annotated[int, Field(strict=False, ge=0)] = 0
    processes: Positive = 1
    device: str = "not stated"
    versions: Versions = Versions()
    git_commit: str | None = None


class Epoch(_Record):
    """A line of ``metrics.jsonl``."""

    epoch: Positive
    val_acc: Share
    val_auc: Share | None


class Options(_Record):
    """What the report itself takes from ``config.yaml``; older ones lack some."""

    task: Name | None = None
    model: Name | None = None
    init: Name | None = None
    size: Positive | None = None
    seed: Whole | None = None
    upsample_from: Positive | None = None
    train_fraction: Annotated[FiniteFloat, Gt(0), Le(1)] = 1.0
    label: str | None = None
    cache_dir: str | None = None


R = TypeVar("R", bound=_Record)


def read_json(cls: type[R], text: bytes, where: str) -> R:
    """Read a record from JSON.

    Raises:
        DataError: no JSON, or not such a record; the first thing that is wrong is named.
    """
    try:
        return cls.model_validate_json(text)
    except ValidationError as error:
        raise DataError(f"{where}: {_first(error)}") from None


def check(cls: type[R], values: dict[str, Any], where: str) -> R:
    """Check a record of plain values, otherwise as ``read_json``."""
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise DataError(f"{where}: {_first(error)}") from None


def read_result(path: Path) -> Result:
    """Read ``result.json``; ``DataError`` as ``read_json``, ``OSError`` where it cannot be read."""
    return read_json(Result, path.read_bytes(), path.name)


def read_epochs(path: Path) -> list[Epoch]:
    """Read ``metrics.jsonl``; ``DataError`` as ``read_json``, ``OSError`` where it cannot be read."""
    lines = path.read_bytes().splitlines()
    return [read_json(Epoch, line, f"{path.name}, line {k}") for k, line in enumerate(lines, 1)]


def _first(error: ValidationError) -> str:
    problem = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(map(str, problem["loc"]))
    told = problem["msg"].partition("\n")[0]
    got = repr(problem["input"])
    shown = f" (got {got if len(got) <= 40 else got[:37] + '...'})"
    return f"{place}: {told}{shown}" if place else told

"""The arguments of ``prepare`` and ``plan``, checked against each other before anything is read."""

from __future__ import annotations

import os
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from dogmed.data.labels import check_kind
from dogmed.data.tasks import OFFICIAL_SIZES, Kind, Task, get_task, official_file, official_tasks
from dogmed.errors import ConfigError, DataError, nearest

SIZES = range(8, 1025)
DATA = ("official", "synthetic")


@dataclass(frozen=True)
class Request:
    """The arguments of ``prepare``, checked against each other; ``path``: the user's own data."""

    task: Task | None
    path: Path | None
    size: int
    data: str
    data_dir: Path | None
    cache_dir: Path
    kind: Kind | None
    upsample_from: int | None
    seed: int
    samples: int | None


def default_cache_dir() -> Path:
    """The user's cache folder for dogmed."""
    from platformdirs import user_cache_path

    return user_cache_path("dogmed")


def resolve(
    task: str | Path,
    size: int,
    data: str,
    data_dir: str | Path | None,
    cache_dir: str | Path | None,
    kind: str | None,
    upsample_from: int | None,
    seed: int,
    samples: int | None,
) -> Request:
    """Check the arguments against each other; nothing is read but whether files exist."""
    known_kind = check_kind(kind)
    if data not in DATA:
        raise ConfigError(
            f"unknown data '{data}'{nearest(data, DATA)}; expected official or synthetic"
        )
    if size not in SIZES:
        raise ConfigError(f"size is {size} px, expected {SIZES.start} to {SIZES.stop - 1}")
    if samples is not None and data != "synthetic":
        raise ConfigError(
            "samples is for --data synthetic; use --train-fraction to train on fewer images"
        )
    official = official_tasks().get(str(task).lower())
    path = None
    if official is None:
        path = Path(task).expanduser()
        _check_path(path)
    _check_fit(official, path, size, data, data_dir, known_kind, upsample_from)
    return Request(
        task=official,
        path=path,
        size=size,
        data=data,
        data_dir=None if data_dir is None else Path(data_dir).expanduser(),
        cache_dir=default_cache_dir() if cache_dir is None else Path(cache_dir).expanduser(),
        kind=known_kind,
        upsample_from=upsample_from,
        seed=seed,
        samples=samples,
    )


def is_plain(name: str) -> bool:
    """Whether a name can stand in a line of UTF-8: no other bytes, no control characters."""
    return not any(unicodedata.category(c) in ("Cc", "Cs") for c in name)


def _check_path(path: Path) -> None:
    """Raise unless something is at ``path``; for an unknown name the nearest is told."""
    if not is_plain(str(path)):
        raise DataError(
            f"the path {os.fsencode(path)!r} is not UTF-8 or has control characters; rename it"
        )
    try:
        there = path.exists()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if not there:
        get_task(str(path))


def _check_fit(
    official: Task | None,
    path: Path | None,
    size: int,
    data: str,
    data_dir: str | Path | None,
    kind: str | None,
    upsample_from: int | None,
) -> None:
    if official is None:
        for flag, given in (
            ("--data synthetic", data == "synthetic"),
            ("--data-dir", data_dir is not None),
            ("--upsample-from", upsample_from is not None),
        ):
            if given:
                raise ConfigError(
                    f"{flag} is for the official tasks; {path} is your own data and is "
                    "resized as needed"
                )
        return
    if kind is not None and kind != official.kind:
        raise ConfigError(
            f"{official.name} is {official.kind} by MedMNIST's definition, not {kind}; "
            "--kind is for your own data"
        )
    if data == "synthetic":
        for flag, value in (("--data-dir", data_dir), ("--upsample-from", upsample_from)):
            if value is not None:
                raise ConfigError(
                    f"{flag} does not go with --data synthetic, which is generated at any size"
                )
        return
    if upsample_from is None:
        official_file(official.name, size)  # raises for a size that is not published
    elif upsample_from not in OFFICIAL_SIZES or upsample_from >= size:
        raise ConfigError(
            f"--upsample-from {upsample_from} cannot give {size} px; expected one of "
            f"{', '.join(str(s) for s in OFFICIAL_SIZES if s < size) or 'none'}"
        )

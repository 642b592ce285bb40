"""``dogmed data list|download|verify|synth``: functions that print and return an exit code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dogmed.console import table
from dogmed.data.npz import open_npz, write_npz
from dogmed.data.prepared import load_prepared, prepared_folders, verify_prepared
from dogmed.data.progress import Console, Progress, human
from dogmed.data.request import default_cache_dir
from dogmed.data.sources import fetch_official
from dogmed.data.synthetic import Synthetic
from dogmed.data.tasks import (
    OFFICIAL_SIZES,
    SPLITS,
    OfficialFile,
    get_task,
    official_file,
    official_samples,
    official_tasks,
)
from dogmed.data.writer import file_digest, make_folder
from dogmed.errors import DataError


@dataclass(frozen=True, kw_only=True)
class ListConfig:
    """Show the official tasks and what is prepared."""

    cache_dir: Path | None = None
    """Where data is kept; by default a cache folder of the user."""


@dataclass(frozen=True, kw_only=True)
class DownloadConfig:
    """Fetch official files, resuming what was begun."""

    task: tuple[str, ...]
    """Official names, or all."""
    size: tuple[int, ...] = (224,)
    """Sizes in pixels: 28, 64, 128, 224."""
    to: Path | None = None
    """Folder for the files, to be given as --data-dir later; by default the cache."""
    cache_dir: Path | None = None
    """Where data is kept; by default a cache folder of the user."""


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Hash everything again and say what is damaged."""

    data_dir: Path | None = None
    """Also check the npz files of this folder."""
    cache_dir: Path | None = None
    """Where data is kept; by default a cache folder of the user."""


@dataclass(frozen=True, kw_only=True)
class SynthConfig:
    """Write a synthetic npz file in MedMNIST's format. Not medical data."""

    task: tuple[str, ...]
    """Official tasks to imitate, or all."""
    out: Path
    """Folder for the files."""
    size: tuple[int, ...] = (28,)
    """Sizes in pixels."""
    samples: int | None = None
    """Training images; val and test get a quarter each. By default 512."""
    seed: int = 0
    """Another seed gives other images."""


def data_list(*, cache_dir: Path | None = None) -> int:
    """Print the official tasks, and every prepared folder with its source."""
    rows: list[tuple[str, ...]] = [
        ("task", "kind", "classes", "channels", "train", "val", "test", "licence")
    ]
    for name, task in official_tasks().items():
        samples = official_samples(name)
        counts = [f"{samples[split]:,}" for split in SPLITS]
        kind, channels = task.kind, "RGB" if task.channels == 3 else "grey"
        rows.append((name, kind, str(task.num_classes), channels, *counts, task.licence))
    table(rows)
    cache = cache_dir or default_cache_dir()
    print(f"\nprepared in {cache}:")
    rows = [("folder", "task", "size", "from", "source", "images", "disk")]
    for folder in prepared_folders(cache):
        found = load_prepared(folder)
        if found is None:
            rows.append((folder.name, "?", "", "", "not whole: is prepared anew when used", "", ""))
            continue
        images = sum(split["samples"] for split in found.manifest["splits"].values())
        disk = human(sum(facts["bytes"] for facts in found.manifest["files"].values()))
        source = found.source.upper() if found.source == "synthetic" else found.source
        rows.append((folder.name, found.task.name, str(found.size), str(found.source_size), source,
                     f"{images:,}", disk))  # fmt: skip
    table(rows) if len(rows) > 1 else print("nothing yet")
    return 0


def data_download(
    *,
    task: tuple[str, ...],
    size: tuple[int, ...],
    to: Path | None = None,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> int:
    """Fetch official files and print where they are; licences that restrict use are said first."""
    cache = cache_dir or default_cache_dir()
    folder = to or cache / "downloads"
    files = [(name, official_file(name, pixels)) for name in _names(task) for pixels in size]
    for name in dict.fromkeys(name for name, _ in files):
        if "NC" in (licence := official_tasks()[name].licence):
            print(f"{name}: licence {licence}, not for commercial use")
    for _, file in files:
        print(fetch_official(file, make_folder(folder), cache, progress or Console()))
    return 0


def data_verify(
    *,
    data_dir: Path | None = None,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> int:
    """Hash prepared folders, downloads and ``data_dir``'s files again; 1 when any is damaged."""
    cache, progress = cache_dir or default_cache_dir(), progress or Console()
    rows: list[tuple[str, ...]] = [("what", "state", "")]
    damaged = 0
    for folder in prepared_folders(cache):
        wrong = verify_prepared(folder, progress)
        damaged += bool(wrong)
        remedy = f"{wrong[0]}; delete {folder}, it is prepared anew when used" if wrong else ""
        rows.append((folder.name, "DAMAGED" if wrong else "ok", remedy))
    official = {
        file.name: file
        for name in official_tasks()
        for file in (official_file(name, size) for size in OFFICIAL_SIZES)
    }
    for place in (cache / "downloads", data_dir):
        for path in sorted(place.glob("*.npz")) if place is not None else ():
            state, remark = _verify_npz(path, official.get(path.name), progress)
            damaged += state == "DAMAGED"
            rows.append((path.name, state, remark))
    if data_dir is not None and not data_dir.is_dir():
        raise DataError(f"--data-dir {data_dir} is not a folder")
    table(rows) if len(rows) > 1 else print(f"nothing to verify in {cache}")
    return 1 if damaged else 0


def data_synth(
    *,
    task: tuple[str, ...],
    out: Path,
    size: tuple[int, ...],
    seed: int,
    samples: int | None = None,
) -> int:
    """Write ``<task>_<size>_synthetic.npz`` files and print their paths."""
    make_folder(out)
    for name in _names(task):
        for pixels in size:
            path = out / f"{name}_{pixels}_synthetic.npz"
            made = Synthetic(get_task(name), pixels, seed=seed, samples=samples)
            channels = (3,) if made.task.channels == 3 else ()
            arrays = []
            for split in SPLITS:
                n, labels = made.samples[split], made.labels(split).astype(np.uint8)
                shape, byte = (n, pixels, pixels, *channels), np.dtype(np.uint8)
                arrays.append((f"{split}_images", shape, byte, made.images(split)))
                arrays.append((f"{split}_labels", labels.shape, byte, iter((labels,))))
            write_npz(path, arrays)
            print(f"{path}  SYNTHETIC, not medical data")
    return 0


def _names(tasks: tuple[str, ...]) -> list[str]:
    if tasks == ("all",):
        return list(official_tasks())
    return [get_task(name).name for name in tasks]


def _verify_npz(path: Path, file: OfficialFile | None, progress: Progress) -> tuple[str, str]:
    """State of an npz file: official by its MD5, or at least whole by its checksums."""
    try:
        md5 = file_digest(path, "md5", progress, f"checking {path.name}")
        if file is not None and md5 == file.md5:
            return "ok", "official"
        npz = open_npz(path)
        for split in SPLITS:
            npz.labels(split)
            for _ in npz.images(split):
                pass
    except DataError as error:
        return "DAMAGED", str(error)
    return "ok", f"variant, MD5 {md5}" if file is not None else "whole"

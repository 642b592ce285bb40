"""From a task's name to memory-mapped arrays: find or fetch the source, prepare it once, reuse it.

The cache holds ``downloads/`` (official npz files), ``prepared/<key>/`` (one .npy per split and
kind of array, and ``manifest.json``), ``md5/`` and ``locks/``. A key is made of the task, the size,
the source and a short hash of the source's content, so that a variant never takes the place of an
official file and a changed file is prepared anew.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import dogmed
from dogmed.data.labels import class_counts, missing_classes
from dogmed.data.prepared import FORMAT, Prepared, load_prepared
from dogmed.data.progress import Progress, Quiet, human
from dogmed.data.request import Request, resolve
from dogmed.data.sources import Source, find_source
from dogmed.data.tasks import SPLITS, Task
from dogmed.data.writer import (
    FolderWriter,
    check_space,
    clean_stale,
    free_space,
    locked,
    make_folder,
)


@dataclass(frozen=True)
class Plan:
    """What ``prepare`` would do. ``action`` is reuse, prepare, download or generate."""

    task: Task
    action: str
    source: str
    origin: str  # file, folder or address
    bytes_to_prepare: int
    bytes_free: int
    folder: Path | None
    size: int
    source_size: int
    samples: dict[str, int]

    def lines(self) -> list[str]:
        """For reading, one fact a line."""
        counts = " / ".join(f"{self.samples[s]:,} {s}" for s in SPLITS)
        resized = (
            ""
            if self.size == self.source_size
            else f", {'enlarged' if self.size > self.source_size else 'shrunk'} from "
            f"{self.source_size} px"
        )
        lines = [
            f"task      {self.task.name}: {self.task.kind}, {self.task.num_classes} "
            f"classes, {counts}",
            f"data      {self.source}, {self.size} px{resized}: {self.origin}",
        ]
        if self.action == "reuse":
            return [*lines, f"prepared  {self.folder}"]
        need = f"{human(self.bytes_to_prepare)} of disk, {human(self.bytes_free)} free"
        return [*lines, f"to do     {self.action} ({need})"]


def prepare(
    task: str | Path,
    *,
    size: int,
    data: str = "official",
    data_dir: str | Path | None = None,
    cache_dir: str | Path | None = None,
    kind: str | None = None,
    upsample_from: int | None = None,
    seed: int = 0,
    samples: int | None = None,
    progress: Progress | None = None,
) -> Prepared:
    """Find, fetch or generate a task's data and lay it out for memory-mapping; reuse what is there.

    ``task`` is an official name, an .npz file in MedMNIST's format or an image folder; ``size`` the
    side in pixels. ``data="synthetic"`` generates ``samples`` training images from ``seed``.
    ``data_dir`` holds official npz files, which are only read; all is written in ``cache_dir``.
    ``kind`` says how the labels of the user's own files are meant (else inferred);
    ``upsample_from`` enlarges the official file of that size. Memory stays constant.

    Raises ConfigError for arguments that do not fit and DataError for files that cannot be used;
    nothing half-written is left behind.
    """
    progress = progress or Quiet()
    request = resolve(task, size, data, data_dir, cache_dir, kind, upsample_from, seed, samples)
    source = find_source(request, None)  # a look: a prepared folder may make reading unnecessary
    found = load_prepared(_folder(request, source)) if source.content else None
    if found is None:
        source = find_source(request, progress)
        folder = _folder(request, source)
        make_folder(folder.parent)
        clean_stale(folder.parent, request.cache_dir)
        with locked(request.cache_dir, folder.name, progress):
            found = load_prepared(folder)  # another process may have been first
            if found is None:
                if folder.exists():
                    progress.note(f"note: {folder} is damaged or outdated and is prepared anew")
                _write(request, source, folder, progress)
                found = load_prepared(folder)
                assert found is not None, folder
    if source.kind_inferred:
        progress.note(
            f"note: {found.task.name} is taken to be {found.task.kind} with "
            f"{found.task.num_classes} classes, by its labels; --kind says otherwise"
        )
    for line in found.manifest["notes"]:
        progress.note(line)
    return replace(found, manifest={**found.manifest, "kind_inferred": source.kind_inferred})


def plan(
    task: str | Path,
    *,
    size: int,
    data: str = "official",
    data_dir: str | Path | None = None,
    cache_dir: str | Path | None = None,
    kind: str | None = None,
    upsample_from: int | None = None,
    seed: int = 0,
    samples: int | None = None,
) -> Plan:
    """What ``prepare`` with the same arguments would use, fetch and write; touches nothing.

    Raises the same errors for arguments and for files whose headers are already wrong.
    """
    request = resolve(task, size, data, data_dir, cache_dir, kind, upsample_from, seed, samples)
    source = find_source(request, None)
    folder = _folder(request, source) if source.content else None
    reused = folder is not None and load_prepared(folder) is not None
    action = {"synthetic": "generate"}.get(source.kind, "prepare") if source.origin else "download"
    return Plan(
        task=source.task,
        action="reuse" if reused else action,
        source=source.kind,
        origin=str(source.origin or source.url),
        bytes_to_prepare=0 if reused else _bytes(request, source),
        bytes_free=free_space(request.cache_dir),
        folder=folder,
        size=request.size,
        source_size=source.source_size or request.size,
        samples=source.samples,
    )


def _folder(request: Request, source: Source) -> Path:
    """Where the source is prepared: a readable name and a hash of all that decides the content."""
    deciding = {
        "format": FORMAT,
        "content": source.content,
        "kind": source.task.kind,
        "classes": source.task.classes,
        "size": request.size,
    }
    short = hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:16]
    name = re.sub(r"[^\w.]+", "_", source.task.name).strip("._")[:48] or "task"
    enlarged = f"-from{request.upsample_from}" if request.upsample_from else ""
    key = f"{name}-{request.size}{enlarged}-{source.kind}-{short}"
    return request.cache_dir / "prepared" / key


def _bytes(request: Request, source: Source) -> int:
    images = sum(source.samples.values())
    return images * (request.size**2 * source.task.channels + 8 * source.task.label_width)


def _write(request: Request, source: Source, folder: Path, progress: Progress) -> None:
    """Stream a source into a prepared folder."""
    task, size = source.task, request.size
    needed = _bytes(request, source)
    check_space(folder.parent, needed, f"preparing {task.name} at {size} px")
    channels = (3,) if task.channels == 3 else ()
    counts: dict[str, list[int]] = {}
    with FolderWriter(folder, progress) as writer:
        progress.start(f"preparing {folder.name}", needed)
        for split in SPLITS:
            n = source.samples[split]
            labels = source.reader.labels(split)
            counts[split] = class_counts(labels, task)
            writer.array(f"{split}_labels.npy", labels.shape, np.int64, iter((labels,)))
            writer.array(
                f"{split}_images.npy",
                (n, size, size, *channels),
                np.uint8,
                source.reader.images(split),
            )
        writer.publish(_manifest(request, source, counts))


def _manifest(request: Request, source: Source, counts: dict[str, list[int]]) -> dict[str, Any]:
    """Everything a result needs to say about its data; without paths of this machine."""
    low, high = source.reader.sizes()
    resized = {low, high} != {(request.size, request.size)}
    notes = [*source.notes, *missing_classes(counts, source.task)]
    if resized and low[0] != low[1]:
        notes.append(
            f"note: images that are not square were stretched to {request.size}×{request.size}"
        )
    return {
        "format": FORMAT,
        "task": asdict(source.task),
        "source": source.kind,
        "source_file": source.name,
        "source_content": source.content,
        "official_md5": source.official_md5,
        "size": request.size,
        "source_size": min(low),
        "source_sizes": {"smallest": low, "largest": high},  # height, width
        "interpolation": "bilinear" if resized else None,
        "splits": {s: {"samples": source.samples[s], "counts": counts[s]} for s in SPLITS},
        "synthetic": source.synthetic,
        "notes": notes,
        "versions": {
            "dogmed": dogmed.__version__,
            **{name: importlib.metadata.version(name) for name in ("medmnist", "numpy", "pillow")},
        },
    }

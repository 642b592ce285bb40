"""Prepared folders: opened only when they are whole, checked again on request."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dogmed.data.npz import read_header
from dogmed.data.progress import Progress, Quiet
from dogmed.data.tasks import KINDS, SPLITS, Task
from dogmed.data.writer import MANIFEST, file_digest, read_json
from dogmed.errors import DataError

FORMAT = 1  # of the prepared folder; raised when older ones must be prepared anew


@dataclass(frozen=True)
class Prepared:
    """A task's data at one size, ready to be memory-mapped.

    ``source_size`` is the side of the images before any resizing (the smallest side where they
    differ): an enlarged 28 px image is not a 224 px image. ``interpolation`` is None when nothing
    was resized.
    """

    task: Task
    size: int
    source_size: int
    interpolation: str | None
    source: str
    folder: Path
    manifest: dict[str, Any]

    def images(self, split: str) -> np.ndarray:
        """The split's images, memory-mapped: (N, H, W) or (N, H, W, 3) uint8."""
        return self._array(f"{split}_images.npy", "r")

    def labels(self, split: str) -> np.ndarray:
        """The split's labels: (N, L) int64."""
        return self._array(f"{split}_labels.npy", None)

    def _array(self, name: str, mode: Any) -> np.ndarray:
        path = self.folder / name
        try:
            return np.load(path, mmap_mode=mode, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(
                f"{path} cannot be read; delete {self.folder}, it is prepared anew when used"
            ) from error


def load_prepared(folder: Path) -> Prepared | None:
    """The prepared folder, or None when there is none that is whole and of today's format.

    The labels are compared with their hashes, of the images only the headers and the sizes:
    ``dogmed data verify`` reads these too.
    """
    found = _read_manifest(folder)
    if found is None:
        return None
    try:
        for split in SPLITS:
            for what in ("images", "labels"):
                if not _fits(found, split, what):
                    return None
    except (OSError, DataError):
        return None
    return found


def prepared_folders(cache_dir: Path) -> list[Path]:
    """All prepared folders of a cache, whole or not, by name."""
    parent = cache_dir / "prepared"
    if not parent.is_dir():
        return []
    return sorted(p for p in parent.iterdir() if p.is_dir() and not p.name.startswith("."))


def verify_prepared(folder: Path, progress: Progress) -> list[str]:
    """Hash a prepared folder's files again; one line per file that is missing or differs."""
    found = _read_manifest(folder)
    if found is None:
        return [f"{folder}: {MANIFEST} is missing, damaged or of another version"]
    wrong = []
    for name, facts in found.manifest["files"].items():
        path = folder / name
        if not path.is_file():
            wrong.append(f"{path}: missing")
        elif file_digest(path, "sha256", progress, f"{folder.name}/{name}") != facts["sha256"]:
            wrong.append(f"{path}: its content is not what was written (sha256 differs)")
    return wrong


def _read_manifest(folder: Path) -> Prepared | None:
    """What the manifest says, or None when it lacks something or is of another format."""
    manifest = read_json(folder / MANIFEST)
    if manifest is None or manifest.get("format") != FORMAT:
        return None
    try:
        facts, files = manifest["task"], manifest["files"]
        found = Prepared(
            task=Task(**{**facts, "classes": tuple(facts["classes"])}),
            size=manifest["size"],
            source_size=manifest["source_size"],
            interpolation=manifest["interpolation"],
            source=manifest["source"],
            folder=folder,
            manifest=manifest,
        )
        sound = (
            set(files) == {f"{s}_{what}.npy" for s in SPLITS for what in ("images", "labels")}
            and all(
                isinstance(f["sha256"], str) and type(f["bytes"]) is int for f in files.values()
            )
            and all(type(manifest["splits"][s]["samples"]) is int for s in SPLITS)
            and all(
                [type(n) for n in manifest["splits"][s]["counts"]] == [int] * found.task.num_classes
                for s in SPLITS
            )
            and all(isinstance(note, str) for note in manifest["notes"])
            and all(isinstance(name, str) for name in (*found.task.classes, found.task.name))
            and (type(found.size), type(found.source_size), type(found.source)) == (int, int, str)
            and found.task.kind in KINDS
            and found.task.channels in (1, 3)
        )
    except (KeyError, TypeError, AttributeError):
        return None
    return found if sound else None


def _fits(found: Prepared, split: str, what: str) -> bool:
    """Whether a file is what the manifest says: its header, its size, and the labels' content."""
    name = f"{split}_{what}.npy"
    path, facts = found.folder / name, found.manifest["files"][name]
    samples, side = found.manifest["splits"][split]["samples"], found.size
    shape: tuple[int, ...] = (samples, found.task.label_width)
    dtype: np.dtype = np.dtype(np.int64)
    if what == "images":
        shape = (samples, side, side, *((3,) if found.task.channels == 3 else ()))
        dtype = np.dtype(np.uint8)
    if not path.is_file() or path.stat().st_size != facts["bytes"]:
        return False
    with path.open("rb") as file:
        if read_header(file, str(path)) != (shape, dtype, False):
            return False
        if file.tell() + math.prod(shape) * dtype.itemsize != facts["bytes"]:
            return False
    return what == "images" or file_digest(path, "sha256", Quiet(), name) == facts["sha256"]

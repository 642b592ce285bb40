"""Where data comes from: official file, variant, synthetic, the user's npz or image folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from dogmed.data.download import download
from dogmed.data.folder import FolderSource, resize, scan_folder
from dogmed.data.labels import check_labels, count_classes, infer_kind
from dogmed.data.npz import NpzSource, open_npz
from dogmed.data.progress import Progress
from dogmed.data.request import Request
from dogmed.data.synthetic import Synthetic
from dogmed.data.tasks import (
    OFFICIAL_SIZES,
    SPLITS,
    OfficialFile,
    Task,
    official_file,
    official_samples,
)
from dogmed.data.writer import cached_md5, locked
from dogmed.errors import ConfigError, DataError


class Reader(Protocol):
    """A source opened for streaming, at the size asked for."""

    def labels(self, split: str) -> np.ndarray:
        """(N, L) int64."""

    def images(self, split: str) -> Iterator[np.ndarray]:
        """Pieces of (n, size, size[, 3]) uint8."""

    def sizes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Smallest and largest (height, width) read."""


@dataclass(frozen=True)
class Source:
    """Data found. ``content`` identifies it (MD5 or the like; empty when not yet known)."""

    task: Task
    kind: str
    name: str
    origin: Path | str | None  # None: still to be downloaded
    content: str
    samples: dict[str, int]
    source_size: int | None
    reader: Any = None
    notes: tuple[str, ...] = ()
    kind_inferred: bool = False
    official_md5: str | None = None
    url: str | None = None
    synthetic: dict[str, Any] | None = None


def find_source(request: Request, progress: Progress | None) -> Source:
    """Find (or download) the data. With ``progress=None`` nothing is written or fetched."""
    try:
        return _find(request, progress)
    except OSError as error:
        what = error.filename or request.path or request.data_dir or request.cache_dir
        raise DataError(f"{what} cannot be used: {error.strerror or error}") from error


def _find(request: Request, progress: Progress | None) -> Source:
    if request.data == "synthetic":
        assert request.task is not None
        return _synthetic(request.task, request)
    if request.path is not None:
        use = _folder if request.path.is_dir() else _user_npz
        return use(request, progress)
    assert request.task is not None
    return _official(request.task, request, progress)


def _synthetic(task: Task, request: Request) -> Source:
    made = Synthetic(task, request.size, seed=request.seed, samples=request.samples)
    facts = made.facts()
    content = ",".join(f"{k}={facts[k]}" for k in ("generator", "seed", "samples"))
    renamed = Task(
        name=task.name,
        kind=task.kind,
        classes=task.classes,
        channels=task.channels,
        licence="generated, no licence needed",
        description=f"SYNTHETIC images in the format of {task.name}; not medical data",
    )
    return Source(
        task=renamed,
        kind="synthetic",
        name=f"synthetic {task.name}",
        origin=f"generated from seed {request.seed}",
        content=content,
        samples=made.samples,
        source_size=request.size,
        reader=made,
        notes=(f"note: {task.name} is SYNTHETIC data: its scores say nothing about the real task",),
        synthetic=facts,
    )


def _user_npz(request: Request, progress: Progress | None) -> Source:
    path = request.path
    assert path is not None
    npz = open_npz(path)
    labels = {split: npz.labels(split) for split in SPLITS}
    kind = request.kind or infer_kind(labels, str(path))
    task = Task(
        name=path.stem,
        kind=kind,
        classes=tuple(str(i) for i in range(count_classes(labels, kind, str(path)))),
        channels=npz.channels,
        description=f"the user's own file {path.name}",
    )
    return Source(
        task=task,
        kind="npz",
        name=path.name,
        origin=path,
        content=cached_md5(path, request.cache_dir, progress) or "",
        samples={split: npz.samples(split) for split in SPLITS},
        source_size=min(npz.image_size),
        reader=NpzReader(npz, request.size, labels),
        notes=_npz_notes(npz),
        kind_inferred=request.kind is None,
    )


def _folder(request: Request, progress: Progress | None) -> Source:
    assert request.path is not None
    found = scan_folder(request.path, request.cache_dir, progress)
    if request.kind == "multi-label":
        raise ConfigError(
            f"{request.path}: a folder gives each image one class; for multi-label use an .npz file"
        )
    labels = {split: found.labels(split) for split in SPLITS}
    kind = request.kind or infer_kind(
        {"train": np.arange(len(found.classes))[:, None]}, str(request.path)
    )
    if kind == "binary" and len(found.classes) != 2:
        raise DataError(
            f"{request.path}: a binary task has two classes, found {len(found.classes)}"
        )
    task = Task(
        name=request.path.resolve().name,
        kind=kind,
        classes=found.classes,
        channels=found.channels,
        description=f"the user's own image folder {request.path.resolve().name}",
    )
    ignored = []
    if found.ignored:
        some = ", ".join(found.ignored[:3])
        ignored = [f"note: {len(found.ignored)} files are no images and were left out ({some})"]
    return Source(
        task=task,
        kind="folder",
        name=request.path.resolve().name,
        origin=request.path,
        content=found.fingerprint,
        samples={split: found.samples(split) for split in SPLITS},
        source_size=None,
        reader=FolderReader(found, request.size, labels),
        notes=tuple(ignored),
        kind_inferred=request.kind is None,
    )


def _official(task: Task, request: Request, progress: Progress | None) -> Source:
    size = request.upsample_from or request.size
    file = official_file(task.name, size)
    path = _find_file(file, request, progress)
    if progress is None and (path is None or request.data_dir is None):
        return _promised(task, file, size, path)  # what is there is checked when it is used
    if path is None:
        assert progress is not None
        folder = request.cache_dir / "downloads"
        path = fetch_official(file, folder, request.cache_dir, progress)
    md5 = cached_md5(path, request.cache_dir, progress) or ""
    npz = open_npz(path)
    if npz.image_size != (size, size) or npz.channels != task.channels:
        raise DataError(
            f"{path}: its images are {npz.image_size[0]}×{npz.image_size[1]} with "
            f"{npz.channels} channels, "
            f"{file.name} has {size}×{size} with {task.channels}; pass the file as --task "
            "to use it as your own"
        )
    labels = {split: npz.labels(split) for split in SPLITS}
    for split in SPLITS:
        check_labels(labels[split], task, f"{path}: {split}_labels")
    variant = bool(md5) and md5 != file.md5
    notes = _npz_notes(npz)
    if variant:
        notes += (
            f"warning: {path.name} is not the official file (MD5 {md5}, official "
            f"{file.md5}); it is used "
            f"and recorded as a variant, its scores are not comparable",
        )
    return Source(
        task=task,
        kind="variant" if variant else "official",
        name=file.name,
        origin=path,
        content=md5,
        samples={split: npz.samples(split) for split in SPLITS},
        source_size=size,
        reader=NpzReader(npz, request.size, labels),
        notes=notes,
        official_md5=file.md5,
        url=file.url,
    )


def fetch_official(file: OfficialFile, folder: Path, cache_dir: Path, progress: Progress) -> Path:
    """Download an official file into ``folder`` unless it is there; one process at a time."""
    path = folder / file.name
    with locked(cache_dir, file.name, progress):
        if not path.is_file() or cached_md5(path, cache_dir, progress) != file.md5:
            download(file.url, path, md5=file.md5, progress=progress)
    return path


def _promised(task: Task, file: OfficialFile, size: int, path: Path | None) -> Source:
    """The official file as it is once fetched (or found whole): MD5 and counts are published."""
    return Source(
        task=task,
        kind="official",
        name=file.name,
        origin=path,
        content=file.md5,
        samples=official_samples(task.name),
        source_size=size,
        official_md5=file.md5,
        url=file.url,
    )


def _find_file(file: OfficialFile, request: Request, progress: Progress | None) -> Path | None:
    """The npz on this machine: in --data-dir (if given only there), the cache, ~/.medmnist."""
    if request.data_dir is not None:
        path = request.data_dir / file.name
        if not path.is_file():
            raise DataError(_not_there(file, request, request.data_dir))
        return path
    for folder in (request.cache_dir / "downloads", Path("~/.medmnist").expanduser()):
        path = folder / file.name
        if not path.is_file():
            continue
        md5 = cached_md5(path, request.cache_dir, progress)
        if md5 in (file.md5, None):
            return path
        if progress is not None:
            progress.note(
                f"warning: {path} is not the official file (MD5 {md5}) and is passed over"
            )
    return None


def _not_there(file: OfficialFile, request: Request, data_dir: Path) -> str:
    assert request.task is not None
    if not data_dir.is_dir():
        return f"--data-dir {data_dir} is not a folder; it should hold {file.name}"
    name = request.task.name
    sizes = [s for s in OFFICIAL_SIZES if (data_dir / official_file(name, s).name).is_file()]
    smaller = [s for s in sizes if s < request.size]
    if smaller:
        there = ", ".join(official_file(name, s).name for s in sizes)
        return (
            f"{data_dir} has no {file.name}, only {there}; use --size {smaller[-1]}, or --size "
            f"{request.size} --upsample-from {smaller[-1]} to enlarge it (recorded as such)"
        )
    there = ", ".join(sorted(p.name for p in data_dir.glob("*.npz"))[:8]) or "no npz file"
    return f"{data_dir} has no {file.name}, it has {there}; leave --data-dir out to download it"


def _npz_notes(npz: NpzSource) -> tuple[str, ...]:
    if not npz.extra:
        return ()
    return (f"note: {npz.path.name}: further arrays are ignored ({', '.join(npz.extra[:6])})",)


@dataclass(frozen=True)
class NpzReader:
    """An npz file's arrays at the size asked for; the labels were read (and checked) before."""

    npz: NpzSource
    size: int
    read_labels: dict[str, np.ndarray]

    def labels(self, split: str) -> np.ndarray:
        return self.read_labels[split]

    def images(self, split: str) -> Iterator[np.ndarray]:
        same = self.npz.image_size == (self.size, self.size)
        for piece in self.npz.images(split):
            # a small source can grow a lot: hand on a few images at a time
            for part in (piece,) if same else np.array_split(piece, -(-len(piece) // 64)):
                yield part if same else _resized(part, self.size)

    def sizes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        return self.npz.image_size, self.npz.image_size


@dataclass(frozen=True)
class FolderReader:
    """An image folder's pixels at the size asked for."""

    folder: FolderSource
    size: int
    read_labels: dict[str, np.ndarray]

    def labels(self, split: str) -> np.ndarray:
        return self.read_labels[split]

    def images(self, split: str) -> Iterator[np.ndarray]:
        return self.folder.images(split, self.size)

    def sizes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        by_side = sorted(self.folder.sizes, key=lambda hw: (min(hw), max(hw)))
        return by_side[0], by_side[-1]


def _resized(images: np.ndarray, size: int) -> np.ndarray:
    """(n, H, W[, 3]) -> (n, size, size[, 3]) uint8."""
    return np.stack([np.asarray(resize(Image.fromarray(image), size)) for image in images])

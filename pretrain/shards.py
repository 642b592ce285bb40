"""Tar shards with random access: webdataset's, or a plain tar of ``<class>/<name>.JPEG``.

Why not timm's (webdataset's) reader: it streams each shard through a shuffle buffer, so the order within
an epoch hangs on the number of workers and cannot be taken up again in the middle. Here the tars
are read through once for an index (where each member lies, its class), which is kept in the cache
folder and is valid as long as the shards' sizes and modification times are; after that any image is
one ``pread``.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
import zipfile
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from dogmed.data.progress import Progress
from dogmed.data.writer import locked, make_folder, read_json
from dogmed.errors import DataError
from dogmed.pretrain.images import SUFFIXES
from dogmed.pretrain.names import Names, rank

FORMAT = 1  # of the index files
INFO_FILES = ("info.json", "_info.json")  # where webdataset sets describe themselves
_OPEN_FILES = 128  # kept open per process; systems allow 256 to 1024
_ARRAYS = ("labels", "shard", "offset", "size", "characters", "ends")


class ShardSource:
    """Members of tar files, in the order of the index."""

    def __init__(self, shards: Sequence[Path], names: Names, places: tuple[np.ndarray, ...]):
        self.shards, self.names = tuple(shards), names
        self.shard, self.offset, self.size = places
        self._files: dict[int, int] = {}

    def read(self, place: int) -> bytes:
        size = int(self.size[place])
        data = os.pread(self._file(int(self.shard[place])), size, int(self.offset[place]))
        if len(data) < size:
            raise OSError(f"{self.shards[self.shard[place]]} is cut short")
        return data

    def _file(self, shard: int) -> int:
        """A descriptor of the shard; ``pread`` has no file position, so forked workers may share it."""
        if shard not in self._files:
            if len(self._files) >= _OPEN_FILES:
                os.close(self._files.pop(next(iter(self._files))))
            self._files[shard] = os.open(self.shards[shard], os.O_RDONLY)
        return self._files[shard]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}


def index_shards(
    root: Path, shards: Sequence[Path], cache_dir: Path, progress: Progress
) -> tuple[tuple[str, ...], np.ndarray, ShardSource]:
    """The classes, labels and members of ``shards``, from the cached index or a pass through them.

    A class is told by ``key.cls`` or the ``label`` in ``key.json`` (numbers; their names are the
    ``classes`` of ``info.json`` if it has them), else by the folder in the tar.

    Raises:
        DataError: a tar is damaged or compressed, or an image has no class.
    """
    info: dict[str, Any] = next((i for n in INFO_FILES if (i := read_json(root / n))), {})
    named = info.get("classes")
    facts: dict[str, Any] = {
        "format": FORMAT,
        "classes": [str(name) for name in named] if isinstance(named, list) else None,
        "shards": [[str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns] for p in shards],
    }
    key = hashlib.sha256("\0".join(entry[0] for entry in facts["shards"]).encode()).hexdigest()[:24]
    file = cache_dir / "shards" / f"{key}.npz"
    index = _load(file, facts)
    if index is None:
        with locked(cache_dir, f"shards-{key}", progress):
            index = _load(file, facts)  # another process may have been first
            if index is None:
                index = _build(root, shards, facts["classes"], progress)
                try:
                    _save(file, index, facts)
                except OSError as error:
                    raise DataError(
                        f"the index of {root} cannot be written to {file} ({error.strerror}); free "
                        "some space, or choose another folder with --cache-dir"
                    ) from error
    places = (index["shard"], index["offset"], index["size"])
    names = Names(index["characters"], index["ends"])
    return tuple(index["classes"]), index["labels"], ShardSource(shards, names, places)


@dataclass
class _Found:
    """What the pass through the shards has found so far: columns, one entry an image."""

    names: list[str] = field(default_factory=list)
    owners: list[str] = field(default_factory=list)  # class names or numbers
    numbered: bool | None = None
    shard: array[int] = field(default_factory=lambda: array("q"))
    offset: array[int] = field(default_factory=lambda: array("q"))
    size: array[int] = field(default_factory=lambda: array("q"))


def _build(
    root: Path, shards: Sequence[Path], classes: list[str] | None, progress: Progress
) -> dict[str, Any]:
    """Read through the shards; the images come sorted by class and name."""
    found = _Found()
    progress.start(
        f"indexing {len(shards)} tar files of {root}", sum(p.stat().st_size for p in shards)
    )
    try:
        for number, path in enumerate(shards):
            _add_shard(found, number, path, progress)
    finally:
        progress.finish()
    if not found.names:
        raise DataError(f"{root}: no images in {shards[0].name}" + (" ..." if shards[1:] else ""))
    if found.numbered:
        top = max(map(int, found.owners))
        if classes is None and top >= len(found.owners):  # most classes would be empty
            raise DataError(
                f"{root}: a label is {top}, but there are only {len(found.owners)} images"
            )
        classes = classes or [str(n) for n in range(top + 1)]
        if top >= len(classes):
            raise DataError(f"{root}: a label is {top}, but info.json names {len(classes)} classes")
        if len(set(classes)) < len(classes):
            raise DataError(f"{root}: info.json names a class twice; its classes are to differ")
        labels = np.array([int(owner) for owner in found.owners], dtype=np.int64)
    else:
        classes = sorted(set(found.owners))
        number_of = {name: label for label, name in enumerate(classes)}
        labels = np.array([number_of[owner] for owner in found.owners], dtype=np.int64)
    names = found.names
    if len(set(names)) < len(names):  # keys that begin anew in each shard
        names = [f"{shards[s].stem}:{name}" for s, name in zip(found.shard, names, strict=True)]
    order = np.array(sorted(range(len(names)), key=lambda i: (labels[i], rank(names[i]))))
    packed = Names.pack(names[i] for i in order)
    columns = {name: np.array(getattr(found, name))[order] for name in ("shard", "offset", "size")}
    return {
        "classes": classes,
        "labels": labels[order],
        "characters": packed.characters,
        "ends": packed.ends,
        **columns,
    }


def _add_shard(found: _Found, number: int, path: Path, progress: Progress) -> None:
    """Pair the members of a shard by key, and add its images."""
    images: dict[str, tuple[str, int, int]] = {}
    owners: dict[str, str] = {}
    with path.open("rb") as file:
        for name, offset, size in _members(path, progress):
            parent, base = PurePosixPath(name).parent, PurePosixPath(name).name
            key = f"{parent}/{base.partition('.')[0]}"
            suffix = base.rpartition(".")[2].lower()
            if f".{suffix}" in SUFFIXES and not base.startswith("."):
                if key in images:
                    key = name  # a plain tar may have a.1.JPEG and a.2.JPEG
                images[key] = (name, offset, size)
            elif suffix in ("cls", "json"):
                file.seek(offset)
                label = _label(suffix, file.read(size))
                if label is not None and (suffix == "cls" or key not in owners):
                    owners[key] = label
    for key, (name, offset, size) in images.items():
        owner = owners.get(key, PurePosixPath(name).parent.name)
        numbered = key in owners and owner.isdecimal()
        if not owner:
            raise DataError(f"{path}: {name} has neither a .cls or .json nor a class folder")
        if found.numbered not in (None, numbered):
            raise DataError(f"{path}: {name} is labelled in another way than the images before it")
        found.numbered = numbered
        found.names.append(name)
        found.owners.append(owner)
        found.shard.append(number)
        found.offset.append(offset)
        found.size.append(size)


def _label(suffix: str, data: bytes) -> str | None:
    """The class in a ``.cls`` or ``.json`` member."""
    if suffix == "cls":
        return data.decode("utf-8", "replace").strip()
    try:
        label = json.loads(data).get("label")
    except (ValueError, AttributeError, RecursionError):
        return None
    return None if label is None else str(label)


def _members(path: Path, progress: Progress) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of the regular files in a tar."""
    end, done = path.stat().st_size, 0
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # it would keep them all: 1 kB an image
                if member.offset_data + member.size > end:
                    raise tarfile.ReadError("cut short")
                progress.advance(member.offset_data - done)
                done = member.offset_data
                if member.islnk() and PurePosixPath(member.name).suffix.lower() in SUFFIXES:
                    raise tarfile.ReadError(f"{member.name} is a hard link, not a file")
                if member.isreg():
                    yield str(PurePosixPath(member.name)), member.offset_data, member.size
            _require_end(path, tar.offset)
    except tarfile.TarError as error:
        raise DataError(
            f"{path} is not a readable, uncompressed tar ({error}); copy or make it again"
        ) from error
    progress.advance(end - done)


def _require_end(path: Path, offset: int) -> None:
    """Make sure that a tar ends where Python's tarfile stopped: it takes a broken header for the end.

    Raises:
        tarfile.ReadError: no block of zeros is there, or members come after it.
    """
    with path.open("rb") as file:
        file.seek(offset)
        if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            raise tarfile.ReadError(f"cut short or damaged at byte {offset}")
        while rest := file.read(1 << 20):
            if rest.strip(tarfile.NUL):
                raise tarfile.ReadError("more comes after its end, as in two tars made one by cat")


def _load(file: Path, facts: dict[str, Any]) -> dict[str, Any] | None:
    """A cached index, if it is whole and the shards are as they were."""
    try:
        with np.load(file, allow_pickle=False) as saved:
            head = json.loads(saved["head"].tobytes())
            if head["facts"] != facts:
                return None
            return {"classes": head["classes"], **{name: saved[name] for name in _ARRAYS}}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _save(file: Path, index: dict[str, Any], facts: dict[str, Any]) -> None:
    make_folder(file.parent)
    head = json.dumps({"facts": facts, "classes": index["classes"]}).encode()
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as stream:
            arrays = {name: index[name] for name in _ARRAYS}
            np.savez(stream, head=np.frombuffer(head, dtype=np.uint8), **arrays)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)

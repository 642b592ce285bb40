"""Writing prepared folders: streamed .npy files with hashes, whole or not at all.

A folder is written beside its target under a temporary name and renamed when it is complete, under
a lock that the operating system releases with the process; what a killed process left is removed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from dogmed.data.progress import Progress, human
from dogmed.errors import DataError

MANIFEST = "manifest.json"
_CLOCK_TICK = 0.02  # seconds; file systems take their times from a clock at least this fine
_MARGIN = 64 << 20  # bytes of disk left free beside what is written


@contextmanager
def locked(cache_dir: Path, key: str, progress: Progress) -> Iterator[None]:
    """Hold the lock of ``key``; a second process waits here and says so."""
    folder = make_folder(cache_dir / "locks")
    lock = FileLock(folder / f"{key}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress.note(f"waiting for another process that is preparing {key}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def make_folder(folder: Path) -> Path:
    """Create a folder of the cache; DataError when it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"cannot create {folder}: {error.strerror}; choose a writable folder with --cache-dir"
        ) from error
    if not os.access(folder, os.W_OK):
        raise DataError(f"cannot write in {folder}; choose a writable folder with --cache-dir")
    return folder


def check_space(folder: Path, needed: int, what: str) -> None:
    """Raise DataError unless ``needed`` bytes (and a margin) are free where ``folder`` lies."""
    free = free_space(folder)
    if free < needed + _MARGIN:
        raise DataError(
            f"{what} needs {human(needed + _MARGIN)} of disk, {human(free)} are free at {folder}; "
            f"free some or choose another disk with --cache-dir"
        )


def free_space(folder: Path) -> int:
    """Free bytes on the disk that holds (or will hold) ``folder``."""
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    return shutil.disk_usage(existing).free


class FolderWriter:
    """A prepared folder in the making; use as a context and call ``publish`` at the end.

    Leaving the context without ``publish`` removes everything written.
    """

    def __init__(self, target: Path, progress: Progress):
        self.target = target
        self.progress = progress
        self.files: dict[str, dict[str, Any]] = {}
        self._work = target.parent / f".tmp-{target.name}-{os.getpid()}"

    def __enter__(self) -> FolderWriter:
        make_folder(self.target.parent)
        for kind in ("tmp", "old"):  # left by a killed process: we hold the lock
            for stale in self.target.parent.glob(f".{kind}-{self.target.name}-*"):
                shutil.rmtree(stale, ignore_errors=True)
        self._work.mkdir()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        shutil.rmtree(self._work, ignore_errors=True)
        self.progress.finish()
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(
                f"the disk of {self.target.parent} is full ({error.strerror}); "
                f"free some or choose another with --cache-dir"
            ) from error

    def array(
        self, name: str, shape: tuple[int, ...], dtype: Any, pieces: Iterator[np.ndarray]
    ) -> None:
        """Stream ``pieces``, stacked along the first axis, into ``name``, an .npy of ``shape``."""
        path = self._work / name
        with path.open("wb") as file:
            header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            file.flush()
            digest = hashlib.sha256(path.read_bytes())
            rows = 0
            for piece in pieces:
                piece = np.ascontiguousarray(piece, dtype)
                assert piece.shape[1:] == shape[1:], (piece.shape, shape)
                file.write(piece.data)
                digest.update(piece.data)
                rows += len(piece)
                self.progress.advance(piece.nbytes)
            assert rows == shape[0], (rows, shape)
            file.flush()
            os.fsync(file.fileno())
        self.files[name] = {"sha256": digest.hexdigest(), "bytes": path.stat().st_size}

    def publish(self, manifest: dict[str, Any]) -> None:
        """Write the manifest and put the folder in place in one step."""
        write_json(self._work / MANIFEST, {**manifest, "files": self.files})
        if self.target.exists():  # damaged or of an older format: never seen half replaced
            old = self.target.parent / f".old-{self.target.name}-{os.getpid()}"
            self.target.rename(old)
            self._work.rename(self.target)
            shutil.rmtree(old, ignore_errors=True)
        else:
            self._work.rename(self.target)


def clean_stale(prepared_dir: Path, cache_dir: Path) -> None:
    """Remove what killed processes left: temporary folders whose lock nobody holds."""
    for stale in prepared_dir.glob(".*-*"):
        key = stale.name.split("-", 1)[1].rsplit("-", 1)[0]
        lock = FileLock(make_folder(cache_dir / "locks") / f"{key}.lock")
        try:
            with lock.acquire(timeout=0):
                shutil.rmtree(stale, ignore_errors=True)
        except Timeout:
            continue


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never a part."""
    part = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    with part.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def read_json(path: Path) -> dict[str, Any] | None:
    """The content of a JSON file that holds an object, or None when there is no such file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def file_digest(path: Path, algorithm: str, progress: Progress, what: str) -> str:
    """Hex digest (md5, sha256) of a file, with progress; DataError when it cannot be read."""
    if not path.is_file():
        raise DataError(f"{path} is not a regular file")
    digest = hashlib.new(algorithm, usedforsecurity=False)
    progress.start(what, path.stat().st_size)
    try:
        with path.open("rb") as file:
            while data := file.read(1 << 20):
                digest.update(data)
                progress.advance(len(data))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    finally:
        progress.finish()
    return digest.hexdigest()


def cached_digest(
    path: Path, facts: dict[str, Any], cache_dir: Path, compute: Callable[[], str] | None
) -> str | None:
    """What ``compute`` gave for ``path`` when ``facts`` were last the same, else computed now.

    With ``compute=None`` nothing is computed or written: None when it is not known yet.
    """
    place = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()
    record = cache_dir / "md5" / f"{place[:24]}.json"
    facts = {**facts, "path": place}
    known = read_json(record) or {}
    if facts.items() <= known.items() and isinstance(known.get("digest"), str):
        return str(known["digest"])
    if compute is None:
        return None
    digest = compute()
    make_folder(record.parent)
    write_json(record, {**facts, "digest": digest})
    return digest


def file_facts(stat: os.stat_result) -> dict[str, int]:
    """What changes with a file's content; the change time cannot be set back as others can."""
    return {
        "bytes": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "ctime_ns": stat.st_ctime_ns,
        "inode": stat.st_ino,
    }


def settle(ctime_ns: int) -> None:
    """Wait until another write would be given another change time than this one."""
    pause = ctime_ns / 1e9 + _CLOCK_TICK - time.time()
    if 0 < pause <= _CLOCK_TICK:
        time.sleep(pause)


def cached_md5(path: Path, cache_dir: Path, progress: Progress | None) -> str | None:
    """MD5 of a file, computed once for its place and ``file_facts``.

    With ``progress=None`` nothing is computed or written: None when it is not known yet.
    """
    facts = file_facts(path.stat())
    if progress is None:
        return cached_digest(path, facts, cache_dir, None)

    def compute() -> str:
        settle(facts["ctime_ns"])
        return file_digest(path, "md5", progress, f"checking {path.name}")

    return cached_digest(path, facts, cache_dir, compute)

"""Images in class folders: ``<class>/<name>.JPEG``."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from dogmed.errors import DataError
from dogmed.pretrain.images import SUFFIXES
from dogmed.pretrain.names import Names, rank


class FolderSource:
    """Files below a folder, by relative name."""

    def __init__(self, folder: Path, names: Names):
        self.folder, self.names = folder, names

    def read(self, place: int) -> bytes:
        return (self.folder / self.names[place]).read_bytes()


def scan(folder: Path) -> tuple[tuple[str, ...], np.ndarray, FolderSource]:
    """List a split: its classes (sorted), labels and files, without a look into any file.

    Raises DataError when there are no class folders; empty ones are left for the caller to name.
    """
    with os.scandir(folder) as entries:
        visible = [e for e in entries if not e.name.startswith(".")]
    classes = tuple(sorted(e.name for e in visible if e.is_dir()))
    if not classes:
        loose = sum(Path(e.name).suffix.lower() in SUFFIXES for e in visible)
        what = f"{loose} images but no class folders" if loose else "no class folders"
        raise DataError(f"{folder} holds {what}; expected {folder.name}/<class>/<name>.JPEG")
    names: list[str] = []
    counts = []
    for label in classes:
        with os.scandir(folder / label) as entries:
            files = [
                e.name
                for e in entries
                if os.path.splitext(e.name)[1].lower() in SUFFIXES  # noqa: PTH122 (a million times)
                and not e.name.startswith(".")
            ]
        names += [f"{label}/{file}" for file in sorted(files, key=rank)]
        counts.append(len(files))
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), counts)
    return classes, labels, FolderSource(folder, Names.pack(names))

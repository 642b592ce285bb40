"""Several files put into a folder together: all of them are there, or none has changed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from dogmed.errors import ConfigError


def refuse_file(folder: Path, flag: str) -> None:
    """Refuse a file where a folder is to be.

    Raises:
        ConfigError: it, or what it is to lie in, is a file.
    """
    for place in (folder, *folder.parents):
        if place.exists():
            if not place.is_dir():
                raise ConfigError(f"{flag} {folder}: {place} is a file; give a folder")
            return


def publish(folder: Path, files: Mapping[str, str]) -> None:
    """Write texts by file name into ``folder``, which is made if need be.

    All are written, on the disk for good, to a folder beside their places before the first takes its
    place: a disk that is full changes nothing.

    Raises:
        ConfigError: the folder cannot be written, or has no room.
    """
    new = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in files:
            if (folder / name).is_dir():
                raise IsADirectoryError(0, f"{name} there is a folder")
        with tempfile.TemporaryDirectory(prefix=".report-", dir=folder) as beside:
            for name, text in files.items():
                with (Path(beside) / name).open("wb") as file:
                    file.write(text.encode(errors="backslashreplace"))
                    file.flush()
                    os.fsync(file.fileno())
            for name in files:
                (Path(beside) / name).replace(folder / name)
    except OSError as error:
        for place in new:
            if place.is_dir() and not any(place.iterdir()):
                place.rmdir()
        raise ConfigError(
            f"cannot write the report into {folder} ({error.strerror or error}); nothing there has "
            "changed; make room, or give another folder with --to"
        ) from None

"""What the words behind ``dogmed predict MODEL`` stand for: image files, and those at and below folders."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dogmed.data.folder import SUFFIXES
from dogmed.errors import ConfigError, DataError, WeightsError, reason
from dogmed.inference.reading.pictures import is_dicom
from dogmed.weights.records import SUFFIX, weights_file

IMAGE_SUFFIXES = (*SUFFIXES, ".webp", ".gif", ".dcm", ".dicom")
_STARTS = (
    b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"BM", b"GIF8",
)  # fmt: skip


@dataclass(frozen=True)
class Found:
    """The files that the words name, each once."""

    files: tuple[Path, ...]
    passed_over: int
    """Files in folders that are no images, by name and content."""


def refuse_unreachable(path: Path, option: str = "") -> None:
    """Make sure that a path can be looked for, whether it is there or not.

    Args:
        path: given by the user.
        option: that it was given for, with a space, for the message.

    Raises:
        ConfigError: a name in it is too long, or a folder is closed to the user.
    """
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise ConfigError(f"{option}{path}: {reason(error)}") from None


def refuse_unwritable(out: Path, folder: Path) -> None:
    """Make sure, before anything is worked out for ``out``, that files can be made in ``folder``.

    Raises:
        ConfigError: they cannot, or not under the longer name of one that is not whole yet.
    """
    try:  # as ``dogmed.checkpoint.atomic_path`` names it
        with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{out.name}.", suffix=".tmp"):
            pass
    except OSError as error:
        raise ConfigError(
            f"--out {out}: nothing can be written into {folder} ({reason(error)})"
        ) from None


def refuse_swapped(model: str, images: Sequence[Path]) -> None:
    """Make sure that the model comes first.

    Raises:
        ConfigError: it is an image, or no model where one of the images is, or one of them cannot be
            looked for.
    """
    first = Path(model).expanduser()
    for path in (first, *images):
        refuse_unreachable(path)
    if first.is_file() and (first.suffix.lower() == ".npz" or _is_image(first)):
        raise ConfigError(f"the model comes first, then images: {model} is no model")
    swapped = [path for path in images if _is_model(path)] if first.is_dir() else []
    if swapped and not _is_model(first):
        raise ConfigError(
            f"the model comes first, then images: {model} is no model, and {swapped[0]} is one"
        )


def find_images(given: Sequence[Path]) -> Found:
    """List image files: those given, and those at and below folders, in the order of names.

    A folder's hidden files are left alone; of the others those are images that are named so or begin so.
    Links to folders are followed, and each folder is visited once.

    Raises:
        DataError: something given is not there, or a folder has no image.
    """
    files: dict[Path, None] = {}
    passed_over = 0
    for path in given:
        if not path.is_dir():
            if not (path.exists() or path.is_symlink()):
                raise DataError(f"there is no file or folder {path}")
            files[path] = None
            continue
        found = {file: _is_image(file) for file in _below(path)}
        passed_over += sum(not image for image in found.values())
        if not any(found.values()):
            raise DataError(f"{path} has no image, at or below it ({', '.join(IMAGE_SUFFIXES)})")
        files |= dict.fromkeys(file for file, image in found.items() if image)
    return Found(tuple(files), passed_over)


def _below(folder: Path) -> Iterator[Path]:
    """All files at and below a folder that are not hidden."""
    visited = set[tuple[int, int]]()
    for root, names, files in os.walk(folder, followlinks=True, onerror=_refuse):
        here = Path(root)
        place = here.stat()
        if (place.st_dev, place.st_ino) in visited:
            names.clear()
            continue
        visited.add((place.st_dev, place.st_ino))
        names[:] = sorted(name for name in names if not name.startswith("."))
        yield from (here / name for name in sorted(files) if not name.startswith("."))


def _refuse(error: OSError) -> None:
    raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error


def _is_model(path: Path) -> bool:
    """Whether a file or a folder is a model's."""
    if not path.is_dir():
        return path.suffix == SUFFIX
    try:
        weights_file(path)
    except WeightsError:
        return False
    return True


def _is_image(path: Path) -> bool:
    """Whether a file is named as an image is, or begins as one; one that cannot be read goes by its name."""
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return True
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            start = file.read(132)
    except OSError:
        return False
    webp = start[:4] == b"RIFF" and start[8:12] == b"WEBP"
    return start.startswith(_STARTS) or webp or is_dicom(start)

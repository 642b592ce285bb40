"""Image folders as data: ``DIR/{train,val,test}/<class>/*.png|jpg|jpeg|bmp|tif|tiff``."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from dogmed.data.progress import Progress
from dogmed.data.request import is_plain
from dogmed.data.tasks import SPLITS
from dogmed.data.writer import cached_digest, file_facts, settle
from dogmed.errors import DataError, nearest

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
_FORMATS = ("PNG", "JPEG", "BMP", "TIFF")
_GREY_MODES = ("1", "L", "LA", "La")
_COLOUR_MODES = ("RGB", "RGBA", "RGBa", "RGBX", "P", "PA", "CMYK", "YCbCr", "HSV", "LAB")
_CHUNK = 64  # images decoded at a time
_THREADS = 4  # PIL decodes outside the GIL


@dataclass(frozen=True)
class FolderSource:
    """A scanned image folder: the files of each split, their class indices, and a fingerprint."""

    path: Path
    classes: tuple[str, ...]
    files: dict[str, list[Path]]
    targets: dict[str, list[int]]
    channels: int
    fingerprint: str  # sha256 over relative names and content; empty when not yet known
    ignored: tuple[str, ...]
    sizes: list[tuple[int, int]] = field(default_factory=list)  # (H, W) seen while reading

    def samples(self, split: str) -> int:
        return len(self.files[split])

    def labels(self, split: str) -> np.ndarray:
        """The class indices of a split as (N, 1) int64."""
        return np.array(self.targets[split], dtype=np.int64)[:, None]

    def images(self, split: str, size: int) -> Iterator[np.ndarray]:
        """The images in file order at ``size``: (n, size, size) or (n, size, size, 3) uint8."""
        paths = iter(self.files[split])
        with ThreadPoolExecutor(_THREADS) as pool:
            while chunk := list(islice(paths, _CHUNK)):
                read = list(pool.map(lambda p: _read_image(p, self.channels, size), chunk))
                for _, seen in read:
                    if seen not in self.sizes:
                        self.sizes.append(seen)
                yield np.stack([pixels for pixels, _ in read])


def resize(image: Image.Image, size: int) -> Image.Image:
    """To size × size pixels, bilinear; PIL widens the filter to shrink, so nothing aliases."""
    if image.size == (size, size):
        return image
    return image.resize((size, size), Image.Resampling.BILINEAR)


def _read_image(path: Path, channels: int, size: int) -> tuple[np.ndarray, tuple[int, int]]:
    """One file as upright 8-bit pixels, and its own height and width."""
    with _opened(path) as opened:
        image = ImageOps.exif_transpose(opened).convert("RGB" if channels == 3 else "L")
        return np.asarray(resize(image, size)), (image.height, image.width)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An image file of a mode that can be used; what goes wrong with it becomes a DataError."""
    try:
        with Image.open(path, formats=_FORMATS) as image:
            _check_mode(image, path)
            yield image
    except DataError:
        raise
    except Exception as error:  # Pillow's readers raise errors of every kind on damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{path} is not a readable image ({reason}); remove it or save it again"
        ) from error


def _check_mode(image: Image.Image, path: Path) -> None:
    if image.mode not in (*_GREY_MODES, *_COLOUR_MODES):
        raise DataError(
            f"{path} has {'16' if image.mode.startswith('I;16') else '32'}-bit pixels (PIL mode "
            f"{image.mode}); save it as 8-bit: which range of values to keep is for you to choose"
        )
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise DataError(f"{path} holds {frames} frames; save the one to classify as its own file")


def scan_folder(path: Path, cache_dir: Path, progress: Progress | None) -> FolderSource:
    """List an image folder without decoding pixels.

    The fingerprint is taken from the cache while no file changed; with ``progress=None`` it is not
    computed. Raises DataError when a split is missing or empty, the splits' classes differ, or
    something cannot be read.
    """
    try:
        return _scan(path, cache_dir, progress)
    except OSError as error:
        raise DataError(f"{error.filename or path} cannot be read: {error.strerror}") from error


def _scan(path: Path, cache_dir: Path, progress: Progress | None) -> FolderSource:
    for split in SPLITS:
        if not (path / split).is_dir():
            raise DataError(_missing_split(path, split))
    classes = tuple(sorted(p.name for p in _folders(path / "train")))
    if len(classes) < 2:
        raise DataError(
            f"{path / 'train'} has {len(classes)} class folders ({', '.join(classes) or 'none'}); "
            f"put the images of each class into a folder of its own, at least two"
        )
    files: dict[str, list[Path]] = {}
    targets: dict[str, list[int]] = {}
    ignored: list[str] = []
    for split in SPLITS:
        _check_classes(path, split, classes)
        found = [
            (p, i) for i, name in enumerate(classes) for p in _images(path / split / name, ignored)
        ]
        if not found:
            raise DataError(f"{path / split} holds no image ({', '.join(SUFFIXES)})")
        files[split], targets[split] = [p for p, _ in found], [i for _, i in found]
    fingerprint = _fingerprint(path, [p for s in SPLITS for p in files[s]], cache_dir, progress)
    channels = 3 if any(_is_colour(p) for split in SPLITS for p in files[split]) else 1
    return FolderSource(path, classes, files, targets, channels, fingerprint, tuple(ignored))


def _fingerprint(path: Path, images: list[Path], cache_dir: Path, progress: Progress | None) -> str:
    """sha256 over the files' relative names and content, remembered while no file changes."""
    facts, total, latest = hashlib.sha256(), 0, 0
    for image in images:
        known = file_facts(image.stat())
        total += known["bytes"]
        latest = max(latest, known["ctime_ns"])
        facts.update(f"{image.relative_to(path).as_posix()}\0{sorted(known.items())}\n".encode())

    def compute() -> str:
        assert progress is not None
        settle(latest)
        content = hashlib.sha256()
        progress.start(f"checking {len(images):,} images", total)
        try:
            for image in images:
                with image.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").digest()
                    progress.advance(file.tell())
                content.update(f"{image.relative_to(path).as_posix()}\0".encode() + digest)
        finally:
            progress.finish()
        return content.hexdigest()

    given = {"files": facts.hexdigest()}
    return cached_digest(path, given, cache_dir, None if progress is None else compute) or ""


def _folders(path: Path) -> list[Path]:
    found = [p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")]
    for folder in found:
        _check_name(folder)
    return found


def _check_name(path: Path) -> None:
    """Names become classes and lines of text: no bytes that are not UTF-8, no line breaks."""
    if not is_plain(path.name):
        raise DataError(
            f"{path.parent} holds the name {os.fsencode(path.name)!r}, which is not UTF-8 or "
            f"has control characters; rename it"
        )


def _images(folder: Path, ignored: list[str]) -> list[Path]:
    found = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name in ("Thumbs.db", "desktop.ini"):
            continue
        _check_name(path)
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise DataError(
                f"{path} is a folder inside a class folder; put the images directly into {folder}"
            )
        if not stat.S_ISREG(mode):
            raise DataError(f"{path} is not a regular file; remove it")
        if path.suffix.lower() in SUFFIXES:
            found.append(path)
        else:
            ignored.append(path.name)
    return found


def _check_classes(path: Path, split: str, classes: tuple[str, ...]) -> None:
    here = {p.name for p in _folders(path / split)}
    for name in sorted(here - set(classes)):
        raise DataError(
            f"{path / split / name}: class '{name}' is not in train{nearest(name, classes)}; "
            f"all splits need the same class folders: {', '.join(classes)}"
        )
    for name in classes:
        if name not in here:
            raise DataError(
                f"{path / split} has no folder '{name}'{nearest(name, here)}; all splits "
                "need the same "
                f"class folders (an empty one is allowed)"
            )


def _missing_split(path: Path, split: str) -> str:
    there = sorted(p.name for p in _folders(path))
    hint = nearest(split, there)
    if split == "val" and not hint:
        return (
            f"{path} has no folder 'val'; move a part of the training images (all of a patient "
            f"together) into {path / 'val'}/<class>: nothing is split silently"
        )
    return (
        f"{path} has no folder '{split}'{hint}; an image folder has train, val and test with one "
        f"folder per class, this one has {', '.join(there) or 'no folders'}"
    )


def _is_colour(path: Path) -> bool:
    with _opened(path) as image:
        return image.mode in _COLOUR_MODES

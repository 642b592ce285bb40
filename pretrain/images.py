"""Where the images come from: class folders, tar shards or parquet files, behind one interface.

An ``ImageSet`` knows its labels and reads the i-th file; nothing is decoded or held before it is asked
for. All forms give random access, because an epoch that can be resumed exactly needs it; timm's own
readers of folders and of Hugging Face data sets have it, its webdataset reader streams (see
``dogmed.pretrain.shards``). Folders and shards are sorted by class and name, so that the same files in
either form give the same subsets, order and random crops. This module loads no PyTorch.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image

from dogmed.data.progress import Progress, Quiet
from dogmed.data.request import default_cache_dir
from dogmed.errors import DataError, nearest
from dogmed.pretrain.names import Names

Split = Literal["train", "val"]
Kind = Literal["folder", "shards", "parquet"]
SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm"))
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "GIF", "TIFF")  # what such files really hold
_FOLDERS: dict[str, tuple[str, ...]] = {"train": ("train",), "val": ("val", "validation")}
_UNREADABLE = (
    OSError,
    SyntaxError,  # Pillow's for a broken PNG
    ValueError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)


class ImageError(DataError):
    """One image file that cannot be decoded."""


class Source(Protocol):
    """Files in a fixed order."""

    names: Names

    def read(self, place: int) -> bytes:
        """The content of a file; OSError when it cannot be had."""


@dataclass(frozen=True)
class ImageSet:
    """Labelled image files, or a part of them.

    Args:
        kind: the form they are stored in.
        root: the folder given by the user.
        split: train or val.
        classes: names of the classes; a label is an index into them.
        labels: (N,) int64.
        positions: (N,) int64, each image's place in the whole split; its random numbers and its file
            depend on it, so a subset sees the same crops as the whole.
        source: the files of the whole split.
    """

    kind: Kind
    root: Path
    split: Split
    classes: tuple[str, ...]
    labels: np.ndarray
    positions: np.ndarray
    source: Source

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, i: int) -> str:
        """What the i-th image is called in messages and file lists; unique in the split."""
        return self.source.names[int(self.positions[i])]

    def read(self, i: int) -> bytes:
        """The file of the i-th image."""
        return self.source.read(int(self.positions[i]))

    def open(self, i: int) -> Image.Image:
        """The i-th image, decoded, RGB. Raises ImageError, or OSError from the disk."""
        return load_rgb(open_image(self.read(i)))

    def take(self, indices: np.ndarray, classes: tuple[str, ...]) -> ImageSet:
        """The images at ``indices``, all of ``classes``, with labels numbered in their order."""
        number = {name: label for label, name in enumerate(classes)}
        numbers = np.array([number.get(name, -1) for name in self.classes], dtype=np.int64)
        labels = numbers[self.labels[indices]]
        assert (labels >= 0).all()
        return replace(self, classes=classes, labels=labels, positions=self.positions[indices])

    def record(self) -> dict[str, Any]:
        """What a run or a weights file says of its data."""
        return {
            "kind": self.kind,
            "split": self.split,
            "images": len(self),
            "classes": len(self.classes),
        }


def open_image(data: bytes) -> Image.Image:
    """Read the header of an image file; the pixels wait for ``load_rgb``. Raises ImageError."""
    try:
        return Image.open(io.BytesIO(data), formats=_FORMATS)
    except Image.UnidentifiedImageError:
        raise ImageError("not an image" if data else "an empty file") from None
    except _UNREADABLE as error:
        raise ImageError(str(error)) from None


def load_rgb(image: Image.Image) -> Image.Image:
    """Decode, and convert to RGB as timm does.

    Raises:
        ImageError: the file is truncated, say, or has more than 8 bits a channel: Pillow would cut
            off all that is brighter than 255.
    """
    if image.mode.startswith(("I", "F")):
        raise ImageError(f"pixels of more than 8 bits (mode {image.mode})")
    try:
        image.load()
        return image if image.mode == "RGB" else image.convert("RGB")
    except _UNREADABLE as error:
        raise ImageError(str(error)) from None


def open_splits(
    data: Path | str, *, cache_dir: Path | None = None, progress: Progress | None = None
) -> tuple[ImageSet, ImageSet]:
    """Open train and val, and check that they belong together; val's labels are numbered as train's.

    Arguments and errors as in ``open_images``; also DataError unless both have the same classes.
    """
    train = open_images(data, "train", cache_dir=cache_dir, progress=progress)
    val = open_images(data, "val", cache_dir=cache_dir, progress=progress)
    for names, missing_in in ((val.classes, train), (train.classes, val)):
        missing = sorted(set(names) - set(missing_in.classes))
        if missing:
            other = "val" if missing_in is train else "train"
            near = nearest(missing[0], missing_in.classes)
            raise DataError(
                f"{data}: {_some(missing, 'class', 'classes')} of {other} not in "
                f"{missing_in.split}{near}; both splits need the same classes"
            )
    return train, val.take(np.arange(len(val)), train.classes)


def open_images(
    data: Path | str,
    split: Split,
    *,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> ImageSet:
    """Open one split of a folder, in the first of these forms that is there.

    1. class folders: ``train/<class>/*.JPEG``, ``val/<class>/*.JPEG``;
    2. tar shards: ``*train*.tar``, ``*val*.tar``, webdataset's (``key.jpg`` with ``key.cls`` or
       ``key.json``) or a plain tar of ``<class>/<name>.JPEG``;
    3. Hugging Face parquet files, here or in ``data/``: ``train-*.parquet``, ``validation-*.parquet``,
       or a data set of ``save_to_disk``; needs the extra ``dogmed[parquet]``.

    Args:
        data: the folder that holds both splits.
        split: which one.
        cache_dir: where the index of tar shards and the Arrow form of parquet files are kept; None
            is the user's cache folder.
        progress: told of the indexing.

    Raises:
        DataError: nothing usable is there, a class is empty, or a file is damaged.
    """
    root = Path(data).expanduser()
    cache_dir = default_cache_dir() if cache_dir is None else cache_dir
    progress = progress or Quiet()
    _require_folder(root)
    try:
        found = _open(root, split, cache_dir, progress)
    except OSError as error:
        raise DataError(f"{error.filename or root}: cannot be read ({error.strerror})") from error
    _refuse_empty(found)
    for name in found.classes:  # which stand in JSON and in weights
        if not name.isascii() and any("\ud800" <= c <= "\udfff" for c in name):
            raise DataError(f"{root}: the name of class {name} is not UTF-8; rename its folder")
    return found


def _open(root: Path, split: Split, cache_dir: Path, progress: Progress) -> ImageSet:
    folders = [root / name for name in _FOLDERS[split] if (root / name).is_dir()]
    if folders:
        from dogmed.pretrain.class_folders import scan

        return _whole("folder", root, split, *scan(folders[0]))
    tars = _of_split(root.glob("*.tar"), split)
    if tars:
        from dogmed.pretrain.shards import index_shards

        return _whole("shards", root, split, *index_shards(root, tars, cache_dir, progress))
    files = _of_split([*root.glob("*.parquet"), *root.glob("data/*.parquet")], split)
    if files or (root / "dataset_dict.json").is_file():
        from dogmed.pretrain.parquet import open_parquet

        return _whole("parquet", root, split, *open_parquet(root, split, files, cache_dir))
    raise DataError(_nothing(root, split))


def _whole(
    kind: Kind,
    root: Path,
    split: Split,
    classes: tuple[str, ...],
    labels: np.ndarray,
    source: Source,
) -> ImageSet:
    return ImageSet(kind, root, split, classes, labels, np.arange(len(labels)), source)


def _of_split(files: Any, split: Split) -> list[Path]:
    """The files that carry the split's name as a word: ``tiny64-val20.tar``, ``train-00.parquet``."""
    return sorted(f for f in files if re.search(rf"(?<![a-z]){split}", f.name.lower()))


def _require_folder(root: Path) -> None:
    if root.is_file():
        raise DataError(f"{root} is a file; give the folder that holds the splits (train and val)")
    if not root.is_dir():
        near = ""
        if root.parent.is_dir():
            near = nearest(root.name, [p.name for p in root.parent.iterdir() if p.is_dir()])
        raise DataError(f"{root}: no such folder{near}")


def _nothing(root: Path, split: Split) -> str:
    """Why no images of ``split`` were found, with the nearest thing that is there."""
    entries = sorted(p for p in root.iterdir() if not p.name.startswith("."))
    folders = [p.name for p in entries if p.is_dir()]
    wanted = f"{split}/<class>/*.JPEG, *{split}*.tar or {split}*.parquet"
    for entry in entries:
        if any((entry / name).is_dir() for name in _FOLDERS[split]):
            return f"{root} has no {split} split, but {entry} has: give that folder"
    if root.name in _FOLDERS["train"] + _FOLDERS["val"] and folders:
        return f"{root} is one split itself: give the folder above, {root.parent}"
    packed = _of_split((p for p in entries if re.search(r"\.(tar\.\w+|tgz)$", p.name)), split)
    if packed:
        return f"{packed[0]} is compressed: random access needs a plain .tar; unpack it first"
    if any(p.suffix.lower() in SUFFIXES for p in entries):
        return f"{root} holds images without class folders; expected {wanted}"
    if not entries:
        return f"{root} is empty; expected {wanted}"
    return f"{root} has no {split} split{nearest(split, folders)}; expected {wanted}"


def _refuse_empty(images: ImageSet) -> None:
    counts = np.bincount(images.labels, minlength=len(images.classes))
    empty = [name for name, count in zip(images.classes, counts, strict=True) if not count]
    if not len(images):
        raise DataError(
            f"{images.root}: {images.split} has no images ({', '.join(sorted(SUFFIXES))}) right in "
            "its class folders"
            if images.kind == "folder"
            else f"{images.root}: {images.split} has no images"
        )
    if empty:
        raise DataError(
            f"{images.root}: {_some(empty, 'class', 'classes')} of {images.split} without images; "
            "add them, or remove the class from both splits"
        )


def _some(names: Sequence[str], one: str, many: str) -> str:
    """``class n01`` or ``7 classes (n01, n02, n03, ...)``."""
    if len(names) == 1:
        return f"{one} {names[0]}"
    more = ", ..." if len(names) > 3 else ""
    return f"{len(names)} {many} ({', '.join(names[:3])}{more})"

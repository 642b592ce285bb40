"""Reading MedMNIST's npz format as a stream: constant memory, checksums, nothing unpickled.

``numpy.load`` ignores ``mmap_mode`` for npz and would hold up to 16 GB; here each member of the
zip is read piece by piece. Every error is one line that names the file, the key and the remedy.
"""

from __future__ import annotations

import io
import lzma
import math
import os
import struct
import tokenize
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy_format

from dogmed.data.tasks import SPLITS
from dogmed.errors import DataError, nearest

KEYS = tuple(f"{split}_{what}" for split in SPLITS for what in ("images", "labels"))
CHUNK_BYTES = 4 << 20
_MAX_HEADER = 10_000  # bytes, numpy's own limit
_MAX_LABELS = 1000  # columns
_MAX_LABEL_VALUES = 1 << 28  # they are held in memory, as 8 bytes each
_MAX_PIXELS = 178_956_970  # of one image, Pillow's own limit
_MAGIC = {
    (1, 0): ("<H", npy_format.read_array_header_1_0),
    (2, 0): ("<I", npy_format.read_array_header_2_0),
}
_BROKEN_ZIP = (  # what zipfile and the decompressors raise on damaged files
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    OSError,
    RuntimeError,
    ValueError,
    LookupError,
    OverflowError,
)
_BROKEN_HEADER = (  # what numpy raises on headers that are no such dict
    ValueError,
    TypeError,
    SyntaxError,
    LookupError,
    OverflowError,
    MemoryError,
    RecursionError,
    AttributeError,
    tokenize.TokenError,
)


@dataclass(frozen=True)
class Member:
    """One array of the file, as its header declares it."""

    key: str
    file: str  # its name in the zip
    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class NpzSource:
    """An npz file whose headers were found to be in order; the content is checked as it streams."""

    path: Path
    members: dict[str, Member]
    extra: tuple[str, ...]

    @property
    def _first(self) -> Member:
        """The images that all others are like."""
        return next(member for key, member in self.members.items() if key.endswith("_images"))

    def samples(self, split: str) -> int:
        return self.members[f"{split}_images"].shape[0]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self._first.shape[1:3]
        return height, width

    @property
    def channels(self) -> int:
        shape = self._first.shape
        return shape[3] if len(shape) == 4 else 1

    def labels(self, split: str) -> np.ndarray:
        """The labels of a split as (N, L) int64."""
        member = self.members[f"{split}_labels"]
        data = b"".join(self._stream(member, CHUNK_BYTES))
        order = "F" if member.fortran else "C"
        array = np.frombuffer(data, member.dtype).reshape(member.shape, order=order)  # type: ignore[call-overload]
        if member.dtype.kind == "u" and array.size and int(array.max()) > np.iinfo(np.int64).max:
            raise DataError(f"{self.path}: {member.key} holds values beyond 64-bit integers")
        array = array.astype(np.int64)
        return array[:, None] if array.ndim == 1 else array  # (N,) -> (N, 1)

    def images(self, split: str) -> Iterator[np.ndarray]:
        """The images of a split in order, 4 MB at a time: (n, H, W) or (n, H, W, 3) uint8."""
        member = self.members[f"{split}_images"]
        shape = member.shape[1:3] if self.channels == 1 else member.shape[1:]
        row = math.prod(shape)
        for data in self._stream(member, max(1, CHUNK_BYTES // row) * row):
            yield np.frombuffer(data, np.uint8).reshape(-1, *shape)

    def _stream(self, member: Member, piece: int) -> Iterator[bytes]:
        """The array's bytes in pieces of ``piece``; the zip's CRC is checked at the end."""
        where = f"{self.path}: {member.key}"
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(member.file) as stream:
                read_header(stream, where)
                left = member.bytes
                while left:
                    data = stream.read(min(piece, left))
                    if len(data) != min(piece, left):
                        raise DataError(
                            f"{where} ends {left - len(data)} bytes too early for shape "
                            f"{member.shape}; the file is damaged, fetch or save it again"
                        )
                    left -= len(data)
                    yield data
                if stream.read(1):  # the last read also makes zipfile compare the CRC
                    raise DataError(
                        f"{where} holds more bytes than its shape {member.shape}; save it again"
                    )
        except DataError:
            raise
        except _BROKEN_ZIP as error:
            raise _damaged(where, error) from error


def open_npz(path: Path, keys: Sequence[str] = KEYS) -> NpzSource:
    """Check the arrays' headers of a MedMNIST-style file and return it ready to stream.

    Args:
        path: of the file.
        keys: arrays that are needed, of ``KEYS``: of each split whose labels are, the images too.

    Raises:
        DataError: the file is not a zip, is cut off, lacks a key, holds pickled objects, or has other
            arrays than uint8 images (N, H, W[, 3]) and integer labels (N[, L]).
    """
    if not path.is_file():
        raise DataError(f"there is no regular file {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            files = archive.namelist()
            names = [" ".join(n.removesuffix(".npy").split()) for n in files]
            if twice := [n for n, count in Counter(names).items() if count > 1]:
                raise DataError(f"{path} holds {twice[0]!a} more than once; save it again")
            for key in keys:
                if key not in names:
                    raise DataError(
                        f"{path}: no array '{key}'{nearest(key, names)}; MedMNIST's "
                        "format has the keys "
                        f"{', '.join(KEYS)}, this file has {', '.join(names[:12]) or 'none'}"
                    )
            members = {}
            for key in keys:
                file = files[names.index(key)]
                with archive.open(file) as stream:
                    members[key] = Member(key, file, *read_header(stream, f"{path}: {key}"))
    except DataError:
        raise
    except _BROKEN_ZIP as error:
        raise _damaged(str(path), error, path) from error
    npz = NpzSource(path, members, tuple(sorted(set(names) - set(KEYS))))
    for split in SPLITS:
        images, labels = (members.get(f"{split}_{what}") for what in ("images", "labels"))
        if images is not None:
            _check_images(path, images, npz._first)
        if images is not None and labels is not None:
            _check_label_member(path, labels, images, members)
    return npz


def write_npz(
    path: Path, arrays: Iterable[tuple[str, tuple[int, ...], np.dtype, Iterable[np.ndarray]]]
) -> None:
    """Write (key, shape, dtype, pieces) arrays as an uncompressed npz, whole or not at all."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
            for key, shape, dtype, pieces in arrays:
                with archive.open(f"{key}.npy", "w", force_zip64=True) as stream:
                    header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
                    npy_format.write_array_header_1_0(stream, header)
                    for piece in pieces:
                        stream.write(np.ascontiguousarray(piece, dtype).data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def read_header(stream: IO[bytes], where: str) -> tuple[tuple[int, ...], np.dtype, bool]:
    """Shape, dtype and order from an .npy header, leaving the stream at the data.

    Raises DataError for anything but a plain array of plain numbers.
    """
    try:
        version = npy_format.read_magic(stream)
        if version not in _MAGIC:
            raise DataError(
                f"{where}: .npy version {version} is not supported; save it with numpy.savez"
            )
        length, parse = _MAGIC[version]
        raw = stream.read(struct.calcsize(length))
        header = stream.read(min(_MAX_HEADER, *struct.unpack(length, raw)))
        shape, fortran, dtype = parse(io.BytesIO(raw + header))
        if not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError(f"its shape is {shape}")
    except DataError:
        raise
    except (*_BROKEN_HEADER, struct.error) as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise DataError(
            f"{where} is not a numpy array ({reason}); save it with numpy.savez"
        ) from error
    if dtype.hasobject:
        raise DataError(
            f"{where} holds pickled Python objects (dtype object), which are never loaded; "
            f"save plain arrays: images uint8, labels integers, all of one shape"
        )
    return shape, dtype, fortran


def _check_images(path: Path, member: Member, first: Member) -> None:
    where, shape = f"{path}: {member.key}", member.shape
    if member.dtype != np.uint8:
        advice = (
            "scale them to 0..255 and save as uint8"
            if member.dtype.kind == "f"
            else "save them as uint8"
        )
        raise DataError(f"{where} is {member.dtype}, expected uint8; {advice}")
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3)):
        advice = "stack the images along the first axis"
        if len(shape) == 4 and shape[1] in (1, 3):
            advice = "move the channels last with .transpose(0, 2, 3, 1)"
        elif len(shape) == 4:
            advice = "dogmed classifies 2D images; volumes are not supported"
        raise DataError(f"{where} has shape {shape}, expected (N, H, W) or (N, H, W, 3); {advice}")
    if min(shape[:3]) == 0:
        raise DataError(
            f"{where} has shape {shape}: it holds no image; every split needs at least one"
        )
    if math.prod(shape[1:]) > _MAX_PIXELS:
        raise DataError(
            f"{where} has shape {shape}: an image of more than {_MAX_PIXELS:,} values; make them "
            f"smaller before you save them"
        )
    if shape[1:] != first.shape[1:]:
        raise DataError(
            f"{where} has images of shape {shape[1:]}, but {first.key} of {first.shape[1:]}; "
            f"all splits need one shape"
        )
    if member.fortran:
        raise DataError(
            f"{where} is stored in Fortran order, which cannot be streamed image by image; "
            f"save numpy.ascontiguousarray(images)"
        )


def _check_label_member(
    path: Path, member: Member, images: Member, members: dict[str, Member]
) -> None:
    where, shape = f"{path}: {member.key}", member.shape
    if member.dtype.kind not in "iub":
        raise DataError(
            f"{where} is {member.dtype}, expected integers; save labels.astype('int64')"
        )
    if len(shape) not in (1, 2) or (len(shape) == 2 and shape[1] == 0):
        raise DataError(f"{where} has shape {shape}, expected (N,), (N, 1) or (N, labels)")
    if shape[1:] > (_MAX_LABELS,):
        raise DataError(f"{where} has {shape[1]} columns, at most {_MAX_LABELS} are read")
    if math.prod(shape) > _MAX_LABEL_VALUES:
        raise DataError(f"{where} has shape {shape}, at most {_MAX_LABEL_VALUES:,} labels are read")
    if shape[0] != images.shape[0]:
        raise DataError(
            f"{where} has {shape[0]} rows, but {images.key} has {images.shape[0]} images; "
            f"each image needs one row"
        )
    first = next(one for one in members.values() if one.key.endswith("_labels"))
    width, expected = (one.shape[1:] or (1,) for one in (member, first))
    if width != expected:
        raise DataError(f"{where} has {width[0]} columns, but {first.key} has {expected[0]}")


def _damaged(where: str, error: Exception, path: Path | None = None) -> DataError:
    """Say what kind of broken file this is."""
    if isinstance(error, OSError) and not isinstance(error, EOFError) and error.errno:
        return DataError(f"{where} cannot be read: {error.strerror}")
    start = b""
    if path is not None:
        with path.open("rb") as file:
            start = file.read(16)
    if path is not None and not start:
        return DataError(f"{where} is empty; fetch or save it again")
    if start.lstrip()[:1] == b"<":
        return DataError(
            f"{where} is a web page, not an npz file; the download was refused, fetch it again"
        )
    if start.startswith(b"\x93NUMPY"):
        return DataError(f"{where} is a single .npy array; save the six arrays with numpy.savez")
    if start and not start.startswith(b"PK"):
        return DataError(f"{where} is not an npz (zip) file; save it with numpy.savez")
    reason = " ".join(str(error).split()) or type(error).__name__
    return DataError(f"{where} is truncated or damaged ({reason}); fetch or save it again")

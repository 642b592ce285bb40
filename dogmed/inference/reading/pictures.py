"""From a file, a PIL image or an array to what a network takes: one 8-bit RGB picture, as in training.

Training data came upright, in 8 bits, in grey if the task is grey, and stretched to a square
(``dogmed.data.folder``, ``dogmed.data.sources``); so does everything here, in the same order.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageOps

from dogmed.data.folder import resize
from dogmed.data.pixels import measure
from dogmed.errors import DataError
from dogmed.inference.reading.tiff import is_tiff, tags_exceed_file

Source: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | np.ndarray"
"""An image: a file's path, what a file holds, a PIL image, or an array (H, W) or (H, W, 1 or 3)."""

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF")
MAX_PIXELS = 100_000_000
"""Of a file, all pages together; a small one can claim to hold many more (a decompression bomb)."""
MAX_PAGES = 1000
_MOST = f"over {MAX_PIXELS // 10**6} million pixels"
DIM = 0.25  # of the range of 16 bits: an image that stays below it is black to the network
COLOURED = 0.05
"""Of a picture that is not grey, ``dogmed.data.pixels``: JPEG alone makes no such differences."""
_MODES_16 = ("I;16", "I;16L", "I;16B", "I;16N")


@dataclass(frozen=True)
class Picture:
    """One image, ready for the network."""

    name: str
    pixels: np.ndarray
    """(size, size, 3) uint8."""
    height: int
    """Before resizing."""
    width: int
    notes: tuple[str, ...]
    """What was done to it that the user should know."""


def read(source: Source, name: str, *, size: int, grey: bool) -> Iterator[Picture]:
    """Decode an image; a TIFF of several pages gives several pictures, named ``NAME[0]``, ``NAME[1]``.

    What a file holds is found out from its content, not from its suffix.

    Args:
        source: the image.
        name: that it goes by.
        size: side in pixels that it is resized to.
        grey: whether colours are taken out, as the network has seen none.

    Raises:
        DataError: it is none, is damaged, animated or larger than ``MAX_PIXELS``, its values have no plain
            meaning, or a library is missing that reading it takes.
    """
    if isinstance(source, np.ndarray):
        yield _picture(*_from_array(source, name), name, size, grey)
    elif isinstance(source, Image.Image):
        _refuse_huge(source.height, source.width, name)
        yield _picture(*_eight_bits(source, name), name, size, grey)
    elif isinstance(source, bytes):
        yield from _decode(BytesIO(source), source[:132], name, size, grey)
    elif isinstance(source, str | os.PathLike):
        path = Path(source)
        yield from _decode(path, _start(path, name), name, size, grey)
    else:
        raise DataError(
            f"{name} is a {type(source).__name__}, expected a path, bytes, a PIL image or a numpy array"
        )


def is_dicom(start: bytes) -> bool:
    """Whether a file that begins so is DICOM."""
    return start[128:132] == b"DICM"


def _start(path: Path, name: str) -> bytes:
    """How a file begins."""
    try:
        if not path.is_file():  # a pipe would be waited for
            there = path.exists() or path.is_symlink()
            raise DataError(f"{name}: {'not a regular file' if there else 'no such file'}")
        with path.open("rb") as file:
            return file.read(132)
    except OSError as error:
        raise DataError(
            f"{name} cannot be read: {(error.strerror or str(error)).lower()}"
        ) from error


def _decode(
    file: Path | BytesIO, start: bytes, name: str, size: int, grey: bool
) -> Iterator[Picture]:
    if not start:
        raise DataError(f"{name} is empty (0 bytes)")
    if is_dicom(start):
        from dogmed.inference.reading.dicom import read_dicom

        image, notes = read_dicom(file, name, MAX_PIXELS)
        yield _picture(image, notes, name, size, grey)
        return
    if is_tiff(start) and tags_exceed_file(file, MAX_PAGES + 1):
        raise DataError(f"{name} is damaged (its tags take more bytes than it has)")
    try:
        with Image.open(file, formats=FORMATS) as opened:
            for image, page in _pages(opened, name):
                yield _picture(*_eight_bits(image, page), page, size, grey)
    except DataError:
        raise
    except Image.DecompressionBombError:
        raise DataError(f"{name} claims {_MOST}: make it smaller first") from None
    except Image.UnidentifiedImageError:
        raise DataError(
            f"{name} is no image that is read here ({', '.join(FORMATS)}, DICOM), by its content"
        ) from None
    except Exception as error:  # Pillow's readers raise errors of every kind on damaged files
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise DataError(f"{name} is damaged ({reason})") from error


def _pages(opened: Image.Image, name: str) -> Iterator[tuple[Image.Image, str]]:
    """The images in a file, with their names; of a photograph with a preview the photograph."""
    _refuse_huge(opened.height, opened.width, name)
    if not getattr(opened, "is_animated", False) or opened.format == "MPO":
        yield opened, name
    elif opened.format != "TIFF":
        raise DataError(f"{name} is animated: save the one to classify")
    else:
        for number in range(_count_pages(opened, name)):
            opened.seek(number)
            yield opened, f"{name}[{number}]"


def _count_pages(opened: Image.Image, name: str) -> int:
    """The pages of a TIFF, none of which is decoded; ``n_frames`` takes time by their square."""
    pixels = 0
    for number in range(MAX_PAGES + 1):
        try:
            opened.seek(number)
        except EOFError:
            return number
        _refuse_huge(opened.height, opened.width, f"{name}[{number}]")
        pixels += opened.height * opened.width
        if pixels > MAX_PIXELS:  # they may share a few bytes
            raise DataError(f"{name} has pages of {_MOST} together: save them in several files")
    raise DataError(f"{name} has over {MAX_PAGES:,} pages, which is the most that is read")


def _refuse_huge(height: int, width: int, name: str) -> None:
    if height * width > MAX_PIXELS:
        raise DataError(f"{name} has {_MOST} ({width}×{height}): make it smaller first")
    if not height * width:
        raise DataError(f"{name} has no pixels ({width}×{height})")


def _eight_bits(image: Image.Image, name: str) -> tuple[Image.Image, tuple[str, ...]]:
    """An upright image of 8-bit pixels, and what was done for it."""
    upright = ImageOps.exif_transpose(image)
    if image.mode in _MODES_16:
        return _from_array(np.asarray(upright).astype(np.uint16), name)
    if image.mode == "I":
        values = np.asarray(upright)
        if values.min() < 0 or values.max() > 65535:
            raise DataError(
                f"{name} has 32-bit values from {values.min()} to {values.max()}: save it as 8 or 16 bits"
            )
        return _from_array(values.astype(np.uint16), name)
    if image.mode == "F":
        return _from_array(np.asarray(upright), name)
    notes = []
    if image.mode == "CMYK":
        notes.append("CMYK was turned into RGB without a colour profile")
    if image.has_transparency_data and _see_through(upright):
        notes.append("its transparency was left out")
    return upright, tuple(notes)


def _see_through(image: Image.Image) -> bool:
    alpha = image.convert("RGBA").getchannel("A")
    return alpha.getextrema()[0] < 255  # type: ignore[operator]


def _from_array(values: np.ndarray, name: str) -> tuple[Image.Image, tuple[str, ...]]:
    """Pixels (H, W) or (H, W, 1 or 3) as an 8-bit image: 0 is black, and white is the type's largest value.

    That is 255 of uint8, 65535 of uint16, and 1.0 of floats.
    """
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] != 3):
        mend = "channels go last" if values.ndim == 3 and values.shape[0] in (1, 3) else "no alpha"
        raise DataError(
            f"{name} has shape {values.shape}, expected (H, W), (H, W, 1) or (H, W, 3): {mend}"
        )
    _refuse_huge(values.shape[0], values.shape[1], name)
    notes: tuple[str, ...] = ()
    if values.dtype == np.bool_:
        values = values.astype(np.uint8) * 255
    elif values.dtype.kind == "u" and values.dtype.itemsize == 2:
        top = int(values.max())
        if 0 < top < DIM * 65535:
            notes = (f"16-bit values reach {top:,} of 65,535 only: nearly black to the network",)
        values = (values.astype(np.uint32) + 128) // 257  # the nearest of 0..255
    elif values.dtype.kind == "f":
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= 1):  # not true of NaN either
            raise DataError(
                f"{name} has floats from {low:g} to {high:g}, expected 0 to 1: which values are black "
                "and white is for you to choose"
            )
        values = np.rint(values * 255)
    elif values.dtype != np.uint8:
        raise DataError(f"{name} has {values.dtype} values, expected uint8, uint16 or floats")
    return Image.fromarray(np.ascontiguousarray(values, dtype=np.uint8)), notes


def _picture(
    image: Image.Image, notes: tuple[str, ...], name: str, size: int, grey: bool
) -> Picture:
    """Resized as training data are: first the mode, then the size."""
    plain = image if image.mode == "L" else image.convert("RGB")  # a third of the memory
    pixels = np.asarray(resize(plain, size).convert("RGB"))
    if grey and image.mode != "L":
        if measure(pixels)["colour"] > COLOURED:
            notes += ("its colours were left out: training images were grey",)
        pixels = np.asarray(resize(image.convert("L"), size).convert("RGB"))
    return Picture(name, pixels, image.height, image.width, notes)

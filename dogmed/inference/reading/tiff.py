"""What the tags of a TIFF take, found out before Pillow loads them all: many may name the same bytes."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

_BYTES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
    17: 8,
    18: 8,
}
"""Of a value, by the type's number (TIFF 6.0, section 2, and BigTIFF)."""


def is_tiff(start: bytes) -> bool:
    """Whether a file that begins so is a TIFF."""
    return start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def tags_exceed_file(file: Path | BytesIO, most_pages: int) -> bool:
    """Whether the tags of a page take more bytes than there are in the file, or those of all pages tenfold.

    Of a damaged file, what there is of it.

    Args:
        file: its path, or what it holds.
        most_pages: that are looked at.
    """
    total = 0
    with file.open("rb") if isinstance(file, Path) else BytesIO(file.getbuffer()) as opened:
        size = opened.seek(0, os.SEEK_END)
        for claimed in _claims(opened, most_pages):
            total += claimed
            if claimed > size or total > 10 * size:
                return True
    return False


def _claims(file: BinaryIO, most_pages: int) -> Iterator[int]:
    """Bytes that the tags of each page take."""
    file.seek(0)
    order = "<" if file.read(2) == b"II" else ">"
    big = file.read(2) in (b"+\0", b"\0+")
    head, entry, link = ("8xQ", "HHQ8x", "Q") if big else ("4xI", "HHI4x", "I")
    file.seek(0)
    try:
        (offset,) = _unpack(file, order + head)
        for _ in range(most_pages):
            if not offset:
                return
            file.seek(offset)
            (tags,) = _unpack(file, order + ("Q" if big else "H"))
            claimed = 0
            for _ in range(tags):
                _, kind, count = _unpack(file, order + entry)
                claimed += count * _BYTES.get(kind, 0)
            yield claimed
            (offset,) = _unpack(file, order + link)
    except (struct.error, OSError, OverflowError):
        return


def _unpack(file: BinaryIO, form: str) -> tuple[int, ...]:
    return struct.unpack(form, file.read(struct.calcsize(form)))

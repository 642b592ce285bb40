"""The tags of a TIFF against what Pillow has written, and files that claim more than they are."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dogmed.errors import DataError
from dogmed.inference.reading.pictures import read
from dogmed.inference.reading.tiff import _claims, is_tiff, tags_exceed_file


def swollen(order: str, big: bool, tags: int, blob: int) -> bytes:
    """An image of 8×8 pixels with private tags that all name the same bytes."""
    base = {256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 273: 16, 277: 1, 278: 8, 279: 64}
    first = 16 + 64
    form, length = ("HHQQ", "Q") if big else ("HHII", "I")
    size = struct.calcsize(order + form) * (len(base) + tags)
    at = first + (8 if big else 2) + size + struct.calcsize(order + length)
    entries = [(tag, 4, 1, value) for tag, value in base.items()]
    entries += [(60000 + k, 7, blob, at) for k in range(tags)]
    mark = b"II" if order == "<" else b"MM"
    head = (
        struct.pack(order + "HHHQ", 43, 8, 0, first)
        if big
        else struct.pack(order + "HI", 42, first)
    )
    body = struct.pack(order + ("Q" if big else "H"), len(entries))
    body += b"".join(struct.pack(order + form, *entry) for entry in entries)
    return (
        (mark + head).ljust(16, b"\0")
        + bytes(64)
        + body
        + struct.pack(order + length, 0)
        + bytes(blob)
    )


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "jpeg"])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("pages", [1, 3])
def test_files_as_they_are_written_pass(
    compression: str, big: bool, pages: int, tmp_path: Path
) -> None:
    path, pixels = tmp_path / "a.tif", np.random.default_rng(0).integers(0, 256, (40, 30, 3))
    images = [Image.fromarray(pixels.astype(np.uint8))] * pages
    options = {
        "save_all": True,
        "append_images": images[1:],
        "big_tiff": big,
        "icc_profile": bytes(500),
    }
    images[0].save(path, compression=compression, **options)
    assert is_tiff(path.read_bytes()[:132])
    claims = list(_claims(io.BytesIO(path.read_bytes()), 10))
    assert len(claims) == pages and all(500 < claim < path.stat().st_size for claim in claims)
    assert not tags_exceed_file(path, 10)
    assert len(list(read(path, "a", size=16, grey=False))) == pages


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
def test_tags_that_name_the_same_bytes_are_refused(order: str, big: bool, tmp_path: Path) -> None:
    honest, lying = swollen(order, big, 1, 10_000), swollen(order, big, 60, 10_000)
    assert not tags_exceed_file(io.BytesIO(honest), 10)
    if order == "<" or not big:  # the other form is none that Pillow reads
        (picture,) = read(honest, "a.tif", size=8, grey=True)
        assert picture.pixels.max() == 0
    (tmp_path / "a.tif").write_bytes(lying)
    for source in (lying, tmp_path / "a.tif"):
        with pytest.raises(DataError, match="its tags take more bytes than it has"):
            list(read(source, "a.tif", size=8, grey=True))


def test_directories_in_a_circle_end() -> None:
    content = bytearray(swollen("<", False, 0, 0))
    content[-4:] = struct.pack("<I", 80)  # the next directory is the same
    assert len(list(_claims(io.BytesIO(content), 1001))) == 1001
    assert list(_claims(io.BytesIO(content[:90]), 1001)) == []

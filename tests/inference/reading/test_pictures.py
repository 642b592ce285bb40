"""What becomes of files of every kind: the pixels that Pillow says are in them, or one clear line."""

from __future__ import annotations

import os
import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from dogmed.data.folder import scan_folder
from dogmed.errors import DataError
from dogmed.inference.reading.pictures import MAX_PIXELS, Picture, _pages, read

SIZE = 16


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def read_one(path: Path, *, grey: bool = False) -> Picture:
    (picture,) = read(path, path.name, size=SIZE, grey=grey)
    (of_bytes,) = read(path.read_bytes(), path.name, size=SIZE, grey=grey)
    np.testing.assert_array_equal(picture.pixels, of_bytes.pixels)
    assert picture.notes == of_bytes.notes
    return picture


def png_of(width: int, height: int) -> bytes:
    """A tiny file that claims to be so large."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(999))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    "mode, name, options",
    [
        ("RGB", "a.png", {}),
        ("L", "a.png", {}),
        ("1", "a.png", {}),
        ("P", "a.png", {}),
        ("LA", "a.png", {}),
        ("RGBA", "a.png", {}),
        ("RGB", "a.jpg", {}),
        ("CMYK", "a.jpg", {}),
        ("RGB", "a.bmp", {}),
        ("RGB", "a.webp", {"lossless": True}),
        ("L", "a.tif", {"compression": "tiff_lzw"}),
        ("CMYK", "a.tif", {}),
        ("P", "a.gif", {}),
    ],
)
@pytest.mark.parametrize("grey", [False, True])
def test_every_kind_of_file_gives_the_pixels_that_training_data_would_have(
    mode: str, name: str, options: dict, grey: bool, tmp_path: Path
) -> None:
    """As ``dogmed.data.folder`` reads them into a task's arrays."""
    Image.fromarray(noise(30, 20, 3)).convert(mode).save(tmp_path / name, **options)
    picture = read_one(tmp_path / name, grey=grey)
    image = ImageOps.exif_transpose(Image.open(tmp_path / name)).convert("L" if grey else "RGB")
    expected = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR).convert("RGB"))
    np.testing.assert_array_equal(picture.pixels, expected)
    assert (picture.height, picture.width) == (30, 20)
    said = " ".join(picture.notes)
    assert ("CMYK" in said) == (mode == "CMYK")
    assert "transparency" not in said, "they are opaque"


def test_a_picture_is_that_of_a_folder_task(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        for kind in ("a", "b"):
            (tmp_path / split / kind).mkdir(parents=True)
            Image.fromarray(noise(30, 20, 3)).save(tmp_path / split / kind / "x.jpg")
    found = scan_folder(tmp_path, tmp_path / "cache", None)
    (pixels,) = found.images("test", SIZE)
    picture = read_one(tmp_path / "test" / "a" / "x.jpg")
    np.testing.assert_array_equal(picture.pixels, pixels[0])


def test_see_through_pixels_are_told(tmp_path: Path) -> None:
    pixels = noise(30, 20, 4)
    Image.fromarray(pixels, "RGBA").save(tmp_path / "a.png")
    picture = read_one(tmp_path / "a.png")
    assert picture.notes == ("its transparency was left out",)
    opaque = Image.fromarray(np.ascontiguousarray(pixels[..., :3]))
    np.testing.assert_array_equal(picture.pixels, np.asarray(opaque.resize((SIZE, SIZE), 2)))


def test_sixteen_bits_are_scaled_to_eight(tmp_path: Path) -> None:
    eight = noise(SIZE, SIZE)
    for name in ("a.png", "a.tif"):
        Image.fromarray(eight.astype(np.uint16) * 257).save(tmp_path / name)
        picture = read_one(tmp_path / name)
        np.testing.assert_array_equal(picture.pixels[..., 0], eight)
        assert picture.notes == ()
    Image.fromarray(eight.astype(np.uint16) * 16).save(tmp_path / "twelve.tif")
    (note,) = read_one(tmp_path / "twelve.tif").notes
    assert "of 65,535 only: nearly black" in note


def test_the_pages_of_a_tiff_are_images_of_their_own(tmp_path: Path) -> None:
    pages = [Image.fromarray(noise(SIZE, SIZE) // (k + 1)) for k in range(3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    found = list(read(tmp_path / "a.tif", "a.tif", size=SIZE, grey=True))
    assert [picture.name for picture in found] == ["a.tif[0]", "a.tif[1]", "a.tif[2]"]
    for picture, page in zip(found, pages, strict=True):
        np.testing.assert_array_equal(picture.pixels[..., 0], np.asarray(page))


def test_the_content_counts_and_not_the_suffix(tmp_path: Path) -> None:
    Image.fromarray(noise(SIZE, SIZE, 3)).save(tmp_path / "a.bmp")
    (tmp_path / "a.bmp").rename(tmp_path / "a.jpg")
    np.testing.assert_array_equal(read_one(tmp_path / "a.jpg").pixels, noise(SIZE, SIZE, 3))


def animated(path: Path, kind: str) -> None:
    frames = [Image.fromarray(noise(SIZE, SIZE, 3) // (k + 1)) for k in range(3)]
    frames[0].save(path, kind, save_all=True, append_images=frames[1:])


def whole(kind: str) -> bytes:
    box = BytesIO()
    Image.fromarray(noise(60, 60, 3)).save(box, kind)
    return box.getvalue()


BROKEN = {
    "empty.png": (b"", "is empty"),
    "cut.png": (whole("PNG")[:2000], "is damaged"),
    "cut.jpg": (whole("JPEG")[:1000], "is damaged"),
    "cut.tif": (whole("TIFF")[:500], "is (damaged|no image)"),
    "text.png": (b"these are words and no pixels", "is no image that is read here"),
    "page.jpg": (b"<html>" * 90, "is no image that is read here"),
    "bomb.png": (png_of(60_000, 60_000), "over 100 million"),
    "huge.png": (png_of(10_001, 10_000), r"has over 100 million pixels \(10001×10000\): make it"),
    "claim.png": (
        png_of(2**31 - 1, 2**31 - 1),
        "claim.png claims over 100 million pixels: make it",
    ),
    "none.png": (png_of(0, 10), "is (damaged|no image)|no pixels"),
    "script.ps.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is no image"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_told_in_one_line(name: str, tmp_path: Path) -> None:
    content, words = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words) as error:
        read_one(tmp_path / name)
    assert name in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_an_animation_is_told_in_one_line(kind: str, tmp_path: Path) -> None:
    animated(tmp_path / "a", kind)
    with pytest.raises(DataError, match=r"is animated: save the one to classify"):
        read_one(tmp_path / "a")


class Counted(BytesIO):
    """A file that says how often it was read."""

    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        return super().read(size)


def test_no_more_of_an_animation_is_looked_at_than_that_it_is_one() -> None:
    head = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    frame = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    file = Counted(head + frame * 50_000 + b";")
    with pytest.raises(DataError, match="is animated"), Image.open(file) as opened:
        list(_pages(opened, "x"))
    assert file.reads < 1000


def tiff_of(pages: int, width: int, height: int) -> bytes:
    """A TIFF of black pages of one bit a pixel, which all point at the same bytes."""
    strip = zlib.compress(bytes(width * height // 8), 9)
    strip += bytes(len(strip) % 2)
    first = 8 + len(strip)
    facts = {
        256: width, 257: height, 258: 1, 259: 8, 262: 1, 273: 8, 277: 1, 278: height, 279: len(strip)
    }  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in facts.items())
    length = 2 + len(entries) + 4
    following = [first + length * (page + 1) for page in range(pages - 1)] + [0]
    folders = (struct.pack("<H", len(facts)) + entries + struct.pack("<I", at) for at in following)
    return b"II*\0" + struct.pack("<I", first) + strip + b"".join(folders)


def test_pages_are_counted_only_as_far_as_they_are_read() -> None:
    with pytest.raises(DataError, match="has over 1,000 pages, which is the most that is read"):
        list(read(tiff_of(1001, 8, 8), "x", size=SIZE, grey=True))
    found = read(tiff_of(1000, 8, 8), "x", size=SIZE, grey=True)
    assert [picture.name for picture in found] == [f"x[{page}]" for page in range(1000)]
    short, file = (Counted(tiff_of(pages, 8, 8)) for pages in (1001, 3000))
    with pytest.raises(DataError, match="over 1,000"), Image.open(short) as opened:
        list(_pages(opened, "x"))
    with pytest.raises(DataError, match="over 1,000"), Image.open(file) as opened:
        list(_pages(opened, "x"))
    assert file.reads == short.reads


def test_pages_that_share_a_few_bytes_are_bounded_together() -> None:
    file = tiff_of(26, 2000, 2000)
    assert len(file) < 10_000
    with pytest.raises(DataError, match="has pages of over 100 million pixels together") as error:
        list(read(file, "x", size=SIZE, grey=True))
    assert "\n" not in str(error.value)
    pages = read(tiff_of(25, 2000, 2000), "x", size=SIZE, grey=True)
    assert next(pages).name == "x[0]"


@pytest.mark.parametrize(
    "values, words", [(np.float32(7), "floats from 7"), (np.int32(70_000), "32-bit")]
)
def test_values_whose_black_and_white_nobody_knows_are_refused(values, words, tmp_path) -> None:
    Image.fromarray(np.full((9, 9), values)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=words):
        read_one(tmp_path / "a.tif")


def test_what_is_no_regular_file_is_told_in_one_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "lost.png").symlink_to(tmp_path / "nowhere")
    for name in ("pipe.png", "loop.png", "lost.png"):
        with pytest.raises(DataError, match=r"not a regular file|cannot be read"):
            read_one(tmp_path / name)
    with pytest.raises(DataError, match="no such file"):
        read_one(tmp_path / "never.png")


def test_an_array_may_not_be_larger_than_a_file() -> None:
    array = np.broadcast_to(np.uint8(1), (MAX_PIXELS // 1000 + 1, 1000))  # takes no memory
    with pytest.raises(DataError, match="over 100 million"):
        list(read(array, "x", size=SIZE, grey=False))

"""Files and folders made to break readers: each is refused in one line, at once."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zipfile

import numpy as np
import pytest
from PIL import Image

from dogmed.data import prepare
from dogmed.data.tasks import SPLITS
from dogmed.errors import ConfigError, DataError


def one_line(task, cache, *words):
    with pytest.raises(DataError) as caught:
        prepare(task, size=12, cache_dir=cache)
    line = str(caught.value)
    assert len(line.splitlines()) == 1 and line.encode("utf-8"), line
    for word in words:
        assert word in line, line
    assert not list(cache.glob("prepared/*")) and not list(cache.glob("prepared/.*"))


def members(path):
    with zipfile.ZipFile(path) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def npy(header: bytes, version=b"\x01\x00", data=b""):
    size = struct.pack("<H" if version == b"\x01\x00" else "<I", len(header))
    return b"\x93NUMPY" + version + size + header + data


def rewrite(path, content, compression=zipfile.ZIP_STORED):
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", compression) as archive:
        warnings.simplefilter("ignore")  # about names that are there twice
        for name, data in content:
            archive.writestr(name, data)
    return path


def shape(text: str) -> bytes:
    return f"{{'descr': '|u1', 'fortran_order': False, 'shape': {text}}}\n".encode()


HEADERS = {
    "unhashable": b"{[]:1}\n",
    "unsortable": b"{1:1,'a':2}\n",
    "deep": b"-" * 9000 + b"1\n",
    "deeper": b"(" * 9000 + b"\n",
    "not utf-8": b"{'\xff': 1}\n",
    "open string": b"{'descr\n",
    "no dict": b"7\n",
    "truth": shape("(24, True, 12)"),
    "negative": shape("(24, -12, 12)"),
    "immense": shape(f"(24, {2**32}, {2**32})"),
    "too long": b" " * 60_000 + b"\n",
    "descr": b"{'descr': [1], 'fortran_order': False, 'shape': (24, 12, 12)}\n",
    "subarray": b"{'descr': ('|u1', (2,)), 'fortran_order': False, 'shape': (24, 12, 12)}\n",
}


@pytest.mark.parametrize("version", [b"\x01\x00", b"\x02\x00"])
@pytest.mark.parametrize("case", HEADERS)
def test_headers(make_npz, cache, case, version):
    path = make_npz()
    content = dict(members(path))
    content["train_images.npy"] = npy(HEADERS[case], version, bytes(24 * 144))
    one_line(rewrite(path, content.items()), cache, str(path), "train_images")


def test_a_header_that_ends_early(make_npz, cache):
    path = make_npz()
    content = dict(members(path))
    whole = content["val_labels.npy"]
    for end in (0, 5, 7, 9, 40):
        content["val_labels.npy"] = whole[:end]
        one_line(rewrite(path, content.items()), cache, "val_labels is not a numpy array")


def test_names_without_npy_are_read_as_numpy_reads_them(make_npz, cache):
    path = make_npz()
    own = dict(np.load(path))
    rewrite(path, [(name.removesuffix(".npy"), data) for name, data in members(path)])
    found = prepare(path, size=12, cache_dir=cache)
    assert np.array_equal(found.images("val"), own["val_images"])


@pytest.mark.parametrize("name", ["train_labels.npy", "train_labels"])
def test_a_member_that_is_there_twice(make_npz, cache, name):
    path = make_npz()
    content = members(path)
    rewrite(path, [*content, (name, dict(content)["train_labels.npy"])])
    one_line(path, cache, "'train_labels' more than once")


@pytest.mark.parametrize(
    "compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_every_flipped_byte_is_told_in_one_line(make_npz, arrays, cache, compression):
    path = rewrite(make_npz(), members(make_npz()), compression)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    places = [*rng.integers(0, len(whole), 60), *range(len(whole) - 120, len(whole), 3), *range(45)]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        try:
            prepare(path, size=12, cache_dir=cache)
        except DataError as error:
            assert len(str(error).splitlines()) == 1 and str(path) in str(error)


def test_names_that_are_not_utf8(make_npz, cache):
    path = make_npz()
    whole = rewrite(path, [("ä.npy", b"1"), *members(path)]).read_bytes()
    path.write_bytes(whole.replace("ä".encode(), b"\xff\xfe"))
    one_line(path, cache, str(path), "damaged")


def test_labels_of_very_many_rows(make_npz, cache):
    path = make_npz()
    content = dict(members(path))
    content["val_labels.npy"] = npy(shape(f"({2**29}, 1)"))
    one_line(rewrite(path, content.items()), cache, "at most 268,435,456 labels")


def test_labels_of_very_many_columns(make_npz, cache):
    path = make_npz()
    content = dict(members(path))
    content["train_labels.npy"] = npy(shape("(24, 2000000)"), data=bytes(24 * 2_000_000))
    rewrite(path, content.items(), zipfile.ZIP_DEFLATED)
    one_line(path, cache, "2000000 columns, at most 1000")


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "scans"
    for split in SPLITS:
        for name in ("ill", "well"):
            (root / split / name).mkdir(parents=True)
            Image.fromarray(np.full((12, 12), 7, np.uint8)).save(root / split / name / "0.png")
    return root


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("suffix", ["png", "tif", "jpg", "bmp"])
def test_damaged_images(folder, cache, suffix):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = io.BytesIO()
    Image.fromarray(pixels).save(
        whole, {"tif": "TIFF", "jpg": "JPEG"}.get(suffix, suffix), exif=exif
    )
    path, rng = folder / "val" / "ill" / f"z.{suffix}", np.random.default_rng(1)
    for _ in range(150):
        damaged = bytearray(whole.getvalue())
        for place in rng.integers(0, len(damaged), 3):
            damaged[place] = int(rng.integers(0, 256))
        path.write_bytes(damaged)
        try:
            prepare(folder, size=12, cache_dir=cache)
        except DataError as error:
            assert str(path) in str(error) and len(str(error).splitlines()) == 1


def test_the_cause_is_told_and_other_formats_are_not_opened(folder, cache):
    path = folder / "val" / "ill" / "z.png"
    Image.fromarray(np.zeros((12, 12), np.uint8)).save(path, "GIF")
    one_line(folder, cache, f"{path} is not a readable image (cannot identify image file")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[:800])
    one_line(folder, cache, f"{path} is not a readable image (image file is truncated")


def test_pipes_and_links(folder, cache):
    path = folder / "val" / "ill" / "z.png"
    os.mkfifo(path)
    one_line(folder, cache, f"{path} is not a regular file")
    for target in ("nowhere.png", "z.png"):  # broken, and a loop
        path.unlink()
        path.symlink_to(target)
        one_line(folder, cache, f"{path} cannot be read")
    path.unlink()
    path.symlink_to(folder / "val" / "well" / "0.png")
    assert prepare(folder, size=12, cache_dir=cache).manifest["splits"]["val"]["samples"] == 3


@pytest.mark.parametrize("name", [b"caf\xe9", b"two\nlines"])
def test_names_that_cannot_be_written(folder, cache, name):
    there = os.path.join(os.fsencode(folder), b"val", b"ill", name + b".png")  # noqa: PTH118
    os.mkdir(os.path.join(os.fsencode(folder), b"train", name))  # noqa: PTH102, PTH118
    one_line(folder, cache, "rename it", ascii(name)[2:-1])
    os.rmdir(os.path.join(os.fsencode(folder), b"train", name))  # noqa: PTH106, PTH118
    with open(there, "wb"):  # noqa: PTH123
        pass
    one_line(folder, cache, "rename it", ascii(name)[2:-1])


def test_paths_that_cannot_be_used(folder, cache, tmp_path):
    one_line(tmp_path / os.fsdecode(b"caf\xe9"), cache, "is not UTF-8")
    one_line(tmp_path / "two\nlines.npz", cache, "control characters")
    one_line(tmp_path / ("x" * 300), cache, "cannot be read: File name too long")
    with pytest.raises(ConfigError):
        prepare("nowhere", size=12, cache_dir=cache)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is closed to root")
def test_closed_folders_and_files(folder, make_npz, cache):
    closed = folder / "val" / "ill"
    closed.chmod(0)
    one_line(folder, cache, f"{closed} cannot be read: Permission denied")
    closed.chmod(0o700)
    path = make_npz()
    path.chmod(0)
    one_line(path, cache, str(path), "Permission denied")

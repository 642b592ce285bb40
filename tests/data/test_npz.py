"""Streaming npz files, against numpy.load; and every way they can be wrong."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest

from dogmed.data import prepare
from dogmed.data.npz import KEYS, open_npz, write_npz
from dogmed.data.tasks import SPLITS
from dogmed.errors import DataError


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_streams_what_numpy_loads(make_npz, arrays, compressed, channels):
    path = make_npz(base=arrays(n=300, size=70, channels=channels), compressed=compressed)
    npz, own = open_npz(path), np.load(path)
    assert npz.channels == channels and npz.image_size == (70, 70)
    for split in SPLITS:
        pieces = list(npz.images(split))
        assert np.array_equal(np.concatenate(pieces), own[f"{split}_images"])
        assert np.array_equal(npz.labels(split), own[f"{split}_labels"])
        assert npz.labels(split).dtype == np.int64
    if channels == 3:
        assert len(list(npz.images("train"))) > 1


@pytest.mark.parametrize("dtype", ["uint8", "int64", ">i4", "bool", "uint64"])
def test_label_types_and_shapes(make_npz, arrays, dtype):
    base = arrays(classes=2)
    for split in SPLITS:
        base[f"{split}_labels"] = base[f"{split}_labels"][:, 0].astype(dtype)  # (N,)
    npz = open_npz(make_npz(base=base))
    expected = base["train_labels"].astype(np.int64)[:, None]
    assert np.array_equal(npz.labels("train"), expected)


def test_fortran_labels_and_single_channel_axis(make_npz, arrays):
    base = arrays()
    table = np.asfortranarray(np.random.default_rng(0).integers(0, 2, (24, 3)))
    base["train_labels"] = table
    base["val_labels"], base["test_labels"] = table[:12], table[:12]
    for split in SPLITS:
        base[f"{split}_images"] = base[f"{split}_images"][..., None]
    npz = open_npz(make_npz(base=base))
    assert np.array_equal(npz.labels("train"), table)
    assert npz.channels == 1
    assert np.array_equal(next(npz.images("val")), base["val_images"][..., 0])


def test_write_npz_is_read_by_numpy(tmp_path, arrays):
    base = arrays()
    path = tmp_path / "made.npz"
    write_npz(path, [(k, v.shape, v.dtype, np.array_split(v, 3)) for k, v in base.items()])
    with np.load(path) as own:
        assert all(np.array_equal(own[k], v) for k, v in base.items())

    def broken():
        yield base["train_images"][:4]
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        write_npz(tmp_path / "half.npz", [("train_images", (24, 12, 12), np.dtype("u1"), broken())])
    assert [p.name for p in tmp_path.iterdir()] == ["made.npz"]


def refused(cache, leftovers, path, *words):
    """``path`` is refused in one line that holds ``words``; nothing is left in the cache."""
    with pytest.raises(DataError) as caught:
        prepare(path, size=12, cache_dir=cache)
    line = str(caught.value)
    assert "\n" not in line and str(path) in line, line
    for word in words:
        assert word in line, line
    assert leftovers() == []
    assert not list(cache.glob("prepared/*"))


WRONG = {
    "float images": (
        {"train_images": np.zeros((24, 12, 12), np.float32)},
        ["train_images is float32", "expected uint8", "scale them to 0..255"],
    ),
    "int images": ({"val_images": np.zeros((12, 12, 12), np.int16)}, ["val_images is int16"]),
    "volumes": (
        {"train_images": np.zeros((24, 12, 12, 12), np.uint8)},
        ["shape (24, 12, 12, 12)", "volumes are not supported"],
    ),
    "channels first": (
        {"train_images": np.zeros((24, 3, 12, 12), np.uint8)},
        [".transpose(0, 2, 3, 1)"],
    ),
    "flat images": ({"train_images": np.zeros((24, 144), np.uint8)}, ["shape (24, 144)"]),
    "another size": ({"test_images": np.zeros((12, 9, 9), np.uint8)}, ["(9, 9)", "(12, 12)"]),
    "no images": (
        {"val_images": np.zeros((0, 12, 12), np.uint8), "val_labels": np.zeros((0, 1), np.uint8)},
        ["holds no image"],
    ),
    "rows differ": ({"val_labels": np.zeros((11, 1), np.uint8)}, ["11 rows", "12 images"]),
    "float labels": ({"train_labels": np.zeros((24, 1))}, ["float64, expected integers"]),
    "label cube": ({"train_labels": np.zeros((24, 1, 1), np.uint8)}, ["(24, 1, 1)"]),
    "columns differ": ({"test_labels": np.zeros((12, 2), np.uint8)}, ["2 columns", "has 1"]),
    "key missing": ({"val_labels": None, "val_label": np.zeros(12)}, ["did you mean 'val_label'"]),
    "fortran images": (
        {"train_images": np.asfortranarray(np.ones((24, 12, 12), np.uint8))},
        ["Fortran order", "ascontiguousarray"],
    ),
    "pickled": (
        {"train_labels": np.array([[0]] * 23 + [["x"]], dtype=object)},
        ["pickled Python objects", "never loaded"],
    ),
    "labels from 1": ({f"{s}_labels": np.arange(n)[:, None] % 3 + 1 for s, n in
                       (("train", 24), ("val", 12), ("test", 12))}, ["0..C-1", "1, 2, 3"]),
    "gap": ({"train_labels": (np.arange(24)[:, None] % 3) * 5}, ["0..C-1", "5"]),
    "negative": ({"train_labels": np.arange(24)[:, None] % 3 - 1}, ["0..C-1", "-1"]),
    "one class": ({f"{s}_labels": np.zeros((n, 1), int) for s, n in
                   (("train", 24), ("val", 12), ("test", 12))}, ["at least two classes"]),
    "counts as labels": ({f"{s}_labels": np.full((n, 2), 3) for s, n in
                          (("train", 24), ("val", 12), ("test", 12))}, ["must be 0 or 1"]),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arrays(make_npz, cache, leftovers, case):
    changed, words = WRONG[case]
    refused(cache, leftovers, make_npz(**changed), *words)


def test_pickled_code_is_not_run(make_npz, cache, leftovers, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    path = make_npz(train_labels=np.array([Bomb()] * 24, dtype=object))
    refused(cache, leftovers, path, "pickled")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("compressed", [True, False])
def test_truncated_and_flipped(make_npz, arrays, cache, leftovers, compressed):
    path = make_npz(base=arrays(n=200, size=40), compressed=compressed)
    whole = path.read_bytes()
    for part in (0.2, 0.9, 0.9999):
        path.write_bytes(whole[: int(len(whole) * part)])
        refused(cache, leftovers, path, "truncated or damaged")
    damaged = bytearray(whole)
    damaged[len(whole) // 3] ^= 0xFF  # within the pixels of train_images
    path.write_bytes(damaged)
    refused(cache, leftovers, path, "train_images is truncated or damaged")


def test_other_kinds_of_files(make_npz, cache, leftovers, tmp_path):
    path = tmp_path / "other.npz"
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    for content, word in (
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>403</html>", "is a web page"),
        (buffer.getvalue(), "single .npy array"),
        (b"\x89HDF\r\n" + bytes(100), "is not an npz"),
    ):
        path.write_bytes(content)
        refused(cache, leftovers, path, word)
    with zipfile.ZipFile(path, "w") as archive:
        for key in KEYS:
            archive.writestr(f"{key}.npy", b"not an array at all")
    refused(cache, leftovers, path, "train_images is not a numpy array")


def test_array_shorter_or_longer_than_its_header(make_npz, arrays, cache, leftovers):
    path = make_npz(base=arrays())
    with zipfile.ZipFile(path) as archive:
        members = {n: archive.read(n) for n in archive.namelist()}
    for change, word in ((slice(0, -5), "5 bytes too early"), (None, "more bytes than its shape")):
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in members.items():
                if name == "test_images.npy":
                    data = data[change] if change else data + b"1234"
                archive.writestr(name, data)
        refused(cache, leftovers, path, "test_images", word)

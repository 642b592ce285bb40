"""One interface over folders and tar shards, and what is said of unusable ones."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dogmed.errors import DataError
from dogmed.pretrain.images import ImageError, ImageSet, open_images, open_splits
from dogmed.pretrain.names import Names, shuffled

Members = dict[str, bytes]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def copy(jpegs: Path, tmp_path: Path) -> Path:
    """The class folders again, to be spoilt."""
    root = tmp_path / "copy"
    for file in jpegs.rglob("*.JPEG"):
        target = root / file.relative_to(jpegs)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    return root


def files_of(jpegs: Path, split: str) -> Members:
    folder = jpegs / split
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*.JPEG"))}


def write_tar(path: Path, members: Members) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def tars(jpegs: Path, tmp_path: Path) -> Path:
    """The class folders as plain tars, in another order, train in two."""
    root = tmp_path / "tars"
    train = files_of(jpegs, "train")
    mixed = [list(train)[i] for i in shuffled(len(train), 1)]
    write_tar(root / "small-train-0.tar", {f"./{n}": train[n] for n in mixed[:25]})
    write_tar(root / "small-train-1.tar", {n: train[n] for n in mixed[25:]})
    write_tar(root / "small-val.tar", files_of(jpegs, "val"))
    return root


def content(images: ImageSet) -> list[tuple[str, int, bytes]]:
    return [(images.name(i), int(images.labels[i]), images.read(i)) for i in range(len(images))]


def test_names_are_what_went_in() -> None:
    names = ["n01/a.JPEG", "", "ä/ö.jpg", b"\xff.jpg".decode("utf-8", "surrogateescape"), "z"]
    packed = Names.pack(names)
    assert list(packed) == names and packed[-1] == "z" and packed[1:3] == names[1:3]
    with pytest.raises(IndexError):
        packed[5]
    assert list(Names.pack([])) == []


def test_class_folders(jpegs: Path) -> None:
    train, val = open_splits(jpegs)
    expected = files_of(jpegs, "train")
    assert (train.kind, len(train), len(val)) == ("folder", 40, 12)
    assert train.classes == val.classes == tuple(sorted({name[:9] for name in expected}))
    assert [train.name(i) for i in range(40)] == sorted(expected)
    for name, label, data in content(train):
        assert data == expected[name] and train.classes[label] == name[:9]
    assert train.open(0).size == (40, 36)
    assert train.record() == {"kind": "folder", "split": "train", "images": 40, "classes": 4}


def test_a_plain_tar_is_the_same_set_as_the_folders(jpegs: Path, tars: Path, cache: Path) -> None:
    for split in ("train", "val"):
        packed = open_images(tars, split, cache_dir=cache)
        assert packed.kind == "shards"
        assert content(packed) == content(open_images(jpegs, split))


def test_the_index_is_kept_until_a_shard_changes_or_it_is_damaged(
    jpegs: Path, tars: Path, cache: Path
) -> None:
    before = content(open_images(tars, "train", cache_dir=cache))
    (index,) = (cache / "shards").glob("*.npz")
    written = index.stat().st_mtime_ns
    assert content(open_images(tars, "train", cache_dir=cache)) == before
    assert index.stat().st_mtime_ns == written
    index.write_bytes(index.read_bytes()[:1000])
    assert content(open_images(tars, "train", cache_dir=cache)) == before
    only = dict(list(files_of(jpegs, "train").items())[::5])
    write_tar(tars / "small-train-1.tar", {f"x{name}": data for name, data in only.items()})
    assert len(open_images(tars, "train", cache_dir=cache)) == 25 + 8
    assert [p.suffix for p in (cache / "shards").iterdir()] == [".npz"]


@pytest.mark.parametrize("label", ["cls", "json"])
def test_webdataset_shards(jpegs: Path, tmp_path: Path, cache: Path, label: str) -> None:
    root, expected = tmp_path / "wds", {}
    classes = ["tench", "goldfish", "shark", "tiger shark"]
    for split in ("train", "val"):
        files = list(files_of(jpegs, split).items())
        for shard in range(2):  # keys begin anew in each shard
            members = {}
            for key, (name, data) in enumerate(files[shard::2]):
                number = sorted({n[:9] for n, _ in files}).index(name[:9])
                text = str(number) if label == "cls" else json.dumps({"label": number})
                members |= {f"{key:04d}.jpg": data, f"{key:04d}.{label}": text.encode()}
                expected[data] = number
            write_tar(root / f"x-{split}-{shard:06d}.tar", members)
    train, val = open_splits(root, cache_dir=cache)
    assert train.classes == ("0", "1", "2", "3")
    assert len({train.name(i) for i in range(len(train))}) == 40
    for images in (train, val):
        assert all(expected[data] == number for _, number, data in content(images))
    (root / "info.json").write_text(json.dumps({"classes": classes}))
    assert open_images(root, "train", cache_dir=cache).classes == tuple(classes)


def test_a_set_can_be_sent_to_another_process(tars: Path, cache: Path) -> None:
    images = open_images(tars, "train", cache_dir=cache)
    images.read(3)
    assert content(pickle.loads(pickle.dumps(images))) == content(images)


def test_splits_are_told_by_a_word_of_the_name(tars: Path, cache: Path) -> None:
    write_tar(tars / "retrain.tar", {"x/y.jpg": b""})
    (tars / "small-val.tar").rename(tars / "validation.tar")
    train, val = open_splits(tars, cache_dir=cache)
    assert (len(train), len(val)) == (40, 12)


def spoil_empty_class(root: Path) -> None:
    (root / "train" / "n09").mkdir()


def spoil_val_class(root: Path) -> None:
    (root / "val" / "n01440764").rename(root / "val" / "n01440765")


def spoil_missing_class(root: Path) -> None:
    for file in [*(root / "val" / "n01440764").iterdir(), root / "val" / "n01440764"]:
        file.rmdir() if file.is_dir() else file.unlink()


def spoil_flat(root: Path) -> None:
    for file in list((root / "val").rglob("*.JPEG")):
        file.rename(root / "val" / file.name)
    for folder in filter(Path.is_dir, (root / "val").glob("n*")):
        folder.rmdir()


def spoil_other_names(root: Path) -> None:
    (root / "train").rename(root / "training")


SPOILT = [
    (spoil_empty_class, "class n09 of train without images"),
    (spoil_val_class, r"class n01440765 of val not in train \(did you mean 'n01440764'\?\)"),
    (spoil_missing_class, "class n01440764 of train not in val"),
    (spoil_flat, r"val holds 12 images but no class folders"),
    (
        spoil_other_names,
        r"has no train split \(did you mean 'training'\?\); expected train/<class>",
    ),
]


@pytest.mark.parametrize(("spoil", "message"), SPOILT)
def test_unusable_folders(copy: Path, spoil: Callable[[Path], None], message: str) -> None:
    spoil(copy)
    with pytest.raises(DataError, match=message) as caught:
        open_splits(copy)
    assert "\n" not in str(caught.value)


def test_the_nearest_usable_folder_is_named(copy: Path, tmp_path: Path) -> None:
    cases = {
        copy.parent / "cpy": r"no such folder \(did you mean 'copy'\?\)",
        copy.parent: f"but {copy} has",
        copy / "train": f"give the folder above, {copy}",
        copy / "train" / "n01440764": "images without class folders",
        next(copy.rglob("*.JPEG")): "is a file",
    }
    (tmp_path / "nothing").mkdir()
    cases[tmp_path / "nothing"] = "is empty"
    for path, message in cases.items():
        with pytest.raises(DataError, match=message):
            open_images(path, "train")


def test_unusable_tars(tars: Path, cache: Path) -> None:
    val = tars / "small-val.tar"
    whole = val.read_bytes()
    with tarfile.open(val) as tar:
        last = tar.getmembers()[-1].offset
    for data, message in (
        (whole[:3000], "cut short|unexpected end"),
        (whole[:last], "cut short or damaged"),  # Python's tarfile takes these for whole
        (whole[: last + 99], "cut short or damaged"),
        (whole[:last] + b"\xff" * 512 + whole[last + 512 :], "cut short or damaged"),
        (whole + whole, "more comes after its end"),
        (b"no tar", "not a readable, uncompressed tar"),
        (b"", "not a readable, uncompressed tar"),
    ):
        val.write_bytes(data)
        with pytest.raises(DataError, match=message) as caught:
            open_images(tars, "val", cache_dir=cache)
        assert "\n" not in str(caught.value)
    hard_link = tarfile.TarInfo("n01440764/again.JPEG")
    hard_link.type, hard_link.linkname = tarfile.LNKTYPE, "n01440764/a.JPEG"
    val.write_bytes(hard_link.tobuf() + whole)
    with pytest.raises(DataError, match="is a hard link"):
        open_images(tars, "val", cache_dir=cache)
    val.rename(tars / "small-val.tar.gz")
    with pytest.raises(DataError, match="is compressed"):
        open_images(tars, "val", cache_dir=cache)
    write_tar(val, {"loose.jpg": b"x"})
    with pytest.raises(DataError, match=r"loose.jpg has neither"):
        open_images(tars, "val", cache_dir=cache)
    assert not [p for p in cache.rglob("*.part")]


def test_unreadable_images_are_errors_of_one_kind(copy: Path) -> None:
    images = open_images(copy, "train")
    file = copy / "train" / images.name(0)
    whole = file.read_bytes()
    for data in (b"", b"not an image", whole[: len(whole) // 2], whole[:20]):
        file.write_bytes(data)
        with pytest.raises(ImageError):
            images.open(0)


def test_every_mode_becomes_rgb(copy: Path) -> None:
    images = open_images(copy, "train")
    file = copy / "train" / images.name(0)
    for mode, form in (("L", "JPEG"), ("CMYK", "JPEG"), ("P", "PNG"), ("RGBA", "PNG")):
        Image.new(mode, (8, 6)).save(file, form)
        assert images.open(0).mode == "RGB"


def test_more_than_8_bits_are_no_white_image(copy: Path) -> None:
    images = open_images(copy, "train")
    pixels = np.arange(48, dtype=np.uint16).reshape(6, 8) * 1000
    Image.fromarray(pixels).save(copy / "train" / images.name(0), "PNG")
    with pytest.raises(ImageError, match="more than 8 bits"):
        images.open(0)


def test_a_class_that_is_not_utf8_is_named(copy: Path) -> None:
    for split in ("train", "val"):
        (copy / split / "n01440764").rename(
            copy / split / b"n\xff".decode(errors="surrogateescape")
        )
    with pytest.raises(DataError, match="is not UTF-8"):
        open_splits(copy)


@pytest.mark.parametrize(
    ("classes", "label", "message"),
    [
        (["a", "a"], 0, "names a class twice"),
        (["a", "b"], 2, "info.json names 2 classes"),
        (None, 10**12, "there are only 12 images"),
    ],
)
def test_impossible_labels(
    jpegs: Path, tmp_path: Path, cache: Path, classes: Any, label: int, message: str
) -> None:
    members = {}
    for i, data in enumerate(files_of(jpegs, "val").values()):
        members |= {f"{i}.jpg": data, f"{i}.cls": str(label if i == 0 else i % 2).encode()}
    write_tar(tmp_path / "val.tar", members)
    (tmp_path / "info.json").write_text(json.dumps({"classes": classes}))
    with pytest.raises(DataError, match=message):
        open_images(tmp_path, "val", cache_dir=cache)


def test_opening_loads_no_pytorch() -> None:
    code = "import sys, dogmed.pretrain.images, dogmed.pretrain.subset, dogmed.pretrain.shards; "
    code += "import dogmed.pretrain.pack; print('torch' in sys.modules, 'timm' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False False\n", done.stderr


def test_real_images(real_data: Path, cache: Path) -> None:
    train, val = open_splits(real_data / "imagenet", cache_dir=cache)  # the two tars
    assert (train.kind, len(train), len(val), len(train.classes)) == ("shards", 20_000, 4_000, 200)
    assert np.array_equal(np.bincount(train.labels), np.full(200, 100))
    assert train.open(12_345).size == (64, 64)
    full, _ = open_splits(real_data / "imagenet" / "full")
    assert (full.kind, len(full), len(full.classes)) == ("folder", 160, 40)
    for i in range(0, 160, 16):
        assert full.classes[full.labels[i]] in full.name(i) and full.open(i).mode == "RGB"

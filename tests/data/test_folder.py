"""Image folders: content against PIL, and what is told about folders that are not in order."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dogmed.data import plan, prepare
from dogmed.data.tasks import SPLITS
from dogmed.errors import ConfigError, DataError


@pytest.fixture
def folder(tmp_path):
    """A small grey folder: 3 images of each of 2 classes in every split."""
    rng = np.random.default_rng(0)
    root = tmp_path / "scans"
    for split in SPLITS:
        for name in ("well", "ill"):
            (root / split / name).mkdir(parents=True)
            for i in range(3):
                pixels = rng.integers(0, 256, (20, 20), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


def refused(folder, cache, words, leftovers=None):
    with pytest.raises(DataError, match=words) as caught:
        prepare(folder, size=20, cache_dir=cache)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
    assert not list(cache.glob("prepared/*")) and not list(cache.glob("prepared/.*"))


def test_content_order_and_classes(folder, cache):
    found = prepare(folder, size=20, cache_dir=cache)
    assert found.task.classes == ("ill", "well") and found.task.kind == "binary"
    assert found.task.channels == 1 and found.task.name == "scans" and found.source == "folder"
    assert (found.source_size, found.interpolation) == (20, None)
    for split in SPLITS:
        files = sorted((folder / split / "ill").iterdir()) + sorted(
            (folder / split / "well").iterdir()
        )
        own = np.stack([np.asarray(Image.open(p)) for p in files])
        assert np.array_equal(found.images(split), own)
        assert found.labels(split)[:, 0].tolist() == [0, 0, 0, 1, 1, 1]
    assert plan(folder, size=20, cache_dir=cache).action == "reuse"
    assert str(folder) not in (found.folder / "manifest.json").read_text()


def test_mixed_sizes_colour_and_orientation(folder, cache):
    rng = np.random.default_rng(1)
    wide = Image.fromarray(rng.integers(0, 256, (30, 60, 3), dtype=np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6  # to be shown turned by 90 degrees
    wide.save(folder / "val/ill/9.PNG", exif=turned)
    found = prepare(folder, size=24, cache_dir=cache)
    assert found.task.channels == 3
    assert (found.source_size, found.interpolation) == (20, "bilinear")
    assert found.manifest["source_sizes"] == {"smallest": [20, 20], "largest": [60, 30]}
    upright = wide.transpose(Image.Transpose.ROTATE_270).resize((24, 24), Image.Resampling.BILINEAR)
    assert np.array_equal(found.images("val")[3], np.asarray(upright))
    grey = Image.open(folder / "val/ill/0.png").convert("RGB").resize((24, 24), 2)
    assert np.array_equal(found.images("val")[0], np.asarray(grey))


def test_every_suffix_is_read(folder, cache):
    pixels = Image.fromarray(np.full((20, 20), 77, np.uint8))
    for suffix in ("jpg", "jpeg", "bmp", "tif", "tiff", "JPG"):
        pixels.save(folder / "train" / "ill" / f"x.{suffix}")
    (folder / "train/ill/notes.txt").write_text("no image")
    (folder / "train/ill/.DS_Store").write_text("hidden")
    found = prepare(folder, size=20, cache_dir=cache)
    assert found.manifest["splits"]["train"]["counts"] == [9, 3]
    assert [
        n for n in found.manifest["notes"] if "notes.txt" in n and n.startswith("note: 1 files")
    ]


def test_changed_folder_is_prepared_anew(folder, cache):
    first = prepare(folder, size=20, cache_dir=cache)
    path = folder / "train/ill/0.png"
    Image.fromarray(np.zeros((20, 20), np.uint8)).save(path)
    os.utime(path, ns=(0, 0))
    second = prepare(folder, size=20, cache_dir=cache)
    assert second.folder != first.folder and not second.images("train")[0].any()


def test_broken_images_are_named(folder, cache):
    victim = folder / "test/well/2.png"
    whole = victim.read_bytes()
    victim.write_bytes(whole[:200])
    refused(folder, cache, r"test/well/2\.png is not a readable image")
    victim.write_bytes(b"not an image")
    refused(folder, cache, r"test/well/2\.png is not a readable image")


def test_more_than_eight_bits_are_refused(folder, cache):
    deep = Image.fromarray(np.full((20, 20), 3000, np.uint16))
    deep.save(folder / "val/ill/1.png")
    refused(folder, cache, r"val/ill/1\.png has 16-bit pixels .* save it as 8-bit")


def test_several_frames_are_refused(folder, cache):
    frames = [Image.fromarray(np.full((20, 20), i, np.uint8)) for i in range(3)]
    frames[0].save(folder / "val/ill/3.tif", save_all=True, append_images=frames[1:])
    refused(folder, cache, r"val/ill/3\.tif holds 3 frames")


def test_splits_and_classes_that_do_not_match(folder, cache):
    (folder / "val").rename(folder / "valid")
    refused(folder, cache, r"has no folder 'val' \(did you mean 'valid'\?\)")
    (folder / "valid").rename(folder / "held")
    refused(folder, cache, "nothing is split silently")
    (folder / "held").rename(folder / "val")
    (folder / "val/well").rename(folder / "val/wel")
    refused(folder, cache, r"class 'wel' is not in train \(did you mean 'well'\?\)")
    (folder / "val/wel").rename(folder / "elsewhere")
    refused(folder, cache, r"val has no folder 'well'.*an empty one is allowed")
    (folder / "val/well").mkdir()
    found = prepare(folder, size=20, cache_dir=cache)
    assert found.manifest["notes"] == ["warning: scans: no image of well in val"]


def test_folders_without_images_or_classes(folder, cache):
    for path in (folder / "test").glob("*/*"):
        path.unlink()
    refused(folder, cache, "test holds no image")
    (folder / "train/ill/deeper").mkdir()
    refused(folder, cache, "is a folder inside a class folder")
    empty = folder.parent / "empty"
    for split in SPLITS:
        (empty / split).mkdir(parents=True)
    refused(empty, cache, r"train has 0 class folders \(none\)")


def test_kind_of_a_folder(folder, cache):
    for split in SPLITS:
        (folder / split / "unsure").mkdir()
    Image.fromarray(np.zeros((20, 20), np.uint8)).save(folder / "train/unsure/0.png")
    assert prepare(folder, size=20, cache_dir=cache).task.kind == "multi-class"
    assert prepare(folder, size=20, cache_dir=cache, kind="ordinal").task.kind == "ordinal"
    with pytest.raises(ConfigError, match="for multi-label use"):
        prepare(folder, size=20, cache_dir=cache, kind="multi-label")
    with pytest.raises(DataError, match="a binary task has two classes, found 3"):
        prepare(folder, size=20, cache_dir=cache, kind="binary")


def test_real_folder(real_data, cache):
    root = real_data / "imagefolder" / "kermanycxr"
    found = prepare(root, size=28, cache_dir=cache)
    assert found.task.classes == ("normal", "pneumonia") and found.source_size == 224
    counts = {s: found.manifest["splits"][s]["counts"] for s in SPLITS}
    assert counts == {"train": [1190, 3484], "val": [151, 391], "test": [234, 390]}
    path = sorted(Path(root / "test" / "pneumonia").iterdir())[7]
    own = np.asarray(Image.open(path).convert("RGB").resize((28, 28), Image.Resampling.BILINEAR))
    assert np.array_equal(found.images("test")[234 + 7], own)

"""Prepared folders that someone or something has changed: never used as they are, told or mended."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from PIL import Image

from dogmed.data import plan, prepare
from dogmed.data.prepared import load_prepared, verify_prepared
from dogmed.data.progress import Quiet
from dogmed.data.tasks import SPLITS
from dogmed.data.writer import cached_md5, file_digest
from dogmed.errors import DataError


def without(key):
    def change(manifest):
        del manifest[key]

    return change


def replaced(key, value):
    return lambda manifest: manifest.update({key: value})


CHANGES = {
    "nearly empty": lambda m: [m.pop(k) for k in list(m) if k != "format"],
    "no files": replaced("files", {}),
    "files is a list": replaced("files", ["train_images.npy"]),
    "files elsewhere": lambda m: m["files"].update({"../x.npy": {"sha256": "", "bytes": 0}}),
    "no task": without("task"),
    "task unknown to us": lambda m: m["task"].update(colour="red"),
    "another kind": lambda m: m["task"].update(kind="regression"),
    "classes missing": lambda m: m["task"].pop("classes"),
    "channels": lambda m: m["task"].update(channels=3),
    "size": replaced("size", 16),
    "size is text": replaced("size", "12"),
    "no splits": without("splits"),
    "samples": lambda m: m["splits"]["val"].update(samples=13),
    "counts": lambda m: m["splits"]["val"].update(counts=[12]),
    "no notes": without("notes"),
    "another format": replaced("format", 0),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_manifest_that_is_wrong_is_prepared_anew(make_npz, cache, case):
    path = make_npz()
    found = prepare(path, size=12, cache_dir=cache)
    file = found.folder / "manifest.json"
    whole = file.read_text()
    manifest = json.loads(whole)
    CHANGES[case](manifest)
    file.write_text(json.dumps(manifest))
    assert load_prepared(found.folder) is None
    assert plan(path, size=12, cache_dir=cache).action == "prepare"
    assert prepare(path, size=12, cache_dir=cache).folder == found.folder
    assert file.read_text() == whole


@pytest.mark.parametrize("name", ["train_labels.npy", "val_images.npy"])
@pytest.mark.parametrize("where", [20, -1])
def test_changed_arrays_of_the_same_size(make_npz, cache, name, where):
    path = make_npz()
    found = prepare(path, size=12, cache_dir=cache)
    content = bytearray((found.folder / name).read_bytes())
    content[where] ^= 1  # in the header, or in the last value
    (found.folder / name).write_bytes(content)
    assert len(verify_prepared(found.folder, Quiet())) == 1
    if (name, where) == ("val_images.npy", -1):
        return  # pixels are compared by verify alone
    assert load_prepared(found.folder) is None
    again = prepare(path, size=12, cache_dir=cache)
    assert verify_prepared(again.folder, Quiet()) == []


def test_arrays_lost_while_in_use(make_npz, cache):
    found = prepare(make_npz(), size=12, cache_dir=cache)
    (found.folder / "val_images.npy").write_bytes(b"")
    (found.folder / "val_labels.npy").unlink()
    for read in (found.images, found.labels):
        with pytest.raises(DataError, match=rf"delete {found.folder}, it is prepared anew"):
            read("val")


def test_md5_is_taken_anew_when_size_and_time_are_the_same(tmp_path, cache):
    path = tmp_path / "x"
    sums = []
    for content in (b"one", b"two"):
        path.write_bytes(content)
        os.utime(path, ns=(0, 0))
        sums.append(cached_md5(path, cache, Quiet()))
        assert cached_md5(path, cache, None) == sums[-1]
    assert sums[1] == file_digest(path, "md5", Quiet(), "") != sums[0]


def bitmaps(root, seed):
    """A folder of BMPs: equal names, sizes and times whatever the seed."""
    rng = np.random.default_rng(seed)
    for split in SPLITS:
        for name in ("a", "b"):
            path = root / split / name / "0.bmp"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (12, 12), dtype=np.uint8)).save(path)
            os.utime(path, ns=(0, 0))
    return root


def test_folders_that_differ_in_content_alone(tmp_path, cache):
    first = prepare(bitmaps(tmp_path / "1" / "scans", 1), size=12, cache_dir=cache)
    second = prepare(bitmaps(tmp_path / "2" / "scans", 2), size=12, cache_dir=cache)
    assert first.folder != second.folder
    assert not np.array_equal(first.images("test"), second.images("test"))
    copy = prepare(bitmaps(tmp_path / "3" / "scans", 1), size=12, cache_dir=cache)
    assert copy.folder == first.folder
    changed = prepare(bitmaps(tmp_path / "1" / "scans", 2), size=12, cache_dir=cache)
    assert changed.folder == second.folder
    moved = tmp_path / "1" / "scans"
    moved.rename(tmp_path / "elsewhere")
    (tmp_path / "3" / "scans").rename(moved)
    assert prepare(moved, size=12, cache_dir=cache).folder == first.folder


def test_names_in_any_script_are_kept(make_npz, cache):
    folders = {
        name: prepare(make_npz(f"{name}.npz"), size=12, cache_dir=cache).folder.name
        for name in ("患者", "検査", "größe 1")
    }
    assert folders["患者"].startswith("患者-12-npz-")
    assert folders["検査"].startswith("検査-12-npz-")
    assert folders["größe 1"].startswith("größe_1-12-npz-")

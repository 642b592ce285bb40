"""Preparation: content, reuse, other sizes, plans, locks, memory, and what a killed process leaves."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dogmed.data import plan, prepare
from dogmed.data.prepared import load_prepared, verify_prepared
from dogmed.data.tasks import SPLITS
from dogmed.errors import ConfigError, DataError


@pytest.mark.parametrize("compressed", [True, False])
def test_own_npz_is_prepared_whole(
    make_npz, cache, leftovers, compressed, make_notes, assert_equals
):
    path = make_npz(compressed=compressed, extra=np.zeros(3))
    heard = make_notes()
    found = prepare(path, size=12, cache_dir=cache, progress=heard)
    assert_equals(found, dict(np.load(path)))
    assert (found.task.name, found.task.kind, found.task.classes) == (
        "mine",
        "multi-class",
        ("0", "1", "2"),
    )
    assert (found.source, found.source_size, found.interpolation) == ("npz", 12, None)
    manifest = found.manifest
    assert manifest["kind_inferred"] and manifest["source_file"] == "mine.npz"
    assert manifest["source_content"] == hashlib.md5(path.read_bytes()).hexdigest()
    assert manifest["splits"]["train"] == {"samples": 24, "counts": [8, 8, 8]}
    for name, facts in manifest["files"].items():
        content = (found.folder / name).read_bytes()
        assert facts == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    assert str(path.parent) not in (found.folder / "manifest.json").read_text()
    assert any("further arrays are ignored (extra)" in line for line in heard.notes)
    assert any("taken to be multi-class" in line for line in heard.notes)
    assert leftovers() == []


def test_reused_until_the_source_changes(make_npz, arrays, cache, make_notes, assert_equals):
    path = make_npz()
    first = prepare(path, size=12, cache_dir=cache)
    written = {p: p.stat().st_mtime_ns for p in first.folder.iterdir()}
    heard = make_notes()
    again = prepare(path, size=12, cache_dir=cache, progress=heard)
    assert again.folder == first.folder and heard.steps == []
    assert {p: p.stat().st_mtime_ns for p in again.folder.iterdir()} == written
    copy = path.with_name("copy")
    copy.mkdir()
    (copy / "mine.npz").write_bytes(path.read_bytes())  # the same content elsewhere
    assert prepare(copy / "mine.npz", size=12, cache_dir=cache).folder == first.folder
    other = arrays(seed=1)
    np.savez(path, **other)
    changed = prepare(path, size=12, cache_dir=cache)
    assert changed.folder != first.folder
    assert_equals(changed, other)


def test_kind_given_or_inferred(make_npz, arrays, cache):
    labels = {
        f"{s}_labels": np.arange(n)[:, None] % 5 for s, n in zip(SPLITS, (24, 12, 12), strict=True)
    }
    path = make_npz(**labels)
    assert prepare(path, size=12, cache_dir=cache).task.kind == "multi-class"
    ordinal = prepare(path, size=12, cache_dir=cache, kind="ordinal")
    assert ordinal.task.kind == "ordinal" and not ordinal.manifest["kind_inferred"]
    with pytest.raises(DataError, match="a binary task has labels 0 and 1"):
        prepare(path, size=12, cache_dir=cache, kind="binary")
    with pytest.raises(ConfigError, match="did you mean 'ordinal'"):
        prepare(path, size=12, cache_dir=cache, kind="ordinl")
    two = make_npz("two.npz", base=arrays(classes=2))
    assert prepare(two, size=12, cache_dir=cache).task.kind == "binary"
    table = np.random.default_rng(0).integers(0, 2, (24, 4))
    many = make_npz("many.npz", train_labels=table, val_labels=table[:12], test_labels=table[12:])
    found = prepare(many, size=12, cache_dir=cache)
    assert (found.task.kind, found.task.num_classes) == ("multi-label", 4)
    assert found.manifest["splits"]["train"]["counts"] == table.sum(0).tolist()


def test_missing_classes_are_told(make_npz, cache, make_notes):
    path = make_npz(val_labels=np.zeros((12, 1), int), train_labels=np.arange(24)[:, None] % 2)
    heard = make_notes()
    prepare(path, size=12, cache_dir=cache, progress=heard)
    assert "warning: mine: no image of 2 in train" in heard.notes
    assert "warning: mine: no image of 1, 2 in val" in heard.notes


@pytest.mark.parametrize("channels", [1, 3])
def test_other_sizes_are_resized_as_pil_does(make_npz, arrays, cache, channels):
    base = arrays(size=12, channels=channels)
    path = make_npz(base=base)
    for size in (8, 30):
        found = prepare(path, size=size, cache_dir=cache)
        assert (found.source_size, found.interpolation, found.size) == (12, "bilinear", size)
        for split in SPLITS:
            own = base[f"{split}_images"]
            expected = [
                np.asarray(Image.fromarray(x).resize((size, size), Image.Resampling.BILINEAR))
                for x in own
            ]
            assert np.array_equal(found.images(split), np.stack(expected))


def test_images_that_are_not_square(make_npz, cache, make_notes):
    oblong = {f"{s}_images": np.full((n, 12, 20), 7, np.uint8) for s, n in
              zip(SPLITS, (24, 12, 12), strict=True)}  # fmt: skip
    heard = make_notes()
    found = prepare(make_npz(**oblong), size=16, cache_dir=cache, progress=heard)
    assert found.images("train").shape == (24, 16, 16) and found.source_size == 12
    assert found.manifest["source_sizes"] == {"smallest": [12, 20], "largest": [12, 20]}
    assert any("stretched" in line for line in heard.notes)


def test_plan_touches_nothing(make_npz, tmp_path, cache):
    path = make_npz()
    wanted = plan(path, size=12, cache_dir=cache)
    assert wanted.action == "prepare" and wanted.bytes_to_prepare == 48 * (144 + 8)
    assert wanted.task.kind == "multi-class"
    fetch = plan("pathmnist", size=224, cache_dir=cache)
    assert fetch.action == "download" and fetch.bytes_to_prepare > 16e9
    assert fetch.samples["train"] == 89996 and "zenodo" in fetch.origin
    assert plan("chestmnist", size=64, data="synthetic", cache_dir=cache).action == "generate"
    assert not cache.exists()
    found = prepare(path, size=12, cache_dir=cache)
    ready = plan(path, size=12, cache_dir=cache)
    assert (ready.action, ready.folder, ready.bytes_to_prepare) == ("reuse", found.folder, 0)
    assert all(isinstance(line, str) and "\n" not in line for line in ready.lines())


def test_damage_is_seen_and_mended(make_npz, cache, make_notes, assert_equals):
    path = make_npz()
    found = prepare(path, size=12, cache_dir=cache)
    target = found.folder / "val_images.npy"
    whole = target.read_bytes()
    target.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "sha256 differs" in verify_prepared(found.folder, make_notes())[0]
    target.write_bytes(whole[:-1])
    assert load_prepared(found.folder) is None
    assert_equals(prepare(path, size=12, cache_dir=cache), dict(np.load(path)))
    assert verify_prepared(found.folder, make_notes()) == []


def test_cache_that_cannot_be_written(make_npz, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(DataError, match=r"cannot create .*--cache-dir"):
        prepare(make_npz(), size=12, cache_dir=blocked / "cache")


def _prepare_in_process(path, cache, start, results, make_notes):
    heard = make_notes()
    start.wait()
    found = prepare(path, size=40, cache_dir=cache, progress=heard)
    results.put((str(found.folder), any(s.startswith("preparing") for s in heard.steps)))


def test_concurrent_processes_prepare_once(make_npz, arrays, cache, leftovers, make_notes):
    base = arrays(n=4000, size=32)
    path = make_npz(base=base)
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(3), context.Queue()
    workers = [
        context.Process(target=_prepare_in_process, args=(path, cache, start, results, make_notes))
        for _ in range(3)
    ]
    for worker in workers:
        worker.start()
    told = [results.get(timeout=100) for _ in workers]
    for worker in workers:
        worker.join()
    assert len({folder for folder, _ in told}) == 1
    assert sum(wrote for _, wrote in told) == 1, "the others must find the first's result"
    assert verify_prepared(Path(told[0][0]), make_notes()) == [] and leftovers() == []


KILLED = """
import os, signal, sys
from dogmed.data import prepare
class Killer:
    def start(self, what, total, done=0): self.what, self.done = what, 0
    def advance(self, amount):
        self.done += amount
        if self.what.startswith("preparing") and self.done > 3_000_000:
            os.kill(os.getpid(), signal.SIGKILL)
    def finish(self): pass
    def note(self, line): pass
prepare(sys.argv[1], size=40, cache_dir=sys.argv[2], progress=Killer())
"""


def test_killed_in_the_middle(make_npz, arrays, cache, leftovers, assert_equals):
    base = arrays(n=4000, size=40)
    path = make_npz(base=base)
    code = subprocess.run([sys.executable, "-c", KILLED, path, cache]).returncode
    assert code == -signal.SIGKILL
    assert any(".tmp" in name for name in leftovers())
    assert [p for p in (cache / "prepared").iterdir() if not p.name.startswith(".")] == []
    assert plan(path, size=40, cache_dir=cache).action == "prepare"
    found = prepare(path, size=40, cache_dir=cache)
    assert_equals(found, base)
    assert leftovers() == []


MEASURED = """
import re, sys
from pathlib import Path
from dogmed.data import prepare
# ru_maxrss would include the parent's peak from before exec; VmHWM is this program's own, in kB
peak = lambda: 1024 * int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
prepare(sys.argv[2], size=16, cache_dir=sys.argv[3])  # a tiny file: everything is imported
before = peak()
prepare(sys.argv[1], size=int(sys.argv[4]), cache_dir=sys.argv[3])
print(peak() - before)
"""


@pytest.mark.parametrize(
    ("compression", "size"),
    [(zipfile.ZIP_STORED, 224), (zipfile.ZIP_DEFLATED, 224), (zipfile.ZIP_STORED, 100)],
    ids=["stored", "deflated", "resized"],
)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_stays_constant(make_npz, tmp_path, cache, compression, size):
    """About 300 MB of pixels are prepared with less than 40 MB more memory."""
    counts = {"train": 1800, "val": 100, "test": 100}
    piece = np.random.default_rng(0).integers(0, 4, (20, 224, 224, 3), dtype=np.uint8)
    path = tmp_path / "big.npz"
    with zipfile.ZipFile(path, "w", compression, compresslevel=1) as archive:
        for split, n in counts.items():
            with archive.open(f"{split}_images.npy", "w") as stream:
                header = {"descr": "|u1", "fortran_order": False, "shape": (n, *piece.shape[1:])}
                np.lib.format.write_array_header_1_0(stream, header)
                for _ in range(n // len(piece)):
                    stream.write(piece)
            with archive.open(f"{split}_labels.npy", "w") as stream:
                np.lib.format.write_array(stream, np.arange(n) % 4)
    command = [sys.executable, "-c", MEASURED, path, make_npz(), cache, str(size)]
    grown = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert grown < 40e6, f"{grown / 1e6:.0f} MB"
    folder = next(p for p in (cache / "prepared").iterdir() if p.name.startswith("big"))
    images = load_prepared(folder).images("train")
    assert images.shape == (1800, size, size, 3)
    if size == 224:
        assert np.array_equal(images[-20:], piece) and np.array_equal(images[:20], piece)


def test_real_packs(real_data, cache, assert_equals):
    kinds = {}
    for path in sorted((real_data / "packs").glob("*.npz")):
        own = np.load(path)
        size = own["train_images"].shape[1]
        found = prepare(path, size=size, cache_dir=cache)
        assert_equals(found, dict(own))
        kinds[path.stem] = (found.task.kind, found.task.num_classes, found.task.channels)
    assert kinds == {
        "fundus_multilabel_64": ("multi-label", 3, 3),
        "ham10000_128": ("multi-class", 7, 3),
        "kermanycxr_224": ("binary", 2, 1),
        "pbcblood_224": ("multi-class", 8, 3),
        "pbcblood_28": ("multi-class", 8, 3),
    }


def test_manifest_is_plain_json_and_says_versions(make_npz, cache):
    found = prepare(make_npz(), size=12, cache_dir=cache)
    manifest = json.loads((found.folder / "manifest.json").read_text())
    assert manifest["versions"]["numpy"] == np.__version__
    assert set(manifest["versions"]) == {"dogmed", "medmnist", "numpy", "pillow"}
    assert os.environ.get("HOME", "/nowhere") not in json.dumps(manifest)
    assert time.time() - (found.folder / "manifest.json").stat().st_mtime < 600

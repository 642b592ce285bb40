"""``dogmed pretrain pack``: the same set in smaller files, byte for byte again, and going on."""

from __future__ import annotations

import hashlib
import io
import json
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dogmed import config
from dogmed.errors import DataError, Interrupted
from dogmed.pretrain import pack as packing
from dogmed.pretrain.images import ImageError, ImageSet, open_images, open_splits
from dogmed.pretrain.pack import PackConfig, encode, pack
from dogmed.pretrain.subset import draw

Pack = Callable[..., Path]


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of six noisy 400 x 300 images and one of 50 x 40 each, with awkward names."""
    root, rng = tmp_path_factory.mktemp("noisy"), np.random.default_rng(0)
    for split in ("train", "val"):
        for label in ("n01", "n02"):
            (root / split / label).mkdir(parents=True)
            for i, name in enumerate(
                ["a.1.JPEG", "a.JPEG", "a_b.jpg", "b.jpg", "c.png", "d.jpg", "e.jpg"]
            ):
                side = (40, 50, 3) if i == 6 else (300, 400, 3)
                pixels = rng.integers(0, 256, side, dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / label / name, quality=95)
    return root


@pytest.fixture
def run(noisy: Path, tmp_path: Path) -> Pack:
    def run(out: str = "packed", **changed: Any) -> Path:
        options = {
            "data": noisy, "out": tmp_path / out, "short_side": 290, "quality": 90, "shard_mb": 1,
            "workers": 0, "max_bad": 0.0, "cache_dir": tmp_path / "cache", **changed,
        }  # fmt: skip
        pack(**options)
        return tmp_path / out

    return run


def hashes(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def stems(images: ImageSet) -> list[str]:
    return [images.name(i).rsplit(".", 1)[0].replace(".", "_") for i in range(len(images))]


def test_a_pack_is_the_same_set(noisy: Path, run: Pack, tmp_path: Path) -> None:
    out = run()
    assert sorted(hashes(out)) == [
        "info.json", "train-000000.tar", "train-000001.tar", "val-000000.tar", "val-000001.tar",
    ]  # fmt: skip
    for before, after in zip(open_splits(noisy), open_splits(out, cache_dir=tmp_path), strict=True):
        assert after.kind == "shards" and after.classes == before.classes == ("n01", "n02")
        assert np.array_equal(after.labels, before.labels)
        assert stems(after) == stems(before)
        for i in range(len(before)):
            small = min(before.open(i).size) <= 290
            assert after.open(i).size == ((50, 40) if small else (387, 290))
            assert (after.read(i) == before.read(i)) == small
        drawn = [draw(images, per_class=3, classes=None, seed=1) for images in (before, after)]
        assert stems(drawn[0]) == stems(drawn[1])


def test_equal_settings_give_equal_bytes_with_any_workers(run: Pack) -> None:
    assert hashes(run("one")) == hashes(run("two", workers=2))


def test_train_is_shuffled_for_readers_that_stream(run: Pack) -> None:
    names = []
    for shard in sorted(run().glob("train-*.tar")):
        with tarfile.open(shard) as tar:
            names += [name for name in tar.getnames() if not name.endswith(".cls")]
    assert len(names) == 14 and names != sorted(names)


def test_a_stopped_pack_goes_on_after_its_last_whole_shard(
    run: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = hashes(run("whole"))
    calls = 0

    def stop_at_the_last(data: bytes, short_side: int, quality: int) -> tuple[str, bytes]:
        nonlocal calls
        calls += 1
        if calls == 28 + 14:  # 28 were encoded to foretell the size
            raise KeyboardInterrupt
        return encode(data, short_side, quality)

    monkeypatch.setattr(packing, "encode", stop_at_the_last)
    with pytest.raises(Interrupted, match="the same command goes on"):
        run("stopped")
    out = tmp_path / "stopped"
    assert sorted(hashes(out)) == ["pack.json", "train-000000.tar"]
    first = (out / "train-000000.tar").stat().st_mtime_ns
    assert hashes(run("stopped", workers=2)) == whole
    assert (out / "train-000000.tar").stat().st_mtime_ns == first


def test_workers_end_with_a_killed_pack(noisy: Path, tmp_path: Path) -> None:
    code = (
        "from dogmed.pretrain import pack; import os, signal, sys, pathlib\n"
        "pack._add = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "pack.pack(data=pathlib.Path(sys.argv[1]), out=pathlib.Path('out'), short_side=500, quality=90,\n"
        "          shard_mb=1, workers=2, max_bad=0, cache_dir=pathlib.Path('cache'))"
    )
    words = [sys.executable, "-c", code, str(noisy)]
    # returns when the last process that holds the pipe has ended
    done = subprocess.run(words, cwd=tmp_path, stdout=subprocess.PIPE, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert not list((tmp_path / "out").glob("*.tar"))


def test_done_is_done_and_another_pack_needs_another_folder(
    run: Pack, capsys: pytest.CaptureFixture[str], jpegs: Path, tmp_path: Path
) -> None:
    before = hashes(run())
    run()
    assert "packed already" in capsys.readouterr().out
    with pytest.raises(DataError, match="other settings: quality 90, not 80"):
        run(quality=80)
    with pytest.raises(DataError, match="other images"):
        run(data=jpegs)
    assert hashes(run()) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(DataError, match="not empty"):
        run("mine")
    (tmp_path / "packed" / "train-000001.tar").unlink()
    with pytest.raises(DataError, match=r"train-000001\.tar has been removed"):
        run()


def test_a_disk_too_small_is_found_before_the_start(
    run: Pack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(packing, "free_space", lambda folder: 1_000_000)
    with pytest.raises(DataError, match=r"14 images of train need about .* MB of disk, 1\.0 MB"):
        run()
    assert hashes(tmp_path / "packed") == {}


def test_unreadable_images_are_left_out_and_named(run: Pack, jpegs: Path, tmp_path: Path) -> None:
    root = tmp_path / "spoilt"
    for file in jpegs.rglob("*.JPEG"):
        target = root / file.relative_to(jpegs)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    images = open_images(root, "train")
    for i in (5, 20):
        (root / "train" / images.name(i)).write_bytes(images.read(i)[:700])
    with pytest.raises(DataError, match=r"cannot be read, more than --max-bad 0.01 allows"):
        run("strict", data=root, max_bad=0.01)
    out = run("lenient", data=root, max_bad=0.1, workers=2)
    left_out = json.loads((out / "info.json").read_text())["dogmed_pack"]["splits"]["train"][
        "left_out"
    ]
    assert sorted(left_out) == [images.name(5), images.name(20)]
    assert len(open_images(out, "train", cache_dir=tmp_path)) == 38


def test_timm_reads_a_pack(run: Pack, tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    from timm.data import create_dataset

    out = run()
    for split, ours in zip(("train", "val"), open_splits(out, cache_dir=tmp_path), strict=True):
        theirs = create_dataset("wds/", str(out), split=split)
        assert len(theirs) == len(ours)
        seen = [(image.tobytes(), label) for image, label in theirs]
        expected = [(ours.open(i).tobytes(), int(ours.labels[i])) for i in range(len(ours))]
        assert sorted(seen) == sorted(expected)


def test_shards_do_not_go_among_the_images(noisy: Path, run: Pack, tmp_path: Path) -> None:
    for inside in (noisy / "train", noisy / "val" / "n01" / "packed"):
        before = sorted(noisy.rglob("*"))
        with pytest.raises(DataError, match=r"--out .* lies in .*, among the images of"):
            run(out=inside)
        assert sorted(noisy.rglob("*")) == before


def test_encoding() -> None:
    stream = io.BytesIO()
    Image.new("L", (30, 500)).save(stream, "PNG")
    assert encode(stream.getvalue(), 30, 90) == ("png", stream.getvalue())
    suffix, data = encode(stream.getvalue(), 10, 90)
    image = Image.open(io.BytesIO(data))
    assert (suffix, image.format, image.mode, image.size) == ("jpg", "JPEG", "RGB", (10, 167))
    stream = io.BytesIO()
    Image.new("RGB", (20, 20)).save(stream, "BMP")
    assert Image.open(io.BytesIO(encode(stream.getvalue(), 30, 90)[1])).size == (20, 20)
    with pytest.raises(ImageError):
        encode(b"nothing", 30, 90)


def test_the_configuration_is_the_functions_arguments(tmp_path: Path) -> None:
    flags = ["--data", "a", "--out", "b", "--short-side", "320"]
    parsed = config.parse(PackConfig, flags, prog="dogmed pretrain pack")
    assert (parsed.short_side, parsed.quality, parsed.workers) == (320, 90, None)
    assert config.flags(PackConfig) == [
        "--data", "--out", "--short-side", "--quality", "--shard-mb", "--workers", "--max-bad",
        "--cache-dir",
    ]  # fmt: skip

"""Official files and those that only look like them: what is taken, refused and upsampled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dogmed.data import official_tasks, plan, prepare
from dogmed.data.tasks import SPLITS
from dogmed.errors import ConfigError, DataError


def official_like(folder: Path, name: str, size: int, n: int = 16) -> Path:
    """A file with an official task's name, types and classes, but other content."""
    task = official_tasks()[name.split("_")[0].removesuffix(".npz")]
    rng = np.random.default_rng(0)
    shape = (size, size) if task.channels == 1 else (size, size, 3)
    folder.mkdir(exist_ok=True)
    content = {}
    for split in SPLITS:
        content[f"{split}_images"] = rng.integers(0, 256, (n, *shape), dtype=np.uint8)
        content[f"{split}_labels"] = (np.arange(n) % task.num_classes).astype(np.uint8)[:, None]
    np.savez_compressed(folder / name, **content)
    return folder / name


def test_variant_in_data_dir(tmp_path, cache, make_notes, assert_equals):
    folder = tmp_path / "files"
    path = official_like(folder, "retinamnist_64.npz", 64)
    before = sorted(folder.iterdir())
    folder.chmod(0o555)  # the user's files may be read-only
    heard = make_notes()
    found = prepare("RetinaMNIST", size=64, data_dir=folder, cache_dir=cache, progress=heard)
    folder.chmod(0o755)
    assert sorted(folder.iterdir()) == before
    assert found.source == "variant" and found.task == official_tasks()["retinamnist"]
    assert_equals(found, dict(np.load(path)))
    warnings = [line for line in heard.notes if "is not the official file" in line]
    assert len(warnings) == 1 and found.manifest["official_md5"] in warnings[0]
    prepare("retinamnist", size=64, data_dir=folder, cache_dir=cache, progress=heard)
    assert len([line for line in heard.notes if "is not the official file" in line]) == 2


def test_data_dir_without_the_file(tmp_path, cache):
    folder = tmp_path / "files"
    official_like(folder, "bloodmnist.npz", 28)
    with pytest.raises(
        DataError, match=r"only bloodmnist.npz; use --size 28, or .*--upsample-from 28"
    ):
        prepare("bloodmnist", size=224, data_dir=folder, cache_dir=cache)
    with pytest.raises(DataError, match=r"no pathmnist_224.npz, it has bloodmnist.npz"):
        prepare("pathmnist", size=224, data_dir=folder, cache_dir=cache)
    with pytest.raises(DataError, match="is not a folder"):
        prepare("pathmnist", size=224, data_dir=tmp_path / "nowhere", cache_dir=cache)
    assert not cache.exists()


def test_an_official_name_with_other_pixels_is_refused(tmp_path, cache):
    folder = tmp_path / "files"
    official_like(folder, "bloodmnist.npz", 28).rename(folder / "bloodmnist_224.npz")
    with pytest.raises(DataError, match=r"28×28 with 3 channels, bloodmnist_224\.npz has 224×224"):
        prepare("bloodmnist", size=224, data_dir=folder, cache_dir=cache)


def test_labels_outside_the_official_task(tmp_path, cache):
    folder = tmp_path / "files"
    path = official_like(folder, "pneumoniamnist.npz", 28)
    content = dict(np.load(path))
    content["val_labels"][3] = 2
    np.savez(path, **content)
    with pytest.raises(DataError, match=r"val_labels: label \[2\] of image 3 is outside 0\.\.1"):
        prepare("pneumoniamnist", size=28, data_dir=folder, cache_dir=cache)


def test_upsampling_only_when_asked_and_recorded(tmp_path, cache):
    folder = tmp_path / "files"
    path = official_like(folder, "breastmnist.npz", 28)
    found = prepare("breastmnist", size=64, data_dir=folder, cache_dir=cache, upsample_from=28)
    assert (found.size, found.source_size, found.interpolation) == (64, 28, "bilinear")
    assert "-64-from28-" in found.folder.name
    own = np.load(path)["test_images"][5]
    expected = np.asarray(Image.fromarray(own).resize((64, 64), Image.Resampling.BILINEAR))
    assert np.array_equal(found.images("test")[5], expected)
    for wrong in (64, 224, 30):
        with pytest.raises(ConfigError, match="cannot give 64 px"):
            prepare("breastmnist", size=64, data_dir=folder, cache_dir=cache, upsample_from=wrong)


def test_real_official_files(real_data, cache, assert_equals):
    for size in (28, 224):
        found = prepare("breastmnist", size=size, data_dir=real_data / "medmnist", cache_dir=cache)
        assert found.source == "official" and found.source_size == size
        name = "breastmnist.npz" if size == 28 else "breastmnist_224.npz"
        assert_equals(found, dict(np.load(real_data / "medmnist" / name)))
    # with the official file prepared, neither the folder nor the network is needed
    assert prepare("breastmnist", size=224, cache_dir=cache).folder == found.folder
    assert plan("breastmnist", size=224, cache_dir=cache).action == "reuse"


def test_real_variants(real_data, cache, tmp_path):
    found = prepare("pneumoniamnist", size=28, data_dir=real_data / "medmnist", cache_dir=cache)
    assert found.source == "variant"
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "pneumoniamnist.npz").symlink_to(
        real_data / "variants/pneumoniamnist_826_missing.npz"
    )
    other = prepare("pneumoniamnist", size=28, data_dir=folder, cache_dir=cache)
    assert other.source == "variant" and other.folder != found.folder
    assert other.manifest["splits"]["train"] == {"samples": 3882, "counts": [388, 3494]}

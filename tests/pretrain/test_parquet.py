"""Parquet files as a set of images."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import pytest

from dogmed.errors import DataError
from dogmed.pretrain.images import open_images, open_splits


def test_parquet_files(jpegs: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    root = tmp_path / "hf"
    (root / "data").mkdir(parents=True)
    wanted = {}
    for split, name in (("train", "train"), ("val", "validation")):
        images = open_images(jpegs, split)
        rows = {
            "image": [
                {"bytes": images.read(i), "path": Path(images.name(i)).name}
                for i in range(len(images))
            ],
            "label": images.labels.tolist(),
        }
        kinds = {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["d", "c", "b", "a"]),
        }
        saved = datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))
        saved.to_parquet(str(root / "data" / f"{name}-00000-of-00001.parquet"))
        wanted[split] = images
    train, val = open_splits(root, cache_dir=tmp_path / "cache")
    assert train.kind == "parquet" and train.classes == ("d", "c", "b", "a")  # as declared
    for found, images in ((train, wanted["train"]), (val, wanted["val"])):
        assert found.labels.tolist() == images.labels.tolist()
        assert all(found.read(i) == images.read(i) for i in range(len(images)))
    assert train.name(3) == "00000003-n01440764_3.JPEG"
    assert pickle.loads(pickle.dumps(train)).read(7) == train.read(7)


def test_parquet_without_its_package_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "train-0.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'dogmed\[parquet\]'"):
        open_images(tmp_path, "train")


def test_a_damaged_parquet_file_is_told_in_one_line(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "train-0.parquet").write_bytes(b"PAR1 not at all")
    with pytest.raises(DataError, match="a parquet file of train cannot be read") as caught:
        open_images(tmp_path, "train", cache_dir=tmp_path / "cache")
    assert "\n" not in str(caught.value)

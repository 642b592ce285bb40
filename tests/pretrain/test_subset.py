"""Subsets: drawn by seed, nested, balanced, and read back from their list."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dogmed.errors import ConfigError, DataError
from dogmed.pretrain.images import ImageSet, open_splits
from dogmed.pretrain.names import shuffled
from dogmed.pretrain.subset import draw, of_classes, read_list, write_list


def names(images: ImageSet) -> set[str]:
    return {images.name(i) for i in range(len(images))}


def test_shuffles_are_permutations_decided_by_their_key() -> None:
    assert np.array_equal(np.sort(shuffled(1000, 3, 5)), np.arange(1000))
    assert np.array_equal(shuffled(1000, 3, 5), shuffled(1000, 3, 5))
    assert not np.array_equal(shuffled(1000, 3, 5), shuffled(1000, 3, 6))
    # numpy promises PCG64's raw stream: another result would spoil every saved seed
    assert shuffled(8, 0, 1).tolist() == [7, 4, 5, 1, 6, 2, 0, 3]


def test_nothing_asked_for_is_everything(train: ImageSet) -> None:
    whole = draw(train, per_class=None, classes=None, seed=0)
    assert np.array_equal(whole.positions, train.positions) and whole.classes == train.classes


def test_images_a_class(train: ImageSet) -> None:
    part = draw(train, per_class=3, classes=None, seed=1)
    assert np.array_equal(np.bincount(part.labels), [3, 3, 3, 3]) and part.classes == train.classes
    assert names(part) < names(draw(train, per_class=7, classes=None, seed=1)) < names(train)
    assert names(part) != names(draw(train, per_class=3, classes=None, seed=2))
    for i in range(len(part)):
        assert part.name(i) == train.name(part.positions[i])
        assert part.read(i) == train.read(part.positions[i])
        assert part.classes[part.labels[i]] == part.name(i)[:9]


def test_random_classes_are_numbered_anew_and_val_follows(jpegs: Path) -> None:
    train, val = open_splits(jpegs)
    part = draw(train, per_class=None, classes=2, seed=5)
    assert len(part) == 20 and set(part.labels) == {0, 1} and len(part.classes) == 2
    assert set(part.classes) < set(draw(train, per_class=None, classes=3, seed=5).classes)
    scored = of_classes(val, part.classes)
    assert len(scored) == 6 and scored.classes == part.classes
    for images in (part, scored):
        for i in range(len(images)):
            assert images.classes[images.labels[i]] == images.name(i)[:9]
    drawn = {draw(train, per_class=None, classes=2, seed=s).classes for s in range(40)}
    assert len(drawn) == 6  # every pair of four


def test_both_together_take_the_images_each_takes_alone(train: ImageSet) -> None:
    both = draw(train, per_class=4, classes=2, seed=3)
    alone = draw(train, per_class=4, classes=None, seed=3)
    assert names(both) == names(of_classes(alone, both.classes))


@pytest.mark.parametrize(
    ("per_class", "classes", "message"),
    [
        (11, None, "11 images a class are asked for, expected 1 to 10"),
        (0, None, "0 images a class"),
        (None, 5, "5 classes are asked for, expected 2 to 4"),
        (None, 1, "1 classes"),
    ],
)
def test_more_than_there_is_is_refused(
    train: ImageSet, per_class: int | None, classes: int | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        draw(train, per_class=per_class, classes=classes, seed=0)


def test_a_list_brings_the_same_images_back(train: ImageSet, tmp_path: Path) -> None:
    part, file = draw(train, per_class=3, classes=2, seed=9), tmp_path / "train.txt"
    write_list(file, part)
    assert file.read_text().splitlines() == [part.name(i) for i in range(len(part))]
    again = read_list(file, train)
    assert np.array_equal(again.positions, part.positions) and again.classes == part.classes
    assert np.array_equal(again.labels, part.labels)
    assert [p.name for p in tmp_path.iterdir()] == ["train.txt"]


def test_lists_that_do_not_fit(train: ImageSet, tmp_path: Path) -> None:
    file = tmp_path / "train.txt"
    with pytest.raises(DataError, match="cannot be read"):
        read_list(file, train)
    file.write_text(f"{train.name(0)}\n{train.name(1)}x\n")
    with pytest.raises(DataError, match="1 of 2 images are not in train"):
        read_list(file, train)
    file.write_text("")
    with pytest.raises(DataError, match="empty"):
        read_list(file, train)

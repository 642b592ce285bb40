"""Which files the words of the command stand for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dogmed.errors import ConfigError, DataError
from dogmed.inference.reading.inputs import find_images, refuse_swapped, refuse_unwritable


def image(path: Path, kind: str = "PNG") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(path, kind)
    return path


def test_folders_are_searched_for_what_is_named_or_begins_as_an_image(tmp_path: Path) -> None:
    kinds = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF")
    nameless = [image(tmp_path / "deep" / "er" / f"scan{k}", kind) for k, kind in enumerate(kinds)]
    (tmp_path / "IM0001").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "broken.JPG").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("no image")
    image(tmp_path / ".hidden" / "a.png")
    image(tmp_path / "._a.png")
    found = find_images([tmp_path])
    expected = {*nameless, tmp_path / "IM0001", tmp_path / "broken.JPG"}
    assert set(found.files) == expected and found.passed_over == 1
    assert find_images([tmp_path]).files == found.files


def test_a_file_that_is_given_is_tried_whatever_it_is_called_and_once(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    one = image(tmp_path / "a.png")
    found = find_images([tmp_path / "notes.txt", one, tmp_path, one])
    assert found.files == (tmp_path / "notes.txt", one)


def test_links_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    image(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "self").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "up").symlink_to(tmp_path)
    elsewhere = image(tmp_path / "elsewhere" / "b.png").parent
    (tmp_path / "in" / "there").symlink_to(elsewhere)
    (tmp_path / "in" / "loop.png").symlink_to(tmp_path / "in" / "loop.png")
    names = [path.name for path in find_images([tmp_path / "in"]).files]
    assert sorted(names) == ["a.png", "b.png", "loop.png"]


def test_what_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file or folder"):
        find_images([tmp_path / "nowhere"])
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match="has no image"):
        find_images([tmp_path])


def test_names_that_are_too_long_are_told_in_one_line(tmp_path: Path) -> None:
    long = tmp_path / ("n" * 300)
    for model, images in ((str(long), []), ("name", [long])):
        with pytest.raises(ConfigError, match=r"nnn: file name too long$"):
            refuse_swapped(model, images)
    refuse_swapped("name", [tmp_path / "nowhere", tmp_path / "no" / "where"])
    with pytest.raises(ConfigError, match=r"\(file name too long\)"):
        refuse_unwritable(tmp_path / ("n" * 250), tmp_path)
    refuse_unwritable(tmp_path / ("n" * 240), tmp_path)
    assert not any(tmp_path.iterdir())

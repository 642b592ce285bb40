"""Which run a folder that is none may have stood for."""

from __future__ import annotations

from pathlib import Path

import pytest

from dogmed.errors import WeightsError
from dogmed.weights.records import weights_file


def run_at(folder: Path) -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "best.safetensors").touch()
    return folder


def refused(folder: Path) -> str:
    with pytest.raises(WeightsError, match="no run folder with weights") as error:
        weights_file(folder)
    return str(error.value)


def test_the_nearest_run_below_is_named(tmp_path: Path) -> None:
    assert "did you mean" not in refused(tmp_path)
    run_at(tmp_path / "a" / "b" / "c" / "d" / "e")
    assert "did you mean" not in refused(tmp_path), "five levels down"
    far = run_at(tmp_path / "a" / "b" / "c" / "seed0")
    assert refused(tmp_path).endswith(f" (did you mean {far}?)")
    run_at(tmp_path / ".hidden")
    near = run_at(tmp_path / "z" / "seed0")
    run_at(tmp_path / "z" / "seed1")
    assert refused(tmp_path).endswith(f" (did you mean {near}?)")
    assert weights_file(near) == near / "checkpoints" / "best.safetensors"


def test_no_run_is_searched_for_along_links(tmp_path: Path) -> None:
    elsewhere = run_at(tmp_path / "elsewhere" / "seed0").parent
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "loop").symlink_to(tmp_path / "here")
    (tmp_path / "here" / "link").symlink_to(elsewhere)
    assert "did you mean" not in refused(tmp_path / "here")

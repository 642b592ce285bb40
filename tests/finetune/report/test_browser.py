"""The page in a browser: nothing in the console, nothing wider than the window, light and dark."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dogmed.finetune.report.assembly import assemble
from dogmed.finetune.report.page import page


@pytest.fixture
def written(add_run: Callable[..., Path], tmp_path: Path) -> str:
    for task in ("breastmnist", "bloodmnist"):
        for model, skill in (("dognext_test", 3.0), ("convnextv2_atto", 1.5)):
            for seed in (0, 1):
                add_run(skill, task=task, model=model, seed=seed)
    return page(assemble(tmp_path / "runs", resamples=100))


def test_it_fits_phone_and_desktop_without_a_word_in_the_console(
    written: str, look_at: Callable[..., dict[int, dict[str, Any]]]
) -> None:
    looks = look_at(written, scrolling=".scroll, .hidden")
    for seen in looks.values():
        assert seen["errors"] == [] and seen["resources"] == []
        assert seen["scroll"] <= seen["width"] and not seen["outside"], seen
        assert seen["texts"] > 20 and seen["smallest"] > 7
    phone, desktop = ((seen["paper"], seen["ink"]) for seen in looks.values())
    assert phone != desktop

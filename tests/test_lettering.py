"""Names with dollars, and with characters that matplotlib's font lacks, in every picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from dogmed import plots
from dogmed.lettering import drawable

NAMES = ["$1^$", "病人 $x$", "a_$", "50 %"]


@pytest.mark.filterwarnings("error")
def test_classes_may_have_any_name(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    p, y = rng.dirichlet(np.ones(4), 60), np.arange(60) % 4
    plots.confusion_matrix(y, p, NAMES, tmp_path / "confusion.png")
    plots.roc("multi-class", y, p, NAMES, tmp_path / "roc.png")
    labels = rng.integers(2, size=(60, 4))
    plots.confusion_matrix(labels, rng.random((60, 4)), NAMES, tmp_path / "labels.png")
    for path in tmp_path.iterdir():
        with Image.open(path) as picture:
            picture.verify()


@pytest.mark.filterwarnings("error")
def test_texts_are_taken_literally_and_numbers_of_logarithmic_axes_are_not(tmp_path: Path) -> None:
    figure = Figure(layout="constrained")
    ax = figure.subplots()
    ax.plot([1, 100], [1, 2], label="$1^$ of 病")
    ax.set(title="$x$", xscale="log", ylabel="a\\$b")
    ax.set_yticks([1, 2], ["$y^$", "$z$"])
    ax.legend()
    figure.suptitle("病")
    plots.save_figure(figure, tmp_path / "it")
    svg = plots.to_svg(figure, "it", {})
    for text in ("$1^$ of 病", "$x$", "a\\$b", "$y^$", "$z$", "病"):
        assert f">{text}<" in svg, text
    assert "mathdefault" not in svg


def test_what_no_font_has_is_a_replacement_character() -> None:
    assert drawable("病人 Ж\né.png") == "\ufffd\ufffd Ж\né.png"

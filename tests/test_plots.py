"""Pictures: what they say is what the metrics say, whatever the number of classes and epochs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from sklearn import metrics as sk

from dogmed import plots
from dogmed.metrics import KINDS, score

LONG = "colorectal adenocarcinoma epithelium with a name that goes on and on and does not end"


@pytest.fixture
def drawn(monkeypatch):
    """The figures saved, kept for a look inside."""
    figures, save = [], plots.write_figure

    def keep(figure, path):
        figures.append(figure)
        save(figure, path)

    monkeypatch.setattr(plots, "write_figure", keep)
    return figures


def example(kind: str, classes: int, n: int = 300):
    rng = np.random.default_rng(0)
    if kind == "multi-label":
        labels = (rng.random((n, classes)) < 0.3).astype(np.int64)
        return labels, 1 / (1 + np.exp(-rng.normal(labels - 0.5, 1)))
    labels = rng.integers(classes, size=(n, 1))
    z = rng.normal(size=(n, classes)) + 1.5 * np.eye(classes)[labels[:, 0]]
    return labels, np.exp(z) / np.exp(z).sum(1, keepdims=True)


def row(epoch: int, **changes):
    values = {"train_loss": 1 / epoch, "val_loss": 1.1 / epoch, "val_acc": 0.5, "val_auc": 0.6}
    return {"epoch": epoch, "lr": 1e-4, **values, **changes}


def size_in_inches(path):
    with Image.open(path) as image:
        image.verify()
        return image.width / plots.DPI, image.height / plots.DPI


@pytest.mark.parametrize("epochs", [1, 2, 100])
def test_learning_curves_hold_every_epoch(epochs, drawn, tmp_path):
    rows = [row(e) for e in range(1, epochs + 1)]
    plots.learning_curves(rows, tmp_path / "curves.png")
    width, height = size_in_inches(tmp_path / "curves.png")
    assert 8 < width < 12 and 2 < height < 4
    lines = [line for ax in drawn[0].axes for line in ax.lines]
    assert len(lines) == 5
    assert all(len(line.get_xdata()) == epochs for line in lines)
    assert lines[0].get_ydata().tolist() == [r["train_loss"] for r in rows]
    assert [f.name for f in tmp_path.iterdir()] == ["curves.png"]


def test_undefined_scores_are_gaps(drawn, tmp_path, recwarn):
    rows = [row(1), row(2, val_auc=None, lr=0.0), row(3)]
    plots.learning_curves(rows, tmp_path / "curves.png")
    auc = drawn[0].axes[1].lines[1].get_ydata()
    assert np.isnan(auc).tolist() == [False, True, False]
    plots.learning_curves([row(1, val_auc=None, val_acc=None, lr=0.0)], tmp_path / "one.png")
    assert not recwarn.list


@pytest.mark.parametrize("classes", [2, 9, 20])
def test_confusion_matrix_writes_the_counts(classes, drawn, tmp_path):
    labels, p = example("multi-class", classes)
    plots.confusion_matrix(labels, p, [f"{LONG} {k}" for k in range(classes)], tmp_path / "c.png")
    expected = sk.confusion_matrix(labels[:, 0], p.argmax(1), labels=range(classes))
    texts = [text.get_text().split("\n")[-1] for text in drawn[0].axes[0].texts]
    assert texts == [str(count) for count in expected.ravel()]
    width, height = size_in_inches(tmp_path / "c.png")
    assert width < 18 and height < 18


def test_confusion_matrix_of_many_classes_is_colours_alone(drawn, tmp_path):
    labels, p = example("multi-class", 60)
    plots.confusion_matrix(labels, p, [str(k) for k in range(60)], tmp_path / "c.png")
    assert not drawn[0].axes[0].texts
    expected = sk.confusion_matrix(labels[:, 0], p.argmax(1), labels=range(60), normalize="true")
    seen = np.asarray(drawn[0].axes[0].images[0].get_array())
    np.testing.assert_allclose(np.nan_to_num(seen), expected)


def test_multi_label_table_writes_each_labels_outcomes(drawn, tmp_path):
    labels, p = example("multi-label", 14)
    plots.confusion_matrix(labels, p, [f"label {k}" for k in range(14)], tmp_path / "c.png")
    texts = [text.get_text().split("\n")[-1] for text in drawn[0].axes[0].texts]
    expected = []
    for (tn, fp), (fn, tp) in sk.multilabel_confusion_matrix(labels, p > 0.5):
        expected += [str(tp), str(fn), str(fp), str(tn)]
    assert texts == expected


@pytest.mark.parametrize("kind", KINDS)
def test_roc_says_the_official_auc(kind, drawn, tmp_path):
    classes = 2 if kind == "binary" else 14
    labels, p = example(kind, classes)
    plots.roc(kind, labels, p, [f"{LONG} {k}" for k in range(classes)], tmp_path / "roc.png")
    legend = [text.get_text() for text in drawn[0].axes[0].get_legend().get_texts()]
    assert len(legend) == (1 if kind == "binary" else classes + 1)
    assert legend[-1].startswith(f"{score(kind, labels, p)['auc']:.3f}")
    mean = drawn[0].axes[0].lines[-1].get_xydata()
    assert sk.auc(*mean.T) == pytest.approx(score(kind, labels, p)["auc"], abs=2e-3)
    width, _ = size_in_inches(tmp_path / "roc.png")
    assert width < 11


def test_roc_of_many_classes_names_the_mean_alone(drawn, tmp_path):
    labels, p = example("multi-class", 40, n=2000)
    plots.roc("multi-class", labels, p, [str(k) for k in range(40)], tmp_path / "roc.png")
    legend = drawn[0].axes[0].get_legend().get_texts()
    assert len(legend) == 1 and legend[0].get_text().endswith("mean of 40 classes")


@pytest.mark.parametrize("kind", KINDS)
def test_a_split_of_one_class_is_drawn_too(kind, tmp_path, recwarn):
    classes = 2 if kind == "binary" else 3
    labels, p = example(kind, classes)
    names = ["a", "b", "c"][:classes]
    labels = np.zeros_like(labels)
    plots.roc(kind, labels, p, names, tmp_path / "roc.png")
    plots.confusion_matrix(labels, p, names, tmp_path / "c.png")
    assert not recwarn.list
    size_in_inches(tmp_path / "roc.png")


def test_the_same_numbers_are_the_same_bytes(tmp_path):
    labels, p = example("multi-class", 5)
    for name in ("a.png", "b.png"):
        plots.roc("multi-class", labels, p, list("abcde"), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_figure_is_written_whole_in_both_forms_or_not_at_all(tmp_path, monkeypatch):
    figure = Figure()
    figure.subplots().plot([0, 1])
    paths = plots.save_figure(figure, tmp_path / "stages.0")
    assert [path.name for path in paths] == ["stages.0.png", "stages.0.svg"]
    before = [path.read_bytes() for path in paths]
    assert [
        path.read_bytes() for path in plots.save_figure(figure, tmp_path / "stages.0")
    ] == before

    def full(file, **_):
        file.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(figure, "savefig", full)
    with pytest.raises(OSError, match="no space"):
        plots.save_figure(figure, tmp_path / "stages.0")
    assert [path.read_bytes() for path in paths] == before
    assert sorted(tmp_path.iterdir()) == paths


def test_figures_are_written_in_one_place():
    root = Path(__file__).resolve().parents[1]
    files = [f for room in ("dogmed", "finetune", "pretrain") for f in (root / room).rglob("*.py")]
    writers = {f.resolve() for f in files if ".savefig(" in f.read_text()}
    assert writers == {root / "dogmed" / "plots.py"}


def test_no_screen_and_no_global_state_is_needed():
    code = "import sys, dogmed.plots; assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("kind", ["binary", "multi-class"])
def test_a_reliability_diagram_has_the_calibration_error_of_the_score(kind: str) -> None:
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(2 if kind == "binary" else 5), 300)
    y = rng.integers(p.shape[1], size=300)
    confidence, right, count = plots.reliability(kind, y, p)
    assert count.sum() == 300 and (count > 0).all()
    error = (count * np.abs(right - confidence)).sum() / 300
    assert error == pytest.approx(score(kind, y, p)["ece"], abs=1e-12)


def test_risk_and_coverage_end_at_the_error_of_all_and_spread_ties() -> None:
    p = np.array([[0.9, 0.1], [0.8, 0.2], [0.8, 0.2], [0.4, 0.6]])
    coverage, error = plots.risk_coverage("binary", [0, 1, 0, 0], p)
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert error == pytest.approx(
        [0, 0.25, 1 / 3, 0.5]
    )  # of the two at 0.8 one is wrong, whichever comes first


def test_an_svg_stands_by_itself_and_keeps_what_is_written() -> None:
    figure = Figure()
    figure.subplots().plot([0, 1], [0, 1.23456], color="#000001", marker="o", label="1.23456")
    figure.axes[0].set_title("1.23456")
    drawn = [plots.to_svg(figure, name, {"#000001": "var(--c0)"}) for name in ("a", "a", "b")]
    assert drawn[0] == drawn[1] and ">1.23456<" in drawn[0]
    assert "var(--c0)" in drawn[0] and "#000001" not in drawn[0] and "http" not in drawn[0]
    identities = [set(re.findall(r' id="([^"]*)"', svg)) for svg in drawn[1:]]
    assert identities[0] and not identities[0] & identities[1]
    assert set(re.findall(r'href="#([^"]*)"', drawn[0])) <= identities[0]

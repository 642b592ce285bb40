"""The metrics against medmnist's evaluator, scikit-learn, and definitions written out."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from sklearn import metrics as sk

from dogmed.errors import DataError
from dogmed.metrics import ECE_BINS, KINDS, read_predictions, score, write_predictions

OFFICIAL = {
    "binary": "binary-class",
    "multi-class": "multi-class",
    "multi-label": "multi-label, binary-class",
    "ordinal": "ordinal-regression",
}


def example(kind: str, *, ties: bool = False, n: int = 400, seed: int = 0):
    """Labels and float32-valued probabilities that know something of them."""
    rng = np.random.default_rng(seed)
    classes = {"binary": 2, "multi-class": 9, "multi-label": 14, "ordinal": 5}[kind]
    if kind == "multi-label":
        labels = (rng.random((n, classes)) < rng.uniform(0.05, 0.6, classes)).astype(np.int64)
        p = 1 / (1 + np.exp(-rng.normal(1.5 * labels - 1, 1)))
    else:
        labels = rng.integers(classes, size=(n, 1))
        z = rng.normal(size=(n, classes)) + 1.2 * np.eye(classes)[labels[:, 0]]
        p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    if ties:
        p = np.round(p * 8) / 8  # 0.5 occurs, and equal maxima
    return labels, p.astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_acc_and_auc_equal_medmnist_to_the_last_bit(kind, ties, seed):
    from medmnist.evaluator import getACC, getAUC

    labels, p = example(kind, ties=ties, seed=seed, n=311)
    ours = score(kind, labels, p)
    assert ours["acc"] == getACC(labels, p, OFFICIAL[kind])
    assert ours["auc"] == getAUC(labels, p, OFFICIAL[kind])
    assert ours["auc_classes"] == (1 if kind == "binary" else p.shape[1])
    truth = labels if kind in ("binary", "multi-label") else labels == np.arange(p.shape[1])
    columns = p[:, 1:] if kind == "binary" else p
    expected = [sk.roc_auc_score(y, q) for y, q in zip(truth.T, columns.T, strict=True)]
    assert ours["auc_per_class"] == expected


def test_one_column_is_enough_for_a_binary_task():
    labels, p = example("binary")
    p = p.astype(np.float64)
    p[:, 0] = 1 - p[:, 1]
    assert score("binary", labels, p[:, 1:]) == score("binary", labels, p)


@pytest.mark.parametrize("kind", ["binary", "multi-class", "ordinal"])
def test_single_label_metrics_equal_scikit_learn(kind):
    labels, p = example(kind)
    y, decided = labels[:, 0], p.argmax(1)
    ours = score(kind, labels, p)
    assert ours["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(y, decided))
    assert ours["macro_f1"] == pytest.approx(sk.f1_score(y, decided, average="macro"))
    assert ours["recall_per_class"] == pytest.approx(sk.recall_score(y, decided, average=None))
    assert ours["brier"] == pytest.approx(((p - np.eye(p.shape[1])[y]) ** 2).sum(1).mean())
    if kind == "binary":  # scikit-learn's halved form, over one class
        assert ours["brier"] == pytest.approx(2 * sk.brier_score_loss(y, p[:, 1]), rel=1e-5)
    if kind == "ordinal":
        expected = sk.cohen_kappa_score(y, decided, weights="quadratic")
        assert ours["quadratic_kappa"] == pytest.approx(expected)
    else:
        assert "quadratic_kappa" not in ours


def test_multi_label_metrics_equal_scikit_learn():
    labels, p = example("multi-label")
    decided = p > 0.5
    ours = score("multi-label", labels, p)
    columns = range(labels.shape[1])
    balanced = [sk.balanced_accuracy_score(labels[:, c], decided[:, c]) for c in columns]
    briers = [sk.brier_score_loss(labels[:, c], p[:, c]) for c in columns]
    assert ours["balanced_accuracy"] == pytest.approx(np.mean(balanced))
    assert ours["macro_f1"] == pytest.approx(sk.f1_score(labels, decided, average="macro"))
    assert ours["recall_per_class"] == pytest.approx(sk.recall_score(labels, decided, average=None))
    assert ours["map"] == pytest.approx(sk.average_precision_score(labels, p, average="macro"))
    assert ours["brier"] == pytest.approx(2 * np.mean(briers))


@pytest.mark.parametrize("kind", ["multi-class", "multi-label"])
def test_ece_is_the_weighted_gap_of_the_bins(kind):
    labels, p = example(kind, ties=True)
    if kind == "multi-label":
        pairs = [(np.maximum(q, 1 - q), (q > 0.5) == y) for q, y in zip(p.T, labels.T, strict=True)]
    else:
        pairs = [(p.max(1), p.argmax(1) == labels[:, 0])]
    expected = []
    for confidence, correct in pairs:
        gap = 0.0
        for m in range(ECE_BINS):
            inside = (confidence > m / ECE_BINS) & (confidence <= (m + 1) / ECE_BINS)
            if inside.any():
                gap += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
        expected.append(gap)
    assert score(kind, labels, p)["ece"] == pytest.approx(np.mean(expected))


def test_ece_vanishes_for_a_calibrated_classifier():
    rng = np.random.default_rng(0)
    p = rng.uniform(size=200_000)
    labels = rng.random(p.size) < p
    assert score("binary", labels.astype(int), p)["ece"] < 0.005


def test_an_absent_class_is_left_out_and_counted(recwarn):
    labels, p = example("multi-class")
    kept = labels[:, 0] != 4
    ours = score("multi-class", labels[kept], p[kept])
    y = labels[kept, 0]
    expected = [sk.roc_auc_score(y == c, p[kept, c]) for c in range(9) if c != 4]
    assert ours["auc"] == pytest.approx(np.mean(expected))
    assert ours["auc_classes"] == 8
    assert ours["auc_per_class"][4] is None
    assert [a for a in ours["auc_per_class"] if a is not None] == pytest.approx(expected)
    assert ours["recall_per_class"][4] is None
    recalls = [r for r in ours["recall_per_class"] if r is not None]
    assert ours["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    json.dumps(ours, allow_nan=False)
    assert not recwarn.list


@pytest.mark.parametrize("kind", KINDS)
def test_a_split_of_one_class_has_no_auc(kind, recwarn):
    labels, p = example(kind)
    labels = np.zeros_like(labels)
    ours = score(kind, labels, p)
    assert ours["auc"] is None and ours["auc_classes"] == 0
    assert ours["acc"] is not None
    json.dumps(ours, allow_nan=False)
    assert not recwarn.list


def test_perfect_one_class_ordinal_has_no_kappa():
    p = np.tile([0.9, 0.1, 0.0], (5, 1))
    assert score("ordinal", np.zeros((5, 1), int), p)["quadratic_kappa"] is None


@pytest.mark.parametrize("kind", KINDS)
def test_everything_is_plain_python(kind):
    ours = score(kind, *example(kind, ties=True))
    for name, value in ours.items():
        flat = value if isinstance(value, list) else [value]
        assert all(type(v) in (float, int, type(None)) for v in flat), name


@pytest.mark.parametrize(
    "kind, labels, p, words",
    [
        ("multi-class", np.zeros((3, 1)), np.ones((4, 2)), "do not fit"),
        ("multi-class", np.zeros((3, 2)), np.ones((3, 2)), "do not fit"),
        ("multi-label", np.zeros((3, 1)), np.ones((3, 2)), "do not fit"),
        ("binary", np.zeros((3, 1)), np.ones((3, 3)), "2 columns"),
        ("binary", np.zeros((0, 1)), np.ones((0, 2)), "N > 0"),
        ("multi-class", np.full((3, 1), 2), np.ones((3, 2)), "expected 0 to 1"),
        ("multi-label", np.full((3, 2), -1), np.ones((3, 2)), "expected 0 to 1"),
        ("multi-class", np.zeros((2, 1)), np.array([[0.5, 0.5], [np.nan, 1]]), "1 of 2"),
        ("multiclass", np.zeros((2, 1)), np.ones((2, 2)), "unknown kind"),
    ],
)
def test_what_does_not_fit_is_refused(kind, labels, p, words):
    with pytest.raises(DataError, match=words):
        score(kind, labels, p)


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_read_back_to_the_same_scores(kind, tmp_path):
    labels, p = example(kind)
    path = tmp_path / "predictions_test.csv"
    write_predictions(path, p)
    back = read_predictions(path)
    assert np.array_equal(back, p.astype(np.float64))
    assert score(kind, labels, back) == score(kind, labels, p)
    assert [f.name for f in tmp_path.iterdir()] == ["predictions_test.csv"]
    assert path.read_text().splitlines()[0].startswith("0,")


def test_predictions_in_another_order_are_sorted_by_index(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("1,0.3,0.7\n0,0.9,0.1\n")
    assert read_predictions(path).tolist() == [[0.9, 0.1], [0.3, 0.7]]


@pytest.mark.parametrize(
    "text",
    ["", "0\n1\n", "0,a\n1,b\n", "0,0.5\n0,0.5\n", "1,0.5\n2,0.5\n", "0,nan\n", "0,1\n1,1,2\n"],
)
def test_damaged_predictions_are_refused_in_one_line(text, tmp_path):
    path = tmp_path / "p.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=r"p\.csv") as error:
        read_predictions(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("flag", ["breastmnist", "breastmnist_224", "pneumoniamnist"])
def test_the_official_evaluator_reads_our_file(flag, real_data, tmp_path):
    from medmnist import Evaluator

    root = real_data / "medmnist"

    class Local(Evaluator):
        def __init__(self, name, split, size=None):
            super().__init__(name, split, size=int(size) if size else None, root=str(root))

    with np.load(root / f"{flag}.npz") as file:
        labels = file["test_labels"].astype(np.int64)
    rng = np.random.default_rng(0)
    p = rng.random((len(labels), 2)).astype(np.float32)
    write_predictions(tmp_path / "predictions_test.csv", p)
    official = tmp_path / f"{flag}_test_@1.csv"
    shutil.copy(tmp_path / "predictions_test.csv", official)
    theirs = Local.parse_and_evaluate(str(official))
    ours = score("binary", labels, p)
    assert (ours["auc"], ours["acc"]) == (theirs.AUC, theirs.ACC)

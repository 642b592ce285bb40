"""Scores of a classifier, from labels and probabilities alone.

ACC and AUC are those of ``medmnist.evaluator.getACC`` and ``getAUC`` to the last bit. They are
written again here because importing medmnist takes seconds and creates ``~/.medmnist``; the tests
compare the two. Where a class is absent from a split (a user's own data) a metric is the mean over
the classes for which it is defined, and None where there is none.

Probabilities are float32 values held in float64 arrays: widening keeps order, ties and the 0.5
threshold, and such values survive the CSV file and any parser's last-digit rounding.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dogmed.errors import DataError

KINDS = ("binary", "multi-class", "multi-label", "ordinal")
THRESHOLD = 0.5  # of binary and multi-label decisions, as in the official evaluator
ECE_BINS = 15

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]


def score(kind: str, labels: ArrayLike, probabilities: ArrayLike) -> dict[str, Any]:
    """Score predictions with the official metrics and the ones a clinician asks for next.

    - ``acc``, ``auc``: as ``medmnist.evaluator``; ``auc_classes`` counts the classes in the mean.
    - ``auc_per_class``: a list, each class or label against the rest, of which ``auc`` is the mean;
      None where the class is absent or alone. A binary task has one entry, that of P(y = 1).
    - ``balanced_accuracy``: mean recall over the classes present; multi-label: mean over labels of
      (sensitivity + specificity) / 2.
    - ``macro_f1``: mean over the classes that occur in the labels or in the decisions.
    - ``recall_per_class``: a list; the sensitivities of a multi-label task.
    - ``brier``: squared error summed over the classes (Brier 1950), from 0 to 2. A label of a
      multi-label task is an outcome with two classes, and the labels are averaged.
    - ``ece``: expected calibration error of the decision taken, 15 equal-width bins (Guo et al.
      2017, eq. 3); multi-label: mean over labels.
    - ``map`` (multi-label): mean over labels of the average precision.
    - ``quadratic_kappa`` (ordinal): Cohen's kappa with quadratic weights.

    Args:
        kind: one of ``KINDS``.
        labels: (N, L) integers, L = 1 unless multi-label.
        probabilities: (N, C); a binary task's column of P(y = 1) may stand alone.

    Raises:
        DataError: shapes do not fit, values are not finite, or a label is out of range.
    """
    from sklearn.metrics import accuracy_score, cohen_kappa_score

    y, p = check(kind, labels, probabilities)
    decided = decide(kind, p)
    multi_label = kind == "multi-label"
    if multi_label:
        acc = _mean(accuracy_score(y[:, c], decided[:, c]) for c in range(y.shape[1]))
    else:
        acc = float(accuracy_score(y[:, 0], decided))

    curves = list(one_vs_rest(kind, y, p))
    aucs = [_auc(positive, scores) for positive, scores in curves]
    truth, guess = (y, decided) if multi_label else (_one_hot(y[:, 0], p), _one_hot(decided, p))
    recall, balanced, f1 = rates(
        (truth * guess).sum(0), truth.sum(0), guess.sum(0), len(y), multi_label=multi_label
    )
    result: dict[str, Any] = {
        "acc": acc,
        "auc": _mean(a for a in aucs if a is not None),
        "auc_classes": sum(a is not None for a in aucs),
        "auc_per_class": aucs,
        "balanced_accuracy": _plain(balanced),
        "macro_f1": _plain(f1),
        "recall_per_class": [_plain(r) for r in recall],
        "brier": _plain(brier_per_sample(kind, y, p).mean()),
        "ece": _ece(kind, y, p),
    }
    if multi_label:
        result["map"] = _mean(
            _average_precision(positive, scores) for positive, scores in curves if positive.any()
        )
    if kind == "ordinal":
        with warnings.catch_warnings(), np.errstate(invalid="ignore"):
            warnings.simplefilter("ignore")  # one class only: undefined, and said so with None
            kappa = cohen_kappa_score(
                y[:, 0], decided, labels=np.arange(p.shape[1]), weights="quadratic"
            )
        result["quadratic_kappa"] = _plain(kappa)
    return result


def check(kind: str, labels: ArrayLike, probabilities: ArrayLike) -> tuple[Ints, Floats]:
    """Return labels (N, L) and probabilities (N, C) as int64 and float64, or say what is wrong."""
    if kind not in KINDS:
        raise DataError(f"unknown kind of task '{kind}': expected one of {', '.join(KINDS)}")
    y, p = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    if y.ndim == 1:
        y = y[:, None]
    if kind == "binary" and p.ndim == 1:
        p = p[:, None]
    if kind == "binary" and p.ndim == 2 and p.shape[1] == 1:
        p = np.hstack([1 - p, p])
    columns = p.shape[-1] if kind == "multi-label" else 1
    if y.ndim != 2 or p.ndim != 2 or len(y) != len(p) or len(y) == 0 or y.shape[1] != columns:
        raise DataError(
            f"labels {y.shape} and probabilities {p.shape} do not fit a {kind} task: expected "
            "(N, L) and (N, C) with the same N > 0, and L = C if multi-label, else L = 1"
        )
    if not (finite := np.isfinite(p).all(1)).all():
        raise DataError(f"{(~finite).sum()} of {len(p)} predictions are not finite")
    classes = 2 if kind in ("binary", "multi-label") else p.shape[1]
    if kind == "binary" and p.shape[1] != 2:
        raise DataError(f"a binary task needs 2 columns of probabilities, received {p.shape[1]}")
    if y.min() < 0 or y.max() >= classes:
        raise DataError(f"labels span {y.min()} to {y.max()}, expected 0 to {classes - 1}")
    return y.astype(np.int64), p


def decide(kind: str, probabilities: Floats) -> Ints:
    """Take the official decision: (N,) class indices, or (N, L) zeros and ones if multi-label."""
    if kind == "multi-label":
        return (probabilities > THRESHOLD).astype(np.int64)
    if kind == "binary":
        return (probabilities[:, -1] > THRESHOLD).astype(np.int64)
    return probabilities.argmax(1)


def one_vs_rest(kind: str, labels: Ints, probabilities: Floats) -> Iterable[tuple[Any, Floats]]:
    """Yield what each class's ROC curve is made of: who is positive (N,) bool, and scores (N,)."""
    if kind == "binary":
        yield labels[:, 0] == 1, probabilities[:, -1]
        return
    for c in range(probabilities.shape[1]):
        positive = labels[:, c] == 1 if kind == "multi-label" else labels[:, 0] == c
        yield positive, probabilities[:, c]


def rates(
    hits: NDArray[Any],
    actual: NDArray[Any],
    predicted: NDArray[Any],
    total: int,
    *,
    multi_label: bool,
) -> tuple[Floats, Floats, Floats]:
    """Turn counts into recall (..., C), balanced accuracy and macro F1 (...,), NaN if undefined.

    Args:
        hits: true positives of each class, (..., C).
        actual: samples of each class, (..., C).
        predicted: samples decided as each class, (..., C).
        total: number of samples.
        multi_label: whether the columns are labels of their own rather than exclusive classes.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = hits / actual
        specificity = (total - actual - predicted + hits) / (total - actual)
        balanced = nan_mean((recall + specificity) / 2 if multi_label else recall)
        f1 = nan_mean(2 * hits / (actual + predicted))
    return recall, balanced, f1


def nan_mean(values: Floats) -> Floats:
    """Average the defined values of the last axis; NaN, without a warning, where there is none."""
    defined = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(defined, values, 0).sum(-1) / defined.sum(-1)


def brier_per_sample(kind: str, labels: Ints, probabilities: Floats) -> Floats:
    """Squared error of each prediction, summed over the classes of an outcome: (N,)."""
    if kind == "multi-label":
        return 2 * ((probabilities - labels) ** 2).mean(1)
    return ((probabilities - _one_hot(labels[:, 0], probabilities)) ** 2).sum(1)


def write_predictions(path: Path, probabilities: ArrayLike) -> None:
    """Write probabilities (N, C) as the official evaluator reads them: ``index,p_0,...,p_C-1``.

    Floats are written so that they read back exactly; the file appears whole or not at all.
    """
    import pandas as pd

    table = pd.DataFrame(np.asarray(probabilities, dtype=np.float64))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        table.to_csv(temporary, header=False, lineterminator="\n")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_predictions(path: Path) -> Floats:
    """Read probabilities (N, C) in the official format, ordered by their index column.

    Raises:
        DataError: the file is not such a table.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # an empty file, refused below
            table = np.loadtxt(
                path, delimiter=",", comments=None, ndmin=2
            )  # exact, unlike pandas 2
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{path}: cannot be read as predictions: {reason}") from error
    table = table[table[:, 0].argsort()] if table.size else table
    whole = table.shape[1] > 1 and np.array_equal(table[:, 0], np.arange(len(table)))
    if not whole or not np.isfinite(table).all():
        raise DataError(
            f"{path}: expected lines 'index,p_0,p_1,...' with the indices 0 to N-1 once each "
            "and finite numbers"
        )
    return table[:, 1:]


def _auc(positive: NDArray[Any], scores: Floats) -> float | None:
    from sklearn.metrics import roc_auc_score

    if positive.all() or not positive.any():
        return None
    return float(roc_auc_score(positive, scores))


def _average_precision(positive: NDArray[Any], scores: Floats) -> float:
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(positive, scores))


def _ece(kind: str, labels: Ints, probabilities: Floats) -> float:
    decided = decide(kind, probabilities)
    if kind == "multi-label":
        confidence = np.maximum(probabilities, 1 - probabilities)  # (N, L)
        correct = decided == labels
    else:
        confidence = np.take_along_axis(probabilities, decided[:, None], 1)  # (N, 1)
        correct = decided[:, None] == labels
    edges = np.linspace(0, 1, ECE_BINS + 1)
    bins = np.digitize(confidence, edges[1:-1], right=True)  # bin m is ((m-1)/M, m/M]
    gaps = [
        np.abs(np.bincount(bins[:, k], correct[:, k] - confidence[:, k], ECE_BINS)).sum()
        for k in range(bins.shape[1])
    ]
    return float(np.mean(gaps) / len(labels))


def _one_hot(classes: Ints, probabilities: Floats) -> Ints:
    return np.eye(probabilities.shape[1], dtype=np.int64)[classes]


def _mean(values: Iterable[float]) -> float | None:
    """Add up from left to right and divide once: the official rounding, which ``sum`` has not."""
    total, count = 0.0, 0
    for value in values:
        total, count = total + value, count + 1
    return float(total / count) if count else None


def _plain(value: Any) -> float | None:
    return None if np.isnan(value) else float(value)

"""Trying a model: its probabilities are those of its run, and what was done is kept and checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from statsmodels.stats.proportion import proportion_confint

from dogmed import config, metrics, stats
from dogmed.analysis.evaluation import Evaluation, Points, _read
from dogmed.analysis.images import TaskImages
from dogmed.analysis.subject import SubjectConfig, open_images
from dogmed.console import Console
from dogmed.data import Prepared
from dogmed.data.progress import Quiet
from dogmed.errors import ConfigError
from dogmed.finetune.config import FinetuneConfig
from dogmed.finetune.run import finetune
from dogmed.metrics import read_predictions
from dogmed.models.trained import open_trained

CPU = torch.device("cpu")


@pytest.fixture
def make(prepared: Prepared, tmp_path: Path) -> Callable[..., Evaluation]:
    """Evaluate weights, in one folder for all."""

    def evaluation(path: Path, **options: Any) -> Evaluation:
        trained = open_trained(str(path))
        values = {"device": CPU, "batch_size": 64, "resamples": 50, **options}
        images = TaskImages(prepared, trained.record)
        return Evaluation(trained, images, tmp_path / "kept", Console(False), **values)

    return evaluation


def test_at_its_own_size_a_model_answers_as_its_run_did(cache_dir: Path, tmp_path: Path) -> None:
    tiny = {
        "task": "breastmnist", "data": "synthetic", "model": "dognext_test", "size": 28,
        "epochs": 1, "tracking": "off", "eval.resamples": 10, "out": str(tmp_path / "runs"),
        "cache_dir": str(cache_dir),
    }  # fmt: skip
    finetune(config.build(FinetuneConfig, config.merge(config.recipe("finetune/default"), tiny)))
    (predicted,) = (tmp_path / "runs").rglob("predictions_test.csv")
    trained = open_trained(str(predicted.parent))
    images = open_images(
        config.build(SubjectConfig, {"cache_dir": str(cache_dir)}), trained, Quiet()
    )
    evaluation = Evaluation(
        trained, images, tmp_path / "kept", Console(False), device=CPU, batch_size=7, resamples=10
    )
    found = evaluation.probabilities("test", side=28)
    np.testing.assert_allclose(found, read_predictions(predicted), atol=1e-6)


def test_scores_are_those_of_the_metrics(
    make: Callable[..., Evaluation], make_weights: Callable[..., Path]
) -> None:
    evaluation = make(make_weights())
    found = evaluation.probabilities("val", side=40)
    labels = evaluation.images.labels("val")
    scores, expected = evaluation.scores("val", found), metrics.score("binary", labels, found)
    for name in ("acc", "auc"):
        assert scores[name].value == pytest.approx(expected[name], abs=1e-12)
        assert scores[name].low <= scores[name].value <= scores[name].high
    again = stats.bootstrap_intervals("binary", labels, found, resamples=50)
    assert scores["auc"][1:] == pytest.approx(again["auc"])


def test_what_was_kept_is_read_and_nothing_else_is(
    make: Callable[..., Evaluation], make_weights: Callable[..., Path], tmp_path: Path
) -> None:
    path = make_weights()
    points = Points(3)
    first = make(path, points=points).probabilities("val", side=28)
    (kept,) = (tmp_path / "kept" / "predictions").iterdir()
    assert kept.name == "val-28px-resize.npz"
    marked = np.full_like(first, 0.25)
    with np.load(kept) as content:
        made_of = content["made_of"]
    np.savez(kept, probabilities=marked, made_of=made_of)
    np.testing.assert_array_equal(make(path, points=points).probabilities("val", side=28), marked)
    assert points.done == 2

    def anew(evaluation: Evaluation, message: str) -> None:
        found = evaluation.probabilities("val", side=28)
        assert not (found == 0.25).any(), message
        np.savez(kept, probabilities=marked, made_of=made_of)

    anew(make(make_weights("other", seed=1)), "other weights")
    anew(make(make_weights("wide", options={"extent": 3.0})), "other options, equal tensors")
    anew(make(make_weights("grey", data={"mean": (0.5,) * 3})), "otherwise normalised")
    other = make(path)
    facts = {**other.images.prepared.manifest["files"]}  # type: ignore[attr-defined]
    facts["val_images.npy"] = {**facts["val_images.npy"], "sha256": "0" * 64}
    manifest = {**other.images.prepared.manifest, "files": facts}  # type: ignore[attr-defined]
    other.images.prepared = dataclasses.replace(other.images.prepared, manifest=manifest)  # type: ignore[attr-defined]
    anew(other, "other images")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"no archive at all"])
def test_a_damaged_file_is_made_anew(
    make: Callable[..., Evaluation],
    make_weights: Callable[..., Path],
    tmp_path: Path,
    content: bytes,
) -> None:
    path = make_weights()
    first = make(path).probabilities("val", side=28)
    (kept,) = (tmp_path / "kept" / "predictions").iterdir()
    kept.write_bytes(content)
    np.testing.assert_array_equal(make(path).probabilities("val", side=28), first)
    with np.load(kept) as mended:
        np.testing.assert_array_equal(mended["probabilities"], first)


def test_no_flipped_byte_of_a_kept_file_goes_unnoticed_or_stops_anything(tmp_path: Path) -> None:
    path, found = tmp_path / "a.npz", np.full((4, 2), 0.5, dtype=np.float32)
    channels = np.arange(4)
    np.savez(path, probabilities=found, made_of=np.array("me"), channels=channels)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x81]) + whole[place + 1 :])
        read = _read(path, "me", 4)
        assert read is None or np.array_equal(read.probabilities, found), place
        assert read is None or read.channels is None or np.array_equal(read.channels, channels)
    for other in (found.astype(np.float64), found[0], np.full_like(found, np.nan)):
        np.savez(path, probabilities=other, made_of=np.array("me"))
        assert _read(path, "me", 4) is None


def test_a_file_cut_short_is_made_anew(
    make: Callable[..., Evaluation], make_weights: Callable[..., Path], tmp_path: Path
) -> None:
    path = make_weights()
    first = make(path).probabilities("val", side=28)
    (kept,) = (tmp_path / "kept" / "predictions").iterdir()
    kept.write_bytes(kept.read_bytes()[:-40])
    np.testing.assert_array_equal(make(path).probabilities("val", side=28), first)


@pytest.mark.parametrize(
    ("fault", "raised", "said"),
    [
        (torch.OutOfMemoryError("CUDA"), ConfigError, "--batch-size 64: too many images of 28 px"),
        (RuntimeError("CUDA error: unspecified"), RuntimeError, "^CUDA error: unspecified$"),
        (AssertionError("ours"), AssertionError, "^ours$"),
    ],
)
def test_of_faults_only_a_lack_of_memory_is_the_users_to_mend(
    make: Callable[..., Evaluation],
    make_weights: Callable[..., Path],
    fault: Exception,
    raised: type[Exception],
    said: str,
) -> None:
    evaluation = make(make_weights())

    def fail(*_: object) -> None:
        raise fault

    evaluation.model.register_forward_pre_hook(fail)
    with pytest.raises(raised, match=said):
        evaluation.probabilities("val", side=28)


def test_many_classes_are_told_by_accuracy_at_1_and_5(
    make: Callable[..., Evaluation],
    make_weights: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    evaluation = make(make_weights())
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 120, (300, 1))
    monkeypatch.setattr(evaluation.images, "kind", "multi-class")
    monkeypatch.setattr(evaluation.images, "classes", tuple(map(str, range(120))))
    monkeypatch.setattr(evaluation.images, "labels", lambda split: labels)
    a, b = rng.random((2, 300, 120))
    a[np.arange(300), labels[:, 0]] += 0.9 * rng.random(300)
    hit = a.argmax(1) == labels[:, 0]
    five = [label in np.argsort(row)[-5:] for row, label in zip(a, labels[:, 0], strict=True)]
    scores = evaluation.scores("val", a)
    assert set(scores) == {"acc", "acc5"}
    assert scores["acc"].value == hit.mean() and scores["acc5"].value == np.mean(five)
    assert scores["acc"][1:] == proportion_confint(hit.sum(), 300, method="wilson")
    pair = [evaluation.resampled("val", p) for p in (a, b)]
    expected = [stats.resample("multi-class", labels, [p], resamples=50) for p in (a, b)]
    assert stats.differences(*pair)["acc"] == stats.differences(*expected)["acc"]


def test_the_time_left_goes_by_the_pixels_that_are_left() -> None:
    points = Points(3, cost=10.0)
    assert points.left is None
    points.did(1.0, 2.0)
    assert points.left == pytest.approx(18.0)
    points.did(4.0, None)  # kept of an earlier time: no pace
    assert points.left == pytest.approx(10.0)
    points.did(5.0, 8.0)
    assert points.done == 3 and points.left is None
    assert Points(2).left is None

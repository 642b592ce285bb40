"""``dogmed analyze scale``: requests that cannot be met, and what is settled first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dogmed.analysis.evaluation import Points
from dogmed.analysis.scale.command import ScaleConfig, _subjects, read_protocol
from dogmed.analysis.scale.points import Subject, splits_of
from dogmed.config import build
from dogmed.console import Console
from dogmed.data import Prepared

OWN_KERNELS: dict[str, Any] = {"seven": {}, "three": {"kernel_size": 3}}


@pytest.fixture
def settle(cache_dir: Path, tmp_path: Path) -> Callable[..., list[Subject]]:
    """Settle what models are tried at; nothing is evaluated."""

    def of(*models: Path, **asked: Any) -> list[Subject]:
        values = {"models": tuple(map(str, models)), "cache_dir": cache_dir, "out": tmp_path}
        config = build(ScaleConfig, values | asked)
        return _subjects(config, read_protocol(config), Console(True), Points())

    return of


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{dog}", "--kernel-sizes", "6"], "--kernel-sizes 6: expected odd sizes"),
        (["{conv}", "--kernel-sizes", "5"], "has no DoGConv"),
        (["{dog}", "--resolutions", "20", "28"], "--resolutions 20: dognext_test"),
        (["{dog}", "--resolutions", "20"], "needs 28 px"),
        (["{dog}", "--resolutions", "0"], "--resolutions: expected whole numbers from 1 to 16384"),
        (["{dog}", "--kernel-sizes", "101"], "--kernel-sizes: expected whole numbers from 1 to 99"),
        (["--kernel-sizes", "5", "{dog}"], "(what is no number of it goes before --kernel-sizes)"),
        (["{conv}", "--resolutions", "28"], "cannot take images of this size"),
        (["{conv}", "--fit", "resize"], "trained at 28 px, cannot take images of this size"),
        (["{conv}", "--fit", "pad"], "trained at 28 px, cannot take images of this size"),
        (["{dog}", "--rescale", "2..4"], "expected a range around 1"),
        (["{dog}", "--rescale", "2..0.5"], "expected the smaller factor first: 0.5..2"),
        (["{dog}", "--rescale", "0.5..2", "--resolutions", "28"], "give one"),
        (["{dog}", "--rescale", "0.5..2", "--fit", "both"], "--fit both with --rescale"),
        (["{bare}"], "has no record of what it holds"),
        (["nothing.like.it"], "no weights 'nothing.like.it'"),
        (["{missing}"], "no such file"),
        ([], "which model?"),
        (["{dog}", "--task", "{npz}"], "val_images"),
        (["{dog}", "--task", "retinamnist"], "give the task it was trained on"),
        (["{mine}"], "no official task: give --task"),
        (["{dog}", "{grade}", "--resolutions", "28"], "give models of one task"),
        (["{published}", "{grade}"], "tried on pathmnist, dognext_test retinamnist"),
        (["{published}", "--task", "octmnist"], "and octmnist has 4 classes"),
        (
            ["{pretrained}", "--task", "breastmnist"],
            "fine-tune it first (dogmed finetune ",
        ),
        (["{dog}", "--fit", "stretch"], "--fit"),
        (["{dog}", "--resolution", "28"], "(did you mean '--resolutions'?)"),
    ],
)
def test_wrong_requests_are_one_line(
    scale: Callable[..., int],
    make_weights: Callable[..., Path],
    prepared: Prepared,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
) -> None:
    bare, npz = tmp_path / "bare.safetensors", tmp_path / "cut.npz"
    if "{bare}" in words:
        from safetensors.torch import save_file

        save_file({"a": torch.zeros(1)}, bare)
    if "{npz}" in words:
        pixels, labels = prepared.images("test"), prepared.labels("test")
        np.savez(
            npz, train_images=pixels, train_labels=labels, test_images=pixels, test_labels=labels
        )
    made = {
        "dog": {}, "conv": {"model": "test_convnext"}, "mine": {"data": {"name": "mine"}},
        "published": {"classes": tuple("123456789"), "data": {
            "name": "pathmnist", "kind": "multi-class", "source": "official", "classes": (),
        }},
        "pretrained": {"classes": tuple("1234"), "recipe": "tiny", "data": {
            "name": "imagenet", "kind": "multi-class", "source": None, "size": 96,
        }},
        "grade": {
            "classes": tuple("12345"),
            "data": {"name": "retinamnist", "kind": "ordinal", "classes": ()},
        },
    }  # fmt: skip
    paths = {
        name: make_weights(name, **options)
        for name, options in made.items()
        if f"{{{name}}}" in words
    }
    places = {**paths, "bare": bare, "npz": npz, "missing": tmp_path / "missing.safetensors"}
    assert scale(*(word.format(**places) for word in words)) == 2
    *notes, line = capsys.readouterr().err.splitlines()
    assert said in line and line.startswith("dogmed: ")
    assert not any(note.startswith(("dogmed", "Traceback")) for note in notes)
    assert not list((tmp_path / "out").rglob("*.json"))


@pytest.mark.parametrize(
    ("given", "used", "said"),
    [
        (None, 1800, "1800 bootstrap resamples in place of 1000: Holm's adjustment over 45 "),
        (1000, 1000, "warning: --resamples 1000: no p-value will be small enough after Holm's "),
        (2000, 2000, ""),
    ],
)
def test_resamples_are_settled_before_anything_is_evaluated(
    settle: Callable[..., list[Subject]],
    make_weights: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    given: int | None,
    used: int,
    said: str,
) -> None:
    paths = (make_weights(name, options=o) for name, o in OWN_KERNELS.items())
    subjects = settle(*paths, rescale=["0.5..2"], resamples=given)
    assert [s.family for s in subjects] == [45, 18]
    assert [s.evaluation.resamples for s in subjects] == [used, used]
    told = capsys.readouterr().out
    assert said in told and (said or "resamples" not in told)


def test_a_default_resolution_that_is_too_small_is_left_out_with_a_note(
    settle: Callable[..., list[Subject]],
    make_weights: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    (subject,) = settle(make_weights(), kernel_sizes=[7], fit="resize")
    said = "resize: left out 8, 12, 16, 20, 24 px: it needs 28 px or more (as at training"
    assert said in capsys.readouterr().out
    assert [side for _, side in subject.sides["resize"]] == [28, 39, 48, 56]
    assert splits_of(subject) == ["test"], "nothing to choose on val"


def test_what_is_tried_once_is_told(
    settle: Callable[..., list[Subject]],
    make_weights: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = make_weights()
    same = path.rename(tmp_path / "b.safetensors")
    path = make_weights()
    subjects = settle(path, same, path, rescale=["0.5,0.51,1"])
    told = capsys.readouterr().out
    assert len(subjects) == 1 and len(subjects[0].sides["pad"]) == 2
    assert f"note: {same} is the same model as {path}; it is tried once" in told
    assert f"note: {path} is given twice; it is tried once" in told
    assert "×0.51 makes 14 px, as ×0.5 does, and is left out" in told

"""Predictions from elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dogmed.errors import ConfigError, DataError
from dogmed.finetune.report.assembly import Report

AddRun = Callable[..., Path]
Build = Callable[..., Report]


@pytest.mark.parametrize(
    "name", ["breastmnist_test_[AUC]0.9_[ACC]0.8@2.csv", "predictions_test.csv"]
)
def test_predictions_from_elsewhere_are_one_more_row(
    name: str, add_run: AddRun, out: Path, tmp_path: Path, build: Build
) -> None:
    root = add_run(1.0)
    folder = tmp_path / "breastmnist"
    folder.mkdir()
    (folder / name).write_text((root / "predictions_test.csv").read_text())
    (folder / "breastmnist_val_[AUC]0.9_[ACC]0.8@2.csv").write_text("0,1,0\n")
    report = build(out, predictions=[f"theirs={folder}"])
    assert [row.head.text for row in report.scores[0].rows] == ["dognext_test, scratch", "theirs"]
    (c,) = [
        c for c in report.analysis.comparisons if (c.question, c.metric) == ("predictions", "acc")
    ]
    assert c.difference.value == 0 and c.verdict == "noise"


def test_predictions_that_do_not_fit_are_refused_in_one_line(
    add_run: AddRun, out: Path, tmp_path: Path, build: Build
) -> None:
    add_run()
    file = tmp_path / "breastmnist_test_x.csv"
    file.write_text("0,0.5,0.5\n1,0.5,0.5\n")
    with pytest.raises(
        DataError, match=r"has 2 rows of 2 probabilities, expected \d+ rows \(test images\) of 2"
    ):
        build(out, predictions=[f"theirs={file}"])
    for word, told in {
        "theirs": "expected NAME=FILE",
        "theirs=/nowhere/at/all": "no file or folder",
        f"theirs={out}/finetune/..": "no finished run",
    }.items():
        if word.endswith(".."):
            file.rename(tmp_path / "pathmnist_test_x.csv")
            word = f"theirs={tmp_path / 'pathmnist_test_x.csv'}"
        with pytest.raises(ConfigError, match=told) as error:
            build(out, predictions=[word])
        assert "\n" not in str(error.value)

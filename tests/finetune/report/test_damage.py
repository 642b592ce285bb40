"""Runs whose files are damaged or contradict each other are named and left out; the others are reported."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from dogmed import cli, metrics
from dogmed.errors import ConfigError, DataError
from dogmed.finetune.report import reading
from dogmed.finetune.report.assembly import assemble
from dogmed.finetune.report.publish import publish
from dogmed.finetune.report.reading import Found, read_runs
from dogmed.metrics import read_predictions, write_predictions

AddRun = Callable[..., Path]
Edit = Callable[[dict[str, Any]], Any]


def edit(file: Path, change: Edit) -> None:
    facts = json.loads(file.read_text())
    change(facts)
    file.write_text(json.dumps(facts))


def edit_options(root: Path, **values: Any) -> None:
    file = root / "config.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | values))


def reason(found: Found, root: Path, used: int = 1) -> str:
    """Why the one damaged run is left out; the others are used."""
    assert len(found.runs) == used
    ((name, why),) = found.damaged.items()
    assert root.as_posix().endswith(f"finetune/{name}")
    assert "\n" not in why
    assert name not in found.incomplete
    return why


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda r: r["test"].update(acc=0.999), r"has acc \S+, result.json says 0.999"),
        (lambda r: r["test"].update(auc=0.001), r"has auc \S+, result.json says 0.001"),
        (lambda r: r["test"].update(auc=None), r"has auc \S+, result.json says none"),
        (lambda r: r["test"].update(brier=1.5), r"has brier \S+, result.json says 1.5"),
    ],
)
def test_scores_that_are_not_those_of_the_predictions(
    change: Edit, told: str, add_run: AddRun, out: Path
) -> None:
    add_run()
    root = add_run(seed=1)
    edit(root / "result.json", change)
    assert re.search(told, reason(read_runs(out), root))


def test_predictions_of_another_run_or_in_another_order(add_run: AddRun, out: Path) -> None:
    first = add_run()
    root = add_run(seed=1)
    file = root / "predictions_test.csv"
    own = read_predictions(file)
    shutil.copy(first / "predictions_test.csv", file)
    assert "predictions_test.csv has" in reason(read_runs(out), root)
    write_predictions(file, own[::-1])
    assert "predictions_test.csv has" in reason(read_runs(out), root)
    write_predictions(file, own * 1e300 - 5)
    assert "expected probabilities" in reason(read_runs(out), root)
    write_predictions(file, own)
    assert len(read_runs(out).runs) == 2


def test_labels_of_a_named_cache_folder_are_used_for_the_check(
    add_run: AddRun, out: Path, prepared_cache: Path, tmp_path: Path
) -> None:
    add_run()
    root = add_run(seed=1)
    edit(root / "result.json", lambda r: r["test"].update(acc=0.999))
    for one in (root, root.with_name("seed0")):
        edit_options(one, cache_dir=str(tmp_path / "elsewhere"))
    assert len(read_runs(out).runs) == 2
    assert "acc" in reason(read_runs(out, [prepared_cache]), root)


def test_a_result_of_another_run(add_run: AddRun, out: Path) -> None:
    add_run()
    root = add_run(seed=1)
    for change, told in {
        "seed": (0, "seed 0, in config.yaml 1"),
        "model": ("resnet18", "model resnet18, in config.yaml dognext_test"),
        "init": ("imagenet50ep", "init imagenet50ep, in config.yaml scratch"),
        "task": ("pneumoniamnist", "task pneumoniamnist, in config.yaml breastmnist"),
    }.items():
        kept = (root / "result.json").read_text()
        edit(root / "result.json", lambda r, c=change, t=told: r.update({c: t[0]}))
        assert told[1] in reason(read_runs(out), root)
        (root / "result.json").write_text(kept)
    (root / "config.yaml").unlink()
    assert len(read_runs(out).runs) == 2
    edit(root / "result.json", lambda r: r.update(seed=0))
    assert "scratch-28/seed0" in reason(read_runs(out), root)


def test_a_copied_folder_is_no_second_replicate(add_run: AddRun, out: Path) -> None:
    first = add_run(label="tuned")
    copy = first.with_name("seed7")
    shutil.copytree(first, copy)
    assert "seed 0" in reason(read_runs(out), copy) or "seed0" in reason(read_runs(out), copy)
    shutil.rmtree(copy)
    other = first.parent.with_name("mine") / "seed0"
    shutil.copytree(first, other)
    assert "dognext_test-scratch-28-tuned/seed0" in reason(read_runs(out), other)
    (first / "config.yaml").unlink()
    shutil.rmtree(other.parent)
    other = first.parent.with_name("dognext_test-scratch-28-again") / "seed0"
    shutil.copytree(first, other)
    found = read_runs(out)
    assert len(found.runs) == 1 and "same setup and seed as" in "".join(found.damaged.values())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda r: r["test"].update(acc=float("nan")), "test.acc"),
        (lambda r: r["test"].update(acc=None), "test.acc"),
        (lambda r: r["test"].update(acc="<b>x"), "test.acc"),
        (lambda r: r["test"].update(auc=float("nan")), "test.auc"),
        (lambda r: r["test"].update(n="78"), "test.n"),
        (lambda r: r["test"].pop("acc"), "test.acc"),
        (lambda r: r.pop("test"), "test: "),
        (lambda r: r.update(seconds=None), "seconds"),
        (lambda r: r.update(seconds=-1), "seconds"),
        (lambda r: r.update(images_per_second="x"), "images_per_second"),
        (lambda r: r.update(parameters="y"), "parameters"),
        (lambda r: r.update(macs=None), "macs"),
        (lambda r: r.update(processes=0), "processes"),
        (lambda r: r.update(peak_memory=5), "peak_memory"),
        (lambda r: r.update(device=[]), "device"),
        (lambda r: r.update(versions=[]), "versions"),
        (lambda r: r.update(epochs=[1]), "epochs"),
        (lambda r: r.update(trivial_test_acc="q"), "trivial_test_acc"),
        (lambda r: r.update(selected_on=5), "selected_on"),
        (lambda r: r.update(kind="zzz"), "kind"),
        (lambda r: r.update(kind="multi-label"), "do not fit a multi-label task"),
        (lambda r: r.update(classes=[]), "classes"),
        (lambda r: r["data"].update(sha256="abc"), "data.sha256"),
        (lambda r: r["data"].update(sha256={"test_labels.npy": 5}), "data.sha256"),
        (lambda r: r["data"].update(sha256={"test_labels.npy": "5"}), "train_labels.npy"),
        (lambda r: r["data"].update(size=True), "data.size"),
    ],
)
def test_a_result_with_wrong_values(change: Edit, told: str, add_run: AddRun, out: Path) -> None:
    add_run()
    root = add_run(seed=1)
    edit(root / "result.json", change)
    assert told in reason(read_runs(out), root)


@pytest.mark.parametrize(
    "text", [b"[1]", b"5", b"\xff\xfe", b"[" * 100_000, b"", b'{"task": "brea']
)
def test_a_result_that_is_no_result(text: bytes, add_run: AddRun, out: Path) -> None:
    add_run()
    root = add_run(seed=1)
    (root / "result.json").write_bytes(text)
    assert reason(read_runs(out), root).startswith("result.json: ")


@pytest.mark.parametrize("line", ["5", "[]", "{}", '{"epoch": "x", "val_acc": 1, "val_auc": 1}',
                                  '{"epoch": 1, "val_acc": NaN, "val_auc": 1}', "{"])  # fmt: skip
def test_epochs_with_wrong_values(line: str, add_run: AddRun, out: Path) -> None:
    add_run()
    root = add_run(seed=1)
    file = root / "metrics.jsonl"
    file.write_text(f"{file.read_text()}{line}\n")
    assert reason(read_runs(out), root).startswith("metrics.jsonl, line 4: ")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"cache_dir": 5}, "config.yaml: cache_dir"),
        ({"cache_dir": "~nobodyxyz/x"}, "no such user"),
        ({"train_fraction": float("nan")}, "config.yaml: train_fraction"),
        ({"label": 5}, "config.yaml: label"),
        ({"label": "other"}, "dognext_test-scratch-28-other/seed1"),
        ({"size": 64}, "size 28, in config.yaml 64"),
    ],
)
def test_options_with_wrong_values(
    values: dict[str, Any], told: str, add_run: AddRun, out: Path
) -> None:
    add_run()
    root = add_run(seed=1)
    edit_options(root, **values)
    assert told in reason(read_runs(out), root)


def test_auc_is_none_where_test_holds_one_class(
    add_run: AddRun, out: Path, prepared_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_run()
    root = add_run(seed=1)
    p = read_predictions(root / "predictions_test.csv")
    y = np.ones((len(p), 1), dtype=np.int64)
    scores = {"n": len(y), **metrics.score("binary", y, p)}
    assert scores["auc"] is None
    for one in (root, root.with_name("seed0")):
        edit(one / "result.json", lambda r: r["data"]["sha256"].update({"test_labels.npy": "0"}))
        edit(one / "result.json", lambda r: r.update(test=scores))
        write_predictions(one / "predictions_test.csv", p)
    monkeypatch.setattr(reading.Labels, "of", lambda self, digest: y)
    found = read_runs(out)
    assert not found.damaged and [run.test.get("auc") for run in found.runs] == [None, None]
    assert all(run.test["acc"] == scores["acc"] for run in found.runs)


def test_one_column_is_never_taken_for_the_probability_of_one(add_run: AddRun, out: Path) -> None:
    root = add_run()
    file = root / "predictions_test.csv"
    write_predictions(file, read_predictions(file)[:, :1])
    found = read_runs(out)
    (run,) = found.runs
    assert run.probabilities is None
    assert "of 1 probabilities, expected" in "".join(found.incomplete.values())
    with pytest.raises(
        DataError, match=r"of 1 probabilities, expected \d+ rows \(test images\) of 2"
    ):
        assemble(out, predictions=[f"theirs={root}"], resamples=20)


def test_the_labels_of_a_cache_folder_given_to_the_report_check_the_runs(
    add_run: AddRun, out: Path, prepared_cache: Path, tmp_path: Path
) -> None:
    for root in (add_run(0.5), add_run(0.5, seed=1)):
        edit_options(root, cache_dir=str(tmp_path / "elsewhere"))
    edit(root / "result.json", lambda r: r["test"].update(acc=0.999))
    report = assemble(out, cache_dirs=[prepared_cache], resamples=20)
    assert "1 damaged, left out" in report.facts
    assert any("seed1" in note and "says 0.999" in note for note in report.notes)


def contents(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in folder.iterdir()}


def test_a_report_that_finds_no_room_changes_nothing(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    folder = tmp_path / "report"
    publish(folder, {"a.csv": "old", "b.html": "old"})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        for place in (folder, tmp_path / "not" / "yet"):
            with pytest.raises(ConfigError, match="nothing there has changed") as error:
                publish(place, {"a.csv": "new", "b.html": "new" * 100_000})
            assert str(place) in str(error.value) and "\n" not in str(error.value)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert contents(folder) == {"a.csv": "old", "b.html": "old"}
    assert [place.name for place in tmp_path.iterdir()] == ["report"]
    publish(folder, {"a.csv": "new", "b.html": "new", "c.md": "new"})
    assert contents(folder) == {"a.csv": "new", "b.html": "new", "c.md": "new"}


def test_a_folder_in_the_place_of_a_file_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "b.html").mkdir()
    with pytest.raises(ConfigError, match=r"b\.html there is a folder"):
        publish(tmp_path, {"a.csv": "new", "b.html": "new"})
    assert [place.name for place in tmp_path.iterdir()] == ["b.html"]


def test_a_file_in_the_place_of_a_folder_is_one_line(
    add_run: AddRun, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_run()
    file = tmp_path / "file"
    file.write_text("mine")
    (out / "report").write_text("mine")
    for flags, told in (
        (["--out", str(file)], f"--out {file}: {file} is a file"),
        (["--out", str(out)], f"{out / 'report'} is a file"),
        (["--out", str(out), "--to", str(file)], f"--to {file}: {file} is a file"),
        (["--out", str(out), "--to", str(file / "deep")], f"{file} is a file"),
    ):
        assert cli.main(["report", *flags]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert told in line
    assert file.read_text() == "mine"


def test_damaged_runs_do_not_stop_the_command(
    add_run: AddRun, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_run(0.5, label="=1+1")
    broken = add_run(model="convnextv2_atto", seed=3)
    edit(broken / "result.json", lambda r: r["test"].update(acc=float("nan")))
    assert cli.main(["report", "--out", str(out), "--resamples", "20"]) == 0
    assert "1 damaged, left out" in capsys.readouterr().out
    assert "convnextv2\\_atto" in (out / "report" / "report.tex").read_text()
    with (out / "report" / "runs.csv").open() as file:
        assert [row["label"] for row in csv.DictReader(file)] == ["'=1+1"]


def test_where_all_are_damaged_the_first_is_named(add_run: AddRun, out: Path) -> None:
    edit(add_run() / "result.json", lambda r: r.update(seconds=None))
    with pytest.raises(
        ConfigError, match=r"1 damaged, the first: \S+seed0 \(result.json: seconds: "
    ):
        assemble(out)

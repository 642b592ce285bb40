"""What ``dogmed stress`` leaves in a run's ``result.json`` and in MLflow."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dogmed import cli
from dogmed.config import recipe
from dogmed.data import Prepared
from dogmed.finetune.folder import FinetuneFolder
from dogmed.runs import RunFolder
from dogmed.tracking import default_uri, open_store

USUAL = ("--corruptions", "speckle_noise", "--resolution", "14")


def stress(out: Path, cache_dir: Path, *words: object) -> int:
    given = [
        *map(str, words),
        "--out",
        str(out),
        "--cache-dir",
        str(cache_dir),
        "--resamples",
        "40",
    ]
    return cli.main(["stress", *given, *([] if "--tracking" in words else ["--tracking", "off"])])


@pytest.fixture
def run(
    write_weights: Callable[..., Path], prepared: Prepared, tmp_path: Path
) -> Callable[..., FinetuneFolder]:
    """The folder of a finished run, with what decides whether it is done."""

    def make(**data: Any) -> FinetuneFolder:
        root = tmp_path / "run" / "seed0"
        (root / "checkpoints").mkdir(parents=True)
        write_weights(root / "checkpoints", "best")
        hashes = {n: facts["sha256"] for n, facts in sorted(prepared.manifest["files"].items())}
        result = {
            "task": "breastmnist", "data": {"source": "synthetic", "sha256": hashes} | data,
            "test": {"n": 128, "acc": 0.1 + 0.2}, "weights_sha256": None, "last": [1.0, None, "é"],
        }  # fmt: skip
        (root / "result.json").write_text(json.dumps(result, indent=2) + "\n")
        return FinetuneFolder(root)

    return make


def test_a_runs_result_gets_a_summary_and_is_otherwise_as_it_was(
    run: Callable[..., FinetuneFolder],
    cache_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small = {"tasks": {"breastmnist": {"pixelate": [0.5, 0.4, 0.3, 0.2, 0.1]}}}
    monkeypatch.setattr("dogmed.analysis.stress.sets._known", lambda: {**recipe("stress"), **small})
    folder = run()
    before, text = folder.done(), folder.result.read_text()
    for seed in (0, 1):  # a second call takes the place of the first
        assert stress(tmp_path / "out", cache_dir, folder.root, "--seed", seed) == 0
        after = folder.done()
        assert after is not None and after["stress"]["seed"] == seed
        assert folder.result.read_text().startswith(text.rstrip("}\n"))
        section = after.pop("stress")
        assert after == before
        assert set(section["corruptions"]) == {"pixelate"} and section["n"] == 128
        assert section["mean"]["be"] is None and len(section["clean"]["acc"]) == 3
    whole = folder.result.read_bytes()
    assert stress(tmp_path / "out", cache_dir, folder.root, *USUAL) == 0
    assert folder.result.read_bytes() == whole  # some corruptions alone are no summary of the run


def test_a_run_that_is_busy_or_of_other_images_keeps_its_result(
    run: Callable[..., FinetuneFolder],
    cache_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = run(sha256={"test_images.npy": "0", "test_labels.npy": "0"})
    before = folder.result.read_bytes()
    assert stress(tmp_path / "out", cache_dir, folder.root, *USUAL) == 0
    assert "not the test images that the run was scored on" in capsys.readouterr().out
    with RunFolder(folder.root).lock():
        assert stress(tmp_path / "out", cache_dir, folder.root, *USUAL) == 0
    assert "another process is running this very run" in capsys.readouterr().out
    assert folder.result.read_bytes() == before


def test_a_result_that_holds_nan_is_damaged(
    run: Callable[..., FinetuneFolder],
    cache_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = run()
    folder.result.write_text(folder.result.read_text().replace("null", "NaN"))
    before = folder.result.read_bytes()
    assert stress(tmp_path / "out", cache_dir, folder.root, *USUAL) == 0
    assert "given the summary (it holds NaN, which is no JSON)" in capsys.readouterr().out
    assert folder.result.read_bytes() == before


def test_it_is_a_run_of_mlflow_with_its_files(
    make_weights: Callable[..., Path],
    cache_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    out = tmp_path / "out"
    words = (make_weights(), "--corruptions", "pixelate", "--tracking", "mlflow")
    assert stress(out, cache_dir, *words) == 0
    client = open_store(default_uri(out), out)
    (experiment,) = client.search_experiments(filter_string="name = 'dogmed-analysis'")
    (logged,) = client.search_runs([experiment.experiment_id])
    assert logged.info.status == "FINISHED" and logged.data.tags["analysis"] == "stress"
    files = {file.path for file in client.list_artifacts(logged.info.run_id)}
    assert {"stress.json", "stress.html", "stress-examples.png"} <= files
    assert "balanced_error_pixelate" in logged.data.metrics

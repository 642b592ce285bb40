"""The runs of MLflow that analyses are, and that help asks for nothing heavy."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dogmed.tracking import default_uri, open_store

PICTURES = ("json", "csv", "md", "png", "svg")


def test_analyses_are_runs_of_mlflow_with_their_files(
    analyze: Callable[..., int],
    make_weights: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    out, words = tmp_path / "out", (make_weights(), "--tracking", "mlflow")
    assert analyze("scale", out, *words, "--fit", "resize", "--resolutions", 28) == 0
    assert analyze("scale", out, *words, "--rescale", "1", "--kernel-sizes", 5) == 0
    assert analyze("flops", out, *words, "--strides", 8, "--resolutions", 20) == 0
    client = open_store(default_uri(out), out)
    (experiment,) = client.search_experiments(filter_string="name = 'dogmed-analysis'")
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    logged = {frozenset(f.path for f in client.list_artifacts(run.info.run_id)) for run in runs}
    assert logged == {
        frozenset(f"{name}.{kind}" for kind in (*PICTURES, *more))
        for name, more in {"scale": ["html"], "rescale": ["html"], "flops": []}.items()
    }
    assert all(run.data.metrics for run in runs)
    (of_flops,) = [run for run in runs if run.data.tags["analysis"] == "flops"]
    assert len(of_flops.data.metrics) == 4 * 5
    assert "stride-kernel/stride8-kernel15-28px/test_auc" in of_flops.data.metrics


def test_help_and_a_missing_model_load_no_pytorch() -> None:
    code = (
        "import sys; from dogmed import cli\n"
        "for what in ('scale', 'flops'):\n"
        "  assert cli.main(['analyze', what]) == 2\n"
        "  try: cli.main(['analyze', what, '--help'])\n"
        "  except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--rescale" in done.stdout and "--budget" in done.stdout

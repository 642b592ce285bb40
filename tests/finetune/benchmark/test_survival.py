"""A benchmark that is killed twice at random ends as one that nobody disturbed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_killed_twice_it_ends_equal_to_an_undisturbed_one(tmp_path: Path) -> None:
    words = ["--task=breastmnist", "--jobs=2", f"--out={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.survival", *words],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("killed ") == 2
    assert done.stdout.splitlines()[-1].startswith("equal: ")

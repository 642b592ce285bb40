"""The tables in the documents are those of the committed measurements."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

pytest.importorskip("benchmarks", reason="the benchmarks are in a checkout only")
from benchmarks import __main__ as door
from benchmarks import ceilings, tables
from benchmarks.timing import ratio

ROOT = Path(__file__).parent.parent


def test_documents_hold_the_committed_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "docs").mkdir()
    documents = ("README.md", "docs/performance.md")
    for name in documents:
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.setattr(door, "ROOT", tmp_path)
    door.write_tables()
    for name in documents:
        assert (tmp_path / name).read_text() == (ROOT / name).read_text(), (
            f"{name} is older than benchmarks/results: python -m benchmarks --render"
        )


def test_what_was_not_measured_says_so() -> None:
    result = json.loads((ROOT / "benchmarks/results/cpu.json").read_text())
    del result["epoch"]
    rows = tables.summary(result, None).splitlines()[2:]
    for row in rows:
        *_, cpu, cuda = (cell.strip() for cell in row.strip("|").split("|"))
        assert (cpu == tables.NOT_MEASURED) == ("epoch of" in row)
        assert cuda == tables.NOT_MEASURED


def test_ratios_are_of_the_same_round() -> None:
    seconds = {
        "a": [(1.0, 1.0), (30.0, 3.0), (2.0, 2.0)],
        "b": [(2.0, 2.0), (10.0, 3.0), (1.0, 4.0)],
    }
    assert ratio(seconds, "a", "b") == 2.0  # of 0.5, 3 and 2
    assert ratio(seconds, "a", "b", which=1) == 0.5


def test_counts_bytes_of_operations_but_not_of_views() -> None:
    x = torch.ones(10, 10)
    with ceilings.ByteCounter() as moved:
        x.t()[2:].unsqueeze(0)
        views = moved.total
        x.add(1)
    assert views == 0
    assert moved.total == 2 * 400

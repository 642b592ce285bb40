"""What is said of tuning: differences with what their intervals cover, adjusted over the searches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from statsmodels.stats.multitest import multipletests

from dogmed.finetune.report import tuned


def write(out: Path, task: str, acc: dict[str, Any], seeds: int = 3) -> None:
    """One outcome in the form of ``dogmed tune``."""
    folder = out / "tuned" / task
    folder.mkdir(parents=True, exist_ok=True)
    scores = {"acc": [0.80] * seeds, "auc": [0.9] * seeds}
    facts = {
        "task": task, "source": "official", "model": "dognext_test", "init": "scratch",
        "trials": {"finished": 30, "pruned": 19, "failed": 1}, "seconds": 3600.0, "epochs": 3,
        "seeds": list(range(seeds)), "default": scores, "tuned": scores,
        "difference": {"acc": acc, "auc": None},
        "interval_covers": "test images and training seeds", "verdict": "in words",
    }  # fmt: skip
    (folder / "dognext_test-scratch-28.json").write_text(json.dumps(facts))


def difference(mean: float, p: float | None, sd: float | None = 0.01) -> dict[str, Any]:
    known = p is not None
    interval = [mean - 0.01, mean + 0.01] if known else None
    return {"n": 3, "mean": mean, "sd": sd, "interval": interval, "p": p}


def test_p_values_are_adjusted_over_tasks_and_nothing_is_said_to_help(tmp_path: Path) -> None:
    p = {"bloodmnist": 0.01, "breastmnist": 0.03, "octmnist": 0.04, "pathmnist": 0.001}
    for task, value in p.items():
        write(tmp_path, task, difference(-0.02 if task == "bloodmnist" else 0.02, value))
    table, problems = tuned.table(tmp_path)
    assert table is not None and not problems
    adjusted = multipletests(list(p.values()), method="holm")[1]
    assert [row.cells[-2].text for row in table.rows] == [f"{value:.3f}" for value in adjusted]
    assert [row.cells[-1].text for row in table.rows] == ["worse", "noise", "noise", "better"]
    shown = ["50", "1 h 0 min", "80.00", "80.00", "+2.00", "[+1.00, +3.00]", "0.030"]
    assert [cell.text for cell in table.rows[1].cells][1:-2] == shown
    assert table.rows[1].cells[6].sub == "of test images and training seeds"
    assert table.notes[0].startswith("ACC: 1 better, 1 worse, 2 noise of 4 comparisons")
    assert "help" not in " ".join(table.notes)


@pytest.mark.parametrize(
    "acc",
    [
        difference(0.05, None, sd=None),  # one seed
        difference(0.05, 0.0, sd=0.0),  # all alike
        {"n": 3, "mean": 0.05, "sd": 0.01, "interval": [0.04, 0.06]},  # without a p-value
    ],
)
def test_there_is_no_verdict_where_seeds_say_nothing_of_chance(
    acc: dict[str, Any], tmp_path: Path
) -> None:
    write(tmp_path, "breastmnist", acc)
    (tmp_path / "tuned" / "breastmnist" / "damaged.json").write_text("{}")
    table, problems = tuned.table(tmp_path)
    assert table is not None
    (row,) = table.rows
    assert [cell.text for cell in row.cells[-3:]] == ["–", "–", "no verdict"]
    assert row.cells[-1].mark == "" and len(table.notes) == 1
    assert problems == ["tuned/breastmnist/damaged.json: damaged, or not an outcome of dogmed tune"]


def test_without_outcomes_there_is_no_table(tmp_path: Path) -> None:
    assert tuned.table(tmp_path) == (None, [])

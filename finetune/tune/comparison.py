"""Whether tuning has helped: the tuned recipe against the usual options, scored once on test."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

from dogmed import config as configuration
from dogmed import stats
from dogmed.console import Console
from dogmed.errors import ConfigError, TrainingError
from dogmed.finetune.benchmark.cells import Cell, find_cells
from dogmed.finetune.benchmark.sitting import Sitting
from dogmed.finetune.config import FinetuneConfig
from dogmed.finetune.executors.base import Executor
from dogmed.finetune.folder import FinetuneFolder
from dogmed.finetune.tune.outcome import Found
from dogmed.finetune.tune.space import with_values
from dogmed.finetune.tune.worker import Work
from dogmed.runs import write_atomic

SCORES = ("acc", "auc")
USUAL = "default"  # label of the runs with the usual options
FEW = 5  # seeds below which an interval over them says little


def compare(job: Work, found: Found, executor: Executor, console: Console) -> str:
    """Train with the usual and with the tuned options, equally long, on the same seeds.

    The runs are cells like those of a benchmark: those that are done are kept. What is written to
    ``<out>/tuned/<task>.json`` is the difference of test scores, seed by seed.

    Returns:
        The verdict, in words.

    Raises:
        TrainingError: a run has failed twice.
        Interrupted: a signal came; calling again continues.
    """
    out = job.base.out.expanduser()
    runs = pairs(job, found)
    for run in runs:
        _make_room(job, run, console)
    cells = find_cells(runs)
    if any(cell.state == "to do" for cell in cells):
        count, seeds = len(runs), job.config.compare_seeds
        console.line(f"comparing with the usual options: {count} runs, {seeds} seeds each")
        Sitting(cells, executor, console, out).run()
    for cell in cells:
        if cell.result is None:
            raise TrainingError(f"no comparison, for a run has failed: {cell.title}: {cell.note}")
    half = len(cells) // 2
    report = summarize(cells[:half], cells[half:])
    report = {
        "task": job.data.task.name,
        "source": job.data.source,
        "model": job.base.model,
        "init": job.base.init,
        "size": job.base.size,
        "study": job.files.name,
        "trials": {"finished": found.done, "pruned": found.pruned, "failed": found.failed},
        "seconds": round(found.seconds, 1),
        "epochs": runs[0].epochs,
        "recipe": found.values,
        **report,
    }
    file = found.recipe.with_suffix(".json")
    for path in (file, job.files.comparison):
        write_atomic(path, json.dumps(report, indent=2) + "\n")
    return str(report["verdict"])


def pairs(job: Work, found: Found) -> list[FinetuneConfig]:
    """The runs with the usual options, by seed, then those with the tuned ones; equal in epochs."""
    tuned = with_values(job.base, found.values, f"trial {found.number}")
    tuned = replace(
        tuned,
        label=found.label,
        parent_run=job.study.user_attrs.get("mlflow_run") or job.base.parent_run,
    )
    label = f"{job.base.label}-{USUAL}" if job.base.label else USUAL
    usual = replace(job.base, label=label, epochs=tuned.epochs, parent_run=tuned.parent_run)
    seeds = range(job.base.seed, job.base.seed + job.config.compare_seeds)
    return [replace(options, seed=seed) for options in (usual, tuned) for seed in seeds]


def summarize(usual: list[Cell], tuned: list[Cell]) -> dict[str, Any]:
    """Test scores by seed, their differences with 95% intervals over seeds, and the verdict."""
    scores = {
        name: [{score: _test(cell, score) for score in SCORES} for cell in cells]
        for name, cells in (("default", usual), ("tuned", tuned))
    }
    differences: dict[str, Any] = {}
    for score in SCORES:
        both = list(zip(scores["default"], scores["tuned"], strict=True))
        values = [b[score] - a[score] for a, b in both if None not in (a[score], b[score])]
        differences[score] = asdict(stats.summarize(values)) if values else None
    return {
        "seeds": [cell.config.seed for cell in tuned],
        "default": {score: [row[score] for row in scores["default"]] for score in SCORES},
        "tuned": {score: [row[score] for row in scores["tuned"]] for score in SCORES},
        "difference": differences,
        "interval_covers": "training seeds, paired; not the choice of test images",
        "verdict": verdict(differences, len(tuned)),
    }


def verdict(differences: dict[str, Any], seeds: int) -> str:
    """Say in words whether tuning has helped on test; where zero is in the interval, nobody can tell."""
    parts = []
    for score, difference in differences.items():
        if difference is None:
            continue
        name, mean, interval = score.upper(), difference["mean"], difference["interval"]
        if interval is None:
            parts.append(f"{name} {mean:+.4f}: whether tuning helped cannot be told from one seed")
            continue
        low, high = interval
        says = "it cannot be told whether tuning helped"
        if low > 0:
            says = "tuning helped"
        elif high < 0:
            says = "tuning did harm"
        parts.append(f"{name} {mean:+.4f} [{low:+.4f}, {high:+.4f}]: {says}")
    few = f"; {seeds} seeds tell little" if seeds < FEW else ""
    return (
        f"tuned - default on test, {seeds} seeds, 95% intervals over seeds: {'; '.join(parts)}{few}"
    )


def _test(cell: Cell, score: str) -> float | None:
    assert cell.result is not None
    value = cell.result["test"][score]
    return None if value is None else float(value)


def _make_room(job: Work, run: FinetuneConfig, console: Console) -> None:
    """Set a run with an earlier outcome of the study aside."""
    folder = FinetuneFolder.of(run, job.data.task.name, job.data.source)
    try:
        folder.refuse_other_settings(configuration.to_dict(run))
    except ConfigError:
        with folder.lock():
            console.line(f"the comparison with an earlier outcome is kept in {folder.set_aside()}")

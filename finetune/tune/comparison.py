"""Whether tuning has helped: the tuned recipe against the usual options, scored once on test."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from dogmed import stats
from dogmed.console import Console
from dogmed.data.prepared import load_prepared
from dogmed.errors import TrainingError
from dogmed.finetune.benchmark.cells import Cell, check_weights, find_cells, plan_of
from dogmed.finetune.benchmark.sitting import Sitting
from dogmed.finetune.config import FinetuneConfig
from dogmed.finetune.executors.base import Executor
from dogmed.finetune.tune.outcome import Found
from dogmed.finetune.tune.worker import Work
from dogmed.metrics import Ints, read_predictions
from dogmed.runs import write_atomic

SCORES = ("acc", "auc")
FEW = 5  # seeds below which an interval over them says little


def compare(job: Work, found: Found, executor: Executor, console: Console) -> str:
    """Train with the usual and with the tuned options, equally long, on the same seeds.

    The runs are cells like those of a benchmark, which knows them too: those that are done are kept.
    What is written to ``<out>/tuned/<task>/<setup>.json`` is the difference of test scores.

    Returns:
        The verdict, in words.

    Raises:
        ConfigError: a run's folder holds one with other settings, data or initial weights.
        TrainingError: a run has failed twice.
        Interrupted: a signal came; calling again continues.
    """
    out = job.base.out.expanduser()
    parent = job.study.user_attrs.get("mlflow_run") or job.base.parent_run
    usual = usual_runs(job.base, found.config.epochs, job.config.compare_seeds)
    tuned = [replace(found.config, seed=run.seed) for run in usual]
    cells = find_cells([replace(run, parent_run=parent) for run in (*usual, *tuned)])
    check_weights(cells)
    if to_do := sum(cell.state == "to do" for cell in cells):
        told = (
            f"{len(cells)} runs, {len(usual)} seeds each, {len(cells) - to_do} of them done already"
        )
        console.line(f"comparing with the usual options: {told}")
        Sitting(cells, executor, console, out).run()
    for cell in cells:
        if cell.result is None:
            raise TrainingError(f"no comparison, for a run has failed: {cell.title}: {cell.note}")
    report = {
        "task": job.data.task.name,
        "source": job.data.source,
        "model": job.base.model,
        "init": job.base.init,
        "size": job.base.size,
        "study": job.files.name,
        "trials": {"finished": found.done, "pruned": found.pruned, "failed": found.failed},
        "seconds": round(found.seconds, 1),
        "search_seed": job.base.seed,
        "epochs": found.config.epochs,
        "labels": {"default": usual[0].label, "tuned": found.config.label},
        "recipe": found.values,
        **summarize(
            job.data.task.kind, _labels(job.base), cells[: len(usual)], cells[len(usual) :]
        ),
    }
    for path in (found.recipe.with_suffix(".json"), job.files.comparison):
        write_atomic(path, json.dumps(report, indent=2) + "\n")
    return str(report["verdict"])


def usual_runs(base: FinetuneConfig, epochs: int, count: int) -> list[FinetuneConfig]:
    """The runs with the usual options, with the seeds after that of the search, so long as the tuned ones.

    Those as long as usual are runs of any benchmark; others have a label that says how long.
    """
    label = base.label
    if epochs != base.epochs:
        label = "-".join(filter(None, [base.label, f"default-{epochs}ep"]))
    seeds = range(base.seed + 1, base.seed + 1 + count)
    return [replace(base, label=label, epochs=epochs, seed=seed) for seed in seeds]


def summarize(
    kind: str, labels: Ints, usual: Sequence[Cell], tuned: Sequence[Cell]
) -> dict[str, Any]:
    """Test scores by seed, their mean differences with 95% intervals, and the verdict.

    Args:
        kind: of the task.
        labels: (N, L) of the test images.
        usual: cells that are done, by seed.
        tuned: likewise, with the same seeds.
    """
    sides = {"default": usual, "tuned": tuned}
    models = {
        name: stats.resample(kind, labels, [read_predictions(c.folder.predictions) for c in cells])
        for name, cells in sides.items()
    }
    between = stats.differences(models["tuned"], models["default"])
    differences: dict[str, Any] = {}
    for score in SCORES:
        if score not in between:
            differences[score] = None
            continue
        by_seed = models["tuned"].scores[score] - models["default"].scores[score]
        differences[score] = difference_of(by_seed, between[score])
    return {
        "seeds": [cell.config.seed for cell in tuned],
        **{
            name: {score: [_test(cell, score) for cell in cells] for score in SCORES}
            for name, cells in sides.items()
        },
        "difference": differences,
        "interval_covers": next(iter(between.values())).covers,
        "verdict": verdict(differences, len(tuned)),
    }


def difference_of(by_seed: np.ndarray, found: stats.Difference) -> dict[str, Any]:
    """What is said of one score; no interval where seeds say nothing of chance: one alone, or all equal."""
    over_seeds = stats.summarize(by_seed.round(12))
    known = bool(over_seeds.sd) and found.low < found.high and not found.degenerate
    return asdict(over_seeds) | {
        "mean": found.value,
        "interval": (found.low, found.high) if known else None,
        "p": found.p if known else None,
    }


def verdict(differences: dict[str, Any], seeds: int) -> str:
    """Say in words whether tuning has helped on test; where zero is in the interval, nobody can tell."""
    parts = []
    for score, difference in differences.items():
        if difference is None:
            continue
        said, interval = f"{score.upper()} {difference['mean']:+.4f}", difference["interval"]
        if interval is None:
            why = "one seed" if seeds == 1 else "seeds that all differ alike"
            parts.append(f"{said}: whether tuning helped cannot be told from {why}")
            continue
        low, high = interval
        says = "it cannot be told whether tuning helped"
        if low > 0:
            says = "tuning helped"
        elif high < 0:
            says = "tuning did harm"
        parts.append(f"{said} [{low:+.4f}, {high:+.4f}]: {says}")
    few = f"; {seeds} seeds tell little" if 1 < seeds < FEW else ""
    return (
        f"tuned - default on test, {seeds} seed{'s' * (seeds != 1)}, 95% intervals over test images and "
        f"training seeds: {'; '.join(parts)}{few}"
    )


def _labels(base: FinetuneConfig) -> Ints:
    """(N, L) labels of the test images: the data are prepared now, whatever they were before."""
    folder = plan_of(base).folder
    prepared = load_prepared(folder) if folder else None
    if prepared is None:
        raise TrainingError(f"no comparison, for the prepared data of {base.task} have gone")
    return prepared.labels("test")


def _test(cell: Cell, score: str) -> float | None:
    assert cell.result is not None
    value = cell.result["test"][score]
    return None if value is None else float(value)

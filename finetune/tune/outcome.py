"""What a study leaves: the recipe it has found, a table of its trials, and pictures."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from optuna.trial import FrozenTrial, TrialState

from dogmed import config as configuration
from dogmed.console import duration
from dogmed.csvfile import csv_text
from dogmed.errors import TrainingError
from dogmed.finetune.config import FinetuneConfig
from dogmed.finetune.folder import FinetuneFolder
from dogmed.finetune.tune.plots import draw
from dogmed.finetune.tune.recipe import SEED, tuned_file, tuned_label
from dogmed.finetune.tune.space import with_values
from dogmed.finetune.tune.study import Files, is_over, last_attempts, why
from dogmed.finetune.tune.worker import Work
from dogmed.runs import write_atomic
from dogmed.tracking import shown


@dataclass(frozen=True)
class Found:
    """The best trial of a study, what the study took, and the files that say so."""

    number: int
    val_auc: float
    values: dict[str, Any]
    """By dotted option."""
    config: FinetuneConfig
    """The options with these values, and their label."""
    done: int
    pruned: int
    failed: int
    seconds: float
    recipe: Path
    table: Path
    plots: Path | None


def write(job: Work) -> Found:
    """Write ``<out>/tuned/<task>/<setup>.yaml``; it, ``trials.csv`` and ``plots.html`` in the study's folder.

    Raises:
        TrainingError: no trial was finished.
    """
    last = {n: a for n, a in last_attempts(job.study).items() if is_over(a)}
    states = [attempt.state for attempt in last.values()]
    table = job.files.root / "trials.csv"
    write_atomic(table, _table(job, last))
    complete = {n: a for n, a in last.items() if a.state == TrialState.COMPLETE}
    if not complete:
        reasons = [why(a) for a in last.values() if a.state == TrialState.FAIL]
        raise TrainingError(f"no trial of study {job.files.name} was finished: {reasons[-1]}")
    number, best = max(complete.items(), key=lambda item: (item[1].value or 0.0, -item[0]))
    values = {name: job.space[name].clean(value) for name, value in best.params.items()}
    config = with_values(job.base, values, f"trial {number}")
    found = Found(
        number=number,
        val_auc=best.value or 0.0,
        values=values,
        config=replace(config, label=tuned_label(config)),
        done=len(complete),
        pruned=states.count(TrialState.PRUNED),
        failed=states.count(TrialState.FAIL),
        seconds=sum(seconds_of(job.files, number) for number in last),
        recipe=tuned_file(job.base, job.data.task.name, job.data.source),
        table=table,
        plots=draw(job.study, job.files.root / "plots.html"),
    )
    text = _recipe(job, found)
    if not (found.recipe.is_file() and found.recipe.read_text() == text):
        found.recipe.with_suffix(".json").unlink(missing_ok=True)  # it was about another recipe
    for file in (found.recipe, job.files.recipe):
        write_atomic(file, text)
    return found


def told(job: Work, found: Found) -> list[str]:
    """The outcome in some lines, for a person."""
    counts = f"{found.done} finished, {found.pruned} pruned, {found.failed} failed"
    values = ", ".join(f"{name} {value}" for name, value in found.values.items())
    return [
        f"study   {job.files.name}: {counts}, {duration(found.seconds)} of training",
        f"best    trial {found.number}, val AUC {found.val_auc:.4f} (the best of {found.done}, and so "
        f"too good to be expected again): {values}",
        f"recipe  {found.recipe}",
        f"trials  {found.table}" + (f", {found.plots}" if found.plots else ""),
    ]


def seconds_of(files: Files, number: int) -> float:
    """Seconds that a trial has trained, however it ended."""
    metrics = files.trial(number).metrics
    if not metrics.is_file():
        return 0.0
    rows = map(json.loads, metrics.read_text().splitlines())
    return sum(row["epoch_seconds"] for row in rows)


def _recipe(job: Work, found: Found) -> str:
    """YAML for ``dogmed finetune --config``: what differs from its defaults, and where it comes from."""
    usual = configuration.flatten(configuration.recipe("finetune/default"))
    base = configuration.flatten(configuration.to_dict(job.base))
    left_out = FinetuneFolder.free | {"seed"}
    values = {name: value for name, value in base.items() if name not in left_out}
    values |= found.values
    values = {name: value for name, value in values.items() if value != usual[name]}
    values = configuration.merge({"task": job.base.task, "label": found.config.label}, values)
    facts = {
        "made by": _command(job),
        "study": f"{job.files.name}, trial {found.number}",
        "trials": f"{found.done} finished, {found.pruned} pruned, {found.failed} failed",
        "val AUC": f"{found.val_auc:.4f}, the best of {found.done}: an optimistic figure, not a result",
        SEED: f"{job.base.seed}, of every trial: a run with it repeats the best one",
        "cost": f"{duration(found.seconds)} of training ({found.seconds / 3600:.3g} hours)",
        "searched": "; ".join(f"{name} {option}" for name, option in job.space.items()),
    }
    head = "".join(f"# {name}: {text}\n" for name, text in facts.items())
    return head + "\n" + yaml.safe_dump(values, sort_keys=False)


def _command(job: Work) -> str:
    """The command that made the study, without what is as it always is."""
    config = job.config
    usual = configuration.flatten(configuration.recipe("finetune/tune"))
    words = ["dogmed", "tune", "--task", job.base.task]
    for name, value in configuration.flatten(configuration.to_dict(config)).items():
        skipped = name in ("task", "all", "worker") or name not in usual
        if skipped or value == usual[name]:
            continue
        text = shown(value) if name == "storage" else value
        words += [
            "--" + name.replace("_", "-"),
            *map(str, text if isinstance(text, list) else [text]),
        ]
    return shlex.join(words)


def _table(job: Work, last: dict[int, FrozenTrial]) -> str:
    names = list(job.space)
    head = [
        "trial",
        "state",
        "val_auc",
        "epochs",
        "best_epoch",
        "seconds",
        "deaths",
        *names,
        "note",
    ]
    rows = []
    for number, attempt in last.items():
        failed = attempt.state == TrialState.FAIL
        rows.append({
            "trial": number,
            "state": attempt.state.name.lower(),
            "val_auc": attempt.value,
            "epochs": attempt.last_step,
            "best_epoch": attempt.user_attrs.get("best_epoch"),
            "seconds": round(seconds_of(job.files, number), 1),
            "deaths": attempt.user_attrs.get("deaths", 0),
            "note": why(attempt) if failed else "",
            **{n: job.space[n].clean(attempt.params[n]) for n in names if n in attempt.params},
        })  # fmt: skip
    return csv_text(head, rows)

"""Recipes that were tuned, a YAML file for each task, and runs that take them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dogmed import config as configuration
from dogmed.errors import ConfigError
from dogmed.finetune.benchmark.cells import plan_of
from dogmed.finetune.config import FinetuneConfig
from dogmed.finetune.folder import FinetuneFolder
from dogmed.finetune.tune.space import tunable, with_values
from dogmed.yamlfile import parse_yaml


def tuned_file(out: Path, task: str) -> Path:
    """Where the tuned recipe of a task is, by the name that the task has in folders of runs."""
    return out / "tuned" / f"{task}.yaml"


def take_tuned(runs: Sequence[FinetuneConfig], skip_missing: bool) -> list[FinetuneConfig]:
    """Give each run the values of its task's recipe, where an option has its usual value.

    Model, initial weights, size and seed stay those of the run.

    Args:
        runs: of a benchmark.
        skip_missing: leave out tasks without a recipe, in place of refusing them.

    Raises:
        ConfigError: a task has no recipe, or one that cannot be used, or no task is left.
    """
    usual = configuration.flatten(configuration.recipe("finetune/default"))
    names = set(tunable())
    taken: list[FinetuneConfig] = []
    missing: dict[str, Path] = {}
    files = {run.task: _file_of(run) for run in {run.task: run for run in runs}.values()}
    for run in runs:
        file = files[run.task]
        if not file.is_file():
            missing[run.task] = file
            continue
        where = f"--tuned {file}"
        values = configuration.flatten(parse_yaml(file.read_text(), where))
        given = configuration.flatten(configuration.to_dict(run))
        chosen = {
            name: value
            for name, value in values.items()
            if name in names and given[name] == usual[name]
        }
        label = "-".join(filter(None, [run.label, str(values.get("label", "tuned"))]))
        taken.append(replace(with_values(run, chosen, where), label=label))
    if missing:
        tasks = ", ".join(missing)
        said = f"no tuned recipe of {tasks} ({next(iter(missing.values()))}, ...)"
        if not (skip_missing and taken):
            first = next(iter(missing))
            raise ConfigError(
                f"--tuned: {said}; make it with dogmed tune --task {first}, or give --skip-missing to do "
                "the others"
            )
        print(f"left out: {said}", file=sys.stderr)
    return taken


def _file_of(run: FinetuneConfig) -> Path:
    data = plan_of(run)
    folder = FinetuneFolder.of(run, data.task.name, data.source).root
    return tuned_file(run.out, folder.parents[1].name)

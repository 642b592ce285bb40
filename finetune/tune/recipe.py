"""Recipes that were tuned, a YAML file for each setup of a task, and runs that take them."""

from __future__ import annotations

import hashlib
import json
import re
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

SEED = "seed of the search"
"""Of a recipe's header: every trial was trained with it."""
NAMED = 4  # missing recipes that are named, of many


def tuned_file(run: FinetuneConfig, task_name: str, source: str) -> Path:
    """Where the tuned recipe of a run is: ``<out>/tuned`` and the words of the run's own folder.

    Args:
        run: its options; the seed does not matter.
        task_name: as prepared.
        source: official, variant, synthetic, npz or folder.
    """
    setup = FinetuneFolder.of(run, task_name, source).root.parent
    return run.out.expanduser() / "tuned" / setup.parent.name / f"{setup.name}.yaml"


def tuned_label(run: FinetuneConfig) -> str:
    """The label of tuned options, with a digest of their values: others are another setup."""
    usual = configuration.flatten(configuration.recipe("finetune/default"))
    values = configuration.flatten(configuration.to_dict(run))
    differ = {name: values[name] for name in sorted(tunable()) if values[name] != usual[name]}
    digest = hashlib.sha256(json.dumps(differ).encode()).hexdigest()[:6]
    return "-".join(filter(None, [run.label, "tuned", digest]))


def take_tuned(runs: Sequence[FinetuneConfig], skip_missing: bool) -> list[FinetuneConfig]:
    """Give each run the values of its own recipe, where an option has its usual value.

    A run with the seed of the search repeats the best trial, the luckiest of many: that is told.

    Args:
        runs: of a benchmark.
        skip_missing: leave out runs without a recipe, in place of refusing them.

    Raises:
        ConfigError: a run has no recipe, or one that cannot be used, or no run is left.
    """
    usual = configuration.flatten(configuration.recipe("finetune/default"))
    names = set(tunable())
    plans = {run.task: plan_of(run) for run in {run.task: run for run in runs}.values()}
    taken: list[FinetuneConfig] = []
    missing: dict[Path, FinetuneConfig] = {}
    searched: set[int] = set()
    for run in runs:
        file = tuned_file(run, plans[run.task].task.name, plans[run.task].source)
        if not file.is_file():
            missing[file] = run
            continue
        where, text = f"--tuned {file}", file.read_text()
        values = configuration.flatten(parse_yaml(text, where))
        given = configuration.flatten(configuration.to_dict(run))
        chosen = {
            name: value
            for name, value in values.items()
            if name in names and given[name] == usual[name]
        }
        found = re.search(rf"^# {SEED}: (\d+)", text, re.MULTILINE)
        if found and int(found[1]) == run.seed:
            searched.add(run.seed)
        tuned = with_values(run, chosen, where)
        taken.append(replace(tuned, label=tuned_label(tuned)))
    if missing:
        _tell_missing(missing, go_on=skip_missing and bool(taken))
    if searched:
        print(
            f"--tuned: seed {', '.join(map(str, sorted(searched)))} is the search's own: its runs repeat the "
            f"best trials, which flatters them; --seed {max(searched) + 1} begins after it",
            file=sys.stderr,
        )
    return taken


def _tell_missing(missing: dict[Path, FinetuneConfig], *, go_on: bool) -> None:
    """Name the runs without a recipe.

    Raises:
        ConfigError: unless the others are to go on.
    """
    setups = [f"{run.task} {run.model} {run.init}" for run in missing.values()]
    more = f" and {len(setups) - NAMED} more" if len(setups) > NAMED else ""
    file, run = next(iter(missing.items()))
    said = f"no tuned recipe of {', '.join(setups[:NAMED])}{more} ({file}{', ...' * (len(setups) > 1)})"
    if not go_on:
        raise ConfigError(
            f"--tuned: {said}; make it with dogmed tune --task {run.task} --model {run.model} --init "
            f"{run.init} --size {run.size}, or give --skip-missing to do the others"
        )
    print(f"left out: {said}", file=sys.stderr)

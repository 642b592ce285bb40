"""What ``dogmed benchmark`` can be told, and the runs that follow from it.

It takes every option of ``dogmed finetune``. Task, model, init and train fraction may be lists, and
every combination of them, with every seed, is one cell: one run of ``dogmed finetune``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import sys
from typing import Any

from dogmed.config import configclass
from dogmed.errors import ConfigError
from dogmed.finetune.config import Count, FinetuneConfig
from dogmed.finetune.executors.options import ExecutorConfig, build_executor
from dogmed.finetune.lists import chosen_tasks, split_words


@configclass
class BenchmarkConfig(ExecutorConfig, FinetuneConfig):
    """Fine-tune every combination of tasks, models, initial weights, train fractions and seeds.

    Whoever wants runs takes ``combine``'s: this class has lists where a run has one value.
    """

    task: tuple[str, ...]  # type: ignore[assignment]
    """Tasks as dogmed finetune takes them, apart by commas or spaces."""
    model: tuple[str, ...]  # type: ignore[assignment]
    """Models as dogmed finetune takes them, apart by commas or spaces."""
    init: tuple[str, ...]  # type: ignore[assignment]
    """Initial weights as dogmed finetune takes them, apart by commas or spaces."""
    train_fraction: tuple[float | str, ...]  # type: ignore[assignment]
    """Shares of the training split, in (0, 1], apart by commas or spaces."""
    seeds: Count
    """Runs of each combination, with the seeds from --seed on."""
    all: bool
    """All twelve official tasks."""
    skip_missing: bool
    """Leave out the cells whose initial weights, or with --tuned recipes, are not there."""
    tuned: bool
    """Each cell with what dogmed tune has found for it, <out>/tuned/TASK/MODEL-INIT-SIZE.yaml; options that
    are not at their usual values win over it."""


def combine(config: BenchmarkConfig) -> list[FinetuneConfig]:
    """List the runs: all of one seed before those of the next, task after task.

    Raises:
        ConfigError: no tasks, tasks beside ``all``, or an empty or a wrong list.
    """
    tasks = chosen_tasks(config.task, config.all)
    models, inits = split_words(config.model), split_words(config.init)
    fractions = [_fraction(word) for word in split_words(config.train_fraction)]
    for flag, values in (("model", models), ("init", inits), ("train-fraction", fractions)):
        if not values:
            raise ConfigError(f"--{flag}: expected at least one")
    names = [field.name for field in dataclasses.fields(FinetuneConfig)]
    shared = {name: getattr(config, name) for name in names}
    seeds = range(config.seed, config.seed + config.seeds)
    return [
        FinetuneConfig(**shared | {
            "seed": seed, "task": task, "train_fraction": fraction, "model": model, "init": init,
        })
        for seed, task, fraction, model, init in itertools.product(
            seeds, tasks, dict.fromkeys(fractions), models, inits
        )
    ]  # fmt: skip


def command(**options: Any) -> int:
    """Run ``dogmed benchmark`` with the fields of ``BenchmarkConfig``; returns the exit code."""
    config = BenchmarkConfig(**options)
    runs = combine(config)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("dogmed benchmark starts its own processes: call it without torchrun")
    from dogmed.data.store import plan
    from dogmed.finetune.config import data_options

    # for what it refuses: torch takes seconds to load, a misspelt task need not wait for it
    for run in {run.task: run for run in runs}.values():
        plan(**data_options(run))
    if sys.stderr.isatty():
        print("loading PyTorch, timm and MONAI ...", file=sys.stderr, flush=True)
    from dogmed.finetune.benchmark.sitting import benchmark
    from dogmed.finetune.tune.recipe import take_tuned

    if config.tuned:
        runs = take_tuned(runs, config.skip_missing)
    with contextlib.closing(build_executor(config, config.device)) as executor:
        return benchmark(runs, executor, skip_missing=config.skip_missing)


def _fraction(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise ConfigError(f"--train-fraction: expected numbers above 0 and up to 1, got '{word}'")
    return value

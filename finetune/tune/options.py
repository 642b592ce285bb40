"""What ``dogmed tune`` can be told. The values are in ``configs/finetune/tune.yaml``."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le

from dogmed.config import configclass
from dogmed.errors import ConfigError
from dogmed.finetune.config import Count, FinetuneConfig
from dogmed.finetune.executors.options import ExecutorConfig, build_executor
from dogmed.finetune.lists import chosen_tasks
from dogmed.finetune.tune.space import space_of


@configclass
class TuneConfig(ExecutorConfig, FinetuneConfig):
    """Search options that do better on val, one study for each task; test is never read.

    Whoever wants a trial's options takes ``base_of``'s: this class has a list of tasks.
    """

    task: tuple[str, ...]  # type: ignore[assignment]
    """Tasks as dogmed finetune takes them, apart by commas or spaces; a study for each."""
    all: bool
    """All twelve official tasks."""
    trials: Count
    """Trials of a study, those of earlier calls and those that were pruned or failed included."""
    space: str
    """What is varied: default, wide, or a YAML file of one's own."""
    storage: str | None
    """Database of the studies (postgresql://USER@HOST/NAME, ...), or a file; None is a file of each study."""
    heartbeat: Annotated[int, Ge(1), Le(86_400)]
    """Seconds between a trial's signs of life in a database; it is taken for dead after two of them."""
    study: str | None
    """Name of the study; None is made of model, init and size."""
    pruner: Literal["median", "none"]
    """median ends a trial whose best val AUC so far is below the median of the others' at that epoch."""
    prune_after_trials: Annotated[int, Ge(0), Le(1_000_000)]
    """Trials to finish before any is pruned."""
    prune_after_epochs: Annotated[int, Ge(0), Le(1_000_000)]
    """Epochs of a trial before it may be pruned."""
    sampler_seed: Annotated[int, Ge(0), Le(2**32 - 1)]
    """Seed of the search (--seed is that of every trial's training)."""
    compare_seeds: Annotated[int, Ge(0), Le(10_000)]
    """Training seeds of the comparison with the usual options at the end; 0 for none."""
    worker: bool
    """Only work on the study's trials, as dogmed tune lets its own workers do; one more on any machine."""


def base_of(config: TuneConfig, task: str) -> FinetuneConfig:
    """The options that all trials of a task share."""
    names = [field.name for field in dataclasses.fields(FinetuneConfig)]
    return FinetuneConfig(**{name: getattr(config, name) for name in names} | {"task": task})


def command(**options: Any) -> int:
    """Run ``dogmed tune`` with the fields of ``TuneConfig``; returns the exit code."""
    config = TuneConfig(**options)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("dogmed tune starts its own processes: call it without torchrun")
    from dogmed.data.store import plan
    from dogmed.finetune.config import data_options

    # for what it refuses: torch takes seconds to load, a misspelt option need not wait for it
    tasks = chosen_tasks(config.task, config.all)
    for task in tasks:
        base = base_of(config, task)
        space_of(config.space, task, base)
        plan(**data_options(base))
    if sys.stderr.isatty():
        print("loading PyTorch, timm, MONAI and Optuna ...", file=sys.stderr, flush=True)
    if config.worker:
        from dogmed.finetune.tune.worker import work

        for task in tasks:
            work(config, task)
        return 0
    from dogmed.finetune.tune.tuning import tune

    with contextlib.closing(build_executor(config, config.device)) as executor:
        return tune(config, executor)

"""``dogmed finetune``: one model on one task, from the options to ``result.json``."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from dogmed.console import Console, Stopper
from dogmed.data.progress import Console as DataConsole
from dogmed.data.progress import Quiet
from dogmed.distributed import join
from dogmed.errors import ConfigError
from dogmed.finetune import build
from dogmed.finetune.config import FinetuneConfig
from dogmed.finetune.folder import FinetuneFolder
from dogmed.finetune.session import Session
from dogmed.finetune.trial import Trial


def finetune(config: FinetuneConfig, trial: Trial | None = None) -> dict[str, Any] | None:
    """Train on train, select on val, score test once; everything is kept in the run's folder.

    A run that was interrupted is continued; one that is finished is left alone and its result returned.

    Args:
        config: the options.
        trial: for a run that is one of many tried: test is not read, and the result is without it.

    Returns:
        The contents of ``result.json``; None for a dry run.

    Raises:
        DogmedError: an option, the data or the weights cannot be used, or training failed.
        Interrupted: a signal stopped the run; calling again continues it.
        HopelessError: the trial's ``report`` has ended the run.
    """
    if not config.task:
        raise ConfigError("which task? for example --task breastmnist; dogmed data list shows all")
    if config.dry_run:
        from dogmed.finetune.plan import describe

        print(describe(config))
        return None
    with join(config.device) as world:
        console = Console(world.is_main)
        with nullcontext(trial.stopper) if trial else Stopper(console) as stopper:
            task = build.plan_data(config).task
            objective = build.build_objective(config, task.kind, task.num_classes)
            # the model comes before the data: a misspelt --init must not cost a download
            network = build.build_network(config, objective.num_outputs, task.classes)
            prepared = build.prepare_data(config, DataConsole() if world.is_main else Quiet())
            folder = FinetuneFolder.of(config, prepared.task.name, prepared.source)
            folder = trial.folder if trial else folder
            session = Session(config, world, console, stopper, prepared, folder, network, trial)
            with folder.lock() if world.is_main else nullcontext():
                return session.run(objective)

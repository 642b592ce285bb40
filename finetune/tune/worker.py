"""A worker of a study: it tries one set of options after another until the study has its trials."""

from __future__ import annotations

import gc
import math
import os
import shutil
import socket
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import optuna
import torch
from filelock import FileLock
from optuna.samplers import TPESampler

from dogmed.console import Console, Stopper
from dogmed.data.store import Plan
from dogmed.errors import DogmedError, Interrupted, TrainingError, reason
from dogmed.finetune.benchmark.cells import plan_of
from dogmed.finetune.config import FinetuneConfig
from dogmed.finetune.run import finetune
from dogmed.finetune.trial import HopelessError, Trial
from dogmed.finetune.tune.options import TuneConfig, base_of
from dogmed.finetune.tune.space import Space, space_of, with_values
from dogmed.finetune.tune.study import (
    Files,
    has_locks,
    open_study,
    revive,
    seed_of,
    waiting,
)


@dataclass(frozen=True)
class Work:
    """A study and all that its trials share."""

    config: TuneConfig
    base: FinetuneConfig
    space: Space
    data: Plan
    files: Files
    study: optuna.Study


def open_work(config: TuneConfig, task: str) -> Work:
    """Open the study of a task, whose data are prepared first where they are files of the user's.

    Raises:
        DogmedError: options, space, data or storage cannot be used.
    """
    base = base_of(config, task)
    space = space_of(config.space, task, base)
    data = plan_of(base)
    files = Files.of(config, base, data.task.name, data.source)
    return Work(config, base, space, data, files, open_study(config, base, space, files))


def work(config: TuneConfig, task: str) -> None:
    """Try what the study of a task has left to try, beside any other workers.

    Raises:
        DogmedError: options, data or storage cannot be used.
        Interrupted: a signal came; the trial under way is saved, and continued by whoever comes next.
    """
    job = open_work(config, task)
    with Stopper(Console(True)) as stopper:
        stopper.deferring = True
        while try_next(job, stopper):
            if stopper.requested:
                raise Interrupted("stopped between two trials", stopper.requested)


def try_next(job: Work, stopper: Stopper) -> bool:
    """Try what comes next; returns False where everything has been begun."""
    claim = job.files.claim
    with claim:
        revive(job.study, job.files)
        if not waiting(job.study, job.config.trials):
            return False
        seed = seed_of(job.study, job.config.sampler_seed)
        job.study.sampler = TPESampler(seed=seed, multivariate=True, constant_liar=True)
        job.study.optimize(
            lambda attempt: _objective(job, attempt, claim, stopper),
            n_trials=1,
            catch=(DogmedError, RuntimeError),  # the latter: torch's, out of memory among them
        )
    return True


def forget() -> None:
    """Leave nothing of the last trial in this process.

    A finished run holds itself by cycles, and its images may be on the device; torch.compile would give
    up compiling after some networks that share code (``torch._dynamo.config.recompile_limit``).
    """
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _objective(job: Work, attempt: optuna.Trial, claim: FileLock, stopper: Stopper) -> float:
    """Val AUC of the epoch that the run has selected.

    The attempt begins under the study's ``claim``, which is let go once its values are chosen.
    """
    number = int(attempt.user_attrs.get("trial", attempt.number))
    with job.files.alive(number) if has_locks(job.study) else nullcontext():
        values = {name: option.suggest(attempt, name) for name, option in job.space.items()}
        attempt.set_user_attr("worker", f"{socket.gethostname()}:{os.getpid()}")
        claim.release()
        stopper.deferring = False  # until training begins, a signal need not be saved for
        try:
            return _train(job, number, values, attempt, stopper)
        except KeyboardInterrupt:
            attempt.set_user_attr("stopped", True)
            raise
        except optuna.TrialPruned:
            raise
        except Exception as error:
            attempt.set_user_attr("reason", reason(error))
            raise
        finally:
            if stopper.requested is None:
                stopper.deferring = True


def _train(
    job: Work, number: int, values: dict[str, Any], attempt: optuna.Trial, stopper: Stopper
) -> float:
    folder = job.files.trial(number)
    config = replace(
        with_values(job.base, values, f"trial {number}"),
        resume="auto",
        parent_run=job.study.user_attrs.get("mlflow_run") or job.base.parent_run,
    )

    # what was told before the process died
    known = set(job.study.get_trials(deepcopy=False)[attempt.number].intermediate_values)

    def report(row: dict[str, Any]) -> None:
        if row["val_auc"] is None:
            return
        if row["epoch"] not in known:
            attempt.report(row["val_auc"], row["epoch"])
        if attempt.should_prune():
            raise HopelessError(f"pruned after epoch {row['epoch']}")

    forget()
    print(f"trial {number}: " + ", ".join(f"{name} {value}" for name, value in values.items()))
    checkpoints = folder.last.parent
    try:
        result = finetune(config, Trial(folder, report, stopper))
    except KeyboardInterrupt:
        raise
    except HopelessError as error:
        shutil.rmtree(checkpoints)
        raise optuna.TrialPruned(str(error)) from None
    except Exception:
        shutil.rmtree(checkpoints, ignore_errors=True)
        raise
    assert result is not None
    shutil.rmtree(checkpoints, ignore_errors=True)
    auc = result["val"]["auc"]
    if auc is None or math.isnan(auc):
        raise TrainingError("val AUC is not defined: val holds one class only")
    attempt.set_user_attr("best_epoch", result["best_epoch"])
    return float(auc)

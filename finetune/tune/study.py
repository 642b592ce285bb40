"""A study: its folder, its storage, and who tries what.

Optuna's numbers of trials grow when one is tried again after its process died, so here a *trial* is
named by the number under which it was first tried, and ``attempts`` are what Optuna keeps. Attempts
begin one at a time, under a lock in the study's folder, the claim: that makes the number of trials exact and the
choice of each follow from the seed and from the trials before it alone.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from filelock import FileLock, Timeout
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from dogmed import config as configuration
from dogmed.errors import ConfigError, reason
from dogmed.finetune.config import FinetuneConfig
from dogmed.finetune.folder import FinetuneFolder
from dogmed.finetune.trial import TrialFolder
from dogmed.finetune.tune.options import TuneConfig
from dogmed.finetune.tune.space import Space
from dogmed.options import settled
from dogmed.runs import slug
from dogmed.tracking import shown

RETRIES = 2  # of a trial whose process died
Pruner = optuna.pruners.BasePruner


@dataclass(frozen=True)
class Files:
    """Where a study keeps what it has on disk: ``<out>/tune/<task>/<study>``."""

    root: Path

    @classmethod
    def of(cls, config: TuneConfig, base: FinetuneConfig, task_name: str, source: str) -> Files:
        """Name the folder as ``finetune`` names that of a run, or by ``--study``."""
        run = FinetuneFolder.of(base, task_name, source).root.parent
        study = slug(config.study) if config.study else run.name
        return cls(base.out.expanduser() / "tune" / run.parent.name / study)

    @property
    def name(self) -> str:
        """The study's name in its storage."""
        return f"{self.root.parent.name}-{self.root.name}"

    @property
    def journal(self) -> Path:
        return self.root / "journal.log"

    @property
    def recipe(self) -> Path:
        """What the study has found, as in ``<out>/tuned`` until another study of the task ends."""
        return self.root / "tuned.yaml"

    @property
    def comparison(self) -> Path:
        """What it is worth on test."""
        return self.root / "tuned.json"

    @property
    def claim(self) -> FileLock:
        """Held for a moment: while a study is set up and while an attempt begins."""
        self.root.mkdir(parents=True, exist_ok=True)
        return FileLock(self.root / ".claim")

    @contextmanager
    def directed(self) -> Iterator[None]:
        """Hold the study's folder as a run's is held: one call directs a study, beside any workers.

        Raises:
            ConfigError: another call does.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.root / ".lock", timeout=0):
                yield
        except Timeout:
            raise ConfigError(
                f"study {self.name}: another process directs it ({self.root}); wait for it, or add a "
                "worker with --worker"
            ) from None

    def trial(self, number: int) -> TrialFolder:
        """The folder of a trial's run."""
        return TrialFolder(self.root / f"trial{number:04d}")

    def alive(self, number: int) -> FileLock:
        """Held by the process that is trying a trial."""
        folder = self.root / "alive"
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / f"{number:04d}", timeout=0)


def open_study(
    config: TuneConfig, base: FinetuneConfig, space: Space, files: Files
) -> optuna.Study:
    """Open a study, and create it where there is none.

    Raises:
        ConfigError: the storage cannot be used, or the study was made with other options or space.
    """
    quiet()
    facts = {
        "space": {name: str(option) for name, option in space.items()},
        "options": fixed_options(configuration.to_dict(base), space),
    }
    with files.claim:
        storage = _open_storage(config, files)
        study = optuna.create_study(
            storage=storage,
            study_name=files.name,
            direction="maximize",
            load_if_exists=True,
            pruner=build_pruner(config),
        )
        for name, value in facts.items():
            old = study.user_attrs.get(name)
            if name == "options" and old is not None:  # some may be younger than the study
                old = fixed_options(configuration.recipe(TrialFolder.shipped), space) | old
            if old is None:
                study.set_user_attr(name, value)
            elif old != value:
                raise ConfigError(
                    f"study {files.name} was made with other {name} ({_differences(old, value)}); "
                    "give the old ones, or another --study"
                )
    return study


def begun(config: TuneConfig, files: Files) -> int:
    """How many trials a study has, without touching anything; of one in a database, 0."""
    path = files.journal if config.storage is None else Path(config.storage)
    if not path.is_file():
        return 0
    quiet()
    storage = JournalStorage(JournalFileBackend(str(path)))
    if files.name not in optuna.get_all_study_names(storage):
        return 0
    return len(last_attempts(optuna.load_study(study_name=files.name, storage=storage)))


def build_pruner(config: TuneConfig) -> Pruner:
    """Optuna's median pruner over val AUC by epoch, or none."""
    if config.pruner == "none":
        return optuna.pruners.NopPruner()
    return optuna.pruners.MedianPruner(config.prune_after_trials, config.prune_after_epochs)


def fixed_options(settings: Mapping[str, Any], space: Space) -> dict[str, Any]:
    """What all trials share and what changes their result: the same in every call for one study."""
    flat = configuration.flatten(settled(settings))
    loose = FinetuneFolder.free | space.keys()
    return {name: value for name, value in flat.items() if name not in loose}


def quiet() -> None:
    """Keep Optuna from telling what the study's own lines tell."""
    optuna.logging.set_verbosity(logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def trial_of(attempt: FrozenTrial) -> int:
    """The number of the trial that an attempt belongs to."""
    return int(attempt.user_attrs.get("trial", attempt.number))


def is_over(attempt: FrozenTrial) -> bool:
    """Whether a trial has come to its end: what failed without a reason was stopped, or its process died."""
    cut_off = attempt.state == TrialState.FAIL and "reason" not in attempt.user_attrs
    return attempt.state.is_finished() and not (cut_off and deaths(attempt) <= RETRIES)


def deaths(attempt: FrozenTrial) -> int:
    """How many processes have died over a trial whose last attempt has failed without a reason."""
    return int(attempt.user_attrs.get("deaths", 0)) + ("stopped" not in attempt.user_attrs)


def why(attempt: FrozenTrial) -> str:
    """Why a trial has failed."""
    died = f"its process died {deaths(attempt)} times"
    return str(attempt.user_attrs.get("reason", died))


def last_attempts(study: optuna.Study) -> dict[int, FrozenTrial]:
    """Each trial's last attempt, by the trial's number."""
    attempts = study.get_trials(deepcopy=False)
    return {trial_of(attempt): attempt for attempt in attempts}


def unfinished(study: optuna.Study, trials: int) -> int:
    """How many of so many trials are still to begin, to continue or to end."""
    return trials - sum(is_over(attempt) for attempt in last_attempts(study).values())


def waiting(study: optuna.Study, trials: int) -> int:
    """How many of so many trials nobody works on."""
    last = last_attempts(study).values()
    return sum(a.state == TrialState.WAITING for a in last) + max(0, trials - len(last))


def revive(study: optuna.Study, files: Files) -> None:
    """Have trials whose process died, or was stopped, continued by whoever comes next.

    With a file as storage a trial's process holds a lock that ends with it; a database is told signs
    of life, and Optuna fails the trials without. Call this under the study's claim.
    """
    if has_locks(study):
        for number, attempt in last_attempts(study).items():
            if attempt.state == TrialState.RUNNING and not _is_alive(files, number):
                study.tell(attempt.number, state=TrialState.FAIL)
    else:
        optuna.storages.fail_stale_trials(study)
    for number, attempt in last_attempts(study).items():
        if attempt.state.is_finished() and not is_over(attempt):
            study.add_trial(
                optuna.create_trial(
                    state=TrialState.WAITING,
                    params=attempt.params,
                    distributions=attempt.distributions,
                    system_attrs=attempt.system_attrs,
                    user_attrs={"trial": number, "deaths": deaths(attempt)},
                    intermediate_values=attempt.intermediate_values,
                )
            )


def has_locks(study: optuna.Study) -> bool:
    """Whether a lock tells that a trial's process is alive; for a database its signs of life do."""
    return isinstance(study._storage, JournalStorage)


def seed_of(study: optuna.Study, seed: int) -> int:
    """The sampler's seed for the trial that begins next: another for each, the same in every sitting."""
    return int(np.random.SeedSequence((seed, len(last_attempts(study)))).generate_state(1)[0])


@contextmanager
def told(what: str) -> Iterator[None]:
    """Tell in one line what a storage says that cannot be used."""
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

    try:
        yield
    except ImportError as error:
        raise ConfigError(
            f"--storage {what}: its driver is not installed; for PostgreSQL: "
            "pip install 'dogmed[postgresql]'"
        ) from error
    except (ArgumentError, NoSuchModuleError) as error:
        raise ConfigError(f"--storage {what}: no database URL ({reason(error)})") from error
    except (SQLAlchemyError, OSError) as error:
        raise ConfigError(f"--storage {what}: cannot be used ({reason(error)})") from error


def _open_storage(config: TuneConfig, files: Files) -> BaseStorage:
    place = config.storage
    if place is None or "://" not in place:
        path = files.journal if place is None else Path(place).expanduser()
        with told(str(path)):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_file() and not _is_journal(path):
                raise ConfigError(
                    f"--storage {path}: this file is no journal of Optuna; give a new file's name"
                )
            return JournalStorage(JournalFileBackend(str(path)))
    # SQLAlchemy 2.1 takes the bare name for another driver than the extra's
    url = re.sub("^postgres(ql)?://", "postgresql+psycopg2://", place)
    with told(shown(place)):
        return RDBStorage(
            url, heartbeat_interval=config.heartbeat, grace_period=2 * config.heartbeat
        )


def _is_journal(path: Path) -> bool:
    """Whether a file is empty, or begins as Optuna's journals do."""
    with path.open("rb") as file:
        first = file.readline()
    return not first or first.startswith(b'{"op_code"')


def _is_alive(files: Files, number: int) -> bool:
    try:
        with files.alive(number):
            return False
    except Timeout:
        return True


def _differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    names = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    return ", ".join(f"{name} {old.get(name)} -> {new.get(name)}" for name in names)

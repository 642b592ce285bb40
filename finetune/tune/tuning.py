"""``dogmed tune``: a study for each task, worked on by jobs, and what comes of it."""

from __future__ import annotations

import sys
from dataclasses import replace

from optuna.trial import FrozenTrial, TrialState

from dogmed import tracking
from dogmed.config import to_yaml
from dogmed.console import STOPS, Console
from dogmed.errors import ConfigError, DogmedError, Interrupted, TrainingError
from dogmed.finetune import build
from dogmed.finetune.benchmark.cells import find_cells, plan_of
from dogmed.finetune.executors.base import Executor, Job
from dogmed.finetune.executors.drive import Drive, Started
from dogmed.finetune.lists import chosen_tasks
from dogmed.finetune.tune import comparison, outcome
from dogmed.finetune.tune.options import TuneConfig, base_of
from dogmed.finetune.tune.space import space_of, with_values
from dogmed.finetune.tune.study import (
    Files,
    begun,
    is_over,
    last_attempts,
    revive,
    unfinished,
    waiting,
    why,
)
from dogmed.finetune.tune.worker import Work, open_work
from dogmed.runs import RunFolder, write_atomic

DEATHS = 5  # of workers, one after another and no trial finished, that end a study
STOPPED = (0, *(128 + number for number in STOPS))  # codes of workers that left in good order
IDLE = 50  # of these, one after another and no epoch done, that end a study
MOST_WORKERS = 8  # where the cluster sets no limit: workers that start together learn nothing


def tune(config: TuneConfig, executor: Executor) -> int:
    """Bring the study of each task to its trials, write the outcome, compare it with the usual options.

    A study that was stopped goes on; of one that is done the outcome is told again.

    Args:
        config: the options.
        executor: where workers and the comparison's runs go.

    Returns:
        The exit code: 1 if a study or a comparison came to nothing, else 0.

    Raises:
        DogmedError: options, data, weights or storage cannot be used, told before any trial starts.
        Interrupted: a signal came; calling again continues.
    """
    if config.resume == "never":
        raise ConfigError("--resume never: a study is always continued; give another --study")
    console = Console(True)
    tasks = chosen_tasks(config.task, config.all)
    if config.dry_run:
        print("\n".join(describe(config, task) for task in tasks))
        print("dry run: nothing was written")
        return 0
    for task in tasks:
        _refuse_unusable(config, task)
    code = 0
    for task in tasks:
        try:
            job = open_work(config, task)
            with job.files.directed():
                _tune_one(job, executor, console)
        except DogmedError as error:
            if len(tasks) == 1:
                raise
            print(f"FAILED  {task}: {error}", file=sys.stderr)
            code = 1
    return code


def describe(config: TuneConfig, task: str) -> str:
    """Tell what would be tried."""
    base = base_of(config, task)
    data, space = plan_of(base), space_of(config.space, task, base)
    files = Files.of(config, base, data.task.name, data.source)
    number = begun(config, files)
    where = "a database, not asked now" if "://" in (config.storage or "") else "a file"
    lines = [f"study     {files.name} in {where}: {number} of {config.trials} trials begun so far"]
    lines += data.lines()
    lines += [f"vary      {name}: {option}" for name, option in space.items()]
    lines.append(f"trial     {space.get('epochs', base.epochs)} epochs of {base.model}")
    if config.compare_seeds:
        lines.append(
            f"after it  {2 * config.compare_seeds} runs, the outcome and the usual options"
        )
    return "\n".join(lines)


def _refuse_unusable(config: TuneConfig, task: str) -> None:
    """Build the model, with the outermost values of the space, for what it refuses; likewise the folders
    of the runs with the usual options, where these are known."""
    base = base_of(config, task)
    facts = plan_of(base).task
    space = space_of(config.space, task, base)
    outermost = {name: option.ends()[-1] for name, option in space.items()}
    run = with_values(base, outermost, f"--space {config.space}")
    objective = build.build_objective(run, facts.kind, facts.num_classes)
    build.build_network(run, objective.num_outputs, facts.classes)
    if "epochs" not in space:
        find_cells(comparison.usual_runs(base, base.epochs, config.compare_seeds))


def _tune_one(job: Work, executor: Executor, console: Console) -> None:
    tracked = _track(job)
    status = "FAILED"
    try:
        Search(job, executor, console).run()
        found = outcome.write(job)
        for line in outcome.told(job, found):
            console.line(line)
        tracked.log_metrics({"val_auc": found.val_auc}, step=job.config.trials)
        for path in (job.files.recipe, found.table, found.plots):
            if path is not None:
                tracked.log_artifact(path)
        if job.config.compare_seeds:
            console.line(comparison.compare(job, found, executor, console))
            tracked.log_artifact(job.files.comparison)
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        tracked.end(status)


def _track(job: Work) -> tracking.Run | tracking.NoRun:
    """The study's own run in MLflow, which its trials are nested under."""
    base, study, out = job.base, job.study, job.base.out.expanduser()
    if base.tracking == "off":
        return tracking.NoRun()
    tags = {
        "task": job.data.task.name,
        "model": base.model,
        "init": base.init,
        "study": study.study_name,
    }
    if base.parent_run:
        tags["mlflow.parentRunId"] = base.parent_run
    space = {f"space.{name}": str(option) for name, option in job.space.items()}
    run = tracking.Run.start(
        tracking.default_uri(out),
        base.experiment,
        study.study_name,
        params={**study.user_attrs["options"], **space},
        tags=tags,
        out=out,
        ledger=RunFolder(job.files.root).ledger,
    )
    study.set_user_attr("mlflow_run", run.ledger.key)
    return run


class Search:
    """The trials of a study, from one call of the command to the last of them, or to a stop.

    Args:
        job: the study.
        executor: where its workers go.
        console: where lines go.
    """

    def __init__(self, job: Work, executor: Executor, console: Console):
        self.job, self.console = job, console
        self.trials = job.config.trials
        self.options = job.files.root / "worker.yaml"
        self._drive = Drive(executor, console)
        self._started = 0
        self._deaths: list[str] = []  # what workers said that died since a trial was finished
        self._idle = 0  # workers that left since an epoch was done
        self._epochs = 0
        self._told: set[int] = set()

    def run(self) -> None:
        """Have all trials done.

        Raises:
            TrainingError: the workers die or leave, one after another, and nothing gets done.
            Interrupted: a signal came; the trials under way have saved their state.
        """
        job = self.job
        self._told = {n for n, a in last_attempts(job.study).items() if is_over(a)}
        if not self.left():
            return
        self.console.line(f"study {job.files.name}: {self._count()} of {self.trials} trials to do")
        config = replace(job.config, task=(job.base.task,), all=False, worker=True)
        write_atomic(self.options, to_yaml(config))
        self.options.chmod(0o600)  # the storage's address may hold a password
        signalled = self._drive.run(self)
        self.show()
        if signalled and self.left():
            done = self.trials - self._count()
            raise Interrupted(
                f"stopped with {done} of {self.trials} trials done; the same command continues",
                signalled,
            )

    def left(self) -> bool:
        """Whether there are trials to begin, to continue or to end."""
        return self._count() > 0

    def fill(self) -> None:
        """Start workers while there are trials that nobody works on, and room."""
        job, drive = self.job, self._drive
        with job.files.claim:
            revive(job.study, job.files)
            room = waiting(job.study, self.trials)
        slots = min(drive.executor.slots, job.config.jobs or MOST_WORKERS, self._count())
        while room > 0 and len(drive.running) < slots:
            self._start()

    def ended(self, started: Started, code: int, *, stopping: bool) -> None:
        """Take note of a worker that has ended.

        Raises:
            TrainingError: too many have, with nothing done.
        """
        if stopping:
            return
        if code in STOPPED:
            self._left_early(started, code)
            return
        self.show()  # deaths count since the last trial that was finished
        self._deaths.append(f"{started.last_words(code)} ({started.job.log})")
        self.console.line(f"a worker has died: {self._deaths[-1]}")
        if len(self._deaths) >= DEATHS:
            raise TrainingError(
                f"{DEATHS} workers have died and no trial was finished: {self._deaths[-1]}"
            )

    def show(self) -> None:
        """A line for each trial that has ended."""
        last = last_attempts(self.job.study)
        for number, attempt in last.items():
            if number in self._told or not is_over(attempt):
                continue
            self._told.add(number)
            self._deaths.clear()
            done = f"[{len(self._told):>{len(str(self.trials))}}/{self.trials}]"
            self.console.line(f"{done} trial {number:<4} {_ended(attempt)}{_best(self.job)}")

    def _count(self) -> int:
        return max(0, unfinished(self.job.study, self.trials))

    def _start(self) -> None:
        name = f"{self.job.files.name}-worker{self._started}"
        self._started += 1
        log = self.job.files.root / "workers" / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        words = (sys.executable, "-m", "dogmed", "tune", "--config", str(self.options))
        self._drive.start(Job(name, words, log))

    def _left_early(self, started: Started, code: int) -> None:
        """A worker has left in good order, as a cluster's time limit makes it: another goes on, so long
        as something gets done."""
        last = last_attempts(self.job.study).values()
        epochs = sum(len(attempt.intermediate_values) for attempt in last)
        self._idle = 1 if epochs > self._epochs else self._idle + 1
        self._epochs = max(epochs, self._epochs)
        if code:
            self.console.line(
                f"a worker was stopped (exit code {code}); its trial will be continued"
            )
        if self._idle >= IDLE and self.left():
            raise TrainingError(
                f"{IDLE} workers have left, one after another, and no epoch was done; see "
                f"{started.job.log}"
            )


def _ended(attempt: FrozenTrial) -> str:
    if attempt.state == TrialState.COMPLETE:
        return f"val AUC {attempt.value:.4f}"
    if attempt.state == TrialState.PRUNED:
        return f"pruned after epoch {attempt.last_step}"
    return f"FAILED: {why(attempt)}"


def _best(job: Work) -> str:
    complete = [a for a in job.study.get_trials(deepcopy=False) if a.state == TrialState.COMPLETE]
    if not complete:
        return ""
    best = max(complete, key=lambda attempt: attempt.value or 0.0)
    return f"  (best so far {best.value:.4f})"

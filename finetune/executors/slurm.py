"""Jobs as Slurm jobs, through submitit: those that are given together are one array.

submitit is an extra and is imported by this module only. What has become of a job is asked of squeue: submitit
asks sacct, which many clusters lack, and then waits for ever for a job that was cancelled.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dogmed.errors import ConfigError
from dogmed.finetune.executors.base import Job
from dogmed.finetune.executors.remote import KILL, STOP, Remote, run_job
from dogmed.runs import write_atomic

QUEUE = 1000  # jobs given to Slurm at once; its arrays end at 1001 where nobody has changed that
LOOK_SECONDS = 1.0
ASK_SECONDS = 30.0  # between two calls of squeue, which knows a job for five minutes after its end
ANSWER_SECONDS = 30.0  # that Slurm has for an answer
GRACE_SECONDS = 15.0  # that a result may be late on a shared file system
NO_ANSWER = (OSError, subprocess.SubprocessError)
GONE = "Slurm knows it no more"
OVER = {GONE, "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"}
OVER |= {"OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"}
NAME = "dogmed"  # of all jobs
HINTS = {
    "generic resource": "--slurm.gpus 0 asks for no GPU",
    "node configuration": "no node has what --slurm.cpus, --slurm.memory and --slurm.gpus ask for",
}


class Slurm(Remote):
    """Slurm jobs. They outlive this process; before their time is over they are asked to save.

    The id of each is noted beside its log, so that one that still waits when this process is killed is
    taken out of the queue by whoever starts the same job next.

    Args:
        parameters: of a job, as submitit's ``AutoExecutor.update_parameters`` takes them.
        jobs: in the queue at once; None is all.

    Raises:
        ConfigError: submitit is not installed, this machine knows no Slurm, or Slurm does not answer.
    """

    def __init__(self, parameters: Mapping[str, Any], jobs: int | None):
        try:
            import submitit
        except ImportError:
            raise ConfigError(
                "--executor slurm needs submitit: pip install 'dogmed[slurm]'"
            ) from None
        if not (shutil.which("sbatch") and shutil.which("srun")):
            raise ConfigError("--executor slurm: no sbatch and srun on this machine")
        try:
            _ask_states()
        except NO_ANSWER as error:
            raise ConfigError(
                f"--executor slurm: Slurm does not answer: {_reason(error)}"
            ) from None
        super().__init__(jobs or QUEUE)
        self._submitit, self._parameters = submitit, dict(parameters)
        self._new: list[Job] = []
        self._left_behind: list[str] = []  # ids that a killed process has noted
        self._jobs: dict[str, Any] = {}
        self._over: dict[str, int] = {}  # codes of those that were cancelled
        self._late: dict[str, float] = {}  # since when a result is missed
        self._states: dict[str, str] | None = None  # None until squeue has seen all jobs
        self._looked = self._asked = self._tried = -math.inf

    def start(self, job: Job) -> None:
        self._give(job)
        self._new.append(job)
        if (note := _note(job.log)).is_file():
            self._left_behind.append(note.read_text())

    def ended(self) -> dict[str, int]:
        now = time.monotonic()
        if self._new and now - self._tried > ASK_SECONDS:
            self._submit(now)
        codes, self._over = self._over, {}
        for name in codes:
            self._give_up(name)
        if now - self._looked > LOOK_SECONDS:
            self._looked = now
            found = self._look(now)
            for name in found:
                _note(self._given[name][0].log).unlink(missing_ok=True)
                self._take_back(name)
            codes |= found
        for name in codes:
            self._jobs.pop(name, None)
            self._late.pop(name, None)
        return codes

    def stop(self) -> None:
        self._drop_new()
        for name in self._jobs:
            self._ask(name, STOP)
        self._cancel(self.waiting() & self._jobs.keys(), signal.SIGTERM)

    def kill(self) -> None:
        self._drop_new()
        for name in self._jobs:
            self._ask(name, KILL)
        self._cancel(self._jobs.keys(), signal.SIGKILL)

    def close(self) -> None:
        self.kill()

    def _submit(self, now: float) -> None:
        """Give Slurm what has come together; later, where it does not answer.

        Raises:
            ConfigError: Slurm answers, and takes no such jobs.
        """
        jobs = self._new
        self._cancel_left_behind()
        folder = jobs[0].log.parent.absolute() / "slurm"
        executor = self._submitit.AutoExecutor(folder, cluster="slurm")
        try:
            executor.update_parameters(
                name=NAME, slurm_array_parallelism=len(jobs), **self._parameters
            )
            here, nothing = [Path.cwd()] * len(jobs), [dict[str, str]()] * len(jobs)
            # no environment: sbatch passes it on, and in submitit's files it would lie on a shared disk
            with contextlib.redirect_stderr(io.StringIO()):  # the error says what sbatch said
                given = executor.map_array(run_job, jobs, here, nothing, [True] * len(jobs))
        except (self._submitit.core.utils.FailedJobError, *NO_ANSWER) as error:
            try:
                _ask_states()
            except NO_ANSWER:
                self._tried = now
                return
            lines = [line for line in str(error).splitlines() if "sbatch" in line] or [str(error)]
            said = lines[-1].strip()
            hints = "".join(f"; {hint}" for words, hint in HINTS.items() if words in said)
            raise ConfigError(f"Slurm takes no such jobs: {said}{hints}") from None
        self._new, self._left_behind, self._states = [], [], None
        for job, one in zip(jobs, given, strict=True):
            write_atomic(_note(job.log), one.job_id)
        self._jobs |= {job.name: one for job, one in zip(jobs, given, strict=True)}

    def _cancel_left_behind(self) -> None:
        """Take jobs that still wait out of the queue; what runs holds its run's own lock."""
        if self._left_behind:
            with contextlib.suppress(*NO_ANSWER):
                chosen = (f"--name={NAME}", "--state=PENDING", *self._left_behind)
                _ask_slurm("scancel", "--quiet", *chosen)

    def _cancel(self, names: Iterable[str], number: int) -> None:
        """Have Slurm end jobs; one that it does not reach ends when it begins, for it was asked to."""
        ids = {name: self._jobs[name].job_id for name in names}
        self._over |= dict.fromkeys(ids, -number)
        if ids:
            with contextlib.suppress(*NO_ANSWER):
                _ask_slurm("scancel", *ids.values())

    def _look(self, now: float) -> dict[str, int]:
        """Exit codes of those whose result is there, or will never be."""
        if self._jobs and now - self._asked > ASK_SECONDS:
            self._asked = now
            with contextlib.suppress(*NO_ANSWER):
                self._states = _ask_states()
        codes = {}
        for folder in {job.paths.folder for job in self._jobs.values()}:
            with contextlib.suppress(OSError):
                folder.chmod(folder.stat().st_mode)  # has NFS look for new files
        for name, job in self._jobs.items():
            state = "UNKNOWN" if self._states is None else self._states.get(job.job_id, GONE)
            if job.paths.result_pickle.exists():
                codes[name] = self._code(name, job)
            elif state not in OVER:
                self._late.pop(name, None)
            elif now - self._late.setdefault(name, now) > GRACE_SECONDS:
                words = f"Slurm job {job.job_id} has ended ({state}), see {job.paths.folder}"
                self._add_words(name, words)
                codes[name] = 1
        return codes

    def _code(self, name: str, job: Any) -> int:
        error = job.exception()
        if error is None:
            return job.result()
        self._add_words(name, f"Slurm job {job.job_id} failed, see {job.paths.stderr}")
        return 1

    def _drop_new(self) -> None:
        self._over |= {job.name: -signal.SIGTERM for job in self._new}
        self._new = []


def _note(log: Path) -> Path:
    """Where a job's id in Slurm is kept until its end is known."""
    return log.with_suffix(".slurm")


def _ask_states() -> dict[str, str]:
    """The states of this user's jobs by their ids, of those too that ended minutes ago."""
    said = _ask_slurm("squeue", "--me", "--array", "--noheader", "--states=all", "--format=%i|%T")
    return dict(line.strip().split("|", 1) for line in said.splitlines() if "|" in line)


def _ask_slurm(*words: str) -> str:
    """What a command of Slurm's prints; the user's own habits of squeue do not count."""
    environment = {name: value for name, value in os.environ.items() if "SQUEUE_" not in name}
    return subprocess.run(
        words, check=True, capture_output=True, text=True, timeout=ANSWER_SECONDS, env=environment
    ).stdout


def _reason(error: Exception) -> str:
    said = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else ""
    return (said or str(error)).splitlines()[-1]

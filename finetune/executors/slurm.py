"""Jobs as Slurm jobs, through submitit: those that are given together are one array.

submitit is an extra and is imported by this module only.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dogmed.errors import ConfigError
from dogmed.finetune.executors.base import Job
from dogmed.finetune.executors.remote import KILL, STOP, Remote, run_job

QUEUE = 1000  # jobs given to Slurm at once; its arrays end at 1001 where nobody has changed that
LOOK_SECONDS = 1.0
ASK_SECONDS = 60.0  # between two calls of sacct
GRACE_SECONDS = 15.0  # that a result may be late on a shared file system


class Slurm(Remote):
    """Slurm jobs. They outlive this process; before their time is over they are asked to save.

    Args:
        parameters: of a job, as submitit's ``AutoExecutor.update_parameters`` takes them.
        jobs: in the queue at once; None is all.
        cluster: submitit's name of the place; ``local`` stands in for Slurm in tests.

    Raises:
        ConfigError: submitit is not installed, or this machine knows no Slurm.
    """

    def __init__(self, parameters: Mapping[str, Any], jobs: int | None, *, cluster: str = "slurm"):
        try:
            import submitit
        except ImportError:
            raise ConfigError(
                "--executor slurm needs submitit: pip install 'dogmed[slurm]'"
            ) from None
        if cluster == "slurm" and not (shutil.which("sbatch") and shutil.which("srun")):
            raise ConfigError("--executor slurm: no sbatch and srun on this machine")
        super().__init__(jobs or QUEUE)
        self._submitit, self._cluster, self._parameters = submitit, cluster, dict(parameters)
        self._new: list[Job] = []
        self._jobs: dict[str, Any] = {}
        self._over: dict[str, int] = {}  # codes of those that were cancelled
        self._late: dict[str, float] = {}  # since when a result is missed
        self._looked = self._asked = time.monotonic()

    def start(self, job: Job) -> None:
        self._give(job)
        self._new.append(job)

    def ended(self) -> dict[str, int]:
        self._submit()
        codes, self._over = self._over, {}
        now = time.monotonic()
        if now - self._looked > LOOK_SECONDS:
            self._looked = now
            codes |= self._look(now)
        for name in codes:
            self._take_back(name)
            self._jobs.pop(name, None)
            self._late.pop(name, None)
        return codes

    def stop(self) -> None:
        self._drop_new()
        waiting = self.waiting()
        for name, job in self._jobs.items():
            self._ask(name, STOP)
            if name in waiting:
                job.cancel(check=False)
                self._over[name] = -signal.SIGTERM

    def kill(self) -> None:
        self._drop_new()
        for name, job in self._jobs.items():
            self._ask(name, KILL)
            job.cancel(check=False)
            self._over[name] = -signal.SIGKILL

    def close(self) -> None:
        self.kill()

    def _submit(self) -> None:
        """Give Slurm what has come together."""
        jobs, self._new = self._new, []
        if not jobs:
            return
        folder = jobs[0].log.parent.absolute() / "slurm"
        executor = self._submitit.AutoExecutor(folder, cluster=self._cluster)
        errors = (self._submitit.core.utils.FailedJobError, subprocess.SubprocessError, OSError)
        try:
            executor.update_parameters(
                name="dogmed", slurm_array_parallelism=len(jobs), **self._parameters
            )
            here = [Path.cwd()] * len(jobs)
            given = executor.map_array(run_job, jobs, here, [dict(os.environ)] * len(jobs))
        except errors as error:
            lines = [line for line in str(error).splitlines() if "sbatch" in line] or [str(error)]
            raise ConfigError(f"Slurm takes no such jobs: {lines[-1].strip()}") from None
        self._jobs |= {job.name: one for job, one in zip(jobs, given, strict=True)}

    def _look(self, now: float) -> dict[str, int]:
        """Exit codes of those whose result is there, or will never be."""
        if self._jobs and now - self._asked > ASK_SECONDS:
            self._asked = now
            next(iter(self._jobs.values())).get_info(mode="force")  # of all that are known
        codes = {}
        for name, job in self._jobs.items():
            if not job.done():
                continue
            if job.paths.result_pickle.exists():
                codes[name] = self._code(name, job)
            elif now - self._late.setdefault(name, now) > GRACE_SECONDS:
                words = f"Slurm job {job.job_id} is over ({job.state}), see {job.paths.folder}"
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

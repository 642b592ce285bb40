"""What a command that starts many runs can be told about where they run, and the executor that follows.

The values stand here, once, for all such commands: they are no part of a recipe.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from dogmed.config import configclass
from dogmed.errors import ConfigError
from dogmed.finetune.config import Count
from dogmed.finetune.executors.base import Executor

SIGNAL_SECONDS = 90  # before Slurm's time limit; a quarter of a short one


@configclass
class RayConfig:
    """A Ray cluster, for ``--executor ray``."""

    address: str | None = None
    """Cluster to use (HOST:PORT, ray://HOST:PORT or auto); None is RAY_ADDRESS, else one started here."""
    gpus: Annotated[float, Ge(0), Le(1024)] | None = None
    """GPUs of a run, a fraction to share one; None is one where --device and the cluster allow it."""
    cpus: Annotated[float, Gt(0), Le(4096)] = 1.0
    """Processors of a run."""
    retries: Annotated[int, Ge(0), Le(1000)] = 3
    """How often a run whose machine or worker was lost is started again."""


@configclass
class SlurmConfig:
    """Slurm jobs, for ``--executor slurm``; a run is a job."""

    partition: str | None = None
    """Partition; None is the cluster's own choice."""
    account: str | None = None
    """Account to charge."""
    minutes: Count = 240
    """Time limit of a run; one that reaches it saves its state and is continued once more."""
    gpus: Annotated[int, Ge(0), Le(1024)] | None = None
    """GPUs of a run; None is one, and none with --device cpu."""
    cpus: Count = 4
    """Processors of a run."""
    memory: Annotated[float, Gt(0), Le(1e6)] = 16.0
    """Memory of a run, in GB."""
    options: tuple[str, ...] = ()
    """Any other options of sbatch without their dashes, as NAME=VALUE (qos=high constraint=a100)."""


@configclass
class ExecutorConfig:
    """Where runs are done, and how many at once."""

    executor: Literal["local", "ray", "slurm"] = "local"
    """Processes of this machine, tasks of a Ray cluster, or Slurm jobs."""
    jobs: Count | None = None
    """Runs at once; None is one for each GPU, else one (local), as many as fit (ray), or all (slurm)."""
    ray: RayConfig = RayConfig()
    slurm: SlurmConfig = SlurmConfig()


def build_executor(options: ExecutorConfig, device: str) -> Executor:
    """Make the executor that the options ask for; whoever asks closes it.

    Args:
        options: of the command.
        device: auto, cpu, cuda or cuda:N, as the runs are told.

    Raises:
        ConfigError: the extra is not installed, the cluster is not there, or can never run such a job.
    """
    if options.executor == "local":
        from dogmed.finetune.executors.local import Local, local_devices, local_threads

        devices = local_devices(device, options.jobs)
        return Local(devices, local_threads(device, len(devices)))
    if options.executor == "ray":
        from dogmed.finetune.executors.ray import Ray

        where = options.ray
        return Ray(
            address=where.address,
            cpus=where.cpus,
            gpus=where.gpus,
            device=device,
            retries=where.retries,
            jobs=options.jobs,
        )
    from dogmed.finetune.executors.slurm import Slurm

    slurm = options.slurm
    gpus = slurm.gpus if slurm.gpus is not None else int(device != "cpu")
    parameters = {
        "timeout_min": slurm.minutes,
        "cpus_per_task": slurm.cpus,
        "gpus_per_node": gpus or None,
        "mem_gb": slurm.memory,
        "slurm_partition": slurm.partition,
        "slurm_account": slurm.account,
        "slurm_signal_delay_s": min(SIGNAL_SECONDS, slurm.minutes * 60 // 4),
        "slurm_srun_args": [f"--cpus-per-task={slurm.cpus}"],  # from 22.05 on not that of sbatch
        "slurm_additional_parameters": _sbatch_options(slurm.options),
    }
    return Slurm(parameters, options.jobs)


def _sbatch_options(words: Sequence[str]) -> dict[str, str | bool]:
    """Options of sbatch as submitit takes them; one without a value is a switch."""
    options: dict[str, str | bool] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not name or name.startswith("-"):
            raise ConfigError(f"--slurm.options: expected NAME=VALUE without dashes, got '{word}'")
        options[name] = value if equals else True
    return options

"""What ``dogmed ablate`` can be told. The values are in ``configs/finetune/ablate.yaml``."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from typing import Annotated, Any

from annotated_types import Gt, Le

from dogmed.config import configclass
from dogmed.errors import ConfigError
from dogmed.finetune.ablate.variants import FAMILY, choose, refuse_equal
from dogmed.finetune.config import FinetuneConfig, data_options
from dogmed.finetune.executors.options import ExecutorConfig, build_executor
from dogmed.options import Count, net_options


@configclass
class AblateConfig(ExecutorConfig, FinetuneConfig):
    """Train DoGNeXt (--model, for its size) and its variants alike, and compare them.

    Whoever wants a run's options takes ``variants.run_of``.
    """

    model: str
    """The DoGNeXt whose variants are trained; ConvNeXt V2 is that of its size, convnextv2_atto of dognext_atto."""
    variants: tuple[str, ...]
    """Names of variants apart by commas or spaces, or all; DoGNeXt itself is always among them."""
    seeds: Count
    """Runs of each variant, with the seeds from --seed on."""
    resamples: Annotated[int, Gt(0), Le(1_000_000)]
    """Bootstrap resamples behind the table's intervals and p-values."""


def shared_options(config: AblateConfig) -> FinetuneConfig:
    """The options that all runs share.

    Raises:
        ConfigError: no task, a model that is no DoGNeXt, or options that the variants are about.
    """
    if not config.task:
        raise ConfigError(
            "which task? for example --task breastmnist, or an .npz file of one's own"
        )
    if not config.model.startswith(FAMILY):
        raise ConfigError(
            f"--model {config.model}: expected a DoGNeXt, whose variants are trained, such as dognext_atto"
        )
    if given := net_options(config.net):
        flags = ", ".join("--net." + name.replace("_", "-") for name in given)
        raise ConfigError(
            f"{flags}: the variants say what the networks are; choose among them with --variants, or "
            "train a network of your own with dogmed benchmark"
        )
    names = [field.name for field in dataclasses.fields(FinetuneConfig)]
    return FinetuneConfig(**{name: getattr(config, name) for name in names})


def command(**options: Any) -> int:
    """Run ``dogmed ablate`` with the fields of ``AblateConfig``; returns the exit code."""
    from dogmed.data.store import plan

    config = AblateConfig(**options)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("dogmed ablate starts its own processes: call it without torchrun")
    shared, variants = shared_options(config), choose(config.variants)
    refuse_equal(variants, shared.init)
    plan(**data_options(shared))  # for what it refuses, before torch is loaded
    if sys.stderr.isatty():
        print("loading PyTorch, timm and MONAI ...", file=sys.stderr, flush=True)
    from dogmed.finetune.ablate.study import ablate

    seeds = range(config.seed, config.seed + config.seeds)
    with contextlib.closing(build_executor(config, config.device)) as executor:
        return ablate(shared, variants, seeds, executor, resamples=config.resamples)

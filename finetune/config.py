"""What ``dogmed finetune`` can be told. The values are in ``configs/finetune/default.yaml``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen

from dogmed.config import configclass
from dogmed.options import (
    CheckpointConfig,
    Count,
    NetConfig,
    OptimConfig,
    ScaleAug,
    ScaleConfig,
    Share,
    Side,
)


@configclass
class LossConfig:
    """Training loss; the kind of task decides its form."""

    label_smoothing: Annotated[float, Ge(0), Lt(1)]
    """Label smoothing; for multi-label tasks y becomes y(1-s) + s/2."""
    ordinal: Literal["cross-entropy", "continuation-ratio"]
    """Loss and head of ordinal tasks; cross-entropy is MedMNIST's own choice."""


@configclass
class AugmentConfig:
    """Augmentation, on the device, per image."""

    hflip: Share
    """Probability of a horizontal flip."""


@configclass
class EvalConfig:
    """Selection and scoring."""

    select: Literal["auc", "acc", "loss", "last"]
    """Validation figure that picks the best epoch."""
    batch_size: Count
    """Images a step in evaluation; no influence on the result beyond rounding."""
    resamples: Annotated[int, Ge(0), Le(1_000_000)]
    """Bootstrap resamples behind the 95% intervals; 0 for none."""


@configclass
class FinetuneConfig:
    """Train a model on one task, select on val, score test once."""

    task: str
    """Official task (dogmed data list), an .npz with its six keys, or a folder train|val|test/<class>/*."""
    kind: Literal["binary", "multi-class", "multi-label", "ordinal"] | None
    """Kind of the user's own task; inferred from the labels when None."""
    data: Literal["official", "synthetic"]
    """Official files, or generated ones in their form (for trials; always named synthetic)."""
    model: str
    """dognext_*, convnextv2_*, resnet18, resnet50 or any timm model."""
    init: str
    """scratch, a name of dogmed weights list, timm (or timm:TAG), hf-hub:ORG/NAME, a file or a run's folder."""
    size: Side
    """Image side in pixels; official tasks come at 28, 64, 128, 224."""
    upsample_from: Side | None
    """Enlarge the official files of this size (28) instead of using those of --size."""
    epochs: Count
    """Passes over the training split."""
    batch_size: Count
    """Images a step, over all devices together."""
    seed: Annotated[int, Ge(0), Le(2**63 - 1)]
    """Seed of initialisation, order, flips, drop path and subset."""
    train_fraction: Annotated[float, Gt(0), Le(1)]
    """Share of the training split to use, drawn by seed and stratified by class."""
    scale_aug: ScaleAug
    """Downsampling of whole training batches, and DoG kernels that shrink with them; --scale.* are its details."""
    device: str
    """auto, cpu, cuda or cuda:N."""
    compile: Literal["auto", "on", "off"]
    """torch.compile; auto is on for CUDA."""
    cache: Literal["auto", "device", "ram", "disk"]
    """Where the prepared images stay while training; auto takes the fastest place they fit."""
    data_dir: Path | None
    """Folder with npz files as they are (breastmnist_224.npz, ...); None downloads the official ones."""
    cache_dir: Path | None
    """Where downloads and prepared arrays go; None is the user's cache folder."""
    weights_dir: Path | None
    """Where named pretrainings are found; None is the user's data folder."""
    label: Annotated[str, MaxLen(60)]
    """Name of these options where they are not the usual ones; part of the name of the run's folder."""
    out: Path
    """Where runs, checkpoints and the MLflow store go."""
    resume: Literal["auto", "never"]
    """auto continues an interrupted run of the same settings; never starts over and keeps the old run aside."""
    tracking: Literal["mlflow", "off"]
    """Log to MLflow (embedded under --out, or at MLFLOW_TRACKING_URI)."""
    experiment: Annotated[str, MinLen(1), MaxLen(250)]
    """MLflow experiment that the run belongs to."""
    parent_run: str | None
    """MLflow run that this one is nested under."""
    dry_run: bool
    """Print what would run, and touch nothing."""
    optim: OptimConfig
    loss: LossConfig
    net: NetConfig
    augment: AugmentConfig
    scale: ScaleConfig
    eval: EvalConfig
    checkpoint: CheckpointConfig


def data_options(config: FinetuneConfig) -> dict[str, Any]:
    """The options that say which data, as ``dogmed.data.store`` takes them."""
    names = ("task", "size", "data", "data_dir", "cache_dir", "kind", "upsample_from")
    return {name: getattr(config, name) for name in names}

"""What ``dogmed pretrain`` can be told. The values are in ``configs/pretrain/<recipe>.yaml``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from dogmed.config import configclass
from dogmed.options import (
    CheckpointConfig,
    Count,
    NetConfig,
    OptimConfig,
    Positive,
    ScaleAug,
    ScaleConfig,
    Seed,
    Share,
    Side,
)


@configclass
class SubsetConfig:
    """A part of the training images, drawn once; the list of files is kept with the run."""

    per_class: Count | None
    """Images of each class; None takes all."""
    classes: Count | None
    """Classes, drawn at random, of train and val alike; None takes all."""
    seed: Seed
    """Seed of the draw: runs of other seeds train on the same subset."""


@configclass
class LossConfig:
    """Training loss: softmax cross-entropy."""

    label_smoothing: Annotated[float, Ge(0), Lt(1)]
    """Share of each target that is spread over all classes."""


@configclass
class AugmentConfig:
    """timm's transforms of a training image."""

    crop_scale: tuple[Share, Share]
    """Smallest and largest share of the image's area that a random crop takes."""
    crop_ratio: tuple[Positive, Positive]
    """Smallest and largest aspect ratio of a random crop."""
    interpolation: Literal["random", "bilinear", "bicubic"]
    """Interpolation of the crop; random draws bilinear or bicubic."""
    hflip: Share
    """Probability of a horizontal flip."""
    auto_augment: str | None
    """timm's name of an augmentation policy, such as rand-m9-mstd0.5-inc1; None for none."""
    color_jitter: Annotated[float, Ge(0), Le(1)] | None
    """Strength of random brightness, contrast and saturation, where there is no auto-augment."""
    erase: Share
    """Probability of random erasing: a rectangle filled with noise, after normalisation."""
    erase_mode: Literal["pixel", "rand", "const"]
    """Noise a pixel, one random colour, or the mean colour."""
    erase_count: Count
    """Most rectangles an erased image has."""


@configclass
class LoaderConfig:
    """How images are read."""

    workers: Annotated[int, Ge(0), Le(1024)] | None
    """Processes a device that decode and augment; None shares out this machine's cores."""
    decode: Literal["full", "reduced"]
    """Decode training JPEGs fully, or at a reduced size where the crop allows (faster, other pixels)."""
    max_bad: Share
    """Share of unreadable images that is skipped over; more is an error."""


@configclass
class EmaConfig:
    """A moving average of the weights beside them, scored on val each epoch (docs/ema.md)."""

    decay: Annotated[float, Gt(0), Lt(1)] | None
    """Share of the average that each step keeps, such as 0.9999; None keeps no average."""
    warmup: bool
    """Keep less at first, 1 - t^(-2/3) at step t, so that the initial weights are soon forgotten."""


@configclass
class EvalConfig:
    """Validation, and which epoch's weights go to the store."""

    crop_pct: Annotated[float, Ge(0.1), Le(1)]
    """Share of the resized side that the centre crop keeps."""
    batch_size: Count
    """Images a device takes at once in evaluation; no influence on the result beyond rounding."""
    select: Literal["last", "acc1", "ema"]
    """Weights of the last epoch, of the best on val (picked on the images they are scored on), or the average."""


@configclass
class RecordConfig:
    """What is written into the weights' record."""

    data: str
    """Name of the data set."""
    data_licence: str | None
    """Licence of the images; None if nobody has said."""
    licence: str | None
    """Licence of the weights; None if nobody has said."""


@configclass
class PretrainConfig:
    """Train on train, validate each epoch, and put the weights where --init RECIPE finds them."""

    recipe: str
    """Name of the recipe the values come from, and of the weights: <model>.<recipe>.safetensors."""
    data: Path | None
    """Folder with train/ and val/ class folders, train*.tar and val*.tar shards, or train*/val* parquet files."""
    model: str
    """dognext_*, convnextv2_*, resnet18, resnet50 or any timm model."""
    num_classes: Count | None
    """Outputs of the classifier; None is as many as the data (or the subset) has classes."""
    size: Side
    """Image side in pixels."""
    epochs: Count
    """Passes over the training images."""
    batch_size: Count
    """Images a step, over all devices and micro-batches together."""
    micro_batch: Count
    """Most images a device takes at once; the batch is accumulated from as many as it needs."""
    seed: Seed
    """Seed of initialisation, order, augmentation, drop path and scales."""
    scale_aug: ScaleAug
    """Downsampling of whole batches, and DoG kernels that shrink with them; --scale.* are its details."""
    device: str
    """auto, cpu, cuda or cuda:N."""
    compile: Literal["auto", "on", "off"]
    """torch.compile; auto is on for CUDA."""
    cache_dir: Path | None
    """Where indices of shards go; None is the user's cache folder."""
    weights_dir: Path | None
    """The store of named weights; None is the user's data folder."""
    overwrite_weights: bool
    """Replace weights of this model and recipe that are in the store already."""
    out: Path
    """Where runs, checkpoints and the MLflow store go."""
    resume: Literal["auto", "never"]
    """auto continues an interrupted run of the same settings; never starts over and keeps the old run aside."""
    tracking: Literal["mlflow", "off"]
    """Log to MLflow (embedded under --out, or at MLFLOW_TRACKING_URI)."""
    dry_run: bool
    """Print what would run after trying 20 steps, and touch nothing."""
    subset: SubsetConfig
    optim: OptimConfig
    loss: LossConfig
    net: NetConfig
    augment: AugmentConfig
    loader: LoaderConfig
    scale: ScaleConfig
    ema: EmaConfig
    eval: EvalConfig
    checkpoint: CheckpointConfig
    record: RecordConfig

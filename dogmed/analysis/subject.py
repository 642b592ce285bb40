"""What is analysed: models, the images they are tried on, and where the results go."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Le

from dogmed.config import configclass, recipe, to_dict
from dogmed.data.progress import Progress
from dogmed.errors import ConfigError, DataError
from dogmed.options import Count

if TYPE_CHECKING:  # PyTorch: not for --help
    from dogmed.analysis.evaluation import Evaluation, Points
    from dogmed.analysis.images import Images
    from dogmed.console import Console
    from dogmed.models.trained import Trained

RESAMPLES = 1000


@configclass
class ModelsConfig:
    """Trained models, and where what is found out about them goes."""

    models: tuple[str, ...] = ()
    """MODEL.RECIPE or RECIPE of dogmed weights list, .safetensors files, or folders of finished runs."""
    weights_dir: Path | None = None
    """Where named weights are found; None is the user's data folder."""
    out: Path = field(default_factory=lambda: Path(recipe("finetune/default")["out"]))
    """Results go below it, into analysis/."""
    tracking: Literal["mlflow", "off"] = "mlflow"
    """Log to MLflow (embedded under --out, or at MLFLOW_TRACKING_URI)."""


@configclass
class SubjectConfig(ModelsConfig):
    """Trained models and the images that they are tried on."""

    task: str | None = None
    """Official task, an .npz with its six keys, or a folder train|val|test/<class>/*; None: the models' own."""
    imagenet: Path | None = None
    """Folder as dogmed pretrain --data takes it, whose val is classified, in place of a task."""
    data: Literal["official", "synthetic"] | None = None
    """Official files, or generated ones in their form; None: what the models were trained on."""
    data_dir: Path | None = None
    """Folder with npz files as they are; None downloads the official ones."""
    cache_dir: Path | None = None
    """Where downloads, prepared arrays and indices of shards go; None is the user's cache folder."""
    kind: Literal["binary", "multi-class", "multi-label", "ordinal"] | None = None
    """Kind of the user's own task; inferred from the labels when None."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    batch_size: Count = 128
    """Images at once; no influence on the result beyond rounding."""
    workers: Annotated[int, Ge(0), Le(1024)] | None = None
    """Processes that decode ImageNet; None takes as many as there are cores."""
    resamples: Count | None = None
    """Bootstrap resamples behind intervals and p-values; None: 1000, or as many more as Holm's adjustment
    needs."""


def open_models(names: Sequence[str], weights_dir: Path | None) -> list[Trained]:
    """Open the models, each once.

    Raises:
        ConfigError: none is named.
        WeightsError: one is not there or cannot be used.
    """
    from dogmed.models.trained import open_trained

    if not names:
        raise ConfigError(
            "which model? for example: the folder of a finished run, a .safetensors file, or a name "
            "that dogmed weights list shows"
        )
    opened = [open_trained(name, weights_dir) for name in dict.fromkeys(names)]
    return list({_identity(trained): trained for trained in opened}.values())


def refuse_unusable(out: Path) -> None:
    """Make sure, before anything is worked out, that results can be written.

    Raises:
        ConfigError: they cannot.
    """
    out = out.expanduser()
    new = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise ConfigError(
            f"--out {out}: nothing can be written there ({error.strerror}); give another folder"
        ) from None
    finally:
        for folder in new:
            with contextlib.suppress(OSError):
                folder.rmdir()


def open_images(config: SubjectConfig, trained: Trained, progress: Progress) -> Images:
    """Have the images ready that ``trained`` is tried on, and make sure that they are of its classes.

    Without a task it is the official one that the model was trained on, at the size and from the files
    that it was trained on.

    Raises:
        ConfigError: no images are named and the record names none, or both kinds are.
        DataError: they cannot be read, or are of other classes.
    """
    from dogmed.analysis.images import ImageNetVal, TaskImages
    from dogmed.data.store import prepare
    from dogmed.data.tasks import official_tasks

    seen = trained.record.data
    if config.imagenet is not None:
        if config.task is not None:
            raise ConfigError(f"--task {config.task} and --imagenet {config.imagenet}: give one")
        return ImageNetVal.open(
            config.imagenet, trained.record, cache_dir=config.cache_dir, workers=config.workers
        )
    task = config.task
    if task is None:
        if seen.name not in official_tasks():
            raise ConfigError(
                f"{trained.title} was trained on '{seen.name}', which is no official task: give "
                "--task FILE.npz (or a folder), or --imagenet FOLDER"
            )
        task = seen.name
    size = seen.trained_size or seen.size
    enlarged = (
        task in official_tasks()
        and seen.source in ("official", "variant")
        and seen.source_size is not None
        and seen.source_size < size
    )
    generated = task in official_tasks() and seen.source == "synthetic"
    prepared = prepare(
        task,
        size=size,
        data=config.data or ("synthetic" if generated else "official"),
        data_dir=config.data_dir,
        cache_dir=config.cache_dir,
        kind=config.kind,
        upsample_from=seen.source_size if enlarged else None,
        progress=progress,
    )
    same = not seen.classes or seen.classes == prepared.task.classes
    if seen.kind != prepared.task.kind or not same:
        raise DataError(
            f"{trained.title} tells {_some(seen.classes)} ({seen.kind}) apart, and {prepared.task.name} has "
            f"{_some(prepared.task.classes)} ({prepared.task.kind}): give the task it was trained on"
        )
    return TaskImages(prepared, trained.record)


def open_evaluations(
    config: SubjectConfig, what: str, models: Sequence[Trained], console: Console, points: Points
) -> Iterator[tuple[str, Evaluation]]:
    """Have the models' images ready, one model after another, with a title that is no other's.

    Args:
        config: the images, the device, and where results go.
        what: name of the analysis, whose folder results go into.
        models: as ``open_models`` gives them.
        console: told of every point.
        points: shared by all models.

    Raises:
        ConfigError: the models are tried on different images, or there is no such device.
        DataError: the images cannot be read, or are of other classes.
    """
    from dogmed.analysis.evaluation import Evaluation
    from dogmed.analysis.output import folder_of
    from dogmed.data.progress import Console as Progress
    from dogmed.distributed import open_device

    device = open_device(config.device)
    titles = [trained.title for trained in models]
    first: tuple[str, Images] | None = None
    for trained in models:
        images = open_images(config, trained, Progress())
        marked = f"{trained.title} {trained.record.sha256[:8]}"
        title = trained.title if titles.count(trained.title) == 1 else marked
        first = first or (title, images)
        if not _same(images, first[1]):
            raise ConfigError(
                f"{first[0]} is tried on {first[1].name}, {title} on {images.name}: give models of one "
                "task, or --task"
            )
        yield (
            title,
            Evaluation(
                trained,
                images,
                folder_of(config.out, what, marked, images.name),
                console,
                device=device,
                batch_size=config.batch_size,
                resamples=config.resamples or RESAMPLES,
                points=points,
            ),
        )


def params_of(config: SubjectConfig) -> dict[str, Any]:
    """The options that decide the result."""
    left_out = ("out", "tracking", "device", "workers", "batch_size", "cache_dir", "weights_dir")
    return {name: value for name, value in to_dict(config).items() if name not in left_out}


def _same(images: Images, others: Images) -> bool:
    """Whether both are the same test."""
    count = [len(one.labels(one.splits[-1])) for one in (images, others)]
    return images.name == others.name and images.kind == others.kind and count[0] == count[1]


def _identity(trained: Trained) -> tuple[str, str]:
    """Tells models apart: the same weights may serve with other strides, kernels and sizes."""
    return trained.record.sha256, trained.title


def _some(classes: Sequence[str]) -> str:
    first = ", ".join(classes[:3])
    return f"{len(classes)} classes ({first}{', ...' if len(classes) > 3 else ''})"

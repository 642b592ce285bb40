"""What is analysed: models, the images they are tried on, and where the results go."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from annotated_types import Ge, Le

from dogmed.config import configclass, recipe, to_dict
from dogmed.data.progress import Progress
from dogmed.errors import ConfigError
from dogmed.options import Count

if TYPE_CHECKING:  # PyTorch: not for --help
    from dogmed.analysis.evaluation import Evaluation, Points
    from dogmed.analysis.images import Images
    from dogmed.console import Console
    from dogmed.models.trained import Trained

RESAMPLES = 1000
Listed: TypeAlias = tuple[str | float, ...]
"""Numbers apart by spaces or commas, as typed: ``read_whole_numbers`` reads them."""


@configclass
class ModelsConfig:
    """Trained models, and where what is found out about them goes."""

    models: tuple[str, ...] = ()
    """Folders of finished runs or of exports to timm, .safetensors files, MODEL.RECIPE or RECIPE of dogmed weights
    list, or ids of MLflow runs; may come first, without --models."""
    weights_dir: Path | None = None
    """Where named weights are found; None is the user's data folder."""
    out: Path = field(default_factory=lambda: Path(recipe("finetune/default")["out"]))
    """Results go below it, into analysis/."""
    tracking: Literal["mlflow", "off"] = "mlflow"
    """Log to MLflow (embedded under --out, or at MLFLOW_TRACKING_URI)."""


@configclass
class TaskConfig(ModelsConfig):
    """Trained models and the task that they are tried on."""

    task: str | None = None
    """Official task, an .npz with its six keys, or a folder train|val|test/<class>/*; None: the models' own."""
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
    resamples: Count | None = None
    """Bootstrap resamples behind intervals and p-values; None: 1000, or as many more as Holm's adjustment
    needs."""


@configclass
class SubjectConfig(TaskConfig):
    """Trained models and the images that they are tried on: a task's, or ImageNet's."""

    imagenet: Path | None = None
    """Folder as dogmed pretrain --data takes it, whose val is classified, in place of a task."""
    workers: Annotated[int, Ge(0), Le(1024)] | None = None
    """Processes that decode ImageNet; None takes as many as there are cores."""


def refuse_no_model(names: Sequence[str]) -> None:
    """Raise ConfigError if no model is named; PyTorch is not loaded to find that out."""
    if not names:
        raise ConfigError(
            "which model? for example: the folder of a finished run, a .safetensors file, or a name "
            "that dogmed weights list shows"
        )


def open_models(
    names: Sequence[str],
    weights_dir: Path | None,
    out: Path,
    tell: Callable[[str], object] = print,
) -> list[Trained]:
    """Open the models, each once; of those given again ``tell`` is told.

    Args:
        names: as ``open_model`` takes them.
        weights_dir: the store; None is the user's.
        out: where the MLflow store is.
        tell: takes a line.

    Raises:
        ConfigError: none is named.
        WeightsError: one is not there or cannot be used.
    """
    refuse_no_model(names)
    from dogmed.models.locate import open_model

    opened: dict[tuple[str, str], tuple[str, Trained]] = {}
    for name in names:
        trained = open_model(name, weights_dir, out)
        key = (
            trained.record.sha256,
            trained.title,
        )  # weights may serve with other strides and sizes
        if key in opened:
            first, _ = opened[key]
            again = "is given twice" if name == first else f"is the same model as {first}"
            tell(f"note: {name} {again}; it is tried once")
        else:
            opened[key] = name, trained
    return [trained for _, trained in opened.values()]


def split_listed(given: Sequence[str | float]) -> list[str]:
    """The numbers of an option of type ``Listed``, one by one."""
    words = (f"{word:g}" if isinstance(word, float) else str(word) for word in given)
    return [part for word in words for part in word.replace(",", " ").split()]


def read_whole_numbers(
    flag: str, given: Sequence[str | float], least: int, most: int
) -> tuple[int, ...]:
    """Read whole numbers, ascending and each once.

    Args:
        flag: as typed, for messages.
        given: of the option.
        least: that may be given.
        most: that may be given.

    Raises:
        ConfigError: one is no whole number, or out of range.
    """
    found = set()
    for part in split_listed(given):
        if not (part.isdecimal() and least <= int(part) <= most):
            raise ConfigError(
                f"{flag}: expected whole numbers from {least} to {most} apart by spaces or commas, got "
                f"'{part}' (what is no number of it goes before {flag})"
            )
        found.add(int(part))
    return tuple(sorted(found))


def request_name(asked: Mapping[str, object]) -> str:
    """Name a folder by the options that were given: ``resolutions_28_40-fit_resize``; "" for none.

    Args:
        asked: values by name; None, and a tuple of nothing, are not given.
    """
    given = {
        name: value if isinstance(value, tuple) else (value,)
        for name, value in asked.items()
        if value not in (None, ())
    }
    return "-".join("_".join([name, *map(str, values)]) for name, values in given.items())


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


def open_images(config: TaskConfig, trained: Trained, progress: Progress) -> Images:
    """Have the images ready that ``trained`` is tried on, and make sure that they are of its classes.

    Without a task it is the one that the model was trained on, at the size and from the files that it was
    trained on. One's own images may name the classes otherwise, which is told.

    Raises:
        ConfigError: no images are named and the record names none, or both kinds are.
        DataError: they cannot be read, or are of other classes.
    """
    from dogmed.analysis.images import ImageNetVal, TaskImages

    if isinstance(config, SubjectConfig) and config.imagenet is not None:
        if config.task is not None:
            raise ConfigError(f"--task {config.task} and --imagenet {config.imagenet}: give one")
        return ImageNetVal.open(
            config.imagenet, trained.record, cache_dir=config.cache_dir, workers=config.workers
        )
    task, seen = _task_of(config, trained), trained.record.data
    return TaskImages.open(
        task,
        trained,
        data=config.data,
        data_dir=config.data_dir,
        cache_dir=config.cache_dir,
        kind=config.kind or (None if config.task or task == seen.name else seen.kind),
        progress=progress,
    )


def _task_of(config: TaskConfig, trained: Trained) -> str:
    """The task that was asked for, or the one that the model was trained on if it can be found again."""
    from dogmed.data.tasks import official_tasks
    from dogmed.runs import task_of_weights

    name = trained.record.data.name
    if config.task is not None or name in official_tasks():
        return config.task or name
    own = task_of_weights(trained.path)
    if own is not None and Path(own).expanduser().exists():
        return own
    gone = "" if own is None else f", and {own} is not there any more"
    imagenet = ", or --imagenet FOLDER" if isinstance(config, SubjectConfig) else ""
    raise ConfigError(
        f"{trained.title} was trained on '{name}', which is no official task{gone}: give "
        f"--task FILE.npz (or a folder){imagenet}"
    )


def _refuse_several_tasks(config: TaskConfig, models: Sequence[Trained]) -> None:
    """Find models that cannot be tried on the same images before any are fetched."""
    from dogmed.analysis.images import refuse_other_classes
    from dogmed.data.tasks import official_tasks

    if isinstance(config, SubjectConfig) and config.imagenet is not None:
        return
    first = models[0]
    for trained in models:
        task = _task_of(config, trained)
        if task != _task_of(config, first):
            raise ConfigError(
                f"{first.title} is tried on {first.record.data.name}, {trained.title} on "
                f"{trained.record.data.name}: give models of one task, or --task"
            )
    official = official_tasks().get(_task_of(config, first).lower())
    if official is not None:
        for trained in models:
            refuse_other_classes(trained, official)


def open_evaluations(
    config: TaskConfig, what: str, models: Sequence[Trained], console: Console, points: Points
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
    _refuse_several_tasks(config, models)
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


def settle_resamples(
    asked: int | None, evaluations: Sequence[Evaluation], family: int, console: Console
) -> None:
    """Draw as many resamples as Holm's adjustment needs, or say that those asked for are too few.

    Args:
        asked: None leaves it to us.
        evaluations: of all models.
        family: the largest number of differences that are adjusted together.
        console: told of both.
    """
    from dogmed.console import count
    from dogmed.stats import resamples_for

    needed = resamples_for(family)
    if asked is None and needed > RESAMPLES:
        for one in evaluations:
            one.resamples = needed
        console.line(
            f"{needed} bootstrap resamples in place of {RESAMPLES}: Holm's adjustment over "
            f"{count(family, 'difference')} needs them"
        )
    elif asked is not None and needed > asked:
        console.line(
            f"warning: --resamples {asked}: no p-value will be small enough after Holm's "
            f"adjustment over {count(family, 'difference')}; give {needed} or more, or leave it out"
        )


def params_of(config: TaskConfig) -> dict[str, Any]:
    """The options that decide the result."""
    left_out = ("out", "tracking", "device", "workers", "batch_size", "cache_dir", "weights_dir")
    return {name: value for name, value in to_dict(config).items() if name not in left_out}


def _same(images: Images, others: Images) -> bool:
    """Whether both are the same test."""
    count = [len(one.labels(one.splits[-1])) for one in (images, others)]
    return images.name == others.name and images.kind == others.kind and count[0] == count[1]

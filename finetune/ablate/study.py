"""``dogmed ablate``: train the variants as cells of a benchmark, then compare them with DoGNeXt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import timm

from dogmed import tracking
from dogmed.console import table as print_table
from dogmed.data.store import Plan
from dogmed.errors import ConfigError, WeightsError
from dogmed.finetune import build
from dogmed.finetune.ablate.comparison import Row, compare
from dogmed.finetune.ablate.output import write
from dogmed.finetune.ablate.variants import BASELINE, Variant, run_of
from dogmed.finetune.benchmark.cells import find_cells, plan_of
from dogmed.finetune.benchmark.sitting import benchmark
from dogmed.finetune.config import FinetuneConfig
from dogmed.finetune.executors.base import Executor
from dogmed.finetune.folder import FinetuneFolder
from dogmed.models.cost import count_parameters, describe_cost
from dogmed.tracking.ledger import NAME


def ablate(
    shared: FinetuneConfig,
    variants: Sequence[Variant],
    seeds: Sequence[int],
    executor: Executor,
    *,
    resamples: int,
) -> int:
    """Do the runs that are not done, compare them, and write it to ``<out>/ablation/<task>/<setup>``.

    Args:
        shared: options of all runs.
        variants: DoGNeXt among them.
        seeds: of the runs of each.
        executor: where the runs go.
        resamples: of the bootstrap.

    Returns:
        The exit code: 1 if a run has failed, else 0.

    Raises:
        DogmedError: options, data or weights cannot be used, told before any run starts.
        Interrupted: a signal stopped the runs; calling again continues them.
    """
    data = plan_of(shared)
    costs = _costs(shared, variants, data)
    folder = _folder(shared, data)
    runs = [run_of(variant, shared, seed) for seed in seeds for variant in variants]
    if shared.dry_run:
        print_table([("variant", "model", "options", "cost of an image"), *(
            (v.name, v.model(shared.model), _options(v), describe_cost(*costs[v.name])) for v in variants
        )])  # fmt: skip
        return benchmark(runs, executor)
    roots = {cell.folder.root: cell.config for cell in find_cells(runs)}  # for what it refuses, too
    with _tracked(shared, variants, folder) as tracked:
        if isinstance(tracked, tracking.Run):
            runs = [replace(run, parent_run=tracked.ledger.key) for run in runs]
        code = benchmark(runs, executor)
        study = compare(shared, variants, roots, costs, resamples=resamples)
        files = write(study, folder)
        for file in files:
            tracked.log_artifact(file)
        tracked.log_scores(_scores(study.rows))
    for line in study.sentences:
        print(line)
    print(f"ablation {files[0]} (and {', '.join(file.name for file in files[1:])})")
    return code


def _costs(
    shared: FinetuneConfig, variants: Sequence[Variant], data: Plan
) -> dict[str, tuple[int, int]]:
    """Parameters and multiply-accumulates of an image, by variant, once each has been built.

    Raises:
        DogmedError: a variant cannot be built, cannot take the images, or the weights do not fit it.
    """
    costs = {}
    objective = build.build_objective(shared, data.task.kind, data.task.num_classes)
    for variant in variants:
        try:
            _refuse_other_sizes(variant, shared.model)
            network = build.build_network(
                run_of(variant, shared, shared.seed), objective.num_outputs, data.task.classes
            )
        except (ConfigError, WeightsError) as error:
            others = [other.name for other in variants if other not in (variant, variants[0])]
            leave_out = f" (or leave it out: --variants {','.join(others) or BASELINE})"
            raise type(error)(
                f"variant {variant.name}: {error}{leave_out if variant.name != BASELINE else ''}; nothing "
                "was started"
            ) from None
        costs[variant.name] = count_parameters(network.model), network.macs
    return costs


def _refuse_other_sizes(variant: Variant, model: str) -> None:
    """Make sure that a variant of another family is there in the size of the DoGNeXt ``model``."""
    name = variant.model(model)
    if variant.family and not timm.is_model(name):
        raise ConfigError(
            f"--model {model}: {variant.title} is not there in this size (no {name}); give one in which "
            "both are, such as dognext_atto"
        )


def _folder(shared: FinetuneConfig, data: Plan) -> Path:
    """``<out>/ablation/<task>/<setup>``, the last two as in the names of DoGNeXt's runs."""
    setup = FinetuneFolder.of(shared, data.task.name, data.source).root.parent
    return shared.out.expanduser() / "ablation" / setup.parent.name / setup.name


def _options(variant: Variant) -> str:
    return ", ".join(f"{name} {value}" for name, value in variant.net.items()) or "its own"


@contextmanager
def _tracked(
    shared: FinetuneConfig, variants: Sequence[Variant], folder: Path
) -> Iterator[tracking.Run | tracking.NoRun]:
    """One MLflow run for the study, that of earlier calls continued; the benchmark's are nested under it."""
    if shared.tracking == "off":
        yield tracking.NoRun()
        return
    out = shared.out.expanduser()
    tags = {tracking.KIND_TAG: "ablation"}
    if shared.parent_run:
        tags[tracking.PARENT_TAG] = shared.parent_run
    names = ("task", "model", "init", "size", "epochs", "train_fraction")
    folder.mkdir(parents=True, exist_ok=True)
    run = tracking.Run.start(
        tracking.default_uri(out),
        shared.experiment,
        f"ablation {'-'.join(folder.parts[-2:])}",
        params={name: value for name, value in asdict(shared).items() if name in names},
        tags=tags | {"variants": ", ".join(variant.name for variant in variants)},
        out=out,
        ledger=folder / NAME,
    )
    status = "FAILED"
    try:
        yield run
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        run.end(status)


def _scores(rows: Sequence[Row]) -> dict[str, float]:
    return {
        f"mean_test_{metric}/{row.variant.name}": estimate.value
        for row in rows
        for metric, estimate in row.scores.items()
    }

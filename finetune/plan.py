"""``dogmed finetune --dry-run``: what would run, told without touching anything."""

from __future__ import annotations

from dogmed.data.progress import human
from dogmed.data.store import plan
from dogmed.distributed import find_device
from dogmed.finetune import build
from dogmed.finetune.config import FinetuneConfig
from dogmed.finetune.folder import RunFolder
from dogmed.models.cost import activation_bytes, count_parameters, describe_cost


def describe(config: FinetuneConfig) -> str:
    """Tell data, model, steps, disk, memory and folder of a run, one fact a line.

    Parameters and MACs are counted, and activations measured, on the model itself; nothing is
    written, and nothing is fetched but weights that ``--init`` asks a hub for.

    Raises:
        DogmedError: what the run itself would raise for its options, data or weights.
    """
    data = plan(
        config.task,
        size=config.size,
        data=config.data,
        data_dir=config.data_dir,
        cache_dir=config.cache_dir,
        kind=config.kind,
        upsample_from=config.upsample_from,
    )
    objective = build.build_objective(config, data.task.kind, data.task.num_classes)
    build.seed_everything(config.seed)
    model, loaded = build.build_network(config, objective.num_outputs)
    parameters, macs = count_parameters(model), build.count_macs_of(config, model)
    train = max(1, round(data.samples["train"] * config.train_fraction))
    steps = max(1, -(-train // config.batch_size))
    build.build_optimizer(config, model, steps)  # for what it refuses
    # weights, gradients, two moments; two checkpoints of weights and moments, and the best weights
    states = 4 * parameters * 4
    on_disk = (3 + 1) * parameters * 4
    per_image = activation_bytes(model, config.size)
    batch = min(config.batch_size, train)
    run = RunFolder.of(config, data.task.name)
    state = "begins"
    if config.resume == "auto" and run.done() is not None:
        state = "is finished already"
    elif config.resume == "auto" and run.last.is_file():
        state = "would be continued"
    device = find_device(config.device)
    return "\n".join(
        [
            *data.lines(),
            f"model     {config.model}: {describe_cost(parameters, macs)} an image; {loaded}",
            f"steps     {config.epochs} epochs × {steps} steps of {batch} images = "
            f"{config.epochs * steps:,} steps on {device}, peak lr {build.peak_lr(config):.3g}",
            f"memory    {human(states)} for weights, gradients and moments, "
            f"{human(per_image * batch)} for "
            f"the activations of a batch (float32; half of it under bfloat16)",
            f"run       {run.root} {state}; about {human(on_disk)} of checkpoints",
            "dry run: nothing was written",
        ]
    )

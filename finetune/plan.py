"""``dogmed finetune --dry-run``: what would run, told without touching anything."""

from __future__ import annotations

import os

from dogmed import config as configuration
from dogmed.console import count
from dogmed.data.loader import train_steps
from dogmed.data.progress import human
from dogmed.distributed import find_device
from dogmed.finetune import build
from dogmed.finetune.config import FinetuneConfig
from dogmed.finetune.folder import FinetuneFolder
from dogmed.models.cost import activation_bytes, count_parameters, describe_cost


def describe(config: FinetuneConfig) -> str:
    """Tell data, model, steps, disk, memory and folder of a run, one fact a line.

    Parameters and MACs are counted, and activations measured, on the model itself; nothing is
    written, and nothing is fetched but weights that ``--init`` asks a hub for.

    Raises:
        DogmedError: what the run itself would raise for its options, data or weights.
    """
    data = build.plan_data(config)
    objective = build.build_objective(config, data.task.kind, data.task.num_classes)
    network = build.build_network(config, objective.num_outputs, data.task.classes)
    model, parameters = network.model, count_parameters(network.model)
    train = max(1, round(data.samples["train"] * config.train_fraction))
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    steps = train_steps(train, config.batch_size, world_size)
    build.build_optimizer(config, model, steps)  # for what it refuses
    states = 4 * parameters * 4  # weights, gradients, two moments
    # the last checkpoint (weights, moments) twice while it is replaced, and the best weights, here
    # and, if tracked, in MLflow
    on_disk = (2 * 3 + 1 + (config.tracking == "mlflow")) * parameters * 4
    per_image = activation_bytes(model, config.size)
    batch = min(config.batch_size, train)
    run = FinetuneFolder.of(config, data.task.name, data.source)
    state = "begins"
    if config.resume == "auto":
        run.refuse_other_settings(configuration.to_dict(config))
    if config.resume == "auto" and run.done() is not None:
        state = "is finished already"
    elif config.resume == "auto" and run.last.is_file():
        state = "would be continued"
    device = find_device(config.device)
    return "\n".join(
        [
            *data.lines(),
            f"model     {config.model}: {describe_cost(parameters, network.macs)} an image; "
            f"{network.loaded}",
            f"steps     {count(config.epochs, 'epoch')} × {count(steps, 'step')} of {batch} images = "
            f"{count(config.epochs * steps, 'step')} on {device}, peak lr {build.peak_lr(config):.3g}",
            f"memory    {human(states)} for weights, gradients and moments, "
            f"{human(per_image * batch)} for "
            f"the activations of a batch (float32; half of it under bfloat16)",
            f"run       {run.root} {state}; about {human(on_disk)} of checkpoints",
            "dry run: nothing was written",
        ]
    )

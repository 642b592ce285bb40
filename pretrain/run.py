"""``dogmed pretrain``: one model by one recipe, from the options to weights in the store."""

from __future__ import annotations

import os
from contextlib import nullcontext
from typing import Any

from dogmed.console import Console, Stopper
from dogmed.distributed import join
from dogmed.errors import ConfigError
from dogmed.pretrain import build
from dogmed.pretrain.config import PretrainConfig
from dogmed.pretrain.folder import PretrainFolder
from dogmed.pretrain.images import ImageSet, open_splits
from dogmed.pretrain.session import Session
from dogmed.weights.records import check_name


def pretrain(
    config: PretrainConfig, splits: tuple[ImageSet, ImageSet] | None = None
) -> dict[str, Any] | None:
    """Train by a recipe, validate each epoch, and put the weights where ``--init`` finds them.

    A run that was interrupted is continued; one that is finished is left alone and its result returned.

    Args:
        config: options of the run.
        splits: train and val, if they are open already.

    Returns:
        The contents of ``result.json``; None for a dry run.

    Raises:
        DogmedError: an option, the data or the store of weights cannot be used, or training failed.
        Interrupted: a signal stopped the run; calling again continues it.
    """
    check_name(config.recipe)
    if splits is None:
        if config.data is None:
            raise ConfigError("which images? --data FOLDER, with train and val inside")
        cache_dir = config.cache_dir and config.cache_dir.expanduser()
        splits = open_splits(config.data.expanduser(), cache_dir=cache_dir)
    images = build.draw_images(config, splits)
    if config.dry_run:
        if (
            os.environ.get("RANK", "0") == "0"
        ):  # of torchrun's processes one tries, for its own share
            from dogmed.pretrain.plan import describe

            print(describe(config, images))
        return None
    with join(config.device) as world:
        console = Console(world.is_main)
        with Stopper(console) as stopper:
            network = build.build_network(config, len(images[0].classes))
            folder = PretrainFolder.of(config)
            session = Session(config, world, console, stopper, images, folder, network)
            with folder.lock() if world.is_main else nullcontext():
                return session.run()

"""The ``dogmed pretrain`` command: refuse at once what can be refused, then load PyTorch and run."""

from __future__ import annotations

import os
import sys
from typing import Any

from dogmed.data.progress import Console, Quiet
from dogmed.errors import ConfigError, DataError
from dogmed.pretrain.config import PretrainConfig
from dogmed.pretrain.images import open_splits
from dogmed.weights.records import check_name


def command(**options: Any) -> None:
    """Run ``dogmed pretrain`` with the fields of ``PretrainConfig``."""
    config = PretrainConfig(**options)
    check_name(config.recipe)
    if config.data is None:
        raise ConfigError("which images? --data FOLDER, with train and val inside")
    if not config.data.expanduser().exists():
        raise DataError(f"--data {config.data}: there is no such folder")
    first = os.environ.get("RANK", "0") == "0"
    # torch takes seconds to load: an empty class need not wait for it
    images = open_splits(
        config.data.expanduser(),
        cache_dir=config.cache_dir and config.cache_dir.expanduser(),
        progress=Console() if first else Quiet(),
    )
    if first and sys.stderr.isatty():
        print("loading PyTorch and timm ...", file=sys.stderr, flush=True)
    from dogmed.pretrain.run import pretrain

    pretrain(config, images)

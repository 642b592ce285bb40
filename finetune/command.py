"""The ``dogmed finetune`` command: refuse at once what can be refused, then load PyTorch and run."""

from __future__ import annotations

import sys
from typing import Any

from dogmed.data.store import plan
from dogmed.errors import ConfigError
from dogmed.finetune.config import FinetuneConfig, data_options


def command(**options: Any) -> None:
    """Run ``dogmed finetune`` with the fields of ``FinetuneConfig``."""
    config = FinetuneConfig(**options)
    if not config.task:
        raise ConfigError("which task? for example --task breastmnist; dogmed data list shows all")
    # for what it refuses: torch takes seconds to load, a misspelt task need not wait for it
    plan(**data_options(config))
    if sys.stderr.isatty():
        print("loading PyTorch, timm and MONAI ...", file=sys.stderr, flush=True)
    from dogmed.finetune.run import finetune

    finetune(config)

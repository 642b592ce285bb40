"""What is built from the options: models that cannot take the batches."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm

from dogmed.errors import ConfigError
from dogmed.finetune import build
from dogmed.finetune.config import FinetuneConfig


def test_batches_of_one_are_refused_where_they_have_no_statistics(
    make_config: Callable[..., FinetuneConfig],
) -> None:
    with pytest.raises(ConfigError, match="--batch-size"):
        build.refuse_lone_images(timm.create_model("test_resnet"), batch_size=1, processes=1)
    build.refuse_lone_images(timm.create_model("test_convnext"), batch_size=1, processes=1)
    build.refuse_lone_images(timm.create_model("test_resnet"), batch_size=4, processes=2)

"""``dogmed finetune --dry-run``: what would run, told without touching anything."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from dogmed import optim
from dogmed.data.progress import human
from dogmed.data.store import plan
from dogmed.finetune.config import FinetuneConfig
from dogmed.models import build_model
from dogmed.models.cost import activation_bytes, count_macs, count_parameters


def describe(config: FinetuneConfig) -> str:
    """Tell data, model, steps, disk and memory of a run, one line each."""
    raise NotImplementedError

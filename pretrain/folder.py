"""The folder of one pretraining run: its name and its files."""

from __future__ import annotations

from pathlib import Path

from dogmed.pretrain.config import PretrainConfig
from dogmed.runs import RunFolder, slug


class PretrainFolder(RunFolder):
    """A run under ``<out>/pretrain/<recipe>/<model>-<size>/seed<k>``."""

    shipped = "pretrain/imagenet50ep"

    # The images are compared by their names; a micro-batch, like the number of devices, changes
    # rounding and what drop path draws.
    free = frozenset(
        {
            "data",
            "micro_batch",
            "device",
            "compile",
            "cache_dir",
            "weights_dir",
            "overwrite_weights",
            "out",
            "resume",
            "tracking",
            "dry_run",
            "loader.workers",
            "loader.max_bad",
            "eval.batch_size",
            "checkpoint.minutes",
            "record.data",
            "record.data_licence",
            "record.licence",
        }
    )
    required = ("data.sha256", "weights_sha256", "val.acc1")

    def __init__(self, root: Path):
        super().__init__(root)
        self.final = root / "checkpoints" / "final.safetensors"
        self.train_files = root / "train_files.txt"

    @classmethod
    def of(cls, config: PretrainConfig) -> PretrainFolder:
        """Name the folder by recipe, model, size and seed."""
        name = f"{slug(config.model)}-{config.size}"
        return cls(
            config.out.expanduser() / "pretrain" / config.recipe / name / f"seed{config.seed}"
        )

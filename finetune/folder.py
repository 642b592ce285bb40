"""The folder of one fine-tuning run: its name and its files."""

from __future__ import annotations

from pathlib import Path

from dogmed.errors import ConfigError
from dogmed.finetune.config import FinetuneConfig
from dogmed.runs import RunFolder, slug


class FinetuneFolder(RunFolder):
    """A run under ``<out>/finetune/<task>/<model>-<init>-<size>[-<label>]/seed<k>``."""

    shipped = "finetune/default"

    # The task is in the folder's name, and its data are compared by their hashes.
    free = frozenset(
        {
            "task",
            "data_dir",
            "cache_dir",
            "weights_dir",
            "label",
            "out",
            "device",
            "compile",
            "cache",
            "resume",
            "tracking",
            "experiment",
            "parent_run",
            "dry_run",
            "eval.batch_size",
            "eval.resamples",
            "checkpoint.minutes",
        }
    )
    required = ("data.sha256", "test.n", "weights_sha256")

    def __init__(self, root: Path):
        super().__init__(root)
        self.predictions = root / "predictions_test.csv"

    @classmethod
    def of(cls, config: FinetuneConfig, task_name: str, source: str) -> FinetuneFolder:
        """Name the folder by task, model, init, size, label and seed, and by what makes the data others.

        Args:
            config: options of the run.
            task_name: as prepared.
            source: official, variant, synthetic, npz or folder.

        Raises:
            ConfigError: ``--out`` is a file.
        """
        if config.out.expanduser().is_file():
            raise ConfigError(f"--out {config.out}: expected a folder, this is a file")
        task = f"{task_name}-{source}" if source in ("variant", "synthetic") else task_name
        parts = [config.model, slug(config.init), str(config.size)]
        if config.upsample_from:
            parts.append(f"from{config.upsample_from}")
        if config.train_fraction < 1:
            parts.append(f"fraction{config.train_fraction:g}")
        if config.label:
            parts.append(config.label)
        name = "-".join(slug(part) for part in parts)
        return cls(config.out.expanduser() / "finetune" / slug(task) / name / f"seed{config.seed}")

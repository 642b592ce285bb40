"""The folder of one run: its name, its files, and whether to begin, continue or leave it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dogmed import config as configuration
from dogmed.checkpoint import atomic_path
from dogmed.errors import ConfigError
from dogmed.finetune.config import FinetuneConfig

# Options that decide where and how fast a run is, not what it computes: they may differ on resume.
# The task is in the folder's name, and its data are compared by their hashes.
FREE = frozenset(
    {
        "task",
        "data_dir",
        "cache_dir",
        "weights_dir",
        "out",
        "device",
        "compile",
        "cache",
        "resume",
        "tracking",
        "dry_run",
        "eval.batch_size",
        "eval.resamples",
        "checkpoint.minutes",
    }
)


class RunFolder:
    """Paths and records of one run under ``<out>/finetune/<task>/<model>-<init>-<size>/seed<k>``."""

    def __init__(self, root: Path):
        self.root = root
        self.config = root / "config.yaml"
        self.metrics = root / "metrics.jsonl"
        self.result = root / "result.json"
        self.predictions = root / "predictions_test.csv"
        self.last = root / "checkpoints" / "last.pt"
        self._tracked = root / ".mlflow_run"
        self.best = root / "checkpoints" / "best.safetensors"

    @classmethod
    def of(cls, config: FinetuneConfig, task_name: str, source: str) -> RunFolder:
        """Name the folder by task, model, init, size and seed, and by what makes the data others.

        Args:
            config: options of the run.
            task_name: as prepared.
            source: official, variant, synthetic, npz or folder.
        """
        task = f"{task_name}-{source}" if source in ("variant", "synthetic") else task_name
        parts = [config.model, _slug(config.init), str(config.size)]
        if config.upsample_from:
            parts.append(f"from{config.upsample_from}")
        if config.train_fraction < 1:
            parts.append(f"fraction{config.train_fraction:g}")
        name = "-".join(_slug(part) for part in parts)
        return cls(config.out.expanduser() / "finetune" / _slug(task) / name / f"seed{config.seed}")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder alone.

        Raises:
            ConfigError: another process is running here.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"--out: cannot create {self.root} ({error.strerror}); give a writable folder"
            ) from None
        try:
            with FileLock(self.root / ".lock", timeout=0):
                yield
        except Timeout:
            raise ConfigError(
                f"{self.root}: another process is running this very run; wait for it, or give --out"
            ) from None

    def done(self) -> dict[str, Any] | None:
        """The result of a finished run, or None.

        Raises:
            ConfigError: ``result.json`` is damaged.
        """
        if not self.result.is_file():
            return None
        try:
            report = json.loads(self.result.read_text())
            report["data"]["sha256"], report["test"]["n"], report["weights_sha256"]
        except (ValueError, KeyError, TypeError):
            raise ConfigError(
                f"{self.result} is damaged; delete it to score the run again, or give --resume never"
            ) from None
        return report

    def refuse_other_settings(self, config: FinetuneConfig) -> None:
        """Make sure that what lies here was run with the same settings.

        Raises:
            ConfigError: it was not; the message lists what differs.
        """
        if not (self.last.is_file() or self.result.is_file()):
            return
        if not self.config.is_file():
            raise ConfigError(
                f"{self.root} holds a run without its config.yaml, so nobody knows its settings; give "
                "another --out, or --resume never to start over (the old run is kept aside)"
            )
        old = configuration.flatten(configuration.read_yaml(self.config))
        new = configuration.flatten(configuration.to_dict(config))
        changed = [
            f"--{key.replace('_', '-')} {old.get(key)} -> {new.get(key)}"
            for key in sorted(old.keys() | new.keys())
            if key not in FREE and old.get(key) != new.get(key)
        ]
        if changed:
            raise ConfigError(
                f"{self.root} holds a run with other settings ({', '.join(changed)}); give another "
                "--out, or --resume never to start over (the old run is kept aside)"
            )

    def set_aside(self) -> Path | None:
        """Move an earlier run out of the way, and say where it went."""
        entries = [entry for entry in self.root.iterdir() if entry.name != ".lock"]
        if not entries:
            return None
        number = 1
        while (aside := self.root.with_name(f"{self.root.name}.old{number}")).exists():
            number += 1
        aside.mkdir()
        for entry in sorted(entries, key=lambda entry: entry != self.result):  # the result first
            entry.rename(aside / entry.name)
        return aside

    def refuse_other(self, what: str, old: Any, new: Any) -> None:
        """Make sure that what lies here was computed from the same data or weights (sha256).

        Raises:
            ConfigError: it was not.
        """
        if old != new:
            raise ConfigError(
                f"{self.root} holds a run with other {what} than there are now; bring the old ones "
                "back, or give another --out, or --resume never to start over (the old run is kept)"
            )

    def begin(self, config: FinetuneConfig) -> None:
        """Write the resolved configuration and start with an empty history."""
        for stale in (self.result, self.predictions, self.best):
            stale.unlink(missing_ok=True)
        self.last.parent.mkdir(parents=True, exist_ok=True)
        text = configuration.to_yaml(config)
        if not self.config.is_file() or self.config.read_text() != text:
            self._tracked.unlink(missing_ok=True)  # that MLflow run was another one
        write_atomic(self.config, text)
        write_atomic(self.metrics, "")

    def tracked_as(self) -> str | None:
        """The MLflow run of the earlier sittings, those that died before a checkpoint included."""
        return self._tracked.read_text().strip() or None if self._tracked.is_file() else None

    def remember_tracked_as(self, run_id: str | None) -> None:
        """Note the MLflow run of this run, for the next sitting."""
        if run_id is not None:
            write_atomic(self._tracked, run_id)

    def stage_result(self, report: dict[str, Any]) -> Path:
        """Write ``result.json`` where it does not yet say that the run is finished."""
        staged = self.root / ".staged" / self.result.name
        write_atomic(staged, json.dumps(report, indent=2) + "\n")
        return staged

    def publish_result(self) -> None:
        """Declare the run finished: the very last step, so that a kill before it repeats the scoring."""
        staged = self.root / ".staged" / self.result.name
        staged.replace(self.result)
        staged.parent.rmdir()

    def write_rows(self, rows: list[dict[str, Any]]) -> None:
        """Make ``metrics.jsonl`` hold these epochs, whatever it held: the checkpoint knows better."""
        write_atomic(self.metrics, "".join(json.dumps(row) + "\n" for row in rows))

    def append_row(self, row: dict[str, Any]) -> None:
        """Add one epoch's line to ``metrics.jsonl``."""
        with self.metrics.open("a") as file:
            file.write(json.dumps(row) + "\n")


def write_atomic(path: Path, text: str) -> None:
    """Write a small text file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(text)


def _slug(text: str) -> str:
    """A name for a folder: the stem of a path, without characters that file systems mind."""
    if text.endswith((".safetensors", ".pt", ".pth", ".npz")):
        text = Path(text).stem
    text = text.rstrip("/").replace("hf-hub:", "")
    return re.sub(r"[^\w.-]+", "_", text).strip("._")[:100] or "unnamed"

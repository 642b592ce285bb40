"""The folder of one run: its files, who may write them, and whether to begin, continue or leave it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import yaml
from filelock import FileLock, Timeout

from dogmed import config as configuration
from dogmed.checkpoint import atomic_path
from dogmed.errors import ConfigError
from dogmed.options import settled
from dogmed.tracking import ledger

WEIGHTS_SUFFIXES = (".safetensors", ".pt", ".pth", ".npz")


class RunFolder:
    """Paths and records of one run; each pipeline says in a subclass how its folders are named.

    Args:
        root: need not exist.
    """

    shipped: ClassVar[str]
    """The recipe that has a value for every option."""
    free: ClassVar[frozenset[str]]
    """Options (dotted) that may differ when a run is continued: they do not change what it computes."""
    required: ClassVar[tuple[str, ...]]
    """Keys (dotted) without which a ``result.json`` is damaged."""

    def __init__(self, root: Path):
        self.root = root
        self.config = root / "config.yaml"
        self.metrics = root / "metrics.jsonl"
        self.result = root / "result.json"
        self.last = root / "checkpoints" / "last.pt"
        self.best = root / "checkpoints" / "best.safetensors"
        self.ledger = root / ledger.NAME

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder alone; folders made for it go again if nothing came into them.

        Raises:
            ConfigError: another process is running here.
        """
        new = [folder for folder in (self.root, *self.root.parents) if not folder.exists()]
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"--out: cannot create {self.root} ({error.strerror}); give a writable folder"
            ) from None
        try:
            with FileLock(self.root / ".lock", timeout=0):
                try:
                    yield
                finally:
                    _remove_unused(new)
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
            for key in self.required:
                value = report
                for part in key.split("."):
                    value = value[part]
        except (ValueError, KeyError, TypeError):
            raise ConfigError(
                f"{self.result} is damaged; delete it to score the run again, or give --resume never"
            ) from None
        return report

    def refuse_other_settings(self, settings: Mapping[str, Any]) -> None:
        """Make sure that what lies here was run with the same settings, those that are free aside.

        Args:
            settings: nested plain values, as ``dogmed.config.to_dict`` gives them.

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
        if changed := self._changed(settings):
            raise ConfigError(
                f"{self.root} holds a run with other settings ({', '.join(changed)}); give another "
                "--out, or --resume never to start over (the old run is kept aside)"
            )

    def _changed(self, settings: Mapping[str, Any]) -> list[str]:
        """The settings, those that are free aside, that are not those of ``config.yaml``.

        Of ``--scale-aug`` what it stands for: before there was the word, a recipe gave the details.
        """
        old, new = self.settings(), configuration.flatten(settled(settings))
        return [
            f"--{key.replace('_', '-')} {old.get(key)} -> {new.get(key)}"
            for key in sorted(old.keys() | new.keys())
            if key not in self.free | {"scale_aug"} and old.get(key) != new.get(key)
        ]

    def settings(self) -> dict[str, Any]:
        """The options in ``config.yaml`` by dotted name.

        An option that is younger than the run has the value it is shipped with: that is what was done
        before there was a choice.

        Raises:
            ConfigError: the file cannot be read.
        """
        there = configuration.read_yaml(self.config)
        return configuration.flatten(
            settled(configuration.merge(configuration.recipe(self.shipped), there))
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

    def begin(self, settings: Mapping[str, Any], stale: Sequence[Path] = ()) -> None:
        """Write the resolved configuration and start with an empty history.

        Args:
            settings: nested plain values, as ``dogmed.config.to_dict`` gives them.
            stale: files of an earlier run, besides result and weights, to be removed.
        """
        for file in (self.result, self.best, *stale):
            file.unlink(missing_ok=True)
        self.last.parent.mkdir(parents=True, exist_ok=True)
        if self.ledger.is_file() and (not self.config.is_file() or self._changed(settings)):
            ledger.Ledger.open(self.ledger).renew()  # that MLflow run was another one
        write_atomic(self.config, yaml.safe_dump(settled(settings), sort_keys=False))
        write_atomic(self.metrics, "")

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


def _remove_unused(folders: Sequence[Path]) -> None:
    """Remove a run's folder if it holds its lock alone, and those around it that are empty then."""
    if folders and [entry.name for entry in folders[0].iterdir()] == [".lock"]:
        (folders[0] / ".lock").unlink()
        for folder in folders:
            try:
                folder.rmdir()
            except OSError:  # another run has come into it
                return


def write_atomic(path: Path, text: str) -> None:
    """Write a small text file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(text)


def task_of_weights(weights: Path) -> str | None:
    """What ``--task`` named at the training in whose run folder the weights lie; None for those elsewhere."""
    settings = weights.absolute().parent.parent / "config.yaml"
    if weights.parent.name != "checkpoints" or not settings.is_file():
        return None
    task = configuration.read_yaml(settings).get("task")
    return None if task is None else str(task)


def slug(text: str) -> str:
    """A name for a folder: the stem of a path, without characters that file systems mind."""
    if text.endswith(WEIGHTS_SUFFIXES):
        text = Path(text).stem
    text = text.rstrip("/").replace("hf-hub:", "")
    return re.sub(r"[^\w.-]+", "_", text).strip("._")[:100] or "unnamed"

"""The cells of a benchmark: each a run with its folder, and what is known of it before it starts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dogmed import config as configuration
from dogmed.data.prepared import load_prepared
from dogmed.data.progress import Console
from dogmed.data.store import Plan, plan, prepare
from dogmed.errors import ConfigError, DataError, WeightsError
from dogmed.finetune import build
from dogmed.finetune.config import FinetuneConfig, data_options
from dogmed.finetune.folder import FinetuneFolder
from dogmed.options import net_options

State = Literal["to do", "queued", "running", "done", "failed", "no weights"]
EVALUATION = 1 / 3  # of a training image's work: no backward pass


@dataclass
class Cell:
    """One run of the matrix. Its folder is its key: the same cell always has the same one."""

    config: FinetuneConfig
    folder: FinetuneFolder
    data: Plan
    state: State = "to do"
    result: dict[str, Any] | None = None
    note: str = ""
    """Why there is no result."""
    attempts: int = 0
    began: float = 0.0
    """Of the attempt under way, on the monotonic clock."""
    whole: bool = True
    """Whether the attempt under way does all of the run, or continues an earlier one."""
    seconds: float | None = None
    """What the run took, where known."""
    overhead: float | None = None
    """What its process took beside, where it was seen from begin to end."""

    @property
    def key(self) -> str:
        """The folder below ``<out>/finetune``: task, model with its init and size, seed."""
        return "/".join(self.folder.root.parts[-3:])

    @property
    def name(self) -> str:
        """The task's name, and what its data are where that must not be overlooked."""
        source = self.data.source
        marked = source in ("synthetic", "variant")
        return f"{self.data.task.name} ({source.upper()})" if marked else self.data.task.name

    @property
    def title(self) -> str:
        config = self.config
        share = f" {config.train_fraction:g} of train" if config.train_fraction < 1 else ""
        label = f" {config.label}" if config.label else ""
        return (
            f"{self.data.task.name} {config.model} {config.init}{share}{label} seed {config.seed}"
        )

    @property
    def network(self) -> str:
        """Model and constructor options: those with the same ones take as long for an image."""
        options = net_options(self.config.net)
        return " ".join([self.config.model, *(f"{k}={v}" for k, v in options.items())])

    @property
    def work(self) -> float:
        """Images to go through, those of evaluation counted as parts of one."""
        samples, epochs = self.data.samples, self.config.epochs
        scored = epochs * samples["val"] + 2 * (samples["val"] + samples["test"])
        return epochs * self.train_images + scored * EVALUATION

    @property
    def train_images(self) -> int:
        """Images of an epoch."""
        return max(1, round(self.data.samples["train"] * self.config.train_fraction))

    def epochs_done(self) -> int:
        """Epochs that the run has finished so far."""
        if not self.folder.metrics.is_file():
            return 0
        return self.folder.metrics.read_bytes().count(b"\n")

    def is_busy(self) -> bool:
        """Whether some process is running this very run."""
        if not self.folder.root.is_dir():
            return False
        try:
            with self.folder.lock():
                return False
        except ConfigError:
            return True

    def look(self) -> None:
        """Find out whether the run is done; a damaged result is to be done, and then says so."""
        try:
            self.result = self.folder.done()
        except ConfigError:
            self.result = None
        if self.result is not None:
            self.state = "done"
            self.seconds = self.result["seconds"]

    def queue(self) -> None:
        """Note an attempt that is to begin."""
        self.state, self.attempts = "queued", self.attempts + 1
        self.whole = self.config.resume == "never" or not self.folder.last.is_file()

    def begin(self) -> None:
        """Note that it has begun."""
        self.state, self.began = "running", time.monotonic()


def find_cells(runs: Sequence[FinetuneConfig]) -> list[Cell]:
    """Give each run its folder, and find out which are done.

    Unless this is a dry run, files that are no downloads are prepared here: only their hash tells an
    official file from a variant, which has a folder of its own, and a file from what it was before.

    Raises:
        DogmedError: the data cannot be found, two runs share a folder, or what lies in a folder was
            run with other settings or on other data.
    """
    plans = {run.task: plan_of(run) for run in {run.task: run for run in runs}.values()}
    cells: dict[Path, Cell] = {}
    for run in runs:
        data = plans[run.task]
        cell = Cell(run, FinetuneFolder.of(run, data.task.name, data.source), data)
        if other := cells.get(cell.folder.root):
            raise ConfigError(
                f"two runs share the folder {cell.folder.root}: {other.config.task} and {run.task}, "
                f"{other.config.init} and {run.init}; rename one, or benchmark it with another --out"
            )
        cells[cell.folder.root] = cell
        if run.resume == "auto":
            cell.folder.refuse_other_settings(configuration.to_dict(run))
            cell.look()
    _refuse_other_data(list(cells.values()))
    return list(cells.values())


def check_weights(cells: Sequence[Cell]) -> dict[tuple[str, str], str]:
    """Try every model with every initialisation, and compare with those of the cells that are done.

    Returns:
        What is wrong, by model and init, for those whose weights are not there or do not fit; their
        cells, unless done, get the state ``no weights``.

    Raises:
        ConfigError: an unknown model, one that cannot take the images, or cells done from other weights.
    """
    problems = {}
    pairs = dict.fromkeys((cell.config.model, cell.config.init) for cell in cells)
    for pair in pairs:
        of_pair = [cell for cell in cells if (cell.config.model, cell.config.init) == pair]
        try:
            network = build.build_network(of_pair[0].config, num_outputs=2)
        except WeightsError as error:
            for cell in of_pair:
                if cell.state != "done":
                    cell.state, cell.note = "no weights", str(error)
                    problems[pair] = str(error)
            continue
        for cell in of_pair:
            if cell.result is not None:
                old, new = cell.result["weights_sha256"], network.loaded.sha256
                cell.folder.refuse_other("initial weights", old, new)
    return problems


def plan_of(run: FinetuneConfig) -> Plan:
    """The data of a run; files that are no downloads are prepared for it, unless it is a dry run."""
    options = data_options(run)
    found = plan(**options)
    local = run.data_dir is not None or found.source in ("npz", "folder")
    if not local or found.action == "reuse" or run.dry_run:
        return found
    try:
        prepare(**options, progress=Console())
    except DataError:
        return found  # its cells fail, and say why, while those of other tasks go on
    return plan(**options)


def _refuse_other_data(cells: Sequence[Cell]) -> None:
    """Make sure that the cells that are done were trained on the data that there are now."""
    hashes: dict[Path, dict[str, str]] = {}
    for cell in cells:
        folder = cell.data.folder
        if cell.result is None or folder is None:
            continue
        if folder not in hashes and (prepared := load_prepared(folder)) is not None:
            files = prepared.manifest["files"]
            hashes[folder] = {name: facts["sha256"] for name, facts in sorted(files.items())}
        if folder in hashes:
            cell.folder.refuse_other("data", cell.result["data"]["sha256"], hashes[folder])

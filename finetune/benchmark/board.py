"""What a benchmark shows: how far the matrix has come, and at the end a row for each cell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dogmed.console import Console, duration, table
from dogmed.csvfile import csv_text
from dogmed.finetune.benchmark.cells import Cell
from dogmed.runs import write_atomic

COLUMNS = (
    "task", "source", "size", "model", "init", "train_fraction", "label", "seed", "state",
    "acc", "acc_low", "acc_high", "auc", "auc_low", "auc_high", "best_epoch", "seconds", "folder",
    "note",
)  # fmt: skip

UNDONE = ("to do", "queued", "running")


class Board:
    """Show a bar and the runs under way on a terminal; elsewhere a line when a cell begins or ends.

    Args:
        cells: of the whole matrix.
        slots: how many run at once.
        console: where lines go.
    """

    def __init__(self, cells: Sequence[Cell], slots: int, console: Console):
        self.cells, self.slots, self.console = cells, slots, console
        self._bar: tqdm[Any] | None = None

    def event(self, cell: Cell, text: str) -> None:
        """Tell what has become of a cell."""
        done, total = self._counts()["done"], len(self.cells)
        self.console.line(f"[{done:>{len(str(total))}}/{total} done] {text:<8} {cell.title}")

    def ended(self, cell: Cell) -> None:
        """Tell how a cell has ended, and what is left."""
        if cell.result is None:
            again = "will be tried once more: " if cell.state == "to do" else ""
            self.event(cell, "FAILED")
            self.console.line(f"    {again}{cell.note}")
            return
        self.event(cell, "done")
        scores = ", ".join(f"{name} {_score(cell.result, name)}" for name in ("acc", "auc"))
        self.console.line(f"    {scores}; {duration(cell.seconds or 0)}; {self.summary()}")

    def summary(self) -> str:
        """How many cells are in which state, and the time left."""
        counts = self._counts()
        parts = [f"{counts['running']} running", f"{counts['to do']} to do"]
        rare = ("queued", "failed", "no weights")
        parts += [f"{counts[state]} {state}" for state in rare if counts[state]]
        left = seconds_left(self.cells, self.slots)
        if left is not None and any(counts[state] for state in UNDONE):
            parts.append(f"left about {duration(left)}")
        return ", ".join(parts)

    def refresh(self) -> None:
        """Bring the terminal up to date."""
        if not self.console.is_terminal:
            return
        if self._bar is None:
            self._bar = tqdm(
                total=len(self.cells),
                bar_format="{n_fmt}/{total_fmt} cells |{bar:20}| {desc}",
                leave=False,
                dynamic_ncols=True,
            )
        under_way = [
            f"{cell.title}: epoch {cell.epochs_done()}/{cell.config.epochs}"
            for cell in self.cells
            if cell.state == "running"
        ]
        self._bar.n = self._counts()["done"]
        self._bar.set_description_str("; ".join([self.summary(), *under_way]))

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _counts(self) -> Counter[str]:
        return Counter(cell.state for cell in self.cells)


def seconds_left(cells: Iterable[Cell], slots: int) -> float | None:
    """Estimate the rest from the cells that are done; None while there is none.

    A model's pace is that of its finished cells, in seconds for an image; a model that has none yet
    is taken to be as fast as the others. Each run that has not begun takes a process's start besides.
    """
    starts: list[float] = []
    spent: Counter[str] = Counter()
    work: Counter[str] = Counter()
    rest: Counter[str] = Counter()
    undone = unbegun = 0
    for cell in cells:
        model = cell.network
        if cell.overhead is not None:
            starts.append(cell.overhead)
        if cell.state == "done" and cell.seconds is not None:
            spent[model] += cell.seconds
            work[model] += cell.work
        elif cell.state in UNDONE:
            undone += 1
            unbegun += cell.state != "running"
            part = 1 - cell.epochs_done() / cell.config.epochs
            rest[model] += cell.work * max(part, 0.0)
    if not work:
        return None
    typical = spent.total() / work.total()
    paces = {model: spent[model] / work[model] if work[model] else typical for model in rest}
    seconds = sum(rest[model] * pace for model, pace in paces.items())
    if starts:
        seconds += unbegun * sum(starts) / len(starts)
    return seconds / min(slots, max(undone, 1))


def write_results(cells: Iterable[Cell], path: Path, out: Path) -> None:
    """Write a row a cell as CSV; folders are relative to ``out``, what is not known is left empty."""
    rows = []
    for cell in cells:
        config, row = cell.config, {}
        if cell.result is not None:
            test, row = cell.result["test"], {"best_epoch": cell.result["best_epoch"]}
            for name in ("acc", "auc"):
                low, high = test.get("intervals_95", {}).get(name, (None, None))
                row |= {name: test[name], f"{name}_low": low, f"{name}_high": high}
        row |= {
            "task": cell.data.task.name,
            "source": cell.data.source,
            "state": cell.state,
            "seconds": cell.result and cell.result["seconds"],
            "folder": cell.folder.root.relative_to(out).as_posix(),
            "note": cell.note,
        }
        shared = ("size", "model", "init", "train_fraction", "label", "seed")
        rows.append(row | {name: getattr(config, name) for name in shared})
    write_atomic(path, csv_text(COLUMNS, rows))


def print_results(cells: Sequence[Cell], out: Path) -> None:
    """Print a row a cell."""
    head = (
        "task",
        "model",
        "init",
        "train",
        "label",
        "seed",
        "ACC (test)",
        "AUC (test)",
        "time",
        "folder",
    )
    rows = [head]
    for cell in cells:
        config, result = cell.config, cell.result
        scores = (cell.state, "", "")
        if result is not None:
            scores = (_score(result, "acc"), _score(result, "auc"), duration(result["seconds"]))
        rows.append((cell.name, config.model, config.init, f"{config.train_fraction:g}",
                     config.label, str(config.seed), *scores,
                     cell.folder.root.relative_to(out).as_posix()))  # fmt: skip
    table(rows)


def _score(result: dict[str, Any], name: str) -> str:
    """A test score with its 95% interval."""
    value, interval = result["test"][name], result["test"].get("intervals_95", {}).get(name)
    if value is None:
        return "-"
    return f"{value:.4f}" + (f" [{interval[0]:.4f}, {interval[1]:.4f}]" if interval else "")

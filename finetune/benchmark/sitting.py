"""``dogmed benchmark``: every cell of the matrix once, whatever happens on the way.

A cell is done when its folder has a ``result.json``, and nothing else is remembered: a stopped benchmark
is continued by the same command, and several may share one matrix, for a run belongs to the process
that holds its folder's lock.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from dogmed.config import to_yaml
from dogmed.console import Console, Stopper
from dogmed.errors import Interrupted, WeightsError
from dogmed.finetune.benchmark import board
from dogmed.finetune.benchmark.call import tracked_call
from dogmed.finetune.benchmark.cells import Cell, check_weights, find_cells
from dogmed.finetune.config import FinetuneConfig
from dogmed.finetune.executors.base import BEGUN, Executor, Job
from dogmed.runs import write_atomic

ATTEMPTS = 2  # of a cell, in one sitting
POLL_SECONDS = 0.2
SHOW_SECONDS = 1.0


def benchmark(
    runs: Sequence[FinetuneConfig], executor: Executor, *, skip_missing: bool = False
) -> int:
    """Do the runs that are not done, print a table of all and write it to ``benchmark/results.csv``.

    A run that fails is tried once more after the others; what it printed is in ``benchmark/cells``.

    Args:
        runs: the cells, as ``matrix.combine`` lists them; all with one ``out``.
        executor: where the runs go.
        skip_missing: leave out cells without initial weights, in place of refusing them.

    Returns:
        The exit code: 1 if a cell has failed, else 0.

    Raises:
        DogmedError: options, data or weights cannot be used, told before any run starts.
        Interrupted: a signal stopped the benchmark; calling again continues it.
    """
    first = runs[0]
    out = first.out.expanduser()
    cells = find_cells(runs)
    _refuse_missing(cells, check_weights(cells), skip_missing or first.dry_run)
    if first.dry_run:
        from dogmed.finetune.benchmark.estimate import describe

        print(describe(cells, executor.slots))
        return 0
    console = Console(True)
    results = out / "benchmark" / "results.csv"
    sitting = Sitting(cells, executor, console, out)
    done = sum(cell.state == "done" for cell in cells)
    at_once = min(executor.slots, max(1, sum(cell.state == "to do" for cell in cells)))
    console.line(f"{len(cells)} cells, {done} of them done already; {at_once} at once")
    try:
        if any(cell.state == "to do" for cell in cells):
            with tracked_call(cells, out):
                sitting.run()
    finally:
        board.write_results(cells, results, out)
    board.print_results(cells, out)
    console.line(f"results {results}")
    failed = [cell for cell in cells if cell.state == "failed"]
    for cell in failed:
        print(f"FAILED  {cell.title}: {cell.note}", file=sys.stderr)
    return 1 if failed else 0


@dataclass
class Running:
    """A cell that this process has started."""

    cell: Cell
    log: Path
    written: int
    """Bytes that the log had before."""
    claim: FileLock
    """Held so long: another benchmark of the same matrix starts other cells."""


class Sitting:
    """The work on a matrix from one call of the command to its end, or to a stop.

    Args:
        cells: those to do are done, and their state is kept up to date.
        executor: where they go.
        console: where lines go.
        out: the cells' options and output are kept in ``benchmark/cells`` below it.
    """

    def __init__(self, cells: Sequence[Cell], executor: Executor, console: Console, out: Path):
        self.cells, self.executor, self.console = cells, executor, console
        self.folder = out / "benchmark" / "cells"
        self.board = board.Board(cells, executor.slots, console)
        self._queue = [cell for cell in cells if cell.state == "to do"]
        self._running: dict[str, Running] = {}

    def run(self) -> None:
        """Run all cells to do.

        Raises:
            Interrupted: a signal came; the runs have saved their state (after a second one: not).
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        shown = 0.0
        with Stopper(self.console) as stopper:
            stopper.deferring = True
            asked = False
            try:
                while self._running or (self._queue and not stopper.requested):
                    self._collect(stopping=asked)
                    if stopper.requested and not asked:
                        asked = True
                        self.executor.stop()
                    if not asked:
                        self._fill()
                    if time.monotonic() - shown > SHOW_SECONDS:
                        shown = time.monotonic()
                        self._note_begun()
                        self.board.refresh()
                    time.sleep(POLL_SECONDS)
            finally:
                self.board.close()
                if self._running:
                    self.executor.kill()
                for started in self._running.values():
                    started.cell.state = "to do"
                    started.claim.release()
        if stopper.requested and any(cell.state == "to do" for cell in self.cells):
            done = sum(cell.state == "done" for cell in self.cells)
            raise Interrupted(
                f"stopped with {done} of {len(self.cells)} cells done; the same command continues",
                stopper.requested,
            )

    def _fill(self) -> None:
        """Start cells that nobody runs, while there is room."""
        for cell in list(self._queue):
            if len(self._running) >= self.executor.slots:
                return
            claim = FileLock(self._file(cell, "claim"), timeout=0)
            try:
                claim.acquire()
            except Timeout:
                continue
            if cell.is_busy():
                claim.release()
                continue
            self._queue.remove(cell)
            if cell.config.resume == "auto":
                cell.look()  # another process may have done it
            if cell.state == "done":
                claim.release()
                self.board.ended(cell)
            else:
                self._start(cell, claim)

    def _file(self, cell: Cell, suffix: str) -> Path:
        return self.folder / f"{_name(cell)}.{suffix}"

    def _start(self, cell: Cell, claim: FileLock) -> None:
        options, log = (self._file(cell, suffix) for suffix in ("yaml", "log"))
        write_atomic(options, to_yaml(cell.config))
        written = log.stat().st_size if log.is_file() else 0
        cell.queue()
        self._running[_name(cell)] = Running(cell, log, written, claim)
        words = (sys.executable, "-m", "dogmed", "finetune", "--config", str(options))
        self.executor.start(Job(_name(cell), words, log))
        self._note_begun()

    def _note_begun(self) -> None:
        """Take note of the cells that no longer wait for their turn on a cluster."""
        waiting = self.executor.waiting()
        for name, started in self._running.items():
            if started.cell.state == "queued" and name not in waiting:
                started.cell.begin()
                self.board.event(started.cell, "begin" if started.cell.whole else "continue")

    def _collect(self, *, stopping: bool) -> None:
        """Take note of the cells that have ended."""
        for name, code in self.executor.ended().items():
            started = self._running.pop(name)
            cell = started.cell
            started.claim.release()
            if cell.state == "queued":  # it was over before anybody looked
                cell.begin()
            wall = time.monotonic() - cell.began
            cell.look()
            if cell.result is not None and (code == 0 or cell.config.resume == "auto"):
                if cell.whole:
                    cell.overhead = max(0.0, wall - cell.result["seconds"])
                self.board.ended(cell)
            elif stopping:
                cell.state, cell.result = "to do", None
                self.board.event(cell, "stopped")
            elif cell.is_busy():  # it ended because another process runs this very run
                cell.state, cell.attempts = "to do", cell.attempts - 1
                self._queue.append(cell)
                self.board.event(cell, "waits")
            else:
                words = _last_words(started.log, started.written, code)
                self._fail(cell, f"{words} ({started.log})")

    def _fail(self, cell: Cell, why: str) -> None:
        cell.result, cell.note = None, why
        cell.state = "to do" if cell.attempts < ATTEMPTS else "failed"
        if cell.state == "to do":
            self._queue.append(cell)
        self.board.ended(cell)


def _refuse_missing(
    cells: Sequence[Cell], problems: dict[tuple[str, str], str], go_on: bool
) -> None:
    """Tell which cells have no weights, and go on only where that is wanted."""
    for (model, init), why in problems.items():
        tasks = [
            cell.data.task.name
            for cell in cells
            if cell.state == "no weights" and (cell.config.model, cell.config.init) == (model, init)
        ]
        named = ", ".join(dict.fromkeys(tasks))
        print(f"{model} × {init}: {len(tasks)} cells cannot run ({named}): {why}", file=sys.stderr)
    if problems and not go_on:
        count = sum(cell.state == "no weights" for cell in cells)
        raise WeightsError(
            f"{count} of {len(cells)} cells have no initial weights; nothing was started. "
            "Make them as told above, or give --skip-missing to do the others"
        )


def _name(cell: Cell) -> str:
    """The cell's, as a job and in names of files."""
    return cell.key.replace("/", "+")


def _last_words(log: Path, start: int, code: int) -> str:
    """What a failed job said at the end: its error message if there is one, else its last line."""
    with log.open("rb") as file:
        file.seek(start)
        lines = [
            line
            for line in file.read().decode(errors="replace").splitlines()
            if line.strip() and not line.startswith(BEGUN)
        ]
    told = [line for line in lines if line.startswith("dogmed: ")]
    last = (told or lines or ["it said nothing"])[-1].removeprefix("dogmed: ").strip()
    return f"{last}; exit code {code}" if code >= 0 else f"{last}; ended by signal {-code}"

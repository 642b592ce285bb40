"""``dogmed benchmark``: every cell of the matrix once, whatever happens on the way.

A cell is done when its folder has a ``result.json``, and nothing else is remembered: a stopped benchmark
is continued by the same command, and several may share one matrix, for a run belongs to the process
that holds its folder's lock.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from dogmed.config import to_yaml
from dogmed.console import Console
from dogmed.errors import Interrupted, WeightsError
from dogmed.finetune.benchmark import board
from dogmed.finetune.benchmark.call import tracked_call
from dogmed.finetune.benchmark.cells import Cell, check_weights, find_cells
from dogmed.finetune.config import FinetuneConfig
from dogmed.finetune.executors.base import Executor, Job
from dogmed.finetune.executors.drive import Drive, Started
from dogmed.runs import write_atomic

ATTEMPTS = 2  # of a cell, in one sitting
FILES = 256  # that this process may have open beside the claims of its cells


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

        for line in describe(cells, executor.slots):
            print(line, flush=True)
        return 0
    console = Console(True)
    results = out / "benchmark" / "results.csv"
    sitting = Sitting(cells, executor, console, out)
    done = sum(cell.state == "done" for cell in cells)
    console.line(f"{len(cells)} cells, {done} of them done already; {sitting.slots} at once")
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


class Sitting:
    """The work on a matrix from one call of the command to its end, or to a stop.

    Args:
        cells: those to do are done, and their state is kept up to date.
        executor: where they go.
        console: where lines go.
        out: the cells' options and output are kept in ``benchmark/cells`` below it.
    """

    def __init__(self, cells: Sequence[Cell], executor: Executor, console: Console, out: Path):
        self.cells = cells
        self._queue = [cell for cell in cells if cell.state == "to do"]
        self.folder = out / "benchmark" / "cells"
        self.slots = _claims_allowed(min(executor.slots, max(1, len(self._queue))))
        self.board = board.Board(cells, self.slots, console)
        self._drive = Drive(executor, console)
        self._running: dict[str, Cell] = {}
        self._claims: dict[str, FileLock] = {}
        """Held while a cell runs: another benchmark of the same matrix starts others."""

    def run(self) -> None:
        """Run all cells to do.

        Raises:
            Interrupted: a signal came; the runs have saved their state (after a second one: not).
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            signalled = self._drive.run(self)
        finally:
            self.board.close()
            for name, cell in self._running.items():
                cell.state = "to do"
                self._claims[name].release()
        if signalled and any(cell.state == "to do" for cell in self.cells):
            done = sum(cell.state == "done" for cell in self.cells)
            raise Interrupted(
                f"stopped with {done} of {len(self.cells)} cells done; the same command continues",
                signalled,
            )

    def left(self) -> bool:
        """Whether cells are to be started."""
        return bool(self._queue)

    def fill(self) -> None:
        """Start cells that nobody runs, while there is room."""
        for cell in list(self._queue):
            if len(self._running) >= self.slots:
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

    def ended(self, started: Started, code: int, *, stopping: bool) -> None:
        """Take note of a cell that has ended."""
        cell = self._running.pop(started.job.name)
        self._claims.pop(started.job.name).release()
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
            self._fail(cell, f"{started.last_words(code)} ({started.job.log})")

    def show(self) -> None:
        """Bring the board up to date."""
        self._note_begun()
        self.board.refresh()

    def _file(self, cell: Cell, suffix: str) -> Path:
        return self.folder / f"{_name(cell)}.{suffix}"

    def _start(self, cell: Cell, claim: FileLock) -> None:
        name, options = _name(cell), self._file(cell, "yaml")
        write_atomic(options, to_yaml(cell.config))
        cell.queue()
        self._running[name], self._claims[name] = cell, claim
        words = (sys.executable, "-m", "dogmed", "finetune", "--config", str(options))
        self._drive.start(Job(name, words, self._file(cell, "log")))
        self._note_begun()

    def _note_begun(self) -> None:
        """Take note of the cells that no longer wait for their turn on a cluster."""
        waiting = self._drive.executor.waiting()
        for name, cell in self._running.items():
            if cell.state == "queued" and name not in waiting:
                cell.begin()
                self.board.event(cell, "begin" if cell.whole else "continue")

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


def _claims_allowed(wanted: int) -> int:
    """How many of so many cells may be under way at once, each with an open file, its claim.

    The soft limit of open files (``ulimit -n``) is raised towards the hard one where that takes it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < wanted + FILES:
        soft = wanted + FILES if hard < 0 else min(wanted + FILES, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft < 0 else max(1, min(wanted, soft - FILES))


def _name(cell: Cell) -> str:
    """The cell's, as a job and in names of files."""
    return cell.key.replace("/", "+")

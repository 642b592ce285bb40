"""One call of ``dogmed benchmark`` in MLflow: a run that the runs of its cells are nested under.

A cell that an earlier call began and this one continues moves here; one that an earlier call has done
stays there.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from dogmed import tracking
from dogmed.finetune.benchmark import board
from dogmed.finetune.benchmark.cells import Cell
from dogmed.tracking.ledger import NAME

MATRIX = ("model", "init", "size", "train_fraction", "seed", "epochs", "label")


@contextmanager
def tracked_call(cells: Sequence[Cell], out: Path) -> Iterator[None]:
    """Give the cells to do a parent run, and give that the results of all cells in the end.

    The run is kept in ``benchmark/calls``; runs there, or of cells, that died are closed.

    Args:
        cells: of the whole matrix; those to do are told their parent.
        out: folder of the runs and of the store.
    """
    config = cells[0].config
    if config.tracking == "off":
        yield
        return
    uri, calls = tracking.default_uri(out), out / "benchmark" / "calls"
    began = time.localtime()
    folder = _new_folder(calls, time.strftime("%Y%m%d-%H%M%S", began))
    tags = {tracking.KIND_TAG: "benchmark"}
    if config.parent_run:
        tags[tracking.PARENT_TAG] = config.parent_run
    tasks = list(dict.fromkeys(cell.data.task.name for cell in cells))
    what = ", ".join(tasks) if len(tasks) < 4 else f"{len(tasks)} tasks"
    print(f"MLflow at {tracking.shown(uri)}", flush=True)  # a new store takes seconds to set up
    with FileLock(folder / ".lock"):
        run = tracking.Run.start(
            uri,
            config.experiment,
            f"{time.strftime('%Y-%m-%d %H:%M', began)} {what}",
            params={"task": ", ".join(tasks), **_matrix(cells), "cells": len(cells)},
            tags=tags,
            out=out,
            ledger=folder / NAME,
        )
        for cell in cells:
            if cell.state == "to do":
                cell.config = dataclasses.replace(cell.config, parent_run=run.ledger.key)
        status = "FAILED"
        try:
            if not run.lost:
                tracking.close_dead(uri, out, calls.glob(f"*/{NAME}"))
            yield
            failed = any(cell.state == "failed" for cell in cells)
            status = "FAILED" if failed else "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            results = folder / "results.csv"
            board.write_results(cells, results, out)
            run.log_artifact(results)
            run.log_scores(summary(cells))
            run.end(status)
            if not run.lost:
                ledgers = [cell.folder.ledger for cell in cells]
                tracking.close_dead(uri, out, ledgers)
                tracking.promote_files(uri, out, ledgers)


def summary(cells: Sequence[Cell]) -> dict[str, float]:
    """How many cells are in which state, and the mean test scores over the seeds of a group."""
    states = [cell.state for cell in cells]
    scores: dict[str, float] = {
        "cells_done": states.count("done"),
        "cells_failed": states.count("failed"),
    }
    groups: dict[str, list[dict[str, Any]]] = {}
    for cell in cells:
        if cell.result is not None:
            group = "/".join(cell.folder.root.parts[-3:-1])
            groups.setdefault(group, []).append(cell.result["test"])
    for group, tests in groups.items():
        for name in ("acc", "auc"):
            values = [test[name] for test in tests if test[name] is not None]
            if values:
                scores[f"mean_test_{name}/{group}"] = sum(values) / len(values)
    return scores


def _matrix(cells: Sequence[Cell]) -> dict[str, str]:
    """The values that each option of the matrix takes."""
    values = {name: [str(getattr(cell.config, name)) for cell in cells] for name in MATRIX}
    return {name: ", ".join(dict.fromkeys(found)) for name, found in values.items()}


def _new_folder(calls: Path, name: str) -> Path:
    """A folder for this call alone."""
    calls.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        folder = calls / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            return folder

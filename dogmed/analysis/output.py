"""What an analysis leaves behind: where it goes, tables in three forms, an MLflow run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dogmed import tracking
from dogmed.analysis.evaluation import Evaluation, Score
from dogmed.console import count
from dogmed.csvfile import csv_text
from dogmed.markdown import markdown_table
from dogmed.runs import slug, write_atomic
from dogmed.tracking import ledger

EXPERIMENT = "dogmed-analysis"
LONGEST = 90  # bytes of a part of a folder's name
LIBRARIES = ("torch", "timm", "numpy", "scipy", "scikit-learn")
"""Whose versions are told with a result."""
SCORES = {
    "acc": "share of right answers (multi-label: mean over labels), of many classes accuracy@1",
    "acc5": "share of images whose class is among the five likeliest",
    "auc": "mean over classes of the area under the ROC curve, as medmnist.evaluator",
    "low, high": "95% interval over the images: percentile bootstrap, of many classes Wilson's",
}
"""What the figures of a ``Score`` are."""


def folder_of(out: Path, what: str, title: str, images: str = "") -> Path:
    """Where an analysis goes: ``<out>/analysis/<what>/<title>[-<images>]``."""
    name = "-".join(_short(part) for part in (title, images) if part)
    return out.expanduser() / "analysis" / what / name


def folder_of_all(
    out: Path, what: str, evaluations: Sequence[Evaluation], request: str = ""
) -> Path:
    """Where tables and pictures go: a model's own folder, or one of these models together.

    The same weights with other options are another model, and have another folder. So has another
    request, below that of the usual one; what is kept of the model serves all.

    Args:
        out: that ``folder_of`` takes.
        what: name of the analysis.
        evaluations: of the models.
        request: as ``subject.request_name`` names it.
    """
    first = evaluations[0]
    folder = first.folder
    if len(evaluations) > 1:
        names = sorted(one.folder.name for one in evaluations)
        mark = hashlib.sha256("\0".join(names).encode()).hexdigest()[:8]
        folder = folder_of(out, what, f"{len(evaluations)} models {mark}", first.images.name)
    return folder / _short(request) if request else folder


def names_of(titles: Sequence[str]) -> str:
    """Models in a title: by name, or how many."""
    return ", ".join(titles) if len(titles) <= 3 else f"{len(titles)} models"


def machine(facts: Mapping[str, Any], *libraries: str) -> str:
    """What a result was worked out with, in a line.

    Args:
        facts: as ``provenance`` gives them.
        libraries: whose versions are told.
    """
    versions = ", ".join(f"{name} {facts['versions'][name]}" for name in ("dogmed", *libraries))
    return f"{versions}, on {facts['device']}, {count(facts['threads'], 'thread')}."


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write every number of an analysis, unrounded."""
    write_atomic(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_table(
    path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]], *, title: str, note: str
) -> list[Path]:
    """Write a table as ``<path>.csv`` and as Markdown, ``<path>.md``; returns both.

    A ``Score`` becomes three columns of the CSV file, and percent with its interval in Markdown.

    Args:
        path: without suffix.
        columns: in order; a row may lack some.
        rows: cells by column.
        title: over the Markdown table.
        note: under it.
    """
    csv, markdown = path.with_suffix(".csv"), path.with_suffix(".md")
    flat = [_flat(row) for row in rows]
    names = list(dict.fromkeys(name for row in [_order(columns, flat), *flat] for name in row))
    write_atomic(csv, csv_text(names, flat))
    cells = [[shown(row.get(column)) for column in columns] for row in rows]
    write_atomic(markdown, f"# {title}\n\n{markdown_table(columns, cells)}\n\n{note}\n")
    return [csv, markdown]


def shown(cell: Any) -> str:
    """A cell as a reader wants it: scores in percent with their interval, figures to three digits."""
    if cell is None:
        return "–"
    if isinstance(cell, Score):
        return f"{100 * cell.value:.2f} [{100 * cell.low:.2f}, {100 * cell.high:.2f}]"
    if isinstance(cell, float):
        return f"{cell:.3g}"
    return str(cell)


def track(
    folder: Path,
    out: Path,
    what: str,
    name: str,
    *,
    params: Mapping[str, Any],
    scores: Mapping[str, float | None],
    files: Sequence[Path],
) -> str | None:
    """Log an analysis to MLflow, or again what has changed of it; returns the run's id.

    Args:
        folder: of the analysis; the ledger of what was logged lies in it.
        out: of the embedded store.
        what: scale, flops or kernels: a tag of the run.
        name: of the run.
        params: options that decide the result.
        scores: figures by name.
        files: tables and pictures.
    """
    run = tracking.Run.start(
        tracking.default_uri(out.expanduser()),
        EXPERIMENT,
        name,
        params=params,
        tags={"analysis": what},
        out=out.expanduser(),
        ledger=folder / ledger.NAME,
    )
    status = "FAILED"
    try:
        run.log_scores(scores)
        for path in files:
            run.log_artifact(path)
        status = "FINISHED"
    finally:
        run.end(status)
    return run.run_id


def _short(text: str) -> str:
    """A part of a folder's name; of a long text the beginning, and a hash that tells it from others."""
    name = slug(text.replace(" ", "-")).encode()
    if len(name) <= LONGEST:
        return name.decode()
    mark = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{name[: LONGEST - 9].decode(errors='ignore')}-{mark}"


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    cells: dict[str, Any] = {}
    for name, cell in row.items():
        if isinstance(cell, Score):
            cells |= {name: cell.value, f"{name}_low": cell.low, f"{name}_high": cell.high}
        else:
            cells[name] = cell
    return cells


def _order(columns: Sequence[str], flat: Sequence[Mapping[str, Any]]) -> dict[str, None]:
    """The flat columns in the order of the table's."""
    known = {name for row in flat for name in row}
    return {n: None for c in columns for n in (c, f"{c}_low", f"{c}_high") if n in known}

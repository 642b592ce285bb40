"""``dogmed report``: read the finished runs, write what they say."""

from __future__ import annotations

import sys
from dataclasses import field
from pathlib import Path
from typing import Annotated

from annotated_types import Gt, Le

from dogmed.config import configclass, recipe
from dogmed.errors import ConfigError
from dogmed.finetune.lists import split_words


@configclass
class ReportConfig:
    """Write report.html, .md, .tex and .csv of the finished runs, with what is noise and what is not."""

    out: Path = field(default_factory=lambda: Path(recipe("finetune/default")["out"]))
    """Where the runs are."""
    to: Path | None = None
    """Folder of the report; by default report/ below --out."""
    task: tuple[str, ...] = ()
    """Only these tasks, apart by commas or spaces."""
    model: tuple[str, ...] = ()
    """Only these models, apart by commas or spaces."""
    init: tuple[str, ...] = ()
    """Only these initial weights, apart by commas or spaces."""
    label: tuple[str, ...] = ()
    """Only runs of these labels, apart by commas or spaces; none for runs without one."""
    predictions: tuple[str, ...] = ()
    """NAME=FILE or NAME=FOLDER with somebody else's test predictions in MedMNIST's CSV form."""
    cache_dir: Path | None = None
    """Where else prepared data are, for the labels; the runs' own places are always looked at."""
    resamples: Annotated[int, Gt(0), Le(1_000_000)] = 2000
    """Bootstrap resamples behind intervals and p-values."""


def command(
    out: Path,
    *,
    to: Path | None,
    task: tuple[str, ...],
    model: tuple[str, ...],
    init: tuple[str, ...],
    label: tuple[str, ...],
    predictions: tuple[str, ...],
    cache_dir: Path | None,
    resamples: int,
) -> None:
    """Write the report of the runs below ``out`` and say in a few lines what it says."""
    from dogmed.finetune.report.publish import publish, refuse_file

    folder = to or out / "report"
    refuse_file(out, "--out")
    refuse_file(folder, "--to" if to else "--out")
    if not (out / "finetune").is_dir():
        raise ConfigError(
            f"no runs below {out}: there is no folder {out / 'finetune'}; make some, for example with: dogmed "
            f"benchmark --task breastmnist --init scratch --seeds 3 --out {out}"
        )
    from dogmed.finetune.report.assembly import assemble
    from dogmed.finetune.report.page import page
    from dogmed.finetune.report.writing import csv_files, latex, markdown

    def say(text: str) -> None:
        if sys.stderr.isatty():
            print(f"comparing on {text} ...", file=sys.stderr, flush=True)

    report = assemble(
        out,
        task=split_words(task),
        model=split_words(model),
        init=split_words(init),
        label=split_words(label),
        predictions=predictions,
        cache_dirs=[cache_dir] if cache_dir else [],
        resamples=resamples,
        say=say,
    )
    texts = {
        "report.md": markdown(report),
        "report.tex": latex(report),
        "report.html": page(report),
    }
    publish(folder, csv_files(report) | texts)
    if report.synthetic:
        print(report.synthetic)
    for line in [*report.facts, *(told for told, _ in report.headlines)]:
        print(line)
    if report.notes:
        print(f"{len(report.notes)} notes in the report, the first: {report.notes[0]}")
    print(f"report  {folder / 'report.html'} (and report.md, report.tex, report.csv)")

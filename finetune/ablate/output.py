"""What ``dogmed ablate`` leaves behind: the table in three forms, and its picture."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from dogmed.console import count
from dogmed.csvfile import csv_text
from dogmed.finetune.ablate.comparison import Row, Study
from dogmed.finetune.ablate.picture import draw
from dogmed.finetune.ablate.variants import BASELINE
from dogmed.finetune.report.cells import between, interval, mean_sd, p_value, points
from dogmed.finetune.report.tables import NAMES
from dogmed.finetune.report.verdicts import METRICS
from dogmed.markdown import markdown_table
from dogmed.plots import save_figure
from dogmed.runs import write_atomic

NAME = "ablation"


def write(study: Study, folder: Path) -> list[Path]:
    """Write ``ablation.md``, ``.csv``, ``.json``, ``.png`` and ``.svg`` into a folder; returns them."""
    names = [folder / f"{NAME}.{suffix}" for suffix in ("md", "csv", "json")]
    rows = [_numbers(row) for row in study.rows]
    write_atomic(names[0], markdown(study))
    write_atomic(names[1], csv_text(list(dict.fromkeys(key for row in rows for key in row)), rows))
    write_atomic(names[2], json.dumps(_everything(study), indent=2, allow_nan=False) + "\n")
    return [*names, *save_figure(draw(study), folder / NAME)]


def markdown(study: Study) -> str:
    """The table with what must be read beside it."""
    shared = study.shared
    recipe = (
        f"{count(study.images, 'test image')} at {shared.size} px, init {shared.init}, "
        f"{count(shared.epochs, 'epoch')}, batch {shared.batch_size}"
        + (f", {100 * shared.train_fraction:g}% of train" if shared.train_fraction < 1 else "")
    )
    head = ["variant", "parameters", "GMAC", "seeds"]
    for metric in METRICS:
        name = NAMES[metric]
        head += [f"{name}, %", f"{name} − DoGNeXt, points", "p (Holm)"]
    head += ["thesis acc@1 / @5, ImageNet-1K", "rank here / thesis"]
    lines = [f"# Ablation of {shared.model} on {study.title}", "", recipe, ""]
    lines.append(markdown_table(head, map(_cells, study.rows), numbers=True))
    lines += ["", f"![differences to DoGNeXt]({NAME}.png)", ""]
    lines += [f"- {_capital(line)}." for line in study.sentences] + [""] * bool(study.sentences)
    lines += [f"- {line}" for line in (*_notes(study), *study.notes)]
    return "\n".join(lines) + "\n"


def _notes(study: Study) -> list[str]:
    return [
        "Mean over seeds ± standard deviation between them [95% interval: test images and, of several seeds, "
        "seeds]. Differences are paired by test image, with the variance of the seeds added where there are "
        f"several ({study.resamples:,} resamples).",
        "better and worse: p < 0.05 after Holm's adjustment over the variants of one metric; noise is not "
        "equality: these images and seeds do not tell the two apart.",
        "The thesis's accuracies (Tables 4.2 and 4.3) are of ImageNet-1K's val, atto at 224 px, 50 epochs, as "
        "printed, with no seeds or intervals stated: they stand beside the measured ones for their order, "
        "not their size. Ranks are among the variants that it has.",
    ]


def _cells(row: Row) -> list[str]:
    cells = [
        row.variant.title,
        f"{row.parameters / 1e6:.3f} M",
        f"{row.macs / 1e9:.4f}",
        str(len(row.runs)),
    ]
    for metric in METRICS:
        score, against = row.scores.get(metric), row.against.get(metric)
        cells.append(f"{mean_sd(score)} {interval(score.low, score.high)}" if score else "–")
        if against is None:
            cells += ["" if row.variant.name == BASELINE else "–", ""]
            continue
        d = against.difference
        cells.append(f"{points(d.value)} {between(d.low, d.high)}")
        cells.append(f"{p_value(against.adjusted)} {against.verdict}")
    thesis = row.variant.thesis
    cells.append(f"{thesis.acc1:.2f} / {thesis.acc5:.2f}" if thesis else "–")
    cells.append(f"{row.rank} / {row.thesis_rank}" if row.rank else "–")
    return cells


def _numbers(row: Row) -> dict[str, Any]:
    """A row of the CSV file: shares and p-values as they are, the thesis's accuracies in percent."""
    values: dict[str, Any] = {
        "variant": row.variant.name,
        "model": row.model,
        "options": " ".join(f"{name}={value}" for name, value in row.variant.net.items()),
        "parameters": row.parameters,
        "macs": row.macs,
        "seeds": len(row.runs),
    }
    for metric in METRICS:
        if score := row.scores.get(metric):
            values |= {metric: score.value, f"{metric}_sd": score.sd, f"{metric}_low": score.low,
                       f"{metric}_high": score.high}  # fmt: skip
        if against := row.against.get(metric):
            d = against.difference
            values |= {f"{metric}_difference": d.value, f"{metric}_difference_low": d.low,
                       f"{metric}_difference_high": d.high, f"{metric}_p": d.p,
                       f"{metric}_p_holm": against.adjusted, f"{metric}_verdict": against.verdict}  # fmt: skip
    thesis = row.variant.thesis
    return values | {
        "thesis_table": thesis and thesis.table,
        "thesis_imagenet_acc1": thesis and thesis.acc1,
        "thesis_imagenet_acc5": thesis and thesis.acc5,
        "rank": row.rank,
        "thesis_rank": row.thesis_rank,
    }


def _everything(study: Study) -> dict[str, Any]:
    return {
        "task": study.task,
        "source": study.source,
        "test_images": study.images,
        "model": study.shared.model,
        "init": study.shared.init,
        "size": study.shared.size,
        "epochs": study.shared.epochs,
        "train_fraction": study.shared.train_fraction,
        "resamples": study.resamples,
        "agreement": study.agreement and dataclasses.asdict(study.agreement),
        "rows": [
            _numbers(row)
            | {"title": row.variant.title, "net": dict(row.variant.net)}
            | {"covers": {name: score.covers for name, score in row.scores.items()}}
            | {"runs": [{"folder": run.folder, "seed": run.seed, **_scores(run.test)} for run in row.runs]}
            for row in study.rows
        ],
        "notes": study.notes,
    }  # fmt: skip


def _scores(test: Any) -> dict[str, Any]:
    return {name: test.get(name) for name in METRICS}


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]

"""What ``dogmed stress`` writes: every number as JSON and CSV, tables, a page, pictures, a run's section."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dogmed import console
from dogmed.analysis.output import (
    LIBRARIES,
    SCORES,
    folder_of_all,
    machine,
    names_of,
    track,
    write_json,
)
from dogmed.analysis.page import page
from dogmed.analysis.stress.command import StressConfig
from dogmed.analysis.stress.errors import (
    Reference,
    Row,
    Told,
    compare,
    conclude,
    reference_of,
)
from dogmed.analysis.stress.pictures import curves, examples
from dogmed.analysis.stress.points import ERROR, METRICS, SPLIT, Measured, Subject
from dogmed.analysis.stress.run import keep_in_run
from dogmed.analysis.stress.tables import CSV_COLUMNS, csv_rows, tables_of
from dogmed.analysis.subject import params_of
from dogmed.analysis.tables import markdown, tell
from dogmed.csvfile import csv_text
from dogmed.plots import save_figure, write_figure
from dogmed.provenance import provenance
from dogmed.runs import write_atomic

DEFINITIONS = {
    ERROR: "1 - balanced accuracy: mean over the classes of the share of wrong answers; multi-label: mean over "
    "labels of 1 - (sensitivity + specificity) / 2; decisions as medmnist.evaluator takes them, at 0.5",
    **{name: text for name, text in SCORES.items() if name != "acc5"},
    "mean": "over the severities of a corruption, or over all corruptions, each with the same weight",
    "difference": "minus the score on the images as they are; interval and p by the paired bootstrap",
    "p_holm": "adjusted by Holm over a model's corruptions and resolutions, of one score",
    "ratio": "BE: mean balanced error over the severities, over that of the reference",
    "relative": "rBE: the same of what is added to the balanced error on the images as they are; none where the "
    "reference is no worse than there",
    "resolution": "images shrunk to that side and enlarged to theirs again, bilinear with antialiasing",
}


def write(
    config: StressConfig,
    request: str,
    subjects: list[Subject],
    measured: list[Measured],
    output: console.Console,
) -> Path:
    """Work out what follows from the points, write it all and say it; returns the folder."""
    reference = reference_of(measured)
    told = conclude(measured, reference)
    shown = [one.subject for one in told]
    folder = folder_of_all(config.out, "stress", [s.evaluation for s in shown], request)
    facts = provenance(shown[0].evaluation.device, (*LIBRARIES, "pillow"))
    title, lead = f"Corrupted images: {shown[0].images.title}", _lead(told, reference)
    heading = f"{title}, {shown[0].title}" if len(shown) == 1 else title
    tables = tables_of(told, reference)
    head = [*lead, machine(facts, "torch", "pillow")]
    write_json(folder / "stress.json", _content(told, reference, params_of(config), facts))
    write_atomic(folder / "stress.csv", csv_text(CSV_COLUMNS, csv_rows(told)))
    write_atomic(folder / "stress.md", markdown(heading, head, tables))
    figure = curves(told, title)
    pictures = save_figure(figure, folder / "stress")
    drawn = examples(shown[0], f"{title}, the first of {SPLIT}")
    pictures.append(write_figure(drawn, folder / "stress-examples.png"))
    narrow = curves(told, title, columns=1)
    write_atomic(folder / "stress.html", page(heading, head, tables, [figure], [narrow]))
    tell(output, heading, tables, lead)
    for one in told:
        kept = keep_in_run(one, reference, whole=not config.corruptions)
        if kept:
            output.line(kept)
    files = [folder / f"stress.{suffix}" for suffix in ("json", "csv", "md", "html")] + pictures
    if config.tracking == "mlflow":
        track(
            folder, config.out, "stress", f"stress {names_of([s.title for s in shown])}",
            params=params_of(config), scores=_figures(told), files=files,
        )  # fmt: skip
    output.line(f"\n{folder}: {', '.join(path.name for path in files)}")
    return folder


def _lead(told: Sequence[Told], reference: Reference | None) -> list[str]:
    """What must be known to read the tables, a line each."""
    first = told[0].subject
    lines = [
        f"{console.count(len(first.images.labels(SPLIT)), 'image')} of {SPLIT}; trained at "
        + ", ".join(f"{one.subject.images.size} px ({one.subject.title})" for one in told)
        + f"; corruptions of seed {first.config.seed}."
    ]
    if reference is None:
        lines.append(
            "Errors are not normalised: there are no published figures of these images at this size; "
            "--reference MODEL gives one's own."
        )
    elif reference.published:
        lines.append(
            "Normalised by the published figures of MedMNIST-C's AlexNet at 224 px, of its own corrupted images: "
            "ours are not pixel for pixel the same (docs/stress.md)."
        )
    else:
        lines.append(f"Normalised by {reference.title} on the same corrupted images.")
    for one in told:
        if one.left_out:
            lines.append(
                f"{one.subject.title}: rBE is without {', '.join(one.left_out)}, where the reference is no "
                "worse than on the images as they are."
            )
        lines += [f"Note: {note}." for note in one.subject.notes]
    return lines


def _content(
    told: Sequence[Told],
    reference: Reference | None,
    options: dict[str, Any],
    facts: dict[str, Any],
) -> dict[str, Any]:
    """Every number, unrounded."""
    return {
        "analysis": "stress",
        "options": options,
        "resamples": told[0].subject.evaluation.resamples,
        "definitions": DEFINITIONS,
        "models": [_model(one) for one in told],
        "reference": None if reference is None else {
            "title": reference.title,
            "published": reference.published,
            "clean": reference.clean.value,
            "errors": {name: error.value for name, error in reference.errors.items()},
        },
        "pairs": [
            {
                "model": a.subject.title,
                "minus": b.subject.title,
                "differences": {
                    name: {metric: c.numbers for metric, c in made.items()}
                    for name, made in compare(a, b).items()
                },
            }
            for k, a in enumerate(told)
            for b in told[k + 1 :]
        ],
        "provenance": facts,
    }  # fmt: skip


def _model(one: Told) -> dict[str, Any]:
    subject = one.subject
    record, images = subject.evaluation.trained.record, subject.images
    return {
        "title": subject.title,
        "model": record.model,
        "options": record.options,
        "weights": str(subject.evaluation.trained.path),
        "weights_sha256": record.sha256,
        "images": images.name,
        "kind": images.kind,
        "classes": len(images.classes),
        "size": images.size,
        "data": images.digest(SPLIT),
        "notes": list(subject.notes),
        "clean": _scores(one.clean),
        "stresses": [_row(row) for row in one.rows],
        "mean": _row(one.overall),
        "without_relative": list(one.left_out),
    }


def _row(row: Row) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if row.stress is not None:
        content = {"name": row.stress.name, "group": row.stress.group}
        content["severities"] = [
            {"severity": m.point.severity, "strength": strength, **_scores(m)}
            for m, strength in zip(row.points, row.stress.strengths, strict=True)
        ]
    content["mean"] = _scores(row)
    content["minus_clean"] = {metric: c.numbers for metric, c in row.changes.items()}
    content["ratio"] = None if row.ratio is None else row.ratio._asdict()
    content["relative"] = None if row.relative is None else row.relative._asdict()
    return content


def _scores(one: Row | Measured) -> dict[str, Any]:
    found = {metric: one.score(metric) for metric in METRICS}
    return {metric: None if s is None else s._asdict() for metric, s in found.items()}


def _figures(told: Sequence[Told]) -> dict[str, float | None]:
    """What MLflow is told: each mean over severities."""
    figures: dict[str, float | None] = {}
    for k, one in enumerate(told):
        who = f"{k + 1}_" if len(told) > 1 else ""
        places: list[tuple[str, Row | Measured]] = [("clean", one.clean), ("mean", one.overall)]
        places += [(r.stress.name.replace(" ", ""), r) for r in one.rows if r.stress is not None]
        for name, place in places:
            for metric in METRICS:
                score = place.score(metric)
                if score is not None:
                    figures[f"{who}{metric}_{name}"] = score.value
        for name, ratio in (("be", one.overall.ratio), ("rbe", one.overall.relative)):
            if ratio is not None:
                figures[f"{who}{name}"] = ratio.value
    return figures

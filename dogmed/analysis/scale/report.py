"""What ``dogmed analyze scale`` writes: every number as JSON and CSV, tables, a page, pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dogmed import console, stats
from dogmed.analysis.images import Fit
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
from dogmed.analysis.scale.channels import (
    Selection,
    selection_figure,
    selection_table,
    selections,
)
from dogmed.analysis.scale.channels import content as channels_content
from dogmed.analysis.scale.command import Protocol, ScaleConfig
from dogmed.analysis.scale.curves import Curve, curves
from dogmed.analysis.scale.pictures import figure_of
from dogmed.analysis.scale.points import (
    Choice,
    KernelChange,
    Measured,
    Subject,
    changes,
    choices,
    metrics_of,
)
from dogmed.analysis.scale.tables import (
    CSV_COLUMNS,
    FITS,
    changes_table,
    choices_table,
    csv_rows,
    metric_name,
    scores_table,
    summary_table,
    thesis_places,
    thesis_rows,
)
from dogmed.analysis.subject import params_of
from dogmed.analysis.tables import Table, markdown, tell
from dogmed.csvfile import csv_text
from dogmed.plots import save_figure
from dogmed.provenance import provenance
from dogmed.runs import write_atomic

DEFINITIONS = {
    "factor": "side of the resized image over the side that the model was trained at",
    "resize": "the network sees the resized image",
    "pad": "the network sees an image of the size of its training: the resized one in the middle of black, "
    "or, where it is larger, its middle",
    "mirror": "as pad, with the image's mirror images in place of black",
    "kernel": "cells along each axis of every DoGConv; the functions are sampled over the extent of the "
    "training, so that the pattern is resized with the kernel; null: no DoGConv",
    **SCORES,
    "difference": "score minus that of the model's own kernel size on the same images; interval and p by "
    "the paired bootstrap",
    "p_holm": f"adjusted by Holm over a model's differences of one fit and score; {stats.ALPHA} and more is "
    "noise, or too few resamples where none could be less",
    "chosen_on_val": "the kernel size with the highest such score on val at that side; equal ones: nearest to own",
    "flattery": "score on test of the kernel size that is best there, minus that of the one chosen on val",
    "channels": "share of the images whose highest score, over classes and scale channels, is that of the "
    "channel; sigma of its first layer, in pixels",
    "worst / at 1": "score at the factor where it is lowest over that at factor 1; interval of that factor's",
}


@dataclass(frozen=True)
class Found:
    """All that was found out."""

    protocol: Protocol
    subjects: list[Subject]
    measured: list[Measured]
    told: list[Measured]
    """Those of the split to report on."""
    changes: list[KernelChange]
    choices: list[Choice]
    curves: list[Curve]
    selections: list[Selection]

    @property
    def many(self) -> bool:
        return self.subjects[0].evaluation.many

    @property
    def metrics(self) -> list[str]:
        return metrics_of(self.told)

    def of_fit(self, fit: Fit) -> list[Measured]:
        return [m for m in self.told if m.point.fit == fit]


def write(
    config: ScaleConfig,
    protocol: Protocol,
    subjects: list[Subject],
    measured: list[Measured],
    output: console.Console,
) -> Path:
    """Work out what follows from the points, write it all and say it; returns the folder."""
    found = conclude(protocol, subjects, measured)
    name = protocol.name
    evaluations = [subject.evaluation for subject in subjects]
    folder = folder_of_all(config.out, "scale", evaluations, protocol.request)
    title, lead, tables = _title(found), _lead(found), tables_of(found)
    facts = provenance(subjects[0].evaluation.device, LIBRARIES)
    head = [*lead, machine(facts, "torch", "timm")]
    write_json(folder / f"{name}.json", _content(found, params_of(config), facts))
    rows = csv_rows(measured, found.changes, found.choices)
    write_atomic(folder / f"{name}.csv", csv_text(CSV_COLUMNS, rows))
    write_atomic(folder / f"{name}.md", markdown(title, head, tables))
    figure = figure_of(found, title)
    pictures = save_figure(figure, folder / name)
    figures = [figure]
    if found.selections:
        figures.append(selection_figure(found.selections, title))
        pictures += save_figure(figures[1], folder / f"{name}-channels")
    write_atomic(folder / f"{name}.html", page(title, head, tables, figures))
    tell(output, title, tables, lead)
    files = [folder / f"{name}.{suffix}" for suffix in ("json", "csv", "md", "html")] + pictures
    if config.tracking == "mlflow":
        track(
            folder, config.out, "scale", f"{name} {names_of([s.title for s in subjects])}",
            params=params_of(config), scores=_figures(found), files=files,
        )  # fmt: skip
    output.line(f"\n{folder}: {', '.join(path.name for path in files)}")
    return folder


def conclude(protocol: Protocol, subjects: list[Subject], measured: list[Measured]) -> Found:
    """Compare with own kernels, choose on val, and draw curves where factors were asked for."""
    told = [m for m in measured if m.point.split == m.subject.report_split]
    chosen = choices(measured)
    drawn = []
    if protocol.factors:
        drawn = [c for metric in metrics_of(told) for c in curves(subjects, told, chosen, metric)]
    seen = selections(subjects, told) if protocol.factors else []
    return Found(protocol, subjects, measured, told, changes(told), chosen, drawn, seen)


def tables_of(found: Found) -> list[Table]:
    """One group of tables for each fit and score."""
    tables = []
    subjects, split = found.subjects, found.subjects[0].report_split
    for fit in found.protocol.fits:
        for metric in found.metrics:
            name = metric_name(metric, found.many)
            where = f"{name}, %, {split}, {fit}: {FITS[fit]}"
            thesis = fit == "resize" and metric == "acc"
            tables.append(scores_table(where, subjects, found.of_fit(fit), metric, thesis=thesis))
            made = [c for c in found.changes if c.metric == metric and c.of.point.fit == fit]
            if made:
                title = f"{name}, {fit}: other kernel sizes minus the model's own"
                tables.append(changes_table(title, subjects, made, thesis=thesis))
            of_val = [c for c in found.choices if c.metric == metric and c.test.point.fit == fit]
            if of_val:
                title = f"{name}, {fit}: kernel sizes chosen on val"
                tables.append(choices_table(title, subjects, of_val))
            drawn = [c for c in found.curves if c.metric == metric]
            if drawn:
                tables.append(summary_table(f"{name}, {fit}: over all factors", drawn))
    return tables + [selection_table(selection) for selection in found.selections]


def _title(found: Found) -> str:
    what = "Rescaled images" if found.protocol.factors else "Resolutions"
    return f"{what} and kernel sizes: {found.subjects[0].images.title}"


def _lead(found: Found) -> list[str]:
    """What must be known to read the tables, a line each."""
    first = found.subjects[0]
    lines = [
        f"{console.count(len(first.images.labels(first.report_split)), 'image')} of {first.report_split}; "
        "trained at " + ", ".join(f"{s.images.size} px ({s.title})" for s in found.subjects) + "."
    ]
    if first.choice_split is None and any(len(s.kernels) > 1 for s in found.subjects):
        lines.append(
            "These images have no test beside val: no kernel size is chosen, and the best in a column is "
            "the best of those tried on these very images."
        )
    lines += [f"Note: {note}." for s in found.subjects for note in s.notes]
    resamples = first.evaluation.resamples
    family = max((change.family for change in found.changes), default=0)
    if resamples < stats.resamples_for(family):
        lines.append(
            f"With {resamples} resamples no p-value is small enough after Holm's adjustment over "
            f"{console.count(family, 'difference')}: give --resamples {stats.resamples_for(family)} or more."
        )
    return lines


def _content(found: Found, options: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """Every number, unrounded."""
    return {
        "analysis": found.protocol.name,
        "options": options,
        "resamples": found.subjects[0].evaluation.resamples,
        "definitions": DEFINITIONS,
        "models": [_model(subject) for subject in found.subjects],
        "points": [
            _place(m) | {"scores": {name: score._asdict() for name, score in m.scores.items()}}
            for m in found.measured
        ],
        "differences": [_place(c.of) | _change(c) for c in found.changes],
        "choices": [
            _place(c.test)
            | {
                "metric": c.metric,
                "val": c.val.scores[c.metric]._asdict(),
                "test": c.test.scores[c.metric]._asdict(),
                "minus_own": None if c.change is None else _change(c.change),
                "best_kernel_on_test": c.best_on_test.point.kernel,
                "flattery": c.flattery,
            }
            for c in found.choices
        ],
        "curves": [_curve(c, found.curves) for c in found.curves],
        "channels": channels_content(found.selections),
        "thesis": {
            "data": "ImageNet-1K, trained at 224 px, accuracy@1 in percent as printed",
            "factors": thesis_places(),
            "rows": [{"table": t, "name": n, "values": v} for t, n, v in thesis_rows()],
        },
        "provenance": facts,
    }


def _model(subject: Subject) -> dict[str, Any]:
    record, images = subject.evaluation.trained.record, subject.images
    return {
        "title": subject.title,
        "model": record.model,
        "options": record.options,
        "weights": str(subject.evaluation.trained.path),
        "weights_sha256": record.sha256,
        "own_kernel": subject.own,
        "kernels": list(subject.kernels),
        "images": images.name,
        "kind": images.kind,
        "classes": len(images.classes),
        "size": images.size,
        "data": {split: images.digest(split) for split in images.splits},
        "notes": list(subject.notes),
    }


def _place(m: Measured) -> dict[str, Any]:
    return {"model": m.subject.title, **m.point._asdict(), "images": len(m.resampled.labels)}


def _change(change: KernelChange) -> dict[str, Any]:
    return {"metric": change.metric, **change.numbers}


def _curve(curve: Curve, others: Sequence[Curve]) -> dict[str, Any]:
    own = next(
        c for c in others if (c.subject, c.metric, c.own) == (curve.subject, curve.metric, True)
    )
    mean, kept, gain = curve.average, curve.kept, curve.gain(own)
    return {
        "model": curve.subject.title,
        "name": curve.name,
        "metric": curve.metric,
        "kernels": [m.point.kernel for m in curve.points],
        "mean": {"value": mean.value, "low": mean.low, "high": mean.high},
        "mean_minus_own": {"value": gain.value, "low": gain.low, "high": gain.high, "p": gain.p},
        "worst_factor": curve.worst.point.at,
        "worst_over_at_1": None if kept is None else kept._asdict(),
    }


def _figures(found: Found) -> dict[str, float | None]:
    """What MLflow is told: each score of the split to report on."""
    several = len(found.subjects) > 1
    figures: dict[str, float | None] = {}
    for m in found.told:
        point = m.point
        who = f"{found.subjects.index(m.subject) + 1}_" if several else ""
        kernel = "" if point.kernel is None else f"_k{point.kernel}"
        for metric, score in m.scores.items():
            figures[f"{who}{metric}_{point.fit}_{point.side}px{kernel}"] = score.value
    return figures

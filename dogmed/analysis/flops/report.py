"""What ``dogmed analyze flops`` writes: every number as JSON and CSV, a Markdown table, a picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dogmed import console
from dogmed.analysis.flops import picture as flops_picture
from dogmed.analysis.flops.choice import Choice, choose, finetune_command, macs_text
from dogmed.analysis.flops.command import FlopsConfig, request_of
from dogmed.analysis.flops.points import Found, Measured, Unit, unit_of
from dogmed.analysis.output import (
    LIBRARIES,
    SCORES,
    folder_of_all,
    names_of,
    shown,
    track,
    write_json,
    write_table,
)
from dogmed.analysis.subject import params_of
from dogmed.provenance import provenance

DEFINITIONS = {
    "macs": "multiply-accumulates of a forward pass of one image, by torch's FLOP counter (1 MAC = 2 FLOPs): "
    "convolutions and matrix products of the network as published, and the sampling of its DoG kernels",
    "sampling_macs": "of them, to sample the DoG kernels, which a batch needs once and evaluation keeps",
    "stride": "of the first DoGConv and of the pool beside it; its kernels stay as they are",
    "stride+kernel": "the same, with the first DoGConv's kernels in proportion, resized at an unchanged extent",
    "resolution": "of the image; the network is not changed",
    "front": "no other configuration is as good on the images chosen on at a lower cost, or better at the same",
    **SCORES,
    "difference": "score minus the full model's on the same images; interval and p by the paired bootstrap",
    "ms": "median time of a forward pass, per image of the batch; FLOPs are not time",
}
THESIS = "The thesis draws such curves (Figures 4.4 and 4.5, ImageNet-1K at 224 px) without printing their values."


def write(
    config: FlopsConfig, budget: int | None, found: Sequence[Found], output: console.Console
) -> Path:
    """Choose for the budget, write it all and say it; returns the folder."""
    subjects = [one.subject for one in found]
    request = request_of(config, budget)
    folder = folder_of_all(config.out, "flops", [s.evaluation for s in subjects], request)
    facts = provenance(subjects[0].evaluation.device, LIBRARIES)
    choices = []
    if budget is not None:
        for one in found:
            own = folder_of_all(config.out, "flops", [one.subject.evaluation], request)
            choices.append(choose(one, budget, own))
    title = f"Scores against FLOPs: {names_of([s.title for s in subjects])} on {subjects[0].images.title}"
    names = _names(found[0])
    rows = [_row(one, m, unit_of(found)) for one in found for m in one.measured]
    lines = [line for choice in choices for line in choice_lines(choice, config)]
    columns = _columns(found, names, config.latency is not None)
    tables = write_table(
        folder / "flops",
        columns,
        rows,
        title=title,
        note="\n\n".join([*lines, *_notes(found, facts, config.latency)]),
    )
    write_json(folder / "flops.json", _content(config, found, choices, facts))
    pictures = flops_picture.draw(found, names, folder / "flops")
    output.line(f"\n{title}")
    _print(columns, rows, found[0])
    for line in ["", *lines, *_notes(found, facts, config.latency)[:1]]:
        output.line(line)
    files = [folder / "flops.json", *tables, *pictures]
    if config.tracking == "mlflow":
        track(
            folder, config.out, "flops", f"flops {names_of([s.title for s in subjects])}",
            params=params_of(config), scores=_figures(found), files=files,
        )  # fmt: skip
    output.line(f"\n{folder}: {', '.join(path.name for path in files)}")
    return folder


def choice_lines(choice: Choice, config: FlopsConfig) -> list[str]:
    """What a budget bought, and how to go on with it, in lines for a person."""
    found, chosen = choice.found, choice.chosen
    share = chosen.cost.macs / found.full.cost.macs
    scores, told, metric = chosen.scores[found.told_on], found.told_on, found.subject.metric
    against = []
    for name, d in choice.differences.items():
        interval = f"[{100 * d.low:+.2f}, {100 * d.high:+.2f}]"
        against.append(f"{name} {100 * d.value:+.2f} {interval}, p {d.p:.3g}")
    same = chosen is found.full
    return [
        f"budget  {macs_text(choice.budget)}, {found.subject.title}: {chosen.configuration.way} "
        f"({chosen.configuration}), {macs_text(chosen.cost.macs)}, {share:.0%} of the full model's; best "
        f"{metric} on {found.chosen_on} ({100 * found.value(chosen):.2f}) of "
        f"{console.count(len(found.within(choice.budget)), 'configuration')} within it",
        f"  on {told}: {', '.join(f'{name} {shown(score)}' for name, score in scores.items())}; "
        + ("the full model itself" if same else f"minus the full model: {'; '.join(against)}"),
        f"  saved: {choice.path}",
        f"  use: {finetune_command(choice, config)}",
    ]  # fmt: skip


def _names(found: Found) -> dict[str, str]:
    """The scores that there are, as pictures call them."""
    many = found.subject.evaluation.many
    known = {"acc": "accuracy@1" if many else "accuracy", "acc5": "accuracy@5", "auc": "AUC"}
    everywhere = [m.scores[found.told_on] for m in found.measured]
    return {key: name for key, name in known.items() if all(key in s for s in everywhere)}


def _row(found: Found, m: Measured, unit: Unit) -> dict[str, Any]:
    one = m.configuration
    row: dict[str, Any] = {
        "model": found.subject.title,
        "way": one.way,
        "stride": one.stride,
        "kernel": one.kernel_size,
        "px": one.side,
        unit.name: m.cost.macs / unit.macs,
        "of full": f"{m.cost.macs / found.full.cost.macs:.0%}",
        "front": "*" if m.front else "",
        "macs": m.cost.macs,
        "sampling_macs": m.cost.sampling,
    }
    if m.latency is not None:
        row |= {"ms": 1000 * m.latency.median, "ms_spread": 1000 * m.latency.spread}
    for split, scores in m.scores.items():
        row |= {f"{split}_{name}": score for name, score in scores.items()}
    return row


def _columns(found: Sequence[Found], names: dict[str, str], timed: bool) -> list[str]:
    several = ["model"] if len(found) > 1 else []
    stem = ["stride", "kernel"] if any(one.full.configuration.stride for one in found) else []
    scores = [f"{split}_{name}" for split in found[0].subject.images.splits for name in names]
    cost = [unit_of(found).name, "of full", *(["ms"] if timed else [])]
    return [*several, "way", *stem, "px", *cost, *scores, "front"]


def _print(columns: Sequence[str], rows: Sequence[dict[str, Any]], found: Found) -> None:
    """The table, without what was chosen on but for the score to choose by, and that without interval."""
    by = f"{found.chosen_on}_{found.subject.metric}"
    if found.chosen_on != found.told_on:
        columns = [c for c in columns if not c.startswith(f"{found.chosen_on}_") or c == by]
    cells = [tuple(columns)]
    for row in rows:
        short = {by: f"{100 * row[by].value:.2f}"} if found.chosen_on != found.told_on else {}
        cells.append(tuple(shown({**row, **short}.get(column)) for column in columns))
    print()
    console.table(cells)


def _notes(found: Sequence[Found], facts: dict[str, Any], latency: int | None) -> list[str]:
    first = found[0]
    if first.chosen_on == first.told_on:
        how = (
            f"There is {first.told_on} alone: fronts and choices are made on it and told on it, so that what "
            "was chosen looks a little better than it is."
        )
    else:
        how = (
            f"Fronts and choices are made on {first.chosen_on} by {first.subject.metric} and told on "
            f"{first.told_on}."
        )
    timed = ""
    if latency is not None:
        timed = (
            f" ms: median of a forward pass of {console.count(latency, 'image')} on {facts['device']}, "
            f"{console.count(facts['threads'], 'thread')}, per image."
        )
    defined = [f"{name}: {text}" for name, text in DEFINITIONS.items()]
    return [f"{how} 1 MAC = 2 FLOPs.{timed}", "; ".join(defined) + ".", THESIS]


def _content(
    config: FlopsConfig, found: Sequence[Found], choices: Sequence[Choice], facts: dict[str, Any]
) -> dict[str, Any]:
    first = found[0]
    return {
        "images": first.subject.images.name,
        "chosen_on": first.chosen_on,
        "chosen_by": first.subject.metric,
        "told_on": first.told_on,
        "options": params_of(config),
        "resamples": first.subject.evaluation.resamples,
        "definitions": DEFINITIONS,
        "models": [_model_content(one) for one in found],
        "choices": [
            {
                "model": choice.found.subject.title,
                "budget_macs": choice.budget,
                "chosen": _point_content(choice.chosen),
                "minus_full": {n: dataclasses.asdict(d) for n, d in choice.differences.items()},
                "file": choice.path.name,
            }
            for choice in choices
        ],
        "provenance": facts,
    }


def _model_content(found: Found) -> dict[str, Any]:
    record = found.subject.evaluation.trained.record
    return {
        "title": found.subject.title,
        "model": record.model,
        "options": record.options,
        "sha256": record.sha256,
        "trained_px": record.data.trained_size or record.data.size,
        "notes": list(found.subject.notes),
        "configurations": [_point_content(m) for m in found.measured],
    }


def _point_content(m: Measured) -> dict[str, Any]:
    one = m.configuration
    return {
        "way": one.way,
        "stride": one.stride,
        "kernel_size": one.kernel_size,
        "px": one.side,
        "macs": m.cost.macs,
        "sampling_macs": m.cost.sampling,
        "latency_seconds": None if m.latency is None else m.latency._asdict(),
        "front": m.front,
        "scores": {
            split: {name: score._asdict() for name, score in scores.items()}
            for split, scores in m.scores.items()
        },
    }


def _figures(found: Sequence[Found]) -> dict[str, float | None]:
    """Scores and costs by name, for MLflow, whose names have no plus sign."""
    figures: dict[str, float | None] = {}
    for number, one in enumerate(found, 1):
        prefix = f"model{number}/" if len(found) > 1 else ""
        for m in one.measured:
            place = f"{prefix}{m.configuration.way.replace('+', '-')}/{m.configuration.key}"
            figures[f"{place}/gmac"] = m.cost.macs / 1e9
            for split, scores in m.scores.items():
                figures |= {f"{place}/{split}_{name}": s.value for name, s in scores.items()}
    return figures

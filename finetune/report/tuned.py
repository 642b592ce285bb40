"""Whether tuning was worth it: default against tuned options, as ``dogmed tune`` compared them."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dogmed import stats
from dogmed.console import duration
from dogmed.finetune.report.cells import Cell, Row, Table, between, p_value, percent, points, text
from dogmed.finetune.report.tables import tally
from dogmed.finetune.report.verdicts import METRICS, WORDS, adjust


@dataclass(frozen=True)
class Outcome:
    """One search's comparison in one metric."""

    task: str
    synthetic: bool
    metric: str
    setup: str
    budget: str
    trials: int
    seconds: float
    default: float
    tuned: float
    difference: float
    interval: tuple[float, float] | None
    covers: str
    p: float | None
    """None where seeds say nothing of chance: one alone, or all that differ alike."""


def table(out: Path) -> tuple[Table | None, list[str]]:
    """Read ``<out>/tuned/<task>/<setup>.json``; returns the table, if any, and what could not be read."""
    found: list[Outcome] = []
    problems: list[str] = []
    for file in sorted((out / "tuned").glob("*/*.json")):
        try:
            found += _outcomes(json.loads(file.read_text()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            problems.append(f"{file.relative_to(out)}: damaged, or not an outcome of dogmed tune")
    if not found:
        return None, problems
    names = ["setup", "trials", "time", "default", "tuned", "difference, points", "95% interval", "p",
             "p (Holm)", "verdict"]  # fmt: skip
    result = Table("tuned", "Tuning", "task", [Cell(name) for name in names])
    asked = [one for one in found if one.p is not None]
    adjusted = adjust(
        [one.p for one in asked if one.p is not None],
        [(one.metric, one.synthetic) for one in asked],
    )
    known = {id(one): p for one, (p, _) in zip(asked, adjusted, strict=True)}
    result.rows = [_row(one, known.get(id(one))) for one in found]
    for synthetic in (False, True):
        for metric in METRICS:
            family = [o for o in asked if (o.metric, o.synthetic) == (metric, synthetic)]
            if family:
                words = Counter(stats.verdict(known[id(one)], one.difference) for one in family)
                result.notes.append(
                    f"{'SYNTHETIC data, ' * synthetic}{metric.upper()}: {tally(words)} of {len(family)} "
                    f"comparison{'s' * (len(family) != 1)} of tuned with default options, by Holm over these."
                )
    result.notes.append(
        "Val chose the options; both sides have the same epochs and seeds, scored on the same test images. Noise "
        "is not equality. No verdict: one seed, or seeds that all differ alike, say nothing of chance."
    )
    return result, problems


def _outcomes(facts: dict[str, Any]) -> list[Outcome]:
    trials, seeds = facts["trials"], len(facts["seeds"])
    found = []
    for metric, difference in facts["difference"].items():
        if difference is None:
            continue
        ends, sd = difference["interval"], difference["sd"]
        found.append(Outcome(
            task=str(facts["task"]),
            synthetic=facts.get("source") == "synthetic",
            metric=metric,
            setup=f"{facts['model']}, {facts['init']}",
            budget=f"{facts['epochs']} epochs, {seeds} seed{'s' * (seeds != 1)}",
            trials=sum(trials.values()),
            seconds=float(facts["seconds"]),
            default=_mean(facts["default"][metric]),
            tuned=_mean(facts["tuned"][metric]),
            difference=float(difference["mean"]),
            interval=(float(ends[0]), float(ends[1])) if ends and sd else None,
            covers=str(facts["interval_covers"]),
            p=difference.get("p") if sd else None,
        ))  # fmt: skip
    return found


def _row(one: Outcome, adjusted: float | None) -> Row:
    word = "" if adjusted is None else stats.verdict(adjusted, one.difference)
    ends = Cell("–") if one.interval is None else Cell(between(*one.interval), f"of {one.covers}")
    head = text(f"{one.task}, {one.metric.upper()}", "SYNTHETIC" if one.synthetic else "")
    return Row(head, [
        text(one.setup, one.budget),
        Cell(str(one.trials)),
        Cell(duration(one.seconds)),
        Cell(percent(one.default)),
        Cell(percent(one.tuned)),
        Cell(points(one.difference)),
        ends,
        Cell("–" if one.p is None else p_value(one.p)),
        Cell("–" if adjusted is None else p_value(adjusted)),
        text(WORDS[word] if word else "no verdict", mark=word),
    ])  # fmt: skip


def _mean(scores: Sequence[float]) -> float:
    return math.fsum(scores) / len(scores)

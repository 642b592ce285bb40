"""Tables of setups over tasks: average ranks, and Wilcoxon's signed ranks of each pair."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from dogmed import stats
from dogmed.finetune.report.cells import Cell, Row, Table, p_value, points, text
from dogmed.finetune.report.over_tasks import MIN_TASKS, Pair, Ranks
from dogmed.finetune.report.tables import NAMES, QUESTIONS, versus
from dogmed.finetune.report.verdicts import WORDS


def ranks(of: Ranks) -> Table:
    """Average ranks of a field, and whether Friedman's test says that any differ."""
    names = ["average rank", "tasks"]
    table = Table(f"ranks_{of.metric}_{_slug(field_name(of))}",
                  f"Average ranks by {NAMES[of.metric]}: {field_name(of)}", "setup",
                  [Cell(name) for name in names])  # fmt: skip
    for setup, rank in sorted(zip(of.setups, of.ranks, strict=True), key=lambda item: item[1]):
        table.rows.append(Row(text(setup.name), [Cell(f"{rank:.2f}"), Cell(str(len(of.tasks)))]))
    table.notes = [f"1 is the best. {_what_ranks_tell(of)}"]
    if of.left_out:
        table.notes.append(f"Left out: {'; '.join(of.left_out)}.")
    return table


def _what_ranks_tell(of: Ranks) -> str:
    if len(of.tasks) < MIN_TASKS:
        return (
            f"Only {len(of.tasks)} tasks that these were all run on: ranks alone. Tests and the "
            f"critical-difference diagram need {MIN_TASKS}, since with fewer Wilcoxon's exact test has no "
            "p-value below 0.05."
        )
    if of.friedman is None:
        return "Of two setups, Wilcoxon's test of the pair is the test; ranks tell nothing more."
    f = of.friedman
    told = f"Friedman: χ² {f.chi2:.2f}, p {p_value(f.p)}; Iman and Davenport's F {f.f:.2f}, p {p_value(f.p_f)}. "
    if not of.width:
        return (
            f"{told}F does not reject that all are alike: the ranks tell nothing apart, and there is no "
            "critical difference to draw."
        )
    return f"{told}Critical difference of two ranks (Nemenyi, {stats.ALPHA}): {of.width:.2f}."


def pairs(chosen: Sequence[Pair]) -> Table:
    """Wilcoxon's signed ranks, a row a pair; all of one metric and one field."""
    first = chosen[0]
    synthetic, pixels = first.where
    word = f"{'SYNTHETIC data, ' if synthetic else ''}{pixels}"
    names = ["verdict", "tasks", "median difference", "ranks for : against", "p", "p (Holm)"]
    table = Table(f"tasks_{first.metric}_{_slug(word)}", f"Pairs over tasks by {NAMES[first.metric]}: {word}",
                  "first vs second", [Cell(name) for name in names])  # fmt: skip
    for pair in chosen:
        test, name = pair.test, versus(pair.a, pair.b)
        middle, mean = np.median(pair.differences), np.mean(pair.differences)
        table.rows.append(Row(text(name.text, name.sub), [
            text(WORDS[pair.verdict], mark=pair.verdict),
            Cell(str(test.tasks + test.ties), f"{test.ties} tie" if test.ties else ""),
            Cell(points(float(middle)), f"mean {points(float(mean))}" if pair.contrary else ""),
            Cell(f"{test.plus:g} : {test.minus:g}"),
            Cell(p_value(test.p)),
            Cell(p_value(pair.adjusted)),
        ]))  # fmt: skip
    table.notes = [
        "Wilcoxon's signed ranks over the tasks on which the options of both are equal, each task once; the "
        "verdict goes by the ranks, not by the mean. Holm over all pairs of one question and metric, "
        "whatever their pixels and share of train (synthetic data apart)."
    ]
    table.notes += [
        note for q in dict.fromkeys(pair.question for pair in chosen)
        if (note := _out_of_reach([pair for pair in chosen if pair.question == q]))
    ]  # fmt: skip
    return table


def _out_of_reach(family: Sequence[Pair]) -> str:
    """Say where even all tasks in favour of one could not have been enough."""
    most = max(family, key=lambda pair: pair.test.tasks)
    smallest, size, tasks = most.test.smallest_p, most.family, most.test.tasks
    if smallest * size < stats.ALPHA:
        return ""
    needed = 1 + math.floor(math.log2(2 * size / stats.ALPHA))
    return (
        f"{QUESTIONS[most.question].capitalize()}: with {tasks} tasks that do not tie, no p-value is below "
        f"{smallest:.2g}, and Holm's adjustment over {size} pair{'s' * (size != 1)} takes that to "
        f"{min(1.0, smallest * size):.2g}: nothing here could be better or worse, however large; it takes "
        f"{needed} tasks."
    )


def field_name(of: Ranks) -> str:
    """What is ranked together: pixels, share of train, options."""
    synthetic, pixels = of.where
    share = f"{100 * of.fraction:g}% of train" if of.fraction < 1 else ""
    return ", ".join(
        part for part in ("SYNTHETIC data" * synthetic, pixels, share, of.options) if part
    )


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name)

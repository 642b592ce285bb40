"""What the comparisons say, in a few sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from dogmed.finetune.report.analysis import Analysis, Comparison
from dogmed.finetune.report.grouping import Setup
from dogmed.finetune.report.tables import LUCK, NAMES, ONE_SEED, versus
from dogmed.finetune.report.verdicts import METRICS, WORDS
from dogmed.stats.compare import IMAGES


def headlines(analysis: Analysis) -> list[tuple[str, str]]:
    """One sentence with its verdict for each pair of values, over real or synthetic test sets, and over tasks."""
    told: dict[tuple[str, str, bool], list[Comparison]] = {}
    for c in analysis.comparisons:
        if c.b is not None:
            pair = f"{_value(c.a, c.question)} vs {_value(c.b, c.question)}"
            told.setdefault((c.question, pair, c.where.synthetic), []).append(c)
    found = [_sentence(pair, synthetic, chosen) for (_, pair, synthetic), chosen in told.items()]
    for over in analysis.pairs:
        if over.metric != "acc":
            continue
        name, tasks = versus(over.a, over.b), over.test.tasks + over.test.ties
        contrary = ", though the mean difference points the other way" if over.contrary else ""
        found.append((
            f"{'SYNTHETIC data: ' * over.where[0]}{name.text} ({name.sub}), ACC: {WORDS[over.verdict]} over "
            f"{tasks} tasks taken together{contrary} (Wilcoxon, p {over.adjusted:.2g} after Holm)",
            over.verdict,
        ))  # fmt: skip
    return found


def _sentence(pair: str, synthetic: bool, chosen: Sequence[Comparison]) -> tuple[str, str]:
    parts = []
    for metric in METRICS:
        of = [c for c in chosen if c.metric == metric]
        counts = Counter(c.verdict for c in of)
        words = ", ".join(f"{word} in {counts[key]}" for key, word in WORDS.items() if counts[key])
        if of:
            parts.append(f"{NAMES[metric]} {words} of {_unit(of)}")
    by_acc = Counter(c.verdict for c in chosen if c.metric == "acc")
    most, count = by_acc.most_common(1)[0]  # the sign is what most of them say, by ACC
    lucky = {(c.where.name, c.a, c.b) for c in chosen if c.difference.covers == IMAGES}
    if lucky:
        every = len({(c.where.name, c.a, c.b) for c in chosen})
        some = "" if len(lucky) == every else f" in {len(lucky)} of them"
        parts.append(f"{ONE_SEED}{some}: {LUCK}")
    told = f"{'SYNTHETIC data: ' * synthetic}{pair}: {'; '.join(parts)}"
    return told, most if 2 * count > by_acc.total() else ""


def _unit(chosen: Sequence[Comparison]) -> str:
    """How many comparisons, and over what they go: ``12 comparisons (6 test sets, 2 inits)``."""
    question = chosen[0].question
    over = {
        "test set": {c.where.name for c in chosen},
        "model": {c.a.model for c in chosen},
        "init": {c.a.init for c in chosen},
        "share of train": {c.a.fraction for c in chosen},
        "label": {c.a.options for c in chosen},
    }
    if question == "predictions":
        over = {"test set": over["test set"]}
    over.pop({"model": "model", "init": "init", "options": "label"}.get(question, ""), None)
    parts = [
        _many(len(values), what)
        for what, values in over.items()
        if len(values) > 1 or what == "test set"
    ]
    return f"{_many(len(chosen), 'comparison')} ({', '.join(parts)})"


def _many(count: int, what: str) -> str:
    head, of, rest = what.partition(" of ")
    return f"{count} {head}{'s' * (count != 1)}{of}{rest}"


def _value(setup: Setup, question: str) -> str:
    if question == "predictions":
        return setup.name
    return str(getattr(setup, question)) or "no label"

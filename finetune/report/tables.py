"""What the report says, table by table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from dogmed import references
from dogmed.finetune.report.analysis import Analysis, Comparison
from dogmed.finetune.report.cells import (
    Cell,
    Row,
    Table,
    between,
    interval,
    mean_sd,
    p_value,
    percent,
    points,
    text,
)
from dogmed.finetune.report.grouping import Group, Setup, TestSet, setups
from dogmed.finetune.report.verdicts import WORDS
from dogmed.stats import Difference
from dogmed.stats.compare import BOTH, IMAGES

NAMES = {"acc": "ACC", "auc": "AUC"}
QUESTIONS = {
    "model": "models",
    "init": "initial weights",
    "options": "options",
    "predictions": "predictions from elsewhere",
    "trivial": "always the most frequent class",
}
SHADE_AT = 0.05  # a difference that has the full colour
ONE_SEED = "one seed each"
LUCK = "the luck of the seed is not in it"


def heading(where: TestSet) -> Cell:
    """A column's header: the task, and below it the pixels and whatever is not usual."""
    return Cell(where.short, where.name.removeprefix(f"{where.task}, "))


def winners(sets: Sequence[TestSet], found: Analysis, metric: str) -> Table:
    """One row a pair of setups, one column a test set: who is better, or whether it is noise."""
    chosen = [c for c in found.comparisons if c.metric == metric and c.b is not None]
    pairs = dict.fromkeys((c.question, c.a, c.b) for c in chosen)
    order = list(QUESTIONS)
    table = Table(f"winners_{metric}", f"Who wins where, by {NAMES[metric]}", "first − second, points",
                  [heading(one) for one in sets] + [Cell("of the test sets")])  # fmt: skip
    by_place = {(c.question, c.a, c.b, c.where.name): c for c in chosen}
    lucky = [c.difference.covers == IMAGES for c in chosen]
    for question, a, b in sorted(pairs, key=lambda pair: (order.index(pair[0]), pair[2], pair[1])):
        assert b is not None
        cells, counts = [], Counter[str]()
        for one in sets:
            c = by_place.get((question, a, b, one.name))
            if c is None:
                cells.append(Cell("·"))
                continue
            value = c.difference.value
            counts[c.verdict] += 1
            words = "SYNTHETIC" if one.synthetic else WORDS[c.verdict]
            if c.difference.covers == IMAGES and not all(lucky):
                words = f"{words}, {ONE_SEED}"
            cells.append(Cell(points(value), words, c.verdict, shade(c, SHADE_AT)))
        table.rows.append(Row(versus(a, b), [*cells, text(f"{tally(counts)} of {counts.total()}")]))
    table.notes = [
        "▲ better, ▼ worse: the first against the second, p < 0.05 after Holm's adjustment over all test "
        "sets of one question; ≈ noise: no difference that chance would not give. Not told apart is "
        "not the same as equal."
    ]
    if any(c.unequal for c in chosen):
        table.notes.append(
            "≠ not comparable: other options differ too (UNEQUAL in the comparisons), so that there is no verdict."
        )
    if any(lucky):
        table.notes.append(
            f"{ONE_SEED.capitalize()}{'' if all(lucky) else ' where it is written'}: {LUCK}."
        )
    return table


def tally(counts: Counter[str]) -> str:
    """How often each verdict, in words."""
    return ", ".join(f"{counts[key]} {word}" for key, word in WORDS.items() if counts[key])


def shade(c: Comparison, full: float) -> float:
    """How strongly a cell is tinted: not at all without a verdict, wholly at a difference of ``full``."""
    if c.verdict not in ("better", "worse"):
        return 0.0
    return max(-1.0, min(1.0, c.difference.value / full))


def versus(a: Setup, b: Setup) -> Cell:
    """Name a pair by what differs, and below it by what both have."""
    if a.theirs or b.theirs:
        return text(f"{a.name} vs {b.name}")
    if a.model != b.model:
        return text(f"{a.model} vs {b.model}", a.name.partition(", ")[2])
    if a.init != b.init:
        return text(f"{a.init} vs {b.init}", a.name.replace(f", {a.init}", "", 1))
    shared = a.name.removesuffix(f", {a.options}") if a.options else a.name
    return text(f"{a.options or 'no label'} vs {b.options or 'no label'}", shared)


def scores(sets: Sequence[TestSet], found: Analysis, metric: str) -> Table:
    """Table 4.5 as measured, with the mean over the tasks, and the published rows below it."""
    with_mean = len(sets) > 1 and len({one.field for one in sets}) == 1
    columns = [heading(one) for one in sets] + ([Cell("mean")] if with_mean else [])
    table = Table(metric, f"Test {NAMES[metric]}, %", "model", columns)
    best = {one.name: _best(one, found, metric) for one in sets}
    for setup in setups(sets):
        cells, values = [], []
        for one in sets:
            estimate = found.of(one, setup).get(metric)
            if estimate is None:
                cells.append(Cell("·"))
                continue
            values.append(estimate.value)
            mark = "best" if best[one.name] == setup else ""
            cells.append(Cell(mean_sd(estimate), interval(estimate.low, estimate.high), mark))
        if with_mean:
            whole = len(values) == len(sets)
            cells.append(Cell(percent(sum(values) / len(values)) if whole else "·"))
        seeds = sorted({len(g.runs) for one in sets for g in one.groups if g.setup == setup})
        told = (
            f"{'–'.join(map(str, dict.fromkeys((seeds[0], seeds[-1]))))} seed{'s' * (seeds != [1])}"
        )
        selected = sorted({_selection(g) for one in sets for g in one.groups if g.setup == setup})
        told = "predictions from elsewhere" if setup.theirs else f"{told}, {', '.join(selected)}"
        table.rows.append(Row(text(setup.name, told), cells))
    table.rows += _reference_rows(sets, metric, with_mean)
    table.notes = [
        "Mean over seeds ± standard deviation between them [95% interval: test images and, of several seeds, "
        "seeds]; of one seed there is no ±. ★ the highest of the measured in its column, which alone says "
        "nothing: see the comparisons.",
    ]
    if any(row.kind == "reference" for row in table.rows):
        table.notes.append(
            "Published rows are as printed, each with the pixels it was trained on and what its epochs were "
            "selected on; they are not re-run here, and a difference to them mixes model, recipe and selection."
        )
        table.sources = _sources(sets, metric)
    return table


def _selection(group: Group) -> str:
    metric = str(group.runs[0].result.get("selected_on", "not stated")).removeprefix("val_")
    return f"selected on val {NAMES.get(metric, metric)}" if metric != "not stated" else metric


def _best(where: TestSet, found: Analysis, metric: str) -> Setup | None:
    values = {g.setup: e.value for g in where.groups if (e := found.of(where, g.setup).get(metric))}
    return max(values, key=lambda setup: values[setup]) if len(values) > 1 else None


def _reference_rows(sets: Sequence[TestSet], metric: str, with_mean: bool) -> list[Row]:
    rows = []
    tasks = [one.task if one.official else "" for one in sets]
    for source in references.MEDMNIST:
        for reference in references.medmnist_references(source):
            values = reference.scores.get(metric, {})
            if not any(task in values for task in tasks):
                continue
            cells = []
            for task in tasks:
                sd = reference.sd.get(metric, {}).get(task)
                spread = f" ± {sd:.2f}" if sd is not None else ""
                cells.append(Cell(f"{values[task]:.2f}{spread}" if task in values else "·"))
            if with_mean:
                whole = len(set(tasks)) == 12 and all(task in values for task in tasks)
                mean = sum(values[task] for task in tasks) / len(tasks) if whole else None
                cells.append(Cell("·" if mean is None else f"{mean:.2f}"))
            name = (
                f"{reference.model}, {reference.init}"
                if reference.init != "none"
                else reference.model
            )
            rows.append(Row(text(name, f"{SHORT[source]}: {reference.label}"), cells, "reference"))
    return rows


SHORT = {
    "thesis": "thesis",
    "medmnist_plus": "MedMNIST+",
    "swin_t": "Swin-T, 10 seeds",
    "trivial": "official labels",
}


def _sources(sets: Sequence[TestSet], metric: str) -> list[str]:
    shown = dict.fromkeys(
        f"{SHORT[name]}: {reference.source}" + (f"; {reference.note}" if reference.note else "")
        for name in references.MEDMNIST
        for reference in references.medmnist_references(name)
        if any(one.official and one.task in reference.scores.get(metric, {}) for one in sets)
    )
    return list(shown)


def trivial(sets: Sequence[TestSet], found: Analysis) -> Table:
    """How much better than always giving the most frequent class."""
    table = Table("trivial", "ACC above always answering the most frequent class, points", "model",
                  [heading(one) for one in sets])  # fmt: skip
    known = {(c.where.name, c.a): c for c in found.comparisons if c.question == "trivial"}
    for setup in setups(sets):
        cells = []
        for one in sets:
            group = one.group(setup)
            if c := known.get((one.name, setup)):
                d = c.difference
                tint = shade(c, 0.3)
                cells.append(Cell(points(d.value), _interval(d).text, c.verdict, tint))
            elif group is not None and "trivial_test_acc" in group.runs[0].result:
                base = group.runs[0].result["trivial_test_acc"]
                cells.append(Cell(points(found.of(one, setup)["acc"].value - base), "no interval"))
            else:
                cells.append(Cell("·"))
        table.rows.append(Row(text(setup.name), cells))
    base = [Cell(percent(_trivial_acc(one, found, known))) for one in sets]
    table.rows.append(Row(text("the trivial answer itself, ACC %"), base, "reference"))
    table.notes = ["▲ better than the trivial answer, ▼ worse, ≈ noise: no better as far as one can tell; "
                   "Holm over all cells of this table."]  # fmt: skip
    if any(c.difference.covers == IMAGES for c in known.values()):
        table.notes.append(f"Of a setup with one seed, {LUCK}.")
    return table


def _trivial_acc(
    where: TestSet, found: Analysis, known: dict[tuple[str, Setup], Comparison]
) -> float | None:
    for group in where.groups:
        if c := known.get((where.name, group.setup)):
            return found.of(where, group.setup)["acc"].value - c.difference.value
        if "trivial_test_acc" in group.runs[0].result:
            return float(group.runs[0].result["trivial_test_acc"])
    return None


def comparisons(found: Analysis, question: str, metric: str) -> Table:
    """Every paired comparison of one question, with its interval drawn and its verdict in words."""
    chosen = [c for c in found.comparisons if c.question == question and c.metric == metric]
    columns = ["difference", "95% interval", "p", "p (Holm)"]
    with_mcnemar = any(c.mcnemar for c in chosen)
    columns += ["McNemar"] if with_mcnemar else []
    table = Table(f"compare_{question}_{metric}", f"{QUESTIONS[question].capitalize()}, {NAMES[metric]}",
                  "first vs second", [Cell(c) for c in ["verdict", *columns]])  # fmt: skip
    for c in chosen:
        assert c.b is not None
        d, pair = c.difference, versus(c.a, c.b)
        cells = [
            text(WORDS[c.verdict], mark=c.verdict),
            Cell(points(d.value)),
            _interval(d),
            Cell(p_value(d.p)),
            Cell("–" if c.unequal else p_value(c.adjusted)),
        ]
        if with_mcnemar:
            cells.append(_mcnemar(c))
        under = "; ".join(part for part in (
            c.where.name, pair.sub, f"UNEQUAL: {c.unequal}" if c.unequal else "", _luck(c)
        ) if part)  # fmt: skip
        table.rows.append(Row(text(pair.text, under), cells))
    known = [c.difference for c in chosen if not c.difference.degenerate]
    ends = [abs(x) for d in known for x in (d.low, d.high)]
    table.reach = max(ends, default=0.0) or 0.01
    sizes = " and ".join(map(str, dict.fromkeys(c.family for c in chosen if c.family)))
    table.notes = [
        f"Points of {NAMES[metric]}, first minus second, on the same test images: paired bootstrap, with the "
        f"variance of the seeds added where there are several. Holm over the {sizes or 0} comparisons of this "
        "table (synthetic data apart)."
    ]
    if any(c.unequal for c in chosen):
        table.notes.append("UNEQUAL rows have no verdict and do not count among those adjusted.")
    if any(setup.pretrained for c in chosen for setup in (c.a, c.b) if setup):
        table.notes.append(
            "Initial weights are one pretraining each, whose luck no interval knows."
        )
    if any(c.difference.covers == IMAGES for c in chosen):
        table.notes.append(
            f"{ONE_SEED.capitalize()}: {LUCK}: the interval knows that of the test images alone, so that "
            "even better or worse may be luck."
        )
    if with_mcnemar:
        table.notes.append(
            "McNemar: images that the first alone : the second alone has right and its p-value, of the first "
            "seed that both have; where there are more, the range of p over them. It knows nothing of seeds."
        )
    return table


def _interval(d: Difference) -> Cell:
    if d.degenerate:
        return Cell("none")
    return Cell(between(d.low, d.high), interval=(d.value, d.low, d.high))


def _mcnemar(c: Comparison) -> Cell:
    if not c.mcnemar:
        return Cell("–")
    first, p = c.mcnemar[0], [test.p for test in c.mcnemar]
    shown = p_value(p[0]) if len(p) == 1 else f"{p_value(min(p))} to {p_value(max(p))}"
    return Cell(f"{first.only_a} : {first.only_b}", f"p {shown}")


def _luck(c: Comparison) -> str:
    """What the interval does not know, where that is the luck of the seed."""
    if c.difference.covers == IMAGES:
        return ONE_SEED
    return "" if c.difference.covers == BOTH else f"the interval covers {c.difference.covers}"

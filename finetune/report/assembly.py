"""The whole report before it is written: what was found, in the order in which it is told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dogmed.errors import ConfigError, nearest
from dogmed.finetune.report import details, tables
from dogmed.finetune.report.analysis import WORDS, Analysis, analyse
from dogmed.finetune.report.cells import Table
from dogmed.finetune.report.grouping import Setup, TestSet, gather, setups
from dogmed.finetune.report.predictions import read_theirs
from dogmed.finetune.report.reading import Found, Labels, Run, read_runs

UNLABELLED = "none"  # what --label calls runs without a label


@dataclass(frozen=True, kw_only=True)
class Report:
    """All tables of a report; those of ``cost`` differ between two sittings of the same runs."""

    facts: list[str]
    synthetic: str
    """The warning, or nothing."""
    headlines: list[tuple[str, str]]
    """What the comparisons say in words, each with better, worse or noise."""
    winners: list[Table]
    scores: list[Table]
    trivial: Table
    comparisons: list[Table]
    over_tasks: list[Table]
    tuned: Table | None
    cost: Table
    notes: list[str]
    sets: list[TestSet]
    analysis: Analysis

    @property
    def tables(self) -> list[Table]:
        """In the order of the document, the cost last."""
        tuned = [self.tuned] if self.tuned else []
        return [*self.winners, *self.scores, self.trivial, *self.comparisons, *self.over_tasks, *tuned,
                self.cost]  # fmt: skip


def assemble(
    out: Path,
    *,
    task: Sequence[str] = (),
    model: Sequence[str] = (),
    init: Sequence[str] = (),
    label: Sequence[str] = (),
    predictions: Sequence[str] = (),
    cache_dirs: Sequence[Path] = (),
    resamples: int = 2000,
    say: Callable[[str], None] = lambda text: None,
) -> Report:
    """Read the finished runs below ``out`` and work out all that the report says.

    Args:
        out: as given to ``dogmed finetune`` or ``dogmed benchmark``.
        task: names to be kept; none keeps all. So ``model``, ``init`` and ``label`` (``none``: runs without).
        predictions: of others, ``NAME=FILE_OR_FOLDER``.
        cache_dirs: prepared data besides where the runs say that theirs are.
        resamples: of each bootstrap.
        say: told what is being compared.

    Raises:
        ConfigError: no finished runs, or none that is asked for.
        DataError: predictions that do not fit.
    """
    found = read_runs(out)
    if not found.runs:
        others = f"; {len(found.unfinished)} unfinished" if found.unfinished else ""
        others += f"; {len(found.damaged)} damaged" if found.damaged else ""
        raise ConfigError(
            f"no finished runs below {out / 'finetune'}{others}; make some, for example with: dogmed benchmark "
            f"--task breastmnist --init scratch --seeds 3 --out {out}"
        )
    asked = {"task": task, "model": model, "init": init, "label": label}
    runs = select(found.runs, asked)
    labels = Labels(dict.fromkeys([*cache_dirs, *found.caches]))
    sets, notes = gather(runs)
    if predictions:
        sets, notes = gather([*runs, *read_theirs(predictions, sets, labels)])
    analysis = analyse(sets, labels, resamples=resamples, say=say)
    tuned, problems = details.tuned(out)
    questions = dict.fromkeys(c.question for c in analysis.comparisons if c.b is not None)
    metrics = ("acc", "auc")
    wins = [tables.winners(sets, analysis, metric) for metric in metrics]
    return Report(
        facts=_facts(runs, sets, found),
        synthetic=_warning(sets),
        headlines=_headlines(analysis),
        winners=[table for table in wins if table.rows],
        scores=[tables.scores(sets, analysis, metric) for metric in metrics],
        trivial=tables.trivial(sets, analysis),
        comparisons=[
            tables.comparisons(analysis, question, metric)
            for question in tables.QUESTIONS
            if question in questions
            for metric in metrics
        ],
        over_tasks=[tables.over_tasks(of) for of in analysis.over_tasks],
        tuned=tuned,
        cost=details.cost(sets, analysis),
        notes=[*notes, *analysis.notes, *problems, *_lacking(found)],
        sets=sets,
        analysis=analysis,
    )


def select(runs: Sequence[Run], asked: dict[str, Sequence[str]]) -> list[Run]:
    """Keep the runs whose task, model, init and label are among those asked for.

    Raises:
        ConfigError: a name that no run has, or nothing left.
    """
    for key, names in asked.items():
        known = {getattr(run, key) or UNLABELLED for run in runs}
        for name in names:
            if name not in known:
                there = ", ".join(sorted(known))
                raise ConfigError(
                    f"--{key} {name}: no finished run has it; there are {there}{nearest(name, known)}"
                )
    kept = [
        run
        for run in runs
        if all(
            not names or (getattr(run, key) or UNLABELLED) in names for key, names in asked.items()
        )
    ]
    if not kept:
        raise ConfigError(
            "no finished run is of all that --task, --model, --init and --label ask for"
        )
    return kept


def _facts(runs: Sequence[Run], sets: Sequence[TestSet], found: Found) -> list[str]:
    seeds = sorted({run.seed for run in runs})
    facts = [
        f"{len(runs)} finished runs: {_many(len(setups(sets)), 'setup')} on {_many(len(sets), 'test set')}, "
        f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
    ]
    if found.unfinished:
        facts.append(f"{len(found.unfinished)} unfinished, left out")
    if found.damaged:
        facts.append(f"{len(found.damaged)} damaged, left out")
    versions = sorted(
        {str(run.result.get("versions", {}).get("dogmed", "not stated")) for run in runs}
    )
    commits = sorted({str(run.result.get("git_commit") or "not stated")[:10] for run in runs})
    facts.append(
        f"dogmed {', '.join(versions)}, commit{'s' * (len(commits) > 1)} {', '.join(commits)}"
    )
    return facts


def _warning(sets: Sequence[TestSet]) -> str:
    made = [one.name for one in sets if one.synthetic]
    if not made:
        return ""
    which = (
        "ALL data are SYNTHETIC" if len(made) == len(sets) else f"SYNTHETIC data: {'; '.join(made)}"
    )
    return f"{which}. Generated images in MedMNIST's form: these scores say nothing about medicine."


def _headlines(analysis: Analysis) -> list[tuple[str, str]]:
    """One sentence a question and pair of values, over all real test sets (or all synthetic ones)."""
    counts: dict[tuple[str, bool], dict[str, Counter[str]]] = {}
    for c in analysis.comparisons:
        if c.b is None:
            continue
        pair = f"{_value(c.a, c.question)} vs {_value(c.b, c.question)}"
        metrics = counts.setdefault((pair, c.where.synthetic), {"acc": Counter(), "auc": Counter()})
        metrics[c.metric][c.verdict] += 1
    found = []
    for (pair, synthetic), metrics in counts.items():
        told = []
        for metric, of in metrics.items():
            words = ", ".join(f"{word} in {of[word]}" for word in WORDS if of[word])
            told.append(f"{tables.NAMES[metric]} {words} of {of.total()}")
        most, count = metrics["acc"].most_common(1)[0]  # the sign is what most of them say, by ACC
        verdict = most if 2 * count > metrics["acc"].total() else ""
        data = "SYNTHETIC data: " if synthetic else ""
        found.append((f"{data}{pair}: {'; '.join(told)}", verdict))
    for over in analysis.over_tasks:
        data = "SYNTHETIC data: " if over.where[0] else ""
        for (a, b), test in over.wilcoxon.items():
            if over.metric != "acc":
                continue
            verdict, pair = over.verdict(a, b), tables.versus(a, b)
            told = f"{verdict} over {test.tasks + test.ties} tasks taken together"
            p = f"Wilcoxon, p {over.adjusted[a, b]:.2g}"
            found.append((f"{data}{pair.text} ({pair.sub}), ACC: {told} ({p})", verdict))
    return found


def _value(setup: Setup, question: str) -> str:
    if question == "predictions":
        return setup.name
    return str(getattr(setup, question)) or "no label"


def _lacking(found: Found) -> list[str]:
    return [
        *(f"unfinished: {name} ({how})" for name, how in found.unfinished.items()),
        *(f"damaged, left out: {name} ({why})" for name, why in found.damaged.items()),
        *(f"{name}: {what}" for name, what in found.incomplete.items()),
    ]


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"

"""The whole report before it is written: what was found, in the order in which it is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dogmed.errors import ConfigError, nearest
from dogmed.finetune.report import details, headlines, tables, task_tables, tuned
from dogmed.finetune.report.analysis import Analysis, analyse
from dogmed.finetune.report.cells import Table
from dogmed.finetune.report.grouping import TestSet, gather, setups
from dogmed.finetune.report.predictions import read_theirs
from dogmed.finetune.report.reading import Found, Labels, Run, read_runs
from dogmed.finetune.report.verdicts import METRICS

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
    found = read_runs(out, cache_dirs)
    if not found.runs:
        others = f"; {len(found.unfinished)} unfinished" if found.unfinished else ""
        for name, why in list(found.damaged.items())[:1]:
            others += f"; {len(found.damaged)} damaged, the first: {name} ({why})"
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
    tuning, problems = tuned.table(out)
    questions = dict.fromkeys(c.question for c in analysis.comparisons if c.b is not None)
    wins = [tables.winners(sets, analysis, metric) for metric in METRICS]
    fields = dict.fromkeys((pair.where, pair.metric) for pair in analysis.pairs)
    return Report(
        facts=_facts(runs, sets, found, resamples),
        synthetic=_warning(sets),
        headlines=headlines.headlines(analysis),
        winners=[table for table in wins if table.rows],
        scores=[tables.scores(sets, analysis, metric) for metric in METRICS],
        trivial=tables.trivial(sets, analysis),
        comparisons=[
            tables.comparisons(analysis, question, metric)
            for question in tables.QUESTIONS
            if question in questions
            for metric in METRICS
        ],
        over_tasks=[
            *map(task_tables.ranks, analysis.ranks),
            *(
                task_tables.pairs([p for p in analysis.pairs if (p.where, p.metric) == field])
                for field in fields
            ),
        ],
        tuned=tuning,
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


def _facts(runs: Sequence[Run], sets: Sequence[TestSet], found: Found, resamples: int) -> list[str]:
    seeds = sorted({run.seed for run in runs})
    facts = [
        f"{len(runs)} finished runs: {_many(len(setups(sets)), 'setup')} on {_many(len(sets), 'test set')}, "
        f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
    ]
    if found.unfinished:
        facts.append(f"{len(found.unfinished)} unfinished, left out")
    if found.damaged:
        facts.append(f"{len(found.damaged)} damaged, left out")
    facts.append(
        f"intervals and p-values from {resamples:,} resamples of the test images (a run's own result.json has "
        "intervals of its own, from --eval.resamples)"
    )
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


def _lacking(found: Found) -> list[str]:
    return [
        *(f"unfinished: {name} ({how})" for name, how in found.unfinished.items()),
        *(f"damaged, left out: {name} ({why})" for name, why in found.damaged.items()),
        *(f"{name}: {what}" for name, what in found.incomplete.items()),
    ]


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"

"""The variants' runs compared with DoGNeXt's, and their order with the thesis's on ImageNet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import scipy.stats

from dogmed import stats
from dogmed.errors import DataError
from dogmed.finetune.ablate.variants import BASELINE, Thesis, Variant
from dogmed.finetune.config import FinetuneConfig
from dogmed.finetune.report.cells import p_value, signed
from dogmed.finetune.report.reading import Labels, Run, read_runs
from dogmed.finetune.report.tables import NAMES
from dogmed.finetune.report.verdicts import METRICS, adjust
from dogmed.stats import Difference, Estimate
from dogmed.stats.compare import IMAGES


@dataclass(frozen=True)
class Against:
    """A variant minus DoGNeXt in one metric."""

    difference: Difference
    adjusted: float
    """p-value after Holm over the variants."""
    verdict: str
    """better, worse or noise."""


@dataclass
class Row:
    """What is known of a variant."""

    variant: Variant
    model: str
    parameters: int
    macs: int
    runs: list[Run] = field(default_factory=list)
    scores: dict[str, Estimate] = field(default_factory=dict)
    """By metric, of the test images."""
    against: dict[str, Against] = field(default_factory=dict)
    """By metric."""
    rank: int | None = None
    """By ACC among the variants of the thesis, 1 the best."""
    thesis_rank: int | None = None

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.seed for run in self.runs)


@dataclass(frozen=True)
class Agreement:
    """Kendall's tau of the order by ACC here and by accuracy@1 in the thesis, over ``variants`` of them."""

    tau: float
    p: float
    variants: int


@dataclass(frozen=True)
class Study:
    """All that a call of ``dogmed ablate`` has found."""

    shared: FinetuneConfig
    task: str
    source: str
    images: int
    """Of the test split."""
    rows: list[Row]
    agreement: Agreement | None
    sentences: list[str]
    notes: list[str]
    resamples: int

    @property
    def title(self) -> str:
        """The task, and what its data are where that must not be overlooked."""
        marked = self.source in ("synthetic", "variant")
        return f"{self.task} ({self.source.upper()})" if marked else self.task


def compare(
    shared: FinetuneConfig,
    variants: Sequence[Variant],
    roots: Mapping[Path, FinetuneConfig],
    costs: Mapping[str, tuple[int, int]],
    *,
    resamples: int,
) -> Study:
    """Read the finished runs of the variants and compare each with DoGNeXt on the same test images.

    Args:
        shared: options of all runs.
        variants: DoGNeXt among them.
        roots: folders of the runs, and their options.
        costs: parameters and multiply-accumulates of an image, by variant.
        resamples: of the bootstrap.

    Raises:
        DataError: no run of DoGNeXt can be read, or the labels are not on this machine.
    """
    out = shared.out.expanduser()
    found = read_runs(out, [shared.cache_dir] if shared.cache_dir else [])
    place = {root.relative_to(out / "finetune").as_posix(): run for root, run in roots.items()}
    rows, notes = [], []
    for variant in variants:
        row = Row(variant, variant.model(shared.model), *costs[variant.name])
        label = "-".join(filter(None, [shared.label, variant.label]))
        mine = [name for name, run in place.items() if (run.model, run.label) == (row.model, label)]
        row.runs = [
            run for run in found.runs if run.folder in mine and run.probabilities is not None
        ]
        for name in sorted(set(mine) - {run.folder for run in row.runs}):
            why = found.damaged.get(name) or found.incomplete.get(name) or "not finished"
            notes.append(f"{variant.name}: {name} is left out: {why}")
        rows.append(row)
    baseline = next(row for row in rows if row.variant.name == BASELINE)
    if not baseline.runs:
        raise DataError(f"no finished run of DoGNeXt to compare with: {'; '.join(notes)}")
    first = baseline.runs[0]
    labels = Labels(found.caches).of(first.sha256["test_labels.npy"])
    if labels is None:
        raise DataError(
            f"the labels of {first.task} are not on this machine, so that nothing can be compared: give "
            "--cache-dir, the folder of the prepared data"
        )
    resampled = {
        row.variant.name: stats.resample(
            first.kind, labels, [run.probabilities for run in row.runs if run.probabilities is not None],
            resamples=resamples,
        )
        for row in rows if row.runs
    }  # fmt: skip
    for row in rows:
        if row.runs:
            row.scores = stats.estimates(resampled[row.variant.name])
    _against(rows, resampled)
    agreement = _agreement(rows)
    return Study(
        shared, first.task, first.source, len(labels), rows, agreement,
        _sentences(rows, agreement), notes + _luck(rows), resamples,
    )  # fmt: skip


def _against(rows: Sequence[Row], resampled: Mapping[str, stats.Resampled]) -> None:
    """Compare each variant with DoGNeXt; a metric's comparisons are one family."""
    others = [row for row in rows if row.runs and row.variant.name != BASELINE]
    for metric in METRICS:
        pairs = []
        for row in others:
            found = stats.differences(resampled[row.variant.name], resampled[BASELINE])
            if metric in found:
                pairs.append((row, found[metric]))
        adjusted = adjust([difference.p for _, difference in pairs], [metric] * len(pairs))
        for (row, difference), (p, _) in zip(pairs, adjusted, strict=True):
            row.against[metric] = Against(difference, p, stats.verdict(p, difference.value))


def _agreement(rows: Sequence[Row]) -> Agreement | None:
    """Rank the variants here and in the thesis; fewer than three have no order to speak of."""
    known: list[tuple[Row, Thesis]] = [
        (row, row.variant.thesis) for row in rows if row.variant.thesis and "acc" in row.scores
    ]
    ours = [row.scores["acc"].value for row, _ in known]
    theirs = [thesis.acc1 for _, thesis in known]
    for (row, _), here, there in zip(known, ours, theirs, strict=True):
        row.rank = 1 + sum(value > here for value in ours)
        row.thesis_rank = 1 + sum(value > there for value in theirs)
    if len(known) < 3 or len(set(ours)) < 2:
        return None
    test = scipy.stats.kendalltau(ours, theirs)
    return Agreement(float(test.statistic), float(test.pvalue), len(known))


def _sentences(rows: Sequence[Row], agreement: Agreement | None) -> list[str]:
    said = []
    for metric in METRICS:
        of = {word: [row.variant.title for row in rows if metric in row.against
                     and row.against[metric].verdict == word]
              for word in ("better", "worse", "noise")}  # fmt: skip
        parts = [f"{word}: {', '.join(names)}" for word, names in of.items() if names]
        if parts:
            lucky = " (one seed each: its luck is not in it)" if _luck(rows) else ""
            said.append(f"{NAMES[metric]} against DoGNeXt{lucky}: {'; '.join(parts)}")
    if agreement is not None:
        told = "agrees" if agreement.p < 0.05 and agreement.tau > 0 else (
            "is reversed" if agreement.p < 0.05 else "does not show agreement beyond chance"
        )  # fmt: skip
        said.append(
            f"the order by ACC {told} with the thesis's on ImageNet-1K: Kendall's tau "
            f"{signed(agreement.tau)} over {agreement.variants} networks, p {p_value(agreement.p)}"
        )
    return said


def _luck(rows: Sequence[Row]) -> list[str]:
    covers = {against.difference.covers for row in rows for against in row.against.values()}
    if IMAGES in covers:
        return ["One seed each: the luck of the seed is in no interval, so that even better or worse may be "
                "luck."]  # fmt: skip
    return []

"""Which runs are replicates of one another, and which test sets and setups there are.

Seeds of one setup on one test set are replicates if all else is equal: data, initial weights, epochs
and every other option that decides the result. Where it is not, the group is split, and each part is
named after what differs: nothing incomparable is averaged.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from dogmed.data.tasks import official_tasks
from dogmed.finetune.report.reading import Run


@dataclass(frozen=True)
class Setup:
    """What is compared: a row of the tables."""

    theirs: bool
    model: str
    pretrained: bool
    init: str
    label: str
    variant: str
    fraction: float

    def __lt__(self, other: Setup) -> bool:
        return self._place < other._place

    @property
    def _place(self) -> tuple[bool, float, str, bool, str, str, str]:
        """All of train before shares of it, scratch before pretrained, ours before theirs."""
        return (
            self.theirs,
            -self.fraction,
            self.model,
            self.pretrained,
            self.init,
            self.label,
            self.variant,
        )

    @property
    def options(self) -> str:
        """Name of the options where they are not the usual ones."""
        return ", ".join(part for part in (self.label, self.variant) if part)

    @property
    def name(self) -> str:
        share = f"{100 * self.fraction:g}% of train" if self.fraction < 1 else ""
        return ", ".join(p for p in (self.model, self.init, share, self.options) if p)


@dataclass(frozen=True)
class Group:
    """The replicates of a setup on a test set, by seed."""

    setup: Setup
    runs: tuple[Run, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.seed for run in self.runs)


@dataclass
class TestSet:
    """The test images of a task at a size, and who was scored on them: a column of the tables."""

    __test__ = False  # pytest takes the name for a test's

    task: str
    kind: str
    classes: tuple[str, ...]
    source: str
    size: int
    source_size: int
    images: int
    labels_sha256: str
    groups: list[Group] = field(default_factory=list)
    number: int = 0
    """Where several test sets have the same name: which one, from 1."""

    @property
    def synthetic(self) -> bool:
        return self.source == "synthetic"

    @property
    def official(self) -> bool:
        """Whether published numbers are of these very images; those of a variant file are not."""
        return self.source == "official" and self.task in official_tasks()

    @property
    def short(self) -> str:
        """The task's name as tables have it: Path, OCT, OrganA."""
        if self.source in ("npz", "folder") or self.task not in official_tasks():
            return self.task
        word = self.task.removesuffix("mnist")
        if word == "oct":
            return "OCT"
        organ = word.removeprefix("organ")
        return f"Organ{organ.upper()}" if organ != word else word.capitalize()

    @property
    def pixels(self) -> str:
        if self.size == self.source_size:
            return f"{self.size} px"
        return f"{self.source_size} → {self.size} px"

    @property
    def name(self) -> str:
        """Unique in a report."""
        marks = [self.pixels]
        if self.source not in ("official", "npz", "folder"):
            marks.append("SYNTHETIC" if self.synthetic else self.source)
        if self.number:
            marks.append(f"data {self.number}")
        return f"{self.task}, {', '.join(marks)}"

    @property
    def field(self) -> tuple[bool, str]:
        """What may be pooled over tasks: real or synthetic, and the pixels."""
        return self.synthetic, self.pixels

    def group(self, setup: Setup) -> Group | None:
        return next((group for group in self.groups if group.setup == setup), None)


def test_set_key(run: Run) -> tuple[str, str, int, int, str]:
    return run.task, run.source, run.size, run.source_size, run.sha256["test_labels.npy"]


def gather(runs: Iterable[Run]) -> tuple[list[TestSet], list[str]]:
    """Order runs into test sets and groups; returns these and notes on what is not comparable."""
    by_key: dict[tuple[str, str, int, int, str], list[Run]] = defaultdict(list)
    for run in runs:
        by_key[test_set_key(run)].append(run)
    sets, notes = [], []
    for key, members in sorted(by_key.items(), key=lambda item: _order(item[0])):
        first = members[0]
        found = TestSet(
            task=first.task, kind=first.kind, classes=first.classes, source=first.source,
            size=first.size, source_size=first.source_size, images=int(first.test["n"]),
            labels_sha256=key[-1],
        )  # fmt: skip
        found.groups, more = _groups(members, found.name)
        sets.append(found)
        notes += more
    for name in {s.name for s in sets if sum(s.name == other.name for other in sets) > 1}:
        same = [s for s in sets if s.name == name]
        notes.append(
            f"{name}: {len(same)} test sets with other labels (their hashes differ), kept apart"
        )
        for number, one in enumerate(same, 1):
            one.number = number
    return sets, sorted(notes)


def setups(sets: Iterable[TestSet]) -> list[Setup]:
    """Every setup of the report, in the order of its rows."""
    return sorted({group.setup for one in sets for group in one.groups})


def question_of(a: Setup, b: Setup) -> str | None:
    """The one thing that two setups differ in, or None if they differ in more, or in the share of train."""
    if a.theirs or b.theirs:
        return "predictions"
    differ = {
        "model": a.model != b.model,
        "init": a.init != b.init,
        "options": a.options != b.options,
        "fraction": a.fraction != b.fraction,
    }
    names = [name for name, differs in differ.items() if differs]
    return names[0] if len(names) == 1 and names != ["fraction"] else None


def unequal(a: Group, b: Group) -> str:
    """What differs between two groups besides what they are compared for, or nothing.

    Initial weights belong to a model. Where options are what is compared, data, weights and (unless epochs
    are what a variant is named after) epochs must be equal: a label does not tell how long its runs are.
    """
    one, other = a.runs[0], b.runs[0]
    if one.theirs or other.theirs:
        return ""
    keys = (one.options.keys() | other.options.keys()) - {"initial weights"}
    if question_of(a.setup, b.setup) == "options":
        keys = {"data", "initial weights"}
        keys |= {"epochs"} if a.setup.label != b.setup.label else set()
    return ", ".join(
        f"{key} {_shown(one.options.get(key))} and {_shown(other.options.get(key))}"
        for key in sorted(keys)
        if one.options.get(key) != other.options.get(key)
    )


def _groups(members: list[Run], where: str) -> tuple[list[Group], list[str]]:
    by_setup: dict[Setup, list[Run]] = defaultdict(list)
    for run in members:
        by_setup[Setup(run.theirs, run.model, run.init not in ("scratch", ""), run.init, run.label, "",
                       run.train_fraction)].append(run)  # fmt: skip
    groups, notes = [], []
    for setup, runs in by_setup.items():
        parts: dict[tuple[tuple[str, str], ...], list[Run]] = defaultdict(list)
        keys = {key for run in runs for key in run.options}
        differ = sorted(k for k in keys if len({_shown(run.options.get(k)) for run in runs}) > 1)
        for run in runs:
            parts[tuple((k, _shown(run.options.get(k))) for k in differ)].append(run)
        for what, part in parts.items():
            variant = ", ".join(f"{key} {value}" for key, value in what)
            named = Setup(setup.theirs, setup.model, setup.pretrained, setup.init, setup.label,
                          variant, setup.fraction)  # fmt: skip
            groups.append(Group(named, tuple(sorted(part, key=lambda run: run.seed))))
        if differ:
            notes.append(
                f"{where}: the seeds of {setup.name} differ in {', '.join(differ)}, so that they are "
                f"no replicates: {len(parts)} rows instead of one mean"
            )
    return sorted(groups, key=lambda group: group.setup), notes


def _order(key: tuple[str, str, int, int, str]) -> tuple[object, ...]:
    task, source, size, source_size, digest = key
    known = list(official_tasks())
    place = known.index(task) if task in known else len(known)
    return (source == "synthetic", place, task, source, size, source_size, digest)


def _shown(value: object) -> str:
    return (
        "not stated" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    )

"""The tables of ``dogmed analyze scale``, and the rows of its CSV file, a point each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from dogmed.analysis.evaluation import Score
from dogmed.analysis.scale.command import THESIS_SIZE
from dogmed.analysis.scale.curves import Curve
from dogmed.analysis.scale.points import Choice, KernelChange, Measured, Subject
from dogmed.analysis.tables import Table, changed, few_resamples, interval, percent
from dogmed.console import count
from dogmed.references import imagenet_tables

NEAR = 0.03  # by which a resolution's share of the training size may differ from the thesis's
THESIS_TABLES = ("4.6", "4.7", "4.8", "4.9", "4.10")
FITS = {
    "resize": "the network sees the resized image",
    "pad": "on the canvas of the training size",
    "mirror": "on the canvas of the training size, mirror images around",
}


class Place(NamedTuple):
    """A column: one size of the images."""

    at: float
    side: int
    """0 where factors are what is varied: models of several sizes then share it."""


def metric_name(metric: str, many: bool) -> str:
    return {"acc": "accuracy@1" if many else "accuracy", "acc5": "accuracy@5", "auc": "AUC"}[metric]


def places_of(measured: Iterable[Measured]) -> list[Place]:
    """The columns that points fall into, ascending."""
    return sorted({place_of(m) for m in measured})


def place_of(m: Measured) -> Place:
    """The column of a point."""
    return Place(m.point.at, 0 if m.subject.by_factor else m.point.side)


def scores_table(
    title: str, subjects: Sequence[Subject], told: Sequence[Measured], metric: str, *, thesis: bool
) -> Table:
    """A row for each model and kernel size, in percent, as in Tables 4.6 to 4.10.

    Args:
        title: of the table.
        subjects: in their order.
        told: points of one split and fit.
        metric: of them.
        thesis: whether the thesis's rows follow.
    """
    places = places_of(told)
    table = Table(title, ["model", "kernel", *_heads(places)])
    for subject in subjects:
        for kernel in subject.kernels:
            mine = {
                place_of(m): m.scores[metric]
                for m in told
                if m.subject is subject and m.point.kernel == kernel
            }
            cells = [percent(mine.get(place)) for place in places]
            table.rows.append([subject.title, kernel_name(subject, kernel), *cells])
    if thesis:
        quoted = _thesis_rows(places)
        table.rows += quoted
        if quoted:
            table.note_printed = True
            table.note = (
                "Rows of the thesis are as printed, of ImageNet-1K at 224 px: other data, not worked out "
                "here. They stand at the same share of the training size."
            )
    return table


def changes_table(
    title: str, subjects: Sequence[Subject], found: Sequence[KernelChange], *, thesis: bool
) -> Table:
    """Other kernels minus the model's own, in points, with a word.

    Args:
        title: of the table.
        subjects: in their order.
        found: differences of one metric and fit.
        thesis: whether the thesis's rows follow.
    """
    places = places_of(change.of for change in found)
    table = Table(title, ["model", "kernel", *_heads(places)], printed=False)
    for subject in subjects:
        for kernel in subject.kernels:
            mine = {
                place_of(c.of): c
                for c in found
                if c.of.subject is subject and c.of.point.kernel == kernel
            }
            if mine:
                cells = [changed(mine.get(place)) for place in places]
                table.rows.append([subject.title, kernel_name(subject, kernel), *cells])
    family = max(change.family for change in found)
    table.note = (
        f"Points; better, worse or noise: p < 0.05 after Holm's adjustment over "
        f"{count(family, 'difference')} of a model.{few_resamples(table)} Intervals and p-values are in the "
        "CSV file."
    )
    if thesis:
        quoted = _thesis_rows(places, differences=True)
        table.rows += quoted
        if quoted:
            table.note += " The thesis's are differences of its printed rows, without an interval."
    return table


def choices_table(title: str, subjects: Sequence[Subject], found: Sequence[Choice]) -> Table:
    """Which kernel size val chooses at each side, what it gives on test, and what test would have claimed."""
    places = places_of(choice.test for choice in found)
    table = Table(title, ["model", "", *_heads(places)])
    for subject in subjects:
        mine = {place_of(c.test): c for c in found if c.test.subject is subject}
        if not mine:
            continue
        metric = found[0].metric
        chosen = [mine.get(place) for place in places]
        table.rows += [
            [subject.title, "kernel chosen on val"]
            + ["–" if c is None else str(c.test.point.kernel) for c in chosen],
            ["", "score on test"]
            + [percent(None if c is None else c.test.scores[metric]) for c in chosen],
            ["", "minus own kernel"]
            + [
                "–" if c is None else "own" if c.change is None else changed(c.change)
                for c in chosen
            ],
            ["", "choosing on test would add"]
            + ["–" if c is None else f"{100 * c.flattery:.2f}" for c in chosen],
        ]
    table.note = (
        "Chosen on val alone, at each size of the images, by the score that is told. The last row is how much "
        "better the best kernel size on test looks: what choosing there would have flattered."
        + few_resamples(table)
    )
    return table


def summary_table(title: str, found: Sequence[Curve]) -> Table:
    """One number for each curve, with its interval."""
    head = ["model", "kernels", "mean over factors", "minus own", "at 1", "worst", "worst / at 1"]
    table = Table(title, head)
    for curve in found:
        own = next(c for c in found if c.subject is curve.subject and c.own)
        one = next(m for m in curve.points if m.point.at == 1)
        worst, kept, mean = curve.worst, curve.kept, curve.average
        gain = "–" if curve is own else _gain(curve, own)
        table.rows.append([
            curve.subject.title, curve.name,
            interval(Score(mean.value, mean.low, mean.high)), gain,
            percent(one.scores[curve.metric]),
            f"{percent(worst.scores[curve.metric])} (×{worst.point.at:.3g})",
            "–" if kept is None else f"{kept.value:.3f} [{kept.low:.3f}, {kept.high:.3f}]",
        ])  # fmt: skip
    table.note = (
        "Percent, with 95% intervals over the images; the interval of worst / at 1 is that of the factor that "
        "was worst. p of a difference is that of one question alone, unadjusted."
    )
    return table


def csv_rows(
    told: Sequence[Measured], found: Sequence[KernelChange], chosen: Sequence[Choice]
) -> list[dict[str, Any]]:
    """One row a point and score, val's too; scores and differences are shares, not percent."""
    by_point = {(id(c.of), c.metric): c for c in found}
    taken = {(id(c.test), c.metric) for c in chosen}
    rows = []
    for m in told:
        subject, point = m.subject, m.point
        for metric, score in m.scores.items():
            change = by_point.get((id(m), metric))
            row: dict[str, Any] = {
                "model": subject.title, "kernel": point.kernel, "own_kernel": m.own,
                "fit": point.fit, "side": point.side, "factor": point.at, "split": point.split,
                "images": len(m.resampled.labels), "metric": metric,
                "value": score.value, "low": score.low, "high": score.high,
                "chosen_on_val": (id(m), metric) in taken,
            }  # fmt: skip
            if change is not None:
                row |= change.cells
            rows.append(row)
    return rows


CSV_COLUMNS = (
    "model", "kernel", "own_kernel", "fit", "side", "factor", "split", "images", "metric", "value", "low",
    "high", "chosen_on_val", "difference", "difference_low", "difference_high", "p", "p_holm", "word",
)  # fmt: skip


def thesis_rows(differences: bool = False) -> list[tuple[str, str, list[float]]]:
    """The rows of Tables 4.6 to 4.10, none twice: number and title, name, values; or minus kernel 9."""
    found, seen = [], set()
    for number in THESIS_TABLES:
        table = imagenet_tables()[number]
        training = table.title.rpartition(", ")[2]
        own = next(iter(table.rows.values()))
        for index, (name, row) in enumerate(table.rows.items()):
            values = [float(value) for value in row if value is not None]
            if differences:
                values = [a - float(b) for a, b in zip(values, own, strict=True) if b is not None]
            of_kernels = "ernel" in name or "->" in name
            if (differences and not (index and of_kernels)) or (training, tuple(values)) in seen:
                continue
            seen.add((training, tuple(values)))
            found.append((f"thesis, Table {number}, {training}", name, values))
    return found


def thesis_places() -> list[float]:
    """The thesis's resolutions as shares of its training size."""
    return [int(column) / THESIS_SIZE for column in imagenet_tables()["4.6"].columns]


def kernel_name(subject: Subject, kernel: int | None) -> str:
    if kernel is None:
        return "its own"
    return f"{kernel} (own)" if kernel == subject.own else str(kernel)


def _thesis_rows(places: Sequence[Place], *, differences: bool = False) -> list[list[str]]:
    known = thesis_places()
    columns = [
        min((i for i in range(len(known))), key=lambda i: abs(known[i] / place.at - 1))
        for place in places
    ]
    near = [abs(known[i] / place.at - 1) <= NEAR for i, place in zip(columns, places, strict=True)]
    if not any(near):
        return []
    sign = "+" if differences else ""
    return [
        [
            where,
            name,
            *(f"{values[i]:{sign}.2f}" if ok else "·" for i, ok in zip(columns, near, strict=True)),
        ]
        for where, name, values in thesis_rows(differences)
    ]


def _heads(places: Sequence[Place]) -> list[str]:
    """Pixels and factor; the size of the training between asterisks."""
    heads = []
    for place in places:
        text = f"{place.side} px ×{place.at:.2f}" if place.side else f"×{place.at:.3g}"
        heads.append(f"*{text}*" if place.at == 1 else text)
    return heads


def _gain(curve: Curve, own: Curve) -> str:
    d = curve.gain(own)
    return f"{100 * d.value:+.2f} [{100 * d.low:+.2f}, {100 * d.high:+.2f}], p {d.p:.2g}"

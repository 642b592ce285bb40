"""The tables of ``dogmed stress``: on the terminal, in Markdown and, a row a score, in CSV."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dogmed.analysis.evaluation import Score
from dogmed.analysis.stress.errors import Reference, Row, Told, compare
from dogmed.analysis.stress.points import ERROR, METRICS, Measured
from dogmed.analysis.stress.sets import SEVERITIES
from dogmed.analysis.tables import Cell, Table, changed, few_resamples, interval, percent
from dogmed.console import count

NAMES = {ERROR: "balanced error", "acc": "accuracy", "auc": "AUC"}
MEAN = "mean over corruptions"
CSV_COLUMNS = (
    "model", "group", "stress", "severity", "strength", "images", "metric", "value", "low", "high",
    "difference", "difference_low", "difference_high", "p", "p_holm", "word", "ratio", "ratio_low", "ratio_high",
    "relative", "relative_low", "relative_high",
)  # fmt: skip


def tables_of(told: Sequence[Told], reference: Reference | None) -> list[Table]:
    """What is printed first: a row a model, errors by corruption; then the other scores, models compared.

    One model is named in the heading above them all, in no table.
    """
    tables = [summary_table(told, reference)]
    tables += [metric_table(metric, told, reference) for metric in METRICS if _has(told, metric)]
    if len(told) == 1:
        for table in tables:
            table.head, table.rows = table.head[1:], [row[1:] for row in table.rows]
    for k, one in enumerate(told):
        tables += [pair_table(one, other) for other in told[k + 1 :]]
    return tables


def summary_table(told: Sequence[Told], reference: Reference | None) -> Table:
    """A row a model: as they are, corrupted, and normalised."""
    ratios = [] if reference is None else ["BE", "rBE"]
    metrics = [metric for metric in METRICS if _has(told, metric)]
    heads = [head for metric in metrics for head in (f"{NAMES[metric]}, clean", "corrupted")]
    table = Table("Mean over corruptions and severities, %, test", ["model", *heads, *ratios])
    for one in told:
        cells = [one.subject.title]
        for metric in metrics:
            cells += [_whole(one.clean.score(metric)), _whole(one.overall.score(metric))]
        if reference is not None:
            cells += [_ratio(one.overall.ratio), _ratio(one.overall.relative)]
        table.rows.append(cells)
    table.note = "Balanced error: 1 - balanced accuracy. 95% intervals over the images."
    if reference is not None:
        table.note += (
            f" BE and rBE: the error, and its increase over the clean one, as a share of those of "
            f"{reference.title}, means over the corruptions; below 1 is better."
        )
    return table


def metric_table(metric: str, told: Sequence[Told], reference: Reference | None) -> Table:
    """A row for each corruption and resolution of each model.

    Args:
        metric: of the rows.
        told: in the order of the models.
        reference: whose normalised errors follow, of the balanced error.
    """
    normalised = metric == ERROR and reference is not None
    severities = [str(severity) for severity in range(1, SEVERITIES + 1)]
    head = ["model", "group", "what", *severities, "mean", "minus clean"]
    name = NAMES[metric][0].upper() + NAMES[metric][1:]
    table = Table(f"{name}, %, test, by severity", head, printed=metric == ERROR)
    table.head += ["BE", "rBE"] if normalised else []
    for one in told:
        blank = ["·"] * SEVERITIES
        clean = [one.subject.title, "", "clean", *blank, percent(one.clean.score(metric)), ""]
        table.rows.append(clean + (["", ""] if normalised else []))
        for row in (*one.rows, one.overall):
            stress = row.stress
            cells = [percent(m.score(metric)) for m in row.points] if _graded(row) else blank
            group, title = ("", MEAN) if stress is None else (stress.group, stress.title)
            table.rows.append(
                [
                    "",
                    group,
                    title,
                    *cells,
                    percent(row.score(metric)),
                    changed(row.changes.get(metric)),
                ]
                + ([_short(row.ratio), _short(row.relative)] if normalised else [])
            )
    family = max(len(one.rows) for one in told)
    table.note = (
        f"Minus clean: points; better, worse or noise: p < 0.05 after Holm's adjustment over "
        f"{count(family, 'difference')} of a model and score (the mean over corruptions is one question alone)."
        + few_resamples(table)
    )
    return table


def pair_table(a: Told, b: Told) -> Table:
    """One model minus another: as they are, under each stress, and over all corruptions."""
    found = compare(a, b)
    metrics = [metric for metric in METRICS if any(metric in made for made in found.values())]
    title = f"{a.subject.title} minus {b.subject.title}"
    table = Table(title, ["what", *(NAMES[metric] for metric in metrics)])
    for name, made in found.items():
        what = MEAN if name == "mean" else name.replace("_", " ")
        table.rows.append([what, *(changed(made.get(metric)) for metric in metrics)])
    table.note = (
        f"Points, means over the severities, on the same images; Holm's adjustment over "
        f"{count(len(found), 'difference')} of a score. One training each: the intervals know the luck of the "
        "images, not that of training." + few_resamples(table)
    )
    return table


def csv_rows(told: Sequence[Told]) -> list[dict[str, Any]]:
    """A row a model, stress, severity and score; the mean over severities, or over all, is ``mean``."""
    rows = []
    for one in told:
        title = one.subject.title
        rows += _csv_points(title, "", "clean", [one.clean], [None])
        for row in (*one.rows, one.overall):
            stress = row.stress
            group, name = ("", MEAN) if stress is None else (stress.group, stress.name)
            if stress is not None and _graded(row):
                rows += _csv_points(title, group, name, row.points, stress.strengths)
            rows += [_csv_mean(title, group, name, row, metric) for metric in METRICS]
    return [row for row in rows if row["value"] is not None]


def _csv_points(
    title: str, group: str, name: str, points: Sequence[Measured], strengths: Sequence[Any]
) -> list[dict[str, Any]]:
    rows = []
    for m, strength in zip(points, strengths, strict=True):
        for metric in METRICS:
            score = m.score(metric)
            rows.append({
                "model": title, "group": group, "stress": name, "severity": m.point.severity,
                "strength": _strength(strength), "images": len(m.resampled.labels), "metric": metric,
                **_three("value", score),
            })  # fmt: skip
    return rows


def _csv_mean(title: str, group: str, name: str, row: Row, metric: str) -> dict[str, Any]:
    change = row.changes.get(metric)
    cells: dict[str, Any] = {
        "model": title, "group": group, "stress": name, "severity": "mean",
        "images": len(row.mean.labels), "metric": metric, **_three("value", row.score(metric)),
    }  # fmt: skip
    if change is not None:
        cells |= change.cells
    if metric == ERROR and row.ratio is not None:
        cells |= _three("ratio", row.ratio)
    if metric == ERROR and row.relative is not None:
        cells |= _three("relative", row.relative)
    return cells


def _three(name: str, score: Score | None) -> dict[str, Any]:
    low, high = ("low", "high") if name == "value" else (f"{name}_low", f"{name}_high")
    if score is None:
        return {name: None, low: None, high: None}
    return {name: score.value, low: score.low, high: score.high}


def _strength(strength: Any) -> str | None:
    if strength is None:
        return None
    return " ".join(map(str, strength)) if isinstance(strength, tuple) else str(strength)


def _graded(row: Row) -> bool:
    """Whether there are severities to tell apart."""
    return row.stress is not None and row.stress.corrupts


def _has(told: Sequence[Told], metric: str) -> bool:
    return any(one.clean.score(metric) is not None for one in told)


def _whole(score: Score | None) -> str:
    return "–" if score is None else interval(score)


def _ratio(score: Score | None) -> str:
    return "–" if score is None else f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"


def _short(score: Score | None) -> str:
    if score is None:
        return "–"
    return Cell.of(f"{score.value:.3f}", f"[{score.low:.3f}, {score.high:.3f}]")

"""Tables of one test set and of the cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dogmed.console import duration
from dogmed.finetune.report.analysis import Analysis
from dogmed.finetune.report.cells import Cell, Row, Table, interval, percent, text
from dogmed.finetune.report.grouping import Group, TestSet
from dogmed.finetune.report.reading import Run
from dogmed.metrics import decide
from dogmed.models.cost import describe_cost

_METRICS = {
    "acc": "ACC", "auc": "AUC", "balanced_accuracy": "balanced ACC", "macro_f1": "macro F1",
    "map": "mAP", "quadratic_kappa": "kappa (quadratic)", "brier": "Brier", "ece": "ECE",
}  # fmt: skip


def metrics_table(where: TestSet, found: Analysis) -> Table:
    """All metrics of a test set, one row a setup."""
    there = {name for group in where.groups for name in found.of(where, group.setup)}
    names = [name for name in _METRICS if name in there]
    table = Table("metrics", "All metrics", "model", [Cell(_METRICS[name]) for name in names])
    for group in where.groups:
        of, cells = found.of(where, group.setup), []
        for name in names:
            e = of.get(name)
            if e is None:
                cells.append(Cell("·"))
                continue
            scale, digits = (1.0, 3) if name in ("brier", "ece", "quadratic_kappa") else (100.0, 2)
            sd = f" ± {scale * e.sd:.{digits}f}" if e.sd is not None else ""
            ends = "" if name == "ece" or np.isnan(e.low) else (
                f"[{scale * e.low:.{digits}f}, {scale * e.high:.{digits}f}]"
            )  # fmt: skip
            cells.append(Cell(f"{scale * e.value:.{digits}f}{sd}", ends))
        table.rows.append(Row(text(group.setup.name), cells))
    table.notes = ["Brier 0 to 2, summed over the classes; ECE in 15 bins, without an interval, since resampling "
                   "biases it; both are better when small."]  # fmt: skip
    return table


def confusion(where: TestSet, group: Group, labels: Any) -> Table | None:
    """What is taken for what, summed over the seeds: counts, shaded by their share of the true class."""
    runs = [run for run in group.runs if run.probabilities is not None]
    if not runs or labels is None:
        return None
    total = 0
    for run in runs:
        total = total + _counts(where, run, labels)
    counts = np.asarray(total)
    multi_label = where.kind == "multi-label"
    columns = ["found", "missed", "false alarm", "rejected"] if multi_label else list(where.classes)
    table = Table("confusion", group.setup.name, "true \\ predicted", [Cell(c) for c in columns])
    if multi_label:
        table.corner = "label"
    for name, row in zip(where.classes, counts, strict=True):
        whole = row.reshape(2, 2).sum(1).repeat(2) if multi_label else np.full(len(row), row.sum())
        shares = np.divide(row, whole, out=np.zeros(len(row)), where=whole > 0)
        table.rows.append(Row(text(name), [
            Cell(f"{count:,}", f"{100 * share:.0f}%" if count else "", shade=float(share))
            for count, share in zip(row.tolist(), shares, strict=True)
        ]))  # fmt: skip
    if len(runs) > 1:
        table.notes = [f"Summed over {len(runs)} seeds."]
    return table


def _counts(where: TestSet, run: Run, labels: Any) -> np.ndarray:
    probabilities = run.probabilities
    assert probabilities is not None
    if where.kind == "binary" and probabilities.shape[1] == 1:
        probabilities = np.hstack([1 - probabilities, probabilities])
    decided = decide(where.kind, probabilities)
    if where.kind == "multi-label":
        found, alarm = (labels * decided).sum(0), ((1 - labels) * decided).sum(0)
        present = labels.sum(0)
        return np.stack([found, present - found, alarm, len(labels) - present - alarm], 1)
    counts = np.zeros((len(where.classes),) * 2, dtype=np.int64)
    np.add.at(counts, (labels[:, 0], decided), 1)
    return counts


def hours(run: Run) -> float:
    """Hours of all devices together."""
    return float(run.result.get("seconds", 0)) * int(run.result.get("processes", 1)) / 3600


def on_gpu(run: Run) -> bool:
    return set(run.result.get("peak_memory", {})) - {"host_bytes"} != set()


def _size(result: Mapping[str, Any]) -> tuple[str, str]:
    """Parameters and MACs, small ones in smaller units."""
    if "parameters" not in result or "macs" not in result:
        return "–", "–"
    parameters, macs = describe_cost(result["parameters"], result["macs"]).split(", ")
    return parameters.removesuffix(" parameters"), macs


def cost(sets: Sequence[TestSet], found: Analysis) -> Table:
    """What the setups took: the one table (with its picture) that no two sittings of the same runs share."""
    columns = ["ACC, %", "parameters", "MACs an image", "time a run", "device-hours, all seeds",
               "images/s", "device"]  # fmt: skip
    table = Table("cost", "Cost", "model", [Cell(c) for c in columns])
    for one in sets:
        for group in one.groups:
            runs = [run for run in group.runs if run.result.get("seconds") is not None]
            if not runs:
                continue
            result, acc = runs[0].result, found.of(one, group.setup)["acc"]
            mean = sum(run.result["seconds"] for run in runs) / len(runs)
            pace = [
                run.result["images_per_second"] for run in runs if "images_per_second" in run.result
            ]
            devices = dict.fromkeys(
                f"{run.result.get('device', 'not stated')}{' (GPU)' if on_gpu(run) else ' (CPU)'}"
                for run in runs
            )
            table.rows.append(Row(text(group.setup.name, one.name), [
                Cell(percent(acc.value), interval(acc.low, acc.high)),
                *(Cell(part) for part in _size(result)),
                Cell(duration(mean)),
                Cell(f"{sum(map(hours, runs)):.3f}"),
                Cell(f"{sum(pace) / len(pace):,.0f}" if pace else "–"),
                text(", ".join(devices)),
            ]))  # fmt: skip
    table.notes = ["Training time alone, without preparing data and scoring. Times of runs that shared a "
                   "machine, or ran on different ones, are not comparable; parameters and MACs are."]  # fmt: skip
    return table

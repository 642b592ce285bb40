"""The report as Markdown, LaTeX and CSV."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dogmed.csvfile import csv_text
from dogmed.finetune.report.assembly import Report
from dogmed.finetune.report.cells import Cell, Row, Table
from dogmed.finetune.report.details import hours
from dogmed.finetune.report.publish import publish
from dogmed.finetune.report.verdicts import WORDS

_SIGNS = {
    "▲": r"$\blacktriangle$", "▼": r"$\blacktriangledown$", "≈": r"$\approx$", "≠": r"$\neq$", "★": r"$\star$",
    "−": "$-$", "±": r"$\pm$", "→": r"$\to$", "·": r"$\cdot$", "×": r"$\times$", "–": "--", "²": "$^2$",
    "χ": r"$\chi$",
}  # fmt: skip
_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#",
    "$": r"\$", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "[": "{[}", "]": "{]}",
}  # fmt: skip
WIDE = 5  # columns beyond which a LaTeX table is scaled to the page
LONG, BROAD = 25, 8  # rows beyond which it runs over pages, if it has no more than so many columns
TITLE = "dogmed report"


def markdown(report: Report) -> str:
    """Write the report in Markdown, tables as GitHub has them."""
    lines = [f"# {TITLE}", ""]
    if report.synthetic:
        lines += [f"> **{_md(report.synthetic)}**", ""]
    lines += [f"- {_md(fact)}" for fact in report.facts]
    if report.headlines:
        lines += ["", "## At a glance", "", *(f"- {_md(told)}" for told, _ in report.headlines)]
    for table in report.tables:
        lines += ["", f"## {_md(table.title)}", "", *_md_table(table)]
    if report.notes:
        lines += ["", "## Notes", "", *(f"- {_md(note)}" for note in report.notes)]
    return "\n".join(lines) + "\n"


def latex(report: Report) -> str:
    """Write the report as a LaTeX document; each table can be taken out of it as it stands.

    Tables stand where they are written ([H], package float): so many of them could not float.
    """
    parts = [
        "\\documentclass{article}", "\\usepackage[T1]{fontenc}",
        "\\usepackage[a4paper,landscape,margin=15mm]{geometry}",
        "\\usepackage{amssymb,booktabs,float,graphicx,longtable}", "\\begin{document}", f"\\section*{{{TITLE}}}",
    ]  # fmt: skip
    if report.synthetic:
        parts.append(f"\\textbf{{{tex(report.synthetic)}}}\n")
    parts += ["\\begin{itemize}"]
    parts += [
        f"\\item {tex(line)}" for line in [*report.facts, *(told for told, _ in report.headlines)]
    ]
    parts += ["\\end{itemize}"]
    parts += [_tex_table(table) for table in report.tables]
    if report.notes:
        parts += ["\\section*{Notes}", "\\begin{itemize}"]
        parts += [f"\\item {tex(note)}" for note in report.notes]
        parts += ["\\end{itemize}"]
    return "\n".join([*parts, "\\end{document}", ""])


def tex(text: str) -> str:
    """Escape what LaTeX would take for a command, and write signs as mathematics."""
    return "".join(_SPECIAL.get(c) or _SIGNS.get(c) or (c if ord(c) < 256 else "?") for c in text)


def csv_files(report: Report) -> dict[str, str]:
    """Means, runs, comparisons and costs, as numbers, by file name; seconds are in ``cost.csv`` alone."""
    tables = {
        "report.csv": _means(report),
        "runs.csv": _runs(report),
        "comparisons.csv": _pairs(report),
        "cost.csv": _costs(report),
    }
    return {name: csv_text(list(rows[0]), rows) if rows else "" for name, rows in tables.items()}


def write_csv(report: Report, folder: Path) -> None:
    """Write the CSV files alone."""
    publish(folder, csv_files(report))


def _key(where: Any, setup: Any) -> dict[str, Any]:
    return {
        "task": where.task, "source": where.source, "size": where.size, "source_size": where.source_size,
        "model": setup.model, "init": setup.init, "train_fraction": setup.fraction, "label": setup.label,
        "variant": setup.variant,
    }  # fmt: skip


def _groups(report: Report) -> Iterable[tuple[Any, Any]]:
    return ((where, group) for where in report.sets for group in where.groups)


def _means(report: Report) -> list[dict[str, Any]]:
    return [
        _key(where, group.setup)
        | {"metric": metric, "seeds": e.seeds, "mean": e.value, "sd": e.sd, "low": e.low, "high": e.high,
           "covers": e.covers if metric != "ece" else ""}
        | ({"low": None, "high": None} if metric == "ece" else {})
        for where, group in _groups(report)
        for metric, e in report.analysis.of(where, group.setup).items()
        if metric not in ("loss", "n")
    ]  # fmt: skip


def _runs(report: Report) -> list[dict[str, Any]]:
    metrics = (
        "acc",
        "auc",
        "balanced_accuracy",
        "macro_f1",
        "map",
        "quadratic_kappa",
        "brier",
        "ece",
    )
    return [
        _key(where, group.setup)
        | {"seed": run.seed, "test_n": run.test["n"], "epochs": run.result.get("epochs"),
           "best_epoch": run.result.get("best_epoch"), "selected_on": run.result.get("selected_on"),
           "trivial_acc": run.result.get("trivial_test_acc")}
        | {name: run.test.get(name) for name in metrics}
        | {"folder": run.folder}
        for where, group in _groups(report)
        for run in group.runs
    ]  # fmt: skip


def _pairs(report: Report) -> list[dict[str, Any]]:
    return [
        {"question": c.question, "task": c.where.task, "source": c.where.source, "size": c.where.size,
         "source_size": c.where.source_size, "first": c.a.name,
         "second": c.b.name if c.b else "most frequent class", "metric": c.metric,
         "difference": c.difference.value, "low": c.difference.low, "high": c.difference.high,
         "p": c.difference.p, "p_holm": None if c.unequal else c.adjusted, "family": c.family,
         "verdict": WORDS[c.verdict],
         "covers": c.difference.covers, "unequal": c.unequal,
         "mcnemar_p": " ".join(f"{test.p:.6g}" for test in c.mcnemar)}
        for c in report.analysis.comparisons
    ]  # fmt: skip


def _costs(report: Report) -> list[dict[str, Any]]:
    return [
        _key(where, group.setup)
        | {"seed": run.seed, "parameters": run.result.get("parameters"), "macs": run.result.get("macs"),
           "seconds": run.result.get("seconds"), "device_hours": hours(run),
           "images_per_second": run.result.get("images_per_second"),
           "processes": run.result.get("processes"), "device": run.result.get("device")}
        for where, group in _groups(report)
        for run in group.runs
        if not run.theirs
    ]  # fmt: skip


def _md_table(table: Table) -> list[str]:
    if not table.rows:
        return ["Nothing to show."]
    head = [table.corner, *(column.plain for column in table.columns)]
    align = ["---", *("--:" if _numeric(table, k) else "---" for k in range(len(table.columns)))]
    lines = ["| " + " | ".join(map(_md, head)) + " |", "|" + "|".join(align) + "|"]
    for row in table.rows:
        name = _md(row.head.text)
        under = f"<br><sub>{_md(row.head.sub)}</sub>" if row.head.sub else ""
        name = f"*{name}*" if row.kind == "reference" else name
        lines.append(
            "| " + " | ".join([name + under, *(_md(cell.plain) for cell in row.cells)]) + " |"
        )
    sources = ["", *(f"- {_md(source)}" for source in table.sources)] if table.sources else []
    return [*lines, *(f"\n{_md(note)}" for note in table.notes), *sources]


def _numeric(table: Table, column: int) -> bool:
    return all(row.cells[column].number for row in table.rows)


def _md(text: str) -> str:
    """Escape what Markdown would take for markup; an underscore within a word is none."""
    return re.sub(r"([|*`<>\\]|(?<!\w)_|_(?!\w))", r"\\\1", text).replace("\n", " ")


def _tex_table(table: Table) -> str:
    if not table.rows:
        return ""
    spec = "l" + "".join("r" if _numeric(table, k) else "l" for k in range(len(table.columns)))
    rows: list[str] = []
    before = "measured"
    for row in table.rows:
        if row.kind != before:
            rows.append("\\midrule")
        before = row.kind
        rows.append(_tex_row(row))
    head = (
        " & ".join([tex(table.corner), *(_tex_cell(column) for column in table.columns)]) + r" \\"
    )
    notes = " ".join(map(tex, [*table.notes, *(f"{source}." for source in table.sources)]))
    caption = f"\\caption{{{tex(table.title)}. {notes}}}"
    if len(rows) > LONG and len(table.columns) <= BROAD:
        again = ["\\toprule", head, "\\midrule"]
        begin = ["{\\scriptsize", f"\\begin{{longtable}}{{{spec}}}", caption + r" \\"]
        begin += [*again, "\\endfirsthead", *again, "\\endhead"]
        end = ["\\bottomrule", "\\end{longtable}}"]
        return "\n".join(["", f"% {table.key}", *begin, *rows, *end])
    body = [f"\\begin{{tabular}}{{{spec}}}", "\\toprule", head, "\\midrule", *rows, "\\bottomrule",
            "\\end{tabular}"]  # fmt: skip
    if len(table.columns) > WIDE:
        body = ["\\resizebox{\\linewidth}{!}{%", *body, "}"]
    top = ["", f"% {table.key}", "\\begin{table}[H]", "\\centering\\footnotesize"]
    return "\n".join([*top, caption, *body, "\\end{table}"])


def _tex_row(row: Row) -> str:
    head = _tex_cell(row.head)
    return " & ".join([head, *(_tex_cell(cell) for cell in row.cells)]) + r" \\"


def _tex_cell(cell: Cell) -> str:
    if not cell.sub:
        return tex(cell.plain)
    first = tex(Cell(cell.text, mark=cell.mark).plain)
    side = "r" if cell.number else "l"
    return f"\\begin{{tabular}}[c]{{@{{}}{side}@{{}}}}{first}\\\\\\scriptsize {tex(cell.sub)}\\end{{tabular}}"

"""``dogmed analyze kernels``: what the kernels of trained networks are (thesis, section 4.2.1).

Kernels of a DoGConv are functions and can be read: their pattern, widths and mixing weights. Those of any
other depthwise convolution are compared with the nearest kernels of the DoG family. Both are drawn, with
what they were before the training beside them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dogmed.analysis.subject import ModelsConfig, open_models, refuse_unusable
from dogmed.config import configclass

if TYPE_CHECKING:  # PyTorch: not for --help
    from dogmed.analysis.kernels.study import Study
    from dogmed.console import Console


@configclass
class KernelsConfig(ModelsConfig):
    """Draw and count the kernels of trained models, and fit DoG kernels to those of others."""

    before: str | None = None
    """What the models were before their training, named as models are; None: what their records say, from
    scratch the weights that their seed draws."""


def command(**options: Any) -> None:
    """Look at the models one by one; write tables, pictures and a page, and print what they say."""
    config = KernelsConfig(**options)

    from dogmed.analysis.kernels.study import study
    from dogmed.console import Console, Stopper

    console = Console(enabled=True)
    refuse_unusable(config.out)
    models = open_models(config.models, config.weights_dir, config.out)
    with Stopper(console):
        for trained in models:
            write(config, study(trained, config.before, config.weights_dir, console.line), console)


def write(config: KernelsConfig, found: Study, output: Console) -> Path:
    """Write all that was found out about one network and say the most of it; returns the folder."""
    from dogmed.analysis.kernels import tables as kernels_tables
    from dogmed.analysis.kernels.page import page
    from dogmed.analysis.kernels.pictures import pictures
    from dogmed.analysis.kernels.plots import FILE, charts
    from dogmed.analysis.output import folder_of, track, write_json, write_table
    from dogmed.csvfile import csv_text
    from dogmed.plots import save_figure
    from dogmed.runs import write_atomic

    record = found.trained.record
    folder = folder_of(config.out, "kernels", f"{found.trained.title} {record.sha256[:8]}")
    tables, channels = kernels_tables.tables(found), kernels_tables.channels(found)
    files = [folder / "kernels.html", folder / "kernels.json", folder / "channels.csv"]
    write_json(files[1], kernels_tables.content(found, tables))
    write_atomic(
        files[2], csv_text(list(dict.fromkeys(n for row in channels for n in row)), channels)
    )
    for table in tables:
        rows = kernels_tables.plain(table.rows)
        files += write_table(
            folder / table.name,
            table.columns,
            rows,
            title=f"{table.title}: {found.title}",
            note=table.note,
        )
    for chart in charts(found):
        files += save_figure(chart.draw(FILE), folder / chart.name)
    for name, figure in pictures(found):
        files += save_figure(figure, folder / name)
    write_atomic(files[0], page(found, tables))
    _say(found, tables, output)
    if config.tracking == "mlflow":
        track(
            folder, config.out, "kernels", f"kernels {found.trained.title}",
            params={"model": found.trained.title, "sha256": record.sha256, "before": found.origin.title},
            scores=kernels_tables.figures(found), files=files,
        )  # fmt: skip
    output.line(f"\n{folder}: kernels.html, kernels.json, {len(files) - 2} tables and pictures")
    return folder


def _say(found: Study, tables: Any, output: Console) -> None:
    """Print the tables of the whole network: shares, changes, energy explained."""
    from dogmed import console
    from dogmed.analysis.kernels.tables import figures
    from dogmed.analysis.output import shown
    from dogmed.models.patterns import TITLES

    origin = found.origin
    output.line(f"\n{found.title}; before: {origin.title} – {origin.note}")
    for table in tables:
        if table.name not in ("patterns", "changes", "explained"):
            continue
        rows = [row for row in table.rows if table.name == "changes" or row["when"] == "random"
                or row["layer"].startswith("all")]  # fmt: skip
        columns = [c for c in table.columns if any(row.get(c) is not None for row in rows)]
        output.line(f"\n{table.title}")
        head = tuple(TITLES.get(column, column) for column in columns)
        cells = [
            tuple(TITLES.get(text, text) for text in (shown(row.get(c)) for c in columns))
            for row in rows
        ]
        console.table([head, *cells])
    told = [
        f"{name} {shown(value)}"
        for name, value in figures(found).items()
        if not name.startswith("share_")
    ]
    output.line("\n" + "; ".join(told))

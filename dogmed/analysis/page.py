"""Tables of scores with their intervals, and pictures, as one page that asks for nothing from outside."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from matplotlib.figure import Figure

from dogmed.analysis.tables import Cell, Table
from dogmed.htmlpage import document
from dogmed.plots import to_svg

STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; color: #1c2126; background: #fff; margin: 2rem; }
table { border-collapse: collapse; margin: .5rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: left; border-bottom: 1px solid #dde1e5; white-space: nowrap; }
small { display: block; color: #68717a; }
h2 { font-size: 1.05rem; margin-top: 2rem; }
.scroll { overflow-x: auto; }
svg { max-width: 100%; height: auto; }
p.note { color: #68717a; max-width: 60rem; }
"""


def page(
    title: str, lead: Sequence[str], tables: Sequence[Table], figures: Sequence[Figure]
) -> str:
    """Write the page: what must be known, the pictures, the tables."""
    parts = [f"<h1>{escape(title)}</h1>", *(f"<p>{escape(line)}</p>" for line in lead)]
    parts += [to_svg(figure, f"figure{k}", {}) for k, figure in enumerate(figures)]
    for table in tables:
        head = "".join(f"<th>{escape(name.strip('*'))}</th>" for name in table.head)
        rows = "\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in table.rows)
        parts += [
            f"<h2>{escape(table.title)}</h2>",
            f'<div class="scroll"><table><tr>{head}</tr>\n{rows}</table></div>',
            f'<p class="note">{escape(table.note)}</p>' if table.note else "",
        ]
    return document(title, STYLE.strip(), "\n".join(parts), schemes="light")


def _cell(text: str) -> str:
    detail = f"<small>{escape(text.detail)}</small>" if isinstance(text, Cell) else ""
    return f"<td>{escape(text)}{detail}</td>"

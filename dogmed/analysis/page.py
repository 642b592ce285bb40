"""Tables of scores with their intervals, and pictures, as one page that asks for nothing from outside."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from matplotlib.figure import Figure

from dogmed.analysis.tables import Cell, Table
from dogmed.htmlpage import document
from dogmed.plots import to_svg

STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; color: #1c2126; background: #fff; margin: clamp(.8rem, 4vw, 2rem); }
table { border-collapse: collapse; margin: .5rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .45rem; text-align: left; border-bottom: 1px solid #dde1e5; white-space: nowrap; }
small { display: block; color: #68717a; }
h2 { font-size: 1.05rem; margin-top: 2rem; }
.scroll { overflow-x: auto; }
svg { display: block; width: 100%; height: auto; }
.narrow { display: none; }
@media (max-width: 40rem) {
  .narrow { display: block; }
  .narrowed { display: none; }
}
p.note { color: #68717a; max-width: 60rem; }
"""


def page(
    title: str,
    lead: Sequence[str],
    tables: Sequence[Table],
    figures: Sequence[Figure],
    narrow: Sequence[Figure] = (),
) -> str:
    """Write the page: what must be known, the pictures, the tables.

    Args:
        title: of the page.
        lead: what must be known, a paragraph each.
        tables: of scores.
        figures: on a narrow screen each scrolls in its box, no smaller than it was drawn.
        narrow: what takes the place of all of them there.
    """
    parts = [f"<h1>{escape(title)}</h1>", *(f"<p>{escape(line)}</p>" for line in lead)]
    of_wide = "scroll narrowed" if narrow else "scroll"
    parts += [_picture(figure, f"figure{k}", of_wide) for k, figure in enumerate(figures)]
    parts += [_picture(figure, f"narrow{k}", "scroll narrow") for k, figure in enumerate(narrow)]
    for table in tables:
        head = "".join(f"<th>{escape(name.strip('*'))}</th>" for name in table.head)
        rows = "\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in table.rows)
        parts += [
            f"<h2>{escape(table.title)}</h2>",
            f'<div class="scroll"><table><tr>{head}</tr>\n{rows}</table></div>',
            f'<p class="note">{escape(table.note)}</p>' if table.note else "",
        ]
    return document(title, STYLE.strip(), "\n".join(parts), schemes="light")


def _picture(figure: Figure, name: str, classes: str) -> str:
    width = f"{figure.get_size_inches()[0]:g}in"
    svg = to_svg(figure, name, {}).replace("<svg ", f'<svg style="min-width: {width}" ', 1)
    return f'<div class="{classes}">{svg}</div>'


def _cell(text: str) -> str:
    detail = f"<small>{escape(text.detail)}</small>" if isinstance(text, Cell) else ""
    return f"<td>{escape(text)}{detail}</td>"

"""Pictures of kernels: each in colours of its own scale, as in the thesis's Figures 4.2 and 4.3.

Orange is positive, blue negative, and what is 0 shows the ground. The scale is symmetric about 0 and
ends at the kernel's largest entry, so that shapes can be compared and values cannot.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from dogmed.plots import NEGATIVE, POSITIVE

ACROSS = {1: 26, 2: 12}  # tiles of a row, by how many stand side by side
CELLS = 8  # along a tile's gap, in parts of a kernel's cell: a cell is that many pixels, a gap half
TILE = 0.29  # inches, of a tile with its gap
SCALE_NOTE = (
    "each kernel has its own colours: orange positive, blue negative, full at its largest entry; "
    "shapes can be compared, values cannot"
)


class Group(NamedTuple):
    """Kernels of one kind, drawn together."""

    title: str
    channels: NDArray[np.intp]


class Entry(NamedTuple):
    """A kernel (K, K) beside its fit, and what is said under them."""

    caption: str
    kernel: NDArray[Any]
    fitted: NDArray[Any]


class FitRow(NamedTuple):
    """Kernels with their fits, under a name."""

    title: str
    entries: Sequence[Entry]


def tint(kernel: NDArray[Any]) -> NDArray[np.uint8]:
    """Colour a kernel (K, K): RGBA (K, K, 4), transparent at 0, the same for c times the kernel, c > 0."""
    most = np.abs(kernel).max()
    share = kernel / most if most > 0 else np.zeros_like(kernel)
    colour = np.where((share > 0)[..., None], POSITIVE, NEGATIVE)
    alpha = np.round(255 * np.abs(share))
    return np.concatenate([colour, alpha[..., None]], axis=-1).astype(np.uint8)


def data_uri(kernel: NDArray[Any]) -> str:
    """A kernel as a PNG of a pixel a cell, to stand in a page."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(tint(kernel), "RGBA").save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def mosaic(kernels: NDArray[Any], across: int) -> NDArray[np.uint8]:
    """Lay kernels (C, K, K) out in rows on white ground between grey gaps: RGB."""
    size = kernels.shape[-1]
    gap, side = CELLS // 2, size * CELLS
    rows = -(-len(kernels) // across)
    image = np.full((rows * (side + gap) + gap, across * (side + gap) + gap, 3), 255, np.uint8)
    for number in range(len(kernels)):
        y, x = (gap + part * (side + gap) for part in divmod(number, across))
        image[y - gap : y + side + gap, x - gap : x + side + gap] = 216
    for number, kernel in enumerate(kernels):
        y, x = (gap + part * (side + gap) for part in divmod(number, across))
        pixels = tint(kernel).astype(float)
        alpha = pixels[..., 3:] / 255
        flat = pixels[..., :3] * alpha + 255 * (1 - alpha)
        image[y : y + side, x : x + side] = np.kron(flat, np.ones((CELLS, CELLS, 1))).round()
    return image


def draw_layer(
    title: str,
    panels: Sequence[tuple[str, NDArray[Any]]],
    groups: Sequence[Group],
    marked: NDArray[np.bool_] | None,
) -> Figure:
    """Draw the kernels of a layer by group, once or before and after side by side.

    Args:
        title: over the picture.
        panels: name and kernels (C, K, K) of each side.
        groups: which channels stand together.
        marked: (C,), kernels to be framed.
    """
    across = min(ACROSS[len(panels)], max(len(group.channels) for group in groups))
    rows = [-(-len(group.channels) // across) for group in groups]
    label, apart, gap = 1.15, 0.35, 0.09  # inches: names, between panels, between groups
    width = label + len(panels) * across * TILE + (len(panels) - 1) * apart + 0.05
    width = max(width, 0.09 * max(map(len, title.split("\n"))))
    head = 0.1 + 0.17 * len(title.split("\n")) + 0.25 * any(name for name, _ in panels)
    height = sum(rows) * TILE + gap * len(groups) + head + 0.4
    figure = Figure(figsize=(width, height))
    for column, (name, kernels) in enumerate(panels):
        left = label + column * (across * TILE + apart)
        top = height - head
        if name:
            figure.text(left / width, (top + 0.04) / height, name, fontsize=8.5, va="bottom")
        for group, count in zip(groups, rows, strict=True):
            if column == 0:
                text = f"{group.title}\n{len(group.channels)}"
                if count == 1:
                    text = f"{group.title}  {len(group.channels)}"
                figure.text(
                    (label - 0.1) / width, (top - count * TILE / 2) / height, text, fontsize=8,
                    ha="right", va="center",
                )  # fmt: skip
            used = min(across, len(group.channels))
            ax = figure.add_axes(
                (
                    left / width,
                    (top - count * TILE) / height,
                    used * TILE / width,
                    count * TILE / height,
                )
            )
            ax.imshow(mosaic(kernels[group.channels], used), interpolation="none", aspect="auto")
            ax.set_axis_off()
            if marked is not None:
                _frame(ax, marked[group.channels], used, kernels.shape[-1])
            top -= count * TILE + gap
    figure.text(0.06 / width, 1 - 0.06 / height, title, fontsize=10, weight="bold", va="top")
    note = SCALE_NOTE + ("; framed: another pattern than before" if marked is not None else "")
    figure.text(0.06 / width, 0.07 / height, _wrapped(note, width), fontsize=7, color="0.4")
    return figure


def draw_fits(title: str, rows: Sequence[FitRow]) -> Figure:
    """Draw kernels with their fits under them, in rows with a name."""
    longest = max(len(row.entries) for row in rows)
    label, side, gap = 0.75, 0.5, 0.12
    block = 2 * side + 0.05 + 0.42
    width, height = label + longest * (side + gap) + 0.1, block * len(rows) + 0.7
    figure = Figure(figsize=(width, height))

    def write(x: float, y: float, text: str, **style: Any) -> None:
        figure.text(x / width, y / height, text, **style)

    for number, row in enumerate(rows):
        top = height - 0.45 - number * block
        write(0.06, top - side, row.title, fontsize=8.5, weight="bold", va="center")
        for column, entry in enumerate(row.entries):
            left = label + column * (side + gap)
            for which, one in enumerate((entry.kernel, entry.fitted)):
                y = top - (which + 1) * side - which * 0.05
                ax = figure.add_axes((left / width, y / height, side / width, side / height))
                ax.imshow(mosaic(one[None], 1), interpolation="none", aspect="auto")
                ax.set_axis_off()
                if column == 0:
                    name, style = ("kernel", "fit")[which], {"ha": "right", "va": "center"}
                    write(label - 0.06, y + side / 2, name, fontsize=7, color="0.4", **style)
            below: dict[str, Any] = {"ha": "center", "va": "top", "linespacing": 1.1}
            write(left + side / 2, top - 2 * side - 0.09, entry.caption, fontsize=6.5, **below)
    write(0.06, height - 0.06, title, fontsize=10, weight="bold", va="top")
    write(0.06, 0.07, _wrapped(SCALE_NOTE, width), fontsize=7, color="0.4")
    return figure


def _frame(ax: Any, marked: NDArray[np.bool_], across: int, size: int) -> None:
    gap, side = CELLS // 2, size * CELLS
    for number in np.flatnonzero(marked):
        y, x = (part * (side + gap) + gap / 2 - 0.5 for part in divmod(number, across))
        ax.add_patch(Rectangle((x, y), side + gap, side + gap, fill=False, lw=1.3, ec="black"))


def _wrapped(text: str, width: float) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, int(width * 20)))

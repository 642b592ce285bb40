"""Pictures of explanations: the image, the map over it, and the strongest DoG kernels."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure

from dogmed.inference.explain.maps import Explainer, Explanation
from dogmed.inference.reading.pictures import Picture
from dogmed.plots import NEGATIVE, POSITIVE

HEAT = colormaps["inferno"]
COVER = 0.65
"""Opacity where the map is largest; where it is 0 the image shows as it is."""
KERNEL = LinearSegmentedColormap.from_list(
    "kernel", np.array([NEGATIVE, (255, 255, 255), POSITIVE]) / 255
)
"""From the negative to the positive, over white."""
BAR = "share of the map's largest value"
SIDE, TITLE, TILE = (
    2.9,
    0.5,
    0.86,
)  # inches: of a picture, of what is over it, of a kernel with its gap
KERNELS_AT = 2 * SIDE + 0.85
ACROSS = 4  # kernels in a row

KERNELS_NOTE = (
    "The number under a kernel is its part in the score: mean gradient times mean activation of its channel. "
    "Kernels have colours of their own: orange positive, blue negative, full at the largest entry; shapes can be "
    "compared, values cannot."
)


def overlay(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Lay a map (S, S) in [0, 1] over a picture (S, S, 3) uint8; gives the same form."""
    colour = HEAT(heat)[..., :3] * 255
    alpha = COVER * heat[..., None]
    return np.rint(pixels * (1 - alpha) + colour * alpha).astype(np.uint8)


def kernel_pixels(kernel: np.ndarray) -> np.ndarray:
    """Colour a kernel (K, K), full at its largest entry: (K, K, 3) uint8."""
    most = np.abs(kernel).max()
    share = kernel / most if most > 0 else kernel
    return np.rint(KERNEL((share + 1) / 2)[..., :3] * 255).astype(np.uint8)


def title(found: Explanation, task_kind: str) -> str:
    """What an explanation is of: class and probability, and whether it is what was decided."""
    told = (
        ""
        if found.decided
        else ", none decided for"
        if task_kind == "multi-label"
        else ", not predicted"
    )
    return f"{found.name}: probability {found.probability:.3f}{told}"


def caveat(explainer: Explainer) -> str:
    """What must be said beside every map."""
    side, cell = explainer.layer.side, explainer.cell
    return (
        f"Grad-CAM is coarse: the map has {side}×{side} cells of {cell:.3g} px of the network's "
        f"{explainer.classifier.size} px image, blown up smoothly. It tells where this network's score for the "
        "class comes from, not whether that is right: it is no evidence of a lesion."
    )


def kernels_title(explainer: Explainer) -> str:
    """What the kernels beside a map are."""
    assert explainer.dog is not None
    return f"strongest kernels of {explainer.dog} ({explainer.kernel_pixels} px a cell)"


def draw(
    explainer: Explainer, picture: Picture, found: Sequence[Explanation], warning: str
) -> Figure:
    """Draw a row for each explanation of an image.

    Args:
        explainer: that made them.
        picture: the image.
        found: of it.
        warning: what should be known of the image, "" for nothing.
    """
    width = KERNELS_AT + (ACROSS * TILE if explainer.dog else 0) + 0.1
    note = _wrapped(caveat(explainer), width * 16)
    if explainer.dog:
        note += "\n" + _wrapped(KERNELS_NOTE, width * 16)
    head = _wrapped(picture.name, width * 12)
    if warning:
        head += "\n" + _wrapped(f"warning: {warning}", width * 12)
    above, below = 0.17 * len(head.split("\n")) + 0.1, 0.14 * len(note.split("\n")) + 0.1
    height = above + len(found) * (SIDE + TITLE) + below
    figure = Figure(figsize=(width, height))
    figure.text(0, 1, head, fontsize=9, va="top")
    figure.text(0, 0, note, fontsize=7, color="0.35", va="bottom")

    def axes(left: float, top: float, wide: float, high: float) -> Any:
        """In inches, ``top`` from that of the figure."""
        return figure.add_axes(
            (left / width, 1 - (top + high) / height, wide / width, high / height)
        )

    for number, one in enumerate(found):
        top = above + number * (SIDE + TITLE) + TITLE - 0.1
        ax = axes(0, top, SIDE, SIDE)
        ax.imshow(picture.pixels)
        ax.set_title(f"{picture.width}×{picture.height} px", fontsize=8)
        ax.set_axis_off()
        ax = axes(SIDE + 0.12, top, SIDE, SIDE)
        ax.imshow(overlay(picture.pixels, one.heat))
        ax.set_title(_wrapped(title(one, explainer.classifier.kind), 44), fontsize=8, weight="bold")
        ax.set_axis_off()
        bar = figure.colorbar(
            ScalarMappable(Normalize(0, 1), HEAT), cax=axes(2 * SIDE + 0.2, top, 0.1, SIDE)
        )
        bar.set_label(BAR if one.peak else "the map is 0 everywhere", fontsize=7)
        bar.ax.tick_params(labelsize=7)
        bar.outline.set_visible(False)
        if explainer.dog:
            _draw_kernels(axes, top, explainer, one)
    return figure


def _draw_kernels(
    axes: Callable[..., Any], top: float, explainer: Explainer, one: Explanation
) -> None:
    told = kernels_title(explainer) + ("" if one.kernels else ": none speaks for it")
    ax = axes(KERNELS_AT, top, ACROSS * TILE, SIDE)
    ax.set_title(_wrapped(told, 48), fontsize=8)
    ax.set_axis_off()
    for number, kernel in enumerate(one.kernels):
        row, column = divmod(number, ACROSS)
        side = 0.82 * TILE
        tile = axes(
            KERNELS_AT + column * TILE + 0.09 * TILE, top + 0.1 + row * SIDE / 2, side, side
        )
        tile.imshow(kernel_pixels(kernel.kernel), interpolation="none")
        tile.set(xticks=[], yticks=[])
        tile.set_xlabel(f"{kernel.pattern}\n#{kernel.channel}  {kernel.part:+.2g}", fontsize=6.5)
        tile.spines[:].set_color("0.8")


def _wrapped(text: str, width: float) -> str:
    return "\n".join(textwrap.wrap(text, int(width)))

"""Explanations as one HTML page that asks for nothing from outside."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np
from PIL import Image

from dogmed.console import count
from dogmed.htmlpage import document
from dogmed.inference.explain.maps import Explainer, Explanation
from dogmed.inference.explain.pictures import (
    BAR,
    HEAT,
    KERNELS_NOTE,
    caveat,
    kernel_pixels,
    kernels_title,
    overlay,
    title,
)
from dogmed.inference.reading.pictures import Picture

STYLE = """
:root { --ink: #1b1f24; --faint: #626a73; --paper: #ffffff; --line: #d8dce1; --warn: #8a4b00; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ed; --faint: #98a1ab; --paper: #14171b; --line: #343b43; --warn: #f0b060; }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; padding: 1.2rem clamp(.8rem, 3vw, 2.4rem) 4rem; max-width: 72rem; background: var(--paper);
  color: var(--ink); overflow-wrap: anywhere;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.45rem; margin: 0 0 .2rem; }
.note, .facts { color: var(--faint); font-size: .86rem; margin: .4rem 0; max-width: 60rem; }
"""
FIGURES = """
h2 { font-size: 1.05rem; margin: 0; }
.warning { color: var(--warn); font-size: .86rem; margin: .2rem 0; }
section { border-top: 1px solid var(--line); margin-top: 1.6rem; padding-top: 1.1rem; }
.row { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 16rem), 1fr)); gap: 1rem;
  margin-top: .6rem; }
.row > * { min-width: 0; }
figure { margin: 0; max-width: 24rem; }
figure > img { display: block; width: 100%; height: auto; border-radius: 4px; }
figcaption { font-size: .86rem; margin-bottom: .3rem; }
figcaption b { display: block; }
.count { color: var(--faint); }
.bar { height: .7rem; border-radius: 2px; margin-top: .4rem; }
.ends { display: flex; justify-content: space-between; gap: .6rem; font-size: .74rem; color: var(--faint); }
.kernels { display: grid; grid-template-columns: repeat(4, 1fr); gap: .5rem; font-size: .74rem; line-height: 1.3; }
.kernels img { display: block; width: 100%; image-rendering: pixelated;
  border: 1px solid var(--line); border-radius: 2px; }
.kernels span { color: var(--faint); display: block; }
"""
"""How an image's section looks, in the colours --ink, --faint, --line and --warn."""


class Shown(NamedTuple):
    """An image with what was found out about it."""

    picture: Picture
    found: Sequence[Explanation]
    warning: str
    """What should be known of it, "" for nothing."""


def page(explainer: Explainer, shown: Sequence[Shown], unread: Sequence[str]) -> str:
    """Write the page.

    Args:
        explainer: that explained the images.
        shown: the images.
        unread: why others could not be read, a line each.
    """
    trained = explainer.classifier.trained
    facts = [
        f"maps of {explainer.layer.name}",
        count(len(shown), "image"),
        f"sha256 {trained.record.sha256[:12]}",
        *explainer.classifier.notes,
    ]
    parts = [
        f"<header><h1>Grad-CAM of {escape(trained.title)}</h1>",
        f'<p class="facts">{escape("; ".join(facts))}</p>',
        f'<p class="note">{escape(caveat(explainer))}</p>',
    ]
    if explainer.dog:
        parts.append(f'<p class="note">{escape(KERNELS_NOTE)}</p>')
    parts.append("</header><main>")
    parts += [section(explainer, one) for one in shown]
    if unread:
        parts.append("<section><h2>Not read</h2>")
        parts += [f'<p class="warning">{escape(line)}</p>' for line in unread]
        parts.append("</section>")
    parts.append("</main>")
    return document(f"Grad-CAM of {trained.title}", (STYLE + FIGURES).strip(), "\n".join(parts))


def section(explainer: Explainer, shown: Shown) -> str:
    """What was found of an image, as HTML."""
    picture = shown.picture
    parts = [f"<section><h2>{escape(picture.name)}</h2>"]
    if shown.warning:
        parts.append(f'<p class="warning">warning: {escape(shown.warning)}</p>')
    size = f"{picture.width}×{picture.height} px"
    for one in shown.found:
        parts.append('<div class="row">')
        parts.append(
            f'<figure><figcaption><b>image</b> <span class="count">{size}</span></figcaption>'
            f"{_image(picture.pixels, 'the image')}</figure>"
        )
        parts.append(_map(explainer, picture, one))
        if explainer.dog:
            parts.append(_kernels(explainer, one))
        parts.append("</div>")
    return "\n".join([*parts, "</section>"])


def _map(explainer: Explainer, picture: Picture, one: Explanation) -> str:
    where = "the map is 0 everywhere"
    if one.peak:
        where = f"largest at {one.peak.pixel} px of the image"
    colours = ", ".join(
        f"rgb({', '.join(str(round(255 * part)) for part in HEAT(k / 8)[:3])})" for k in range(9)
    )
    return (
        f"<figure><figcaption><b>{escape(title(one, explainer.classifier.kind))}</b> "
        f'<span class="count">{where}</span></figcaption>'
        f"{_image(overlay(picture.pixels, one.heat), 'the map over the image: ' + where)}"
        f'<div class="bar" style="background: linear-gradient(to right, {colours})"></div>'
        f'<div class="ends"><span>0</span><span>{BAR}</span><span>1</span></div></figure>'
    )


def _kernels(explainer: Explainer, one: Explanation) -> str:
    told = escape(kernels_title(explainer)) + ("" if one.kernels else " – none speaks for it")
    tiles = "".join(
        f"<div>{_image(kernel_pixels(k.kernel), f'kernel {k.channel}, {k.pattern}')}{escape(k.pattern)}"
        f"<span>#{k.channel} {k.part:+.2g}</span></div>"
        for k in one.kernels
    )
    return (
        f'<figure><figcaption><b>DoG kernels</b> <span class="count">{told}</span>'
        f'</figcaption><div class="kernels">{tiles}</div></figure>'
    )


def _image(pixels: np.ndarray, alt: str) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{escape(alt)}">'

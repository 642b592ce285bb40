"""Texts of a picture that come from names of files and classes, which may hold anything."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from matplotlib import rcParams
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.text import Text
from matplotlib.ticker import LogFormatter


def drawable(text: str) -> str:
    """A text with U+FFFD for characters that no font of ``rcParams["font.family"]`` has."""
    families = [FontProperties(family=[family]) for family in rcParams["font.family"]]
    fonts = [get_font(findfont(family)) for family in families]
    return "".join(
        c if c == "\n" or any(f.get_char_index(ord(c)) for f in fonts) else "\ufffd" for c in text
    )


def take_literally(figure: Figure) -> None:
    """Let ``$`` be a dollar in every text, for names may have it; formulas are in a logarithmic axis's numbers."""
    numbers = {
        label
        for axis in figure.findobj(Axis)
        for minor, formatter in enumerate((axis.get_major_formatter(), axis.get_minor_formatter()))
        if isinstance(formatter, LogFormatter)
        for label in axis.get_ticklabels(minor=bool(minor))
    }
    for text in figure.findobj(Text):
        if text not in numbers:
            text.set_parse_math(False)


@contextmanager
def with_glyphs(figure: Figure) -> Iterator[None]:
    """Make every text :func:`drawable` for the time; an axis makes those at its ticks anew, from their names."""
    texts = {text: text.get_text() for text in figure.findobj(Text)}
    for text, said in texts.items():
        text.set_text(drawable(said))
    try:
        yield
    finally:
        for text, said in texts.items():
            text.set_text(said)

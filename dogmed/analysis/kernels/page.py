"""The kernels of a network as one HTML page that asks for nothing from outside."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import resources
from typing import Any

import numpy as np
from jinja2 import Environment
from markupsafe import Markup
from numpy.typing import NDArray

from dogmed.analysis.kernels.atlas import SCALE_NOTE, data_uri
from dogmed.analysis.kernels.pictures import groups, kernel_and_fit, ranked
from dogmed.analysis.kernels.plots import DARK, FILE, PAGE, VARIABLES, charts
from dogmed.analysis.kernels.study import LayerStudy, Study
from dogmed.analysis.kernels.tables import DEFINITIONS, Table, caption
from dogmed.analysis.output import shown
from dogmed.console import count
from dogmed.htmlpage import document
from dogmed.models.patterns import TITLES
from dogmed.plots import to_svg


def page(study: Study, tables: list[Table]) -> str:
    """Write the page."""
    files = resources.files(__package__)
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.globals |= {
        "count": count,
        "shown": shown,
        "named": lambda name: TITLES.get(name, name),
    }
    template = environment.from_string(files.joinpath("kernels.html").read_text(encoding="utf-8"))
    text = template.render(
        study=study,
        record=study.trained.record,
        tables=tables,
        charts=[
            (chart, Markup(to_svg(chart.draw(PAGE), f"k-{chart.name}", VARIABLES)))
            for chart in charts(study)
        ],
        fits=[
            (title, [(place, *map(_picture, kernel_and_fit(place))) for place in places])
            for title, places in (ranked(study).items() if study.fitted else ())
        ],
        layers=[(layer, _tiles(layer)) for layer in study.layers],
        definitions=DEFINITIONS,
        scale_note=SCALE_NOTE,
    )
    style = f"{_inks(FILE.patterns)}\n@media (prefers-color-scheme: dark) {{ {_inks(DARK)} }}\n"
    style += files.joinpath("kernels.css").read_text(encoding="utf-8")
    return document(f"Kernels of {study.title}", style, re.sub(r"\n\s*\n+", "\n", text).strip())


def _tiles(layer: LayerStudy) -> list[dict[str, Any]]:
    """By group: its title and, for each kernel, its pictures, what is said of it and whether it changed."""
    changed = layer.changed
    sides = [
        kernels.layer.kernels.numpy()
        for kernels in (layer.before, layer.after)
        if kernels is not None
    ]
    return [
        {
            "title": group.title,
            "kernels": [
                {
                    "pictures": [_picture(kernels[c]) for kernels in sides],
                    "caption": caption(layer.after.fit, layer, c),
                    "changed": bool(changed is not None and changed[c]),
                }
                for c in group.channels.tolist()
            ],
        }
        for group in groups(layer)
    ]


def _inks(colours: Mapping[str, str]) -> str:
    """The stylesheet's variables that ``VARIABLES`` refers to."""
    values = "".join(f"--p-{name.replace('_', '-')}:{colour};" for name, colour in colours.items())
    return f":root {{ {values} }}"


def _picture(kernel: NDArray[np.float64]) -> Markup:
    return Markup(f'<img src="{data_uri(kernel)}" alt="">')

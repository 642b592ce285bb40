"""Pictures of a network's kernels: an atlas of each layer, and the kernels that DoG kernels fit best and worst."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dogmed.analysis.kernels.atlas import Entry, FitRow, Group, draw_fits, draw_layer
from dogmed.analysis.kernels.plots import short_names
from dogmed.analysis.kernels.study import LayerStudy, Study
from dogmed.models.patterns import NAMES, TITLES

SHOWN = 12
"""Kernels of the best and the worst fit, and as many of a middling one."""


class Place(NamedTuple):
    """One kernel of a network."""

    layer: LayerStudy
    name: str
    channel: int
    explained: float


def groups(layer: LayerStudy) -> list[Group]:
    """The channels of a layer by pattern, and by number within one."""
    names = layer.after.patterns
    return [
        Group(TITLES[name], np.flatnonzero(names == name))
        for name in NAMES
        if (names == name).any()
    ]


def ranked(study: Study) -> dict[str, list[Place]]:
    """The kernels that are fitted best, in the middle and worst, the best first."""
    names = short_names([layer.name for layer in study.layers])
    places = [
        Place(layer, name, channel, float(layer.after.fit.explained[channel]))
        for layer, name in zip(study.layers, names, strict=True)
        if layer.after.fit is not None
        for channel in range(len(layer.after))
    ]
    places = sorted((p for p in places if np.isfinite(p.explained)), key=lambda p: -p.explained)
    middle = max(0, (len(places) - SHOWN) // 2)
    return {
        "best": places[:SHOWN],
        "middle": places[middle : middle + SHOWN],
        "worst": places[-SHOWN:],
    }


def pictures(study: Study) -> Iterator[tuple[str, Figure]]:
    """Draw the pictures one by one, each with the name of its file."""
    title = study.title
    if study.fitted:
        rows = [
            FitRow(name, [_entry(place) for place in places])
            for name, places in ranked(study).items()
        ]
        yield "fits", draw_fits(f"{title}: kernels and the nearest DoG kernels", rows)
    for number, layer in enumerate(study.layers):
        of = layer.after.layer
        facts = f"{of.size}x{of.size}, {of.reduction} px of the image per cell, stride {of.stride}"
        panels = [("after" if layer.before else "", of.kernels.numpy())]
        if layer.before is not None:
            panels.insert(0, ("before", layer.before.layer.kernels.numpy()))
        figure = draw_layer(f"{title}\n{layer.name}: {facts}", panels, groups(layer), layer.changed)
        yield f"atlas-{number:02d}", figure


def kernel_and_fit(place: Place) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A learned kernel (K, K) and its fit (K, K)."""
    found = place.layer.after
    assert found.fit is not None
    return found.layer.kernels[place.channel].numpy(), found.fit.kernels[place.channel].numpy()


def _entry(place: Place) -> Entry:
    return Entry(
        f"{100 * place.explained:.0f}%\n{place.name}\n#{place.channel}", *kernel_and_fit(place)
    )

"""Which scale channel decides: its share of the images at each factor, as the papers of GaussDerNets show it.

In a scale-invariant network an object that is f times larger should be decided f times coarser. The slope
of log2 of the deciding scale over log2 of the factor says how far that is so: 1 is what the theory asks for,
0 is a network that always looks at one scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dogmed.analysis.scale.points import Measured, Subject
from dogmed.analysis.tables import Table

PANEL = (3.6, 3.0)  # inches


@dataclass(frozen=True)
class Selection:
    """How often each scale channel of a model decides, at each factor."""

    subject: Subject
    sigmas: tuple[float, ...]
    """Scale of each channel's first layer, in pixels."""
    factors: tuple[float, ...]
    shares: np.ndarray
    """(factors, channels), each row sums to 1."""

    @property
    def mean(self) -> np.ndarray:
        """Mean of log2 of the deciding scale, in pixels, at each factor."""
        return self.shares @ np.log2(self.sigmas)

    @property
    def slope(self) -> float | None:
        """Of that mean over log2 of the factor, by least squares; None of a single factor."""
        if len(self.factors) < 2:
            return None
        return float(np.polyfit(np.log2(self.factors), self.mean, 1)[0])


def selections(subjects: Sequence[Subject], told: Sequence[Measured]) -> list[Selection]:
    """Count the deciding channels of every model that has several.

    Args:
        subjects: in their order.
        told: points of one split.
    """
    found = []
    for subject in subjects:
        network: Any = subject.evaluation.model
        points = sorted((m for m in told if m.subject is subject), key=lambda m: m.point.side)
        chosen = [m.channels for m in points if m.channels is not None]
        if len(chosen) < len(points):
            continue
        sigmas = tuple(network.stride * scale for scale in network.channel_scales)
        counts = [np.bincount(channels, minlength=len(sigmas)) for channels in chosen]
        shares = np.array([count / count.sum() for count in counts])
        factors = tuple(m.point.side / subject.images.size for m in points)  # of whole pixels
        found.append(Selection(subject, sigmas, factors, shares))
    return found


def selection_table(found: Selection) -> Table:
    """A row a channel, a column a factor, in percent of the images."""
    head = ["channel", *(f"×{factor:.3g}" for factor in found.factors)]
    rows = [
        [f"σ {sigma:.2f} px", *(f"{100 * share:.1f}" for share in column)]
        for sigma, column in zip(found.sigmas, found.shares.T, strict=True)
    ]
    rows.append(["mean scale", *(f"{2**value:.2f} px" for value in found.mean)])
    slope = (
        "" if found.slope is None else f" The slope of the mean, in octaves, is {found.slope:.2f}."
    )
    note = (
        "Share of the images, in percent, whose highest score is that of the channel; σ is that of its first "
        f"layer. Mean scale: the geometric mean.{slope} Invariance asks for 1."
    )
    return Table(f"{found.subject.title}: the deciding scale channel", head, rows, note)


def selection_figure(found: Sequence[Selection], title: str) -> Figure:
    """A panel a model: shares as shades, the mean scale as a line, and the line of slope 1."""
    figure = Figure(figsize=(PANEL[0] * len(found) + 0.6, PANEL[1] + 0.5), layout="constrained")
    grid = figure.subplots(1, len(found), squeeze=False)[0]
    for ax, selection in zip(grid, found, strict=True):
        _panel(ax, selection)
    handles, names = grid[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2, frameon=False, fontsize=7)
    figure.suptitle(title, fontsize=9)
    return figure


def _panel(ax: Axes, found: Selection) -> None:
    log_factors, log_sigmas = np.log2(found.factors), np.log2(found.sigmas)
    places = range(len(found.factors))
    shown = ax.imshow(found.shares.T, cmap="Blues", vmin=0, vmax=1, origin="lower", aspect="auto")
    for i, j in np.ndindex(*found.shares.shape):
        share = found.shares[i, j]
        if share >= 0.01:
            ax.text(
                i, j, f"{100 * share:.0f}", ha="center", va="center", fontsize=7,
                color="white" if share > 0.6 else "0.25",
            )  # fmt: skip
    # channels are equally far apart on a logarithmic axis, so a row's number is a line of it
    rows = np.polyfit(log_sigmas, np.arange(len(log_sigmas)), 1)
    ax.plot(
        places, np.polyval(rows, found.mean), color="C1", marker="o", ms=3, lw=1.4, label="mean"
    )
    at_one = int(np.abs(log_factors).argmin())
    ideal = found.mean[at_one] + log_factors - log_factors[at_one]
    ax.plot(places, np.polyval(rows, ideal), color="0.4", ls=":", lw=1.2, label="slope 1")
    ax.set_xlim(-0.5, len(found.factors) - 0.5)
    ax.set_ylim(-0.5, len(found.sigmas) - 0.5)
    ax.set_xticks(places, [f"×{factor:.3g}" for factor in found.factors], fontsize=7)
    ax.tick_params(axis="x", rotation=90 if len(found.factors) > 6 else 0)
    ax.set_yticks(range(len(found.sigmas)), [f"{sigma:.3g}" for sigma in found.sigmas], fontsize=7)
    ax.set_xlabel("side of the image / side at training", fontsize=8)
    ax.set_ylabel("σ of the deciding channel, px", fontsize=8)
    ax.set_title(found.subject.title, fontsize=8)
    bar = ax.figure.colorbar(shown, ax=ax, fraction=0.05, pad=0.02)
    bar.set_label("share of the images", fontsize=7)
    bar.ax.tick_params(labelsize=7)


def content(found: Sequence[Selection]) -> list[dict[str, Any]]:
    """Every number, unrounded."""
    return [
        {
            "model": s.subject.title,
            "sigmas": list(s.sigmas),
            "factors": list(s.factors),
            "shares": s.shares.tolist(),
            "mean_log2_sigma": s.mean.tolist(),
            "slope": s.slope,
        }
        for s in found
    ]

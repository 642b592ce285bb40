"""Pictures of a run, drawn from plain arrays, and how every figure is written: no screen, no pyplot, no
global state."""

from __future__ import annotations

import io
import re
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from dogmed.checkpoint import atomic_path
from dogmed.lettering import drawable, take_literally, with_glyphs
from dogmed.metrics import ECE_BINS, check, decide, one_vs_rest, score

DPI = 160
CELL = 0.62  # side of a confusion matrix's cell, inches
WRITTEN_CLASSES = 20  # beyond, cells and legends cannot be read and are left out
COLOURS = [f"C{k}" for k in range(10)]  # matplotlib's ten, then the same ten dashed
POSITIVE, NEGATIVE = (226, 88, 34), (43, 112, 219)
"""Red, green and blue of a kernel's entries."""


def learning_curves(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw losses, validation scores and learning rate over the epochs of ``metrics.jsonl``.

    Args:
        rows: one mapping an epoch with ``epoch``, ``train_loss``, ``val_loss``, ``val_acc``,
            ``val_auc`` and ``lr``; an undefined value (None) is a gap.
        path: of the PNG.
    """
    figure = Figure(figsize=(10.5, 3.1), layout="constrained")
    axes = figure.subplots(1, 3)
    panels = [
        ("loss", {"train_loss": "training", "val_loss": "validation"}),
        ("validation score", {"val_acc": "ACC", "val_auc": "AUC"}),
        ("learning rate", {"lr": ""}),
    ]
    epochs = [row["epoch"] for row in rows]
    for ax, (title, names) in zip(axes, panels, strict=True):
        for name, label in names.items():
            values = np.array([row.get(name) for row in rows], dtype=float)
            ax.plot(epochs, values, label=label, marker="o" if len(rows) < 30 else None, ms=3)
        if len(names) > 1:
            ax.legend(frameon=False)
        ax.set(title=title, xlabel="epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        ax.ticklabel_format(axis="y", scilimits=(-3, 4), useOffset=False)
        _light(ax)
    axes[2].set_ylim(0, axes[2].dataLim.ymax * 1.08 or 1)
    write_figure(figure, path)


def confusion_matrix(
    labels: ArrayLike, probabilities: ArrayLike, classes: Sequence[str], path: Path
) -> None:
    """Draw which classes are taken for which: counts, and colours by share of the true class.

    A multi-label task (as many columns of labels as classes) becomes a table of one row a label:
    found, missed, false alarm, rejected.

    Args:
        labels: (N, L) integers.
        probabilities: (N, C).
        classes: C names.
        path: of the PNG.
    """
    y = np.asarray(labels)
    if y.ndim == 2 and y.shape[1] == len(classes):
        y, p = check("multi-label", y, probabilities)
        counts, groups = _outcomes(y, decide("multi-label", p))
        columns = ["found\n(sensitivity)", "missed", "false alarm", "rejected\n(specificity)"]
        size, across = (1.5 * CELL, 0.75 * CELL), ""
    else:
        kind = "binary" if len(classes) == 2 else "multi-class"
        y, p = check(kind, y, probabilities)
        counts = np.zeros((len(classes), len(classes)), dtype=np.int64)
        np.add.at(counts, (y[:, 0], decide(kind, p)), 1)
        groups = np.broadcast_to(counts.sum(1, keepdims=True), counts.shape)
        columns, size, across = [_wrap(c) for c in classes], (CELL, CELL), "predicted"
    if (dense := len(classes) > WRITTEN_CLASSES) and across:
        size = (0.25, 0.25)
    shares = np.divide(counts, groups, out=np.full(counts.shape, np.nan), where=groups > 0)
    figure = Figure(layout="constrained")
    figure.set_size_inches(3.6 + size[0] * counts.shape[1], 1.6 + size[1] * len(classes))
    ax = figure.subplots()
    image = ax.imshow(
        shares, cmap="Blues", norm=Normalize(0, 1), aspect="equal" if across else "auto"
    )
    if not (dense and across):
        _write_cells(ax, counts, shares)
    ax.set_xticks(range(len(columns)), columns)
    if across:
        ax.tick_params(axis="x", rotation=90 if len(classes) > 4 else 0)
        ax.set(xlabel=across, ylabel="true")
    else:
        ax.xaxis.tick_top()
        ax.axvline(1.5, color="white", lw=4)
    ax.set_yticks(range(len(classes)), [_wrap(c) for c in classes])
    ax.tick_params(length=0, labelsize=8)
    ax.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=ax, fraction=0.05, pad=0.02, aspect=30)
    bar.set_label("share of the true class" if across else "share of those with or without it")
    bar.outline.set_visible(False)
    write_figure(figure, path)


def roc(
    kind: str,
    labels: ArrayLike,
    probabilities: ArrayLike,
    classes: Sequence[str],
    path: Path,
) -> None:
    """Draw each class's ROC curve against the rest and their mean, with the AUC of each.

    The mean is over true positive rates at equal false positive rates, so that its area is the
    mean AUC, the official score.

    Args:
        kind: one of ``metrics.KINDS``.
        labels: (N, L) integers.
        probabilities: (N, C).
        classes: C names.
        path: of the PNG.
    """
    from sklearn.metrics import auc, roc_curve

    y, p = check(kind, labels, probabilities)
    curves = list(one_vs_rest(kind, y, p))
    names = [classes[-1]] if kind == "binary" else classes
    written = len(curves) <= WRITTEN_CLASSES
    figure = Figure(
        figsize=(8.2 if len(curves) > 1 and written else 4.8, 4.6), layout="constrained"
    )
    ax = figure.subplots()
    ax.plot([0, 1], [0, 1], color="0.7", lw=0.8, ls=":")
    grid, rates = np.linspace(0, 1, 1001), []
    for k, ((positive, scores), name) in enumerate(zip(curves, names, strict=True)):
        style: dict[str, Any] = {"color": COLOURS[k % 10], "ls": "--" if k >= 10 else "-"}
        if not written:
            style = {"color": "0.75"}
        if positive.all() or not positive.any():
            ax.plot([], [], label=f"  –    {_wrap(name, 44)} (undefined)", **style)
            continue
        fpr, tpr, _ = roc_curve(positive, scores)
        label = f"{auc(fpr, tpr):.3f} {_wrap(name, 44)} ({positive.sum():,})"
        ax.plot(fpr, tpr, lw=1.2, label=label if written else None, **style)
        rates.append(np.interp(grid, fpr, tpr))
    if len(curves) > 1 and rates:
        mean = score(kind, y, p)["auc"]
        label = f"{mean:.3f} mean of {len(rates)} classes"
        ax.plot([0, *grid], [0, *np.mean(rates, axis=0)], color="black", lw=2, label=label)
    ax.set(xlabel="false positive rate", ylabel="true positive rate", aspect="equal")
    ax.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    _light(ax)
    place: dict[str, Any] = {"loc": "lower right"}
    if len(curves) > 1 and written:
        place = {"loc": "center left", "bbox_to_anchor": (1.02, 0.5)}
    ax.legend(title="AUC, class (positives)", frameon=False, fontsize=8, **place)
    write_figure(figure, path)


def reliability(
    kind: str, labels: ArrayLike, probabilities: ArrayLike
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Sum up a reliability diagram: mean confidence, share correct and count of each bin in use.

    The bins are those of ``metrics.score``'s calibration error, which is Σ count |share - confidence| / N;
    the confidence is that of the decision taken. The decisions of a multi-label task are pooled.

    Args: as ``metrics.score``.
    """
    confidence, correct = _decisions(kind, labels, probabilities)
    edges = np.linspace(0, 1, ECE_BINS + 1)
    bins = np.digitize(confidence, edges[1:-1], right=True)
    count = np.bincount(bins, minlength=ECE_BINS)
    used = count > 0
    sums = [np.bincount(bins, of, ECE_BINS)[used] / count[used] for of in (confidence, correct)]
    return sums[0], sums[1], count[used]


def risk_coverage(
    kind: str, labels: ArrayLike, probabilities: ArrayLike
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Compute the error (N,) among the most confident answers against their share (N,) of all.

    What a reader gains by handing the least confident images to a person (El-Yaniv and Wiener, "On the
    foundations of noise-free selective classification", 2010). Answers of equal confidence are taken
    together, in that their errors are spread evenly over them. The mean of the errors is the area under
    the curve.

    Args: as ``metrics.score``.
    """
    confidence, correct = _decisions(kind, labels, probabilities)
    levels, which, size = np.unique(-confidence, return_inverse=True, return_counts=True)
    wrong = np.bincount(which, 1 - correct, len(levels)) / size  # of each level of confidence
    order = np.sort(which)
    total = np.arange(1, len(order) + 1)
    return total / len(order), np.cumsum(wrong[order]) / total


def write_figure(figure: Figure, path: Path) -> Path:
    """Write a figure whole or not at all, in the form of its suffix; the same figure has the same bytes.

    Args:
        figure: cropped to what is drawn.
        path: ending in ``.png`` or ``.svg``.
    """
    from matplotlib import rc_context

    form = path.suffix[1:]
    metadata = {"png": {"Software": None}, "svg": {"Date": None}}[form]
    take_literally(figure)
    salt = rc_context({"svg.hashsalt": path.stem})
    with salt, with_glyphs(figure), atomic_path(path) as temporary:
        figure.savefig(temporary, format=form, dpi=DPI, bbox_inches="tight", metadata=metadata)
    return path


def save_figure(figure: Figure, path: Path) -> list[Path]:
    """Write a figure as ``<path>.png`` and ``<path>.svg``; returns both."""
    return [write_figure(figure, path.with_name(path.name + end)) for end in (".png", ".svg")]


def to_svg(figure: Figure, name: str, colours: Mapping[str, str]) -> str:
    """Draw a figure as an ``<svg>`` element to stand inside a page: the page's fonts, no background.

    Args:
        figure: drawn with plain hex colours.
        name: unique in the page; what is referred to inside the picture is called after it.
        colours: what takes the place of a hex colour, ``{"#000001": "var(--ink)"}`` for example.
    """
    from matplotlib import rc_context

    take_literally(figure)
    file = io.StringIO()
    options = rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": name, "path.simplify_threshold": 0.5}
    )
    with options, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # a browser has more fonts
        figure.savefig(file, format="svg", transparent=True, bbox_inches="tight", pad_inches=0.03,
                       metadata={"Date": None, "Creator": None, "Format": None, "Type": None})  # fmt: skip
    text = file.getvalue()
    text = re.sub(
        r"<metadata>.*?</metadata>|<!--.*?-->", "", text[text.index("<svg") :], flags=re.S
    )
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None
    text = f'<svg class="plot" {box[0]} aria-hidden="true">' + text.partition(">")[2]
    text = text.replace("xlink:href", "href")
    referred = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in referred else "", text)
    for identity in sorted(referred):
        text = re.sub(rf'(id="|"#|url\(#){identity}(?=["\)])', rf"\g<1>{name}-{identity}", text)
    text = re.sub(r"font: (?:[a-z0-9]+ )*?([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    shorter = re.compile(r"(\d\.\d\d)\d+")  # of coordinates; what is written stays as it is
    text = re.sub(r"<[^>]*>", lambda tag: shorter.sub(r"\1", tag[0]), text)
    for colour, value in colours.items():
        text = text.replace(colour, value)
    return re.sub(r">\s+<", "><", text)


def _decisions(kind: str, labels: ArrayLike, probabilities: ArrayLike) -> tuple[Any, Any]:
    """The confidence of each decision taken, and whether it is right: (N,) or (N L,)."""
    y, p = check(kind, labels, probabilities)
    decided = decide(kind, p)
    if kind == "multi-label":
        return np.maximum(p, 1 - p).ravel(), (decided == y).ravel().astype(np.float64)
    confidence = np.take_along_axis(p, decided[:, None], 1)[:, 0]
    return confidence, (decided == y[:, 0]).astype(np.float64)


def _outcomes(labels: Any, decided: Any) -> tuple[Any, Any]:
    """Counts (L, 4) of found, missed, false alarm, rejected; and how many could be each."""
    found = (labels * decided).sum(0)
    alarm = ((1 - labels) * decided).sum(0)
    present = labels.sum(0)
    absent = len(labels) - present
    counts = np.stack([found, present - found, alarm, absent - alarm], 1)
    return counts, np.stack([present, present, absent, absent], 1)


def _write_cells(ax: Axes, counts: Any, shares: Any) -> None:
    for (row, column), count in np.ndenumerate(counts):
        share = shares[row, column]
        text = "–" if np.isnan(share) else f"{_percent(share)}\n{count:,}"
        colour = "white" if share > 0.5 else "0.6" if count == 0 else "black"
        ax.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)


def _percent(share: float) -> str:
    """Whole percents; what is not quite none or all is not rounded to it."""
    if 0 < share < 0.005:
        return "<1%"
    return ">99%" if 0.995 <= share < 1 else f"{share:.0%}"


def _wrap(name: str, width: int = 22) -> str:
    """Break a long class name over at most three lines, each character drawable."""
    name = drawable(name)
    return "\n".join(textwrap.wrap(name, width, max_lines=3, placeholder=" …")) or name


def _light(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color="0.92", lw=0.6)
    ax.set_axisbelow(True)

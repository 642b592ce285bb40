"""The tables of ``dogmed analyze kernels``, as rows of plain numbers, and all of them as one JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dogmed.analysis.kernels.fitting import Fit
from dogmed.analysis.kernels.patterns import BINS, FREQUENCIES, changes, counts, quartiles
from dogmed.analysis.kernels.plots import REST_EDGES, left_over, short_names
from dogmed.analysis.kernels.study import RANDOM, Kernels, LayerStudy, Study, weighted
from dogmed.models.patterns import ABSENT, CENTER_FROM, FUNCTIONS, NAMES, TITLES

DEFINITIONS = {
    "pattern of a DoGConv's kernel": "the function with more than half of the mixing weights ('mixed' if none "
    "has), its sign by which width is narrower; a centre if the narrower width is "
    f"{CENTER_FROM:g} or more, else a cross; 'none' if no entry reaches "
    f"{ABSENT:g} before scaling",
    "pattern of a learned kernel": "that of the single function that fits it best, if it explains at least "
    "half of its energy; else 'other'",
    "radius": "of one kernel, in px of the image: root of sum k^2 r^2 / sum k^2, r from the kernel's middle to "
    "the centre of a cell, times the pixels of the image to a cell, which is 2 extent / K wide in the unit of "
    "sigma; not the effective receptive field, to which all layers before add",
    "response": "mean over all directions of |Fourier transform| of the kernel with sum k^2 = 1; cycles per "
    "pixel of the layer's input",
    "explained": "1 - |k - fit|^2 / |k|^2 of the nearest kernel of the DoG family without bias; 'single': of "
    "one function alone; 'energy-weighted': over all kernels' energy together",
    "random": f"the same fits to {RANDOM} kernels of independent normal numbers",
    "similarity": "cosine between a kernel and what it was before, median",
}


@dataclass(frozen=True)
class Table:
    """Rows of cells by column; ``note`` stands under it."""

    name: str
    title: str
    columns: list[str]
    rows: list[dict[str, Any]]
    note: str = ""


def tables(study: Study) -> list[Table]:
    """All tables that there are of a network."""
    found = [_patterns(study)]
    if study.origin.model is not None:
        found.append(_changes(study))
    found += [_layers(study), _response(study)]
    if study.fitted:
        found.append(_fits(study))
    return found


def content(study: Study, all_tables: Sequence[Table]) -> dict[str, Any]:
    """Every number: the tables, and by layer the histograms and curves behind the pictures."""
    record, origin = study.trained.record, study.origin
    return {
        "model": study.trained.title,
        "sha256": record.sha256,
        "before": {"title": origin.title, "found": origin.model is not None, "note": origin.note},
        "definitions": DEFINITIONS,
        "figures": figures(study),
        "tables": {table.name: plain(table.rows) for table in all_tables},
        "frequencies": FREQUENCIES.tolist(),
        "layers": [
            {"layer": layer.name, "after": _curves(layer.after)}
            | ({} if layer.before is None else {"before": _curves(layer.before)})
            for layer in study.layers
        ],
    }  # fmt: skip


def figures(study: Study) -> dict[str, float | None]:
    """The figures by which networks are compared, for MLflow."""
    found: dict[str, float | None] = {
        f"share_{name}": count / len(study.pooled(lambda k: k.patterns))
        for name, count in counts(study.pooled(lambda k: k.patterns)).items()
    }
    changed = [layer.changed for layer in study.layers if layer.changed is not None]
    similar = [layer.similarity for layer in study.layers if layer.similarity is not None]
    if changed and similar:
        alike = np.concatenate(similar)
        alike = alike[np.isfinite(alike)]
        found["changed_pattern"] = float(np.concatenate(changed).mean())
        found["similarity_median"] = float(np.median(alike))
        found["similarity_below_0.9"] = float((alike < 0.9).mean())
    for time in ("before", "after"):
        kernels = [layer.before if time == "before" else layer.after for layer in study.dog]
        weights = [k.weights.max(1) for k in kernels if k is not None and k.weights is not None]
        if weights:
            largest = np.concatenate(weights)
            found[f"largest_weight_median_{time}"] = float(np.median(largest))
            found[f"largest_weight_below_0.9_{time}"] = float((largest < 0.9).mean())
    for row in _fits(study).rows if study.fitted else []:
        if row["layer"] == "all" and row["when"] == "after":
            found |= {
                "explained_median": row["median"],
                "explained_energy_weighted": row["energy-weighted"],
            }
    return found


def channels(study: Study) -> list[dict[str, Any]]:
    """A row for every kernel."""
    return [row for layer in study.layers for row in _channels(layer)]


def plain(value: Any) -> Any:
    """Without what JSON cannot say: NaN becomes None."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def caption(fit: Fit | None, layer: LayerStudy, channel: int) -> str:
    """What is said of one kernel where the pointer rests on it."""
    kernels = layer.after
    name = TITLES[kernels.patterns[channel]]
    told = [f"channel {channel}: {name}"]
    if layer.before is not None and layer.before.patterns[channel] != kernels.patterns[channel]:
        was = layer.before.patterns[channel]
        told[0] += f", was {TITLES[was]}"
    if kernels.widths is not None and kernels.weights is not None:
        narrow, wide = kernels.widths[channel]
        told.append(f"widths {narrow:.2f} and {wide:.2f}")
        told.append(f"weight {kernels.weights[channel].max():.3f}")
    if fit is not None:
        told.append(f"{100 * float(fit.explained[channel]):.0f}% explained")
    told.append(f"radius {kernels.radius[channel]:.1f} px")
    return ", ".join(told)


def _patterns(study: Study) -> Table:
    before = study.origin.model is not None
    present = counts(
        np.concatenate([study.pooled(lambda k: k.patterns, before=b) for b in {False, before}])
    )
    rows = []
    for time in ["before", "after"] if before else ["after"]:
        pooled = study.pooled(lambda k: k.patterns, before=time == "before")
        found = counts(pooled)
        rows.append(
            {"layer": "all", "when": time, "kernels": len(pooled)} | _filled(found, present)
        )
        shares = {name: 100 * found.get(name, 0) / len(pooled) for name in present}
        rows.append({"layer": "all, %", "when": time, "kernels": 100.0} | shares)
    for layer, name in _named(study):
        for time, kernels in (("before", layer.before), ("after", layer.after)):
            if kernels is not None:
                row = {"layer": name, "when": time, "kernels": len(kernels)}
                rows.append(row | _filled(counts(kernels.patterns), present))
    head = ["layer", "when", "kernels", *present]
    return Table("patterns", "Kernels of each pattern", head, rows, _how_named(study))


def _changes(study: Study) -> Table:
    was = study.pooled(lambda k: k.patterns, before=True)
    found = changes(was, study.pooled(lambda k: k.patterns))
    present = [name for name in NAMES if any(name in to for to in found.values())]
    rows = [
        {
            "from": name,
            "kernels": sum(to.values()),
            "kept, %": 100 * to.get(name, 0) / sum(to.values()),
        }
        | _filled(to, present)
        for name, to in found.items()
    ]
    return Table(
        "changes", "What became of each pattern", ["from", "kernels", "kept, %", *present], rows
    )


def _layers(study: Study) -> Table:
    rows = []
    for layer, name in _named(study):
        after, before = layer.after, layer.before
        own = after.layer
        row: dict[str, Any] = {
            "layer": name, "module": own.name, "kernels": len(after), "K": own.size, "stride": own.stride,
            "px per cell": own.reduction, "cell": 2 * own.extent / own.size,
        }  # fmt: skip
        for time, kernels in ((", before", before), ("", after)):
            if kernels is None:
                continue
            spread = quartiles(kernels.radius) or {}
            row |= {f"radius{time}, {key}": value for key, value in spread.items()}
            if kernels.widths is not None and kernels.weights is not None:
                row[f"narrow sigma{time}"], row[f"wide sigma{time}"] = np.median(
                    kernels.widths, 0
                ).tolist()
                row[f"largest weight{time}"] = float(np.median(kernels.weights.max(1)))
        if layer.changed is not None and layer.similarity is not None:
            row["changed pattern"] = int(layer.changed.sum())
            row["similarity"] = (quartiles(layer.similarity) or {}).get("median")
        rows.append(row)
    head = list(dict.fromkeys(name for row in rows for name in row))
    return Table(
        "layers",
        "Layers",
        head,
        rows,
        "medians, with quartiles of a kernel's radius (px of the image)",
    )


def _response(study: Study) -> Table:
    rows = []
    for time in ["before", "after"] if study.origin.model is not None else ["after"]:
        names = study.pooled(lambda k: k.patterns, before=time == "before")
        curves = study.pooled(lambda k: k.response, before=time == "before")
        for name, count in counts(names).items():
            if name == "none":
                continue
            curve = np.nanmean(curves[names == name], 0)
            rows.append(
                {"pattern": name, "when": time, "kernels": count, "at 0": float(curve[0]),
                 "highest": float(curve.max()), "highest at": float(FREQUENCIES[curve.argmax()]),
                 "at 0.5": float(curve[-1])}
            )  # fmt: skip
    rows.sort(key=lambda row: NAMES.index(row["pattern"]))
    head = ["pattern", "when", "kernels", "at 0", "highest", "highest at", "at 0.5"]
    return Table("response", "Frequency response by pattern", head, rows,
                 "magnitude of kernels of unit energy, at cycles per pixel of the layer's input")  # fmt: skip


def _fits(study: Study) -> Table:
    rows = []
    for time in ("after", "before"):
        parts = [
            (name, layer.after if time == "after" else layer.before)
            for layer, name in _named(study)
        ]
        there = [(name, k) for name, k in parts if k is not None and k.fit is not None]
        if there:
            rows.append(_fit_row("all", time, [k for _, k in there]))
        rows += [_fit_row(name, time, [k]) for name, k in there] if time == "after" else []
    for size, (mixture, single) in sorted(study.random.items()):
        row = {
            "layer": f"random {size}x{size}",
            "when": "random",
            "kernels": len(mixture.explained),
        }
        rows.append(row | _explained(mixture.explained.numpy(), single.explained.numpy()))
    head = list(dict.fromkeys(name for row in rows for name in row))
    return Table("explained", "Energy explained by DoG kernels", head, rows,
                 "quartiles over kernels, of mixtures and of a single function")  # fmt: skip


def _fit_row(name: str, time: str, kernels: Sequence[Kernels]) -> dict[str, Any]:
    fits = [(k.fit, k.single) for k in kernels if k.fit is not None and k.single is not None]
    mixture, single = (torch.cat([pair[n].explained for pair in fits]).numpy() for n in (0, 1))
    row = {"layer": name, "when": time, "kernels": len(mixture)}
    return row | _explained(mixture, single) | {"energy-weighted": weighted(kernels)}


def _explained(mixture: NDArray[Any], single: NDArray[Any]) -> dict[str, Any]:
    alone = quartiles(single)
    return (quartiles(mixture) or {}) | {
        "single, median": None if alone is None else alone["median"]
    }


def _curves(kernels: Kernels) -> dict[str, Any]:
    """What the pictures of one layer are drawn from."""
    found: dict[str, Any] = {
        "patterns": counts(kernels.patterns),
        "response": {
            name: np.nanmean(kernels.response[kernels.patterns == name], 0).tolist()
            for name in counts(kernels.patterns)
            if name != "none"
        },
    }
    if kernels.widths is not None:
        edges = np.linspace(0, max(2.0, float(kernels.widths.max())), BINS + 1)
        found["sigma"] = {"edges": edges.tolist()} | {
            which: np.histogram(kernels.widths[:, column], edges)[0].tolist()
            for column, which in enumerate(("narrow", "wide"))
        }
        rest, which = left_over(kernels)
        found["1 - largest weight"] = {"edges": REST_EDGES.tolist()} | {
            name: np.histogram(rest[which == k], REST_EDGES)[0].tolist()
            for k, name in enumerate(FUNCTIONS)
        }
    if kernels.fit is not None:
        edges = np.linspace(0, 1, BINS + 1)
        known = kernels.fit.explained.numpy()
        found["explained"] = {
            "edges": edges.tolist(),
            "kernels": np.histogram(known[np.isfinite(known)], edges)[0].tolist(),
            "energy-weighted": weighted([kernels]),
        }
    return found


def _channels(layer: LayerStudy) -> list[dict[str, Any]]:
    after, before = layer.after, layer.before
    columns: dict[str, Any] = {"pattern": after.patterns, "radius": after.radius}
    if before is not None:
        columns |= {"before": before.patterns, "similarity": layer.similarity}
    for time, kernels in (("", after), ("before_", before)):
        if kernels is not None and kernels.widths is not None and kernels.weights is not None:
            columns |= {f"{time}narrow": kernels.widths[:, 0], f"{time}wide": kernels.widths[:, 1]}
            columns |= {f"{time}weight_{n}": kernels.weights[:, k] for k, n in enumerate(FUNCTIONS)}
    if after.fit is not None and after.single is not None:
        columns |= {
            "explained": after.fit.explained.numpy(),
            "explained_single": after.single.explained.numpy(),
        }
    return [
        {"layer": layer.name, "channel": c} | {name: plain(values[c]) for name, values in columns.items()}
        for c in range(len(after))
    ]  # fmt: skip


def _named(study: Study) -> list[tuple[LayerStudy, str]]:
    return list(zip(study.layers, short_names([layer.name for layer in study.layers]), strict=True))


def _filled(found: Mapping[str, int], names: Sequence[str] | Mapping[str, Any]) -> dict[str, int]:
    return {name: found.get(name, 0) for name in names}


def _how_named(study: Study) -> str:
    kinds = ["pattern of a DoGConv's kernel"] * bool(study.dog) + [
        "pattern of a learned kernel"
    ] * bool(study.fitted)
    return "; ".join(DEFINITIONS[kind] for kind in kinds)

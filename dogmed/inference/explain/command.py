"""``dogmed explain``: where on an image a trained network's answer comes from, as pictures and one page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from dogmed.config import configclass, recipe
from dogmed.console import count
from dogmed.errors import ConfigError, DataError, printable
from dogmed.flags import called

if TYPE_CHECKING:  # PyTorch: not for --help
    from dogmed.inference.classifier import Classifier
    from dogmed.inference.explain.maps import Explainer, Explanation
    from dogmed.inference.explain.page import Shown
    from dogmed.inference.reading.pictures import Picture

SOME_FAILED = 3
"""The exit code where some images could not be read."""
NUMBERS, PAGE = "explain.json", "explain.html"
COARSE = 7
"""Cells across: a map of fewer is told with finer ones."""
LONGEST = 60  # characters of an image's name in that of its picture


@configclass
class ExplainConfig:
    """Draw where a trained network's answers come from (Grad-CAM), beside its strongest DoG kernels."""

    inputs: tuple[str, ...] = ()
    """MODEL (folder of a finished run or of an export to timm, .safetensors file, name of dogmed weights list, id
    of an MLflow run), then image files or folders of them; may come first, without --inputs."""
    out: Path = Path("explained")
    """Folder for the pictures, explain.html and explain.json; it must be new, empty, or of the same command."""
    class_: Annotated[str | None, called("class")] = None
    """The class that is explained; None is the one decided for, of a multi-label task every label decided for."""
    layer: str | None = None
    """Whose maps are shown; None is the last before pooling whose maps have more than a cell."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    weights_dir: Path | None = None
    """Where named weights are found; None is the user's data folder."""
    runs: Path = field(default_factory=lambda: Path(recipe("finetune/default")["out"]))
    """Folder with the MLflow store that an MLflow run's id is looked up in; MLFLOW_TRACKING_URI comes first."""


def command(**options: Any) -> int:
    """Explain the images; returns 3 if some could not be read, which are listed at the end, else 0.

    Raises:
        ConfigError: an option does not fit, or ``--out`` holds something else.
        DataError: an input is not there, or none could be read.
        WeightsError: there is no such model.
    """
    config = ExplainConfig(**options)
    if len(config.inputs) < 2:
        raise ConfigError(
            "which model, and which images? for example: dogmed explain RUN_FOLDER scan.png"
        )
    from dogmed.inference.reading.inputs import find_images, refuse_swapped, refuse_unreachable

    name, *words = config.inputs
    paths = [Path(word).expanduser() for word in words]
    out = config.out.expanduser()
    refuse_unreachable(out, "--out ")
    refuse_swapped(name, paths)
    found = find_images(paths)
    if found.passed_over:
        print(f"passed over in folders: {count(found.passed_over, 'file')} that are no images")
    inside, named = out.resolve(), set(paths)  # pictures that an earlier call has made
    files = [f for f in found.files if f in named or inside not in f.resolve().parents]
    if left := len(found.files) - len(files):
        print(f"passed over: {count(left, 'image')} at or below --out {out}")
    from dogmed.inference.classifier import load
    from dogmed.inference.explain.maps import Explainer

    classifier = load(name, device=config.device, weights_dir=config.weights_dir, out=config.runs)
    label = None if config.class_ is None else classifier.label(config.class_)
    explainer = Explainer(classifier, config.layer)
    request = _request(classifier, files, config)
    _refuse_foreign(out, request)
    _introduce(explainer, len(files))
    failed: list[DataError] = []
    writer = _Writer(explainer, out, request)
    for picture, explained in _explained(explainer, files, label, failed):
        writer.add(picture, explained)
    for error in failed:
        print(f"not read: {error}")
    if not writer.shown:
        raise DataError("no image could be read")
    writer.finish([str(error) for error in failed])
    return SOME_FAILED if failed else 0


def _request(
    classifier: Classifier, files: Sequence[Path], config: ExplainConfig
) -> dict[str, Any]:
    """What the result depends on: the same request may be answered into the same folder again."""
    return {
        "model": classifier.trained.title,
        "sha256": classifier.trained.record.sha256,
        "files": [printable(file.absolute()) for file in files],
        "class": config.class_,
        "layer": config.layer,
    }


def _refuse_foreign(out: Path, request: dict[str, Any]) -> None:
    """Make sure that nothing is overwritten but an earlier answer to the same request."""
    from dogmed.inference.reading.inputs import refuse_unwritable

    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is not a folder")
    parent = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    refuse_unwritable(out, parent)
    if not out.exists() or not any(out.iterdir()):
        return
    before = _request_of(out / NUMBERS)
    if before is None:
        raise ConfigError(
            f"--out {out} has files that are no explanations: give a new or empty folder"
        )
    if before != request:
        differing = [key for key, value in request.items() if before.get(key) != value]
        raise ConfigError(
            f"--out {out} has explanations of another request (other {', '.join(differing)}): give another "
            "folder, or remove it"
        )


def _request_of(file: Path) -> dict[str, Any] | None:
    """What an earlier answer says that it answers; None where it is none."""
    if not file.is_file():  # a pipe would be waited for
        return None
    try:
        before = json.loads(file.read_text(encoding="utf-8"))["request"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return before if isinstance(before, dict) else None


def _explained(
    explainer: Explainer, files: Sequence[Path], label: int | None, failed: list[DataError]
) -> Iterator[tuple[Picture, list[Explanation]]]:
    """The pictures in the files, with what was found; errors of those that cannot be read go to ``failed``."""
    import warnings

    for file in files:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's, of what is decided in ``read``
                pictures = list(explainer.classifier.read(file, printable(file)))
        except DataError as error:
            failed.append(error)
            continue
        for picture in pictures:
            yield picture, explainer.explain(picture, label)


class _Writer:
    """Writes what is found image by image, and the page at the end."""

    def __init__(self, explainer: Explainer, out: Path, request: dict[str, Any]):
        self.explainer, self.out, self.request = explainer, out, request
        self.shown: list[Shown] = []
        self.rows: list[dict[str, Any]] = []

    def add(self, picture: Picture, found: Sequence[Explanation]) -> None:
        """Draw an image's explanations and say the most of them in a line."""
        from dogmed.inference.explain.page import Shown
        from dogmed.inference.explain.pictures import draw
        from dogmed.plots import write_figure
        from dogmed.runs import slug

        warning = self.explainer.classifier.warning(picture)
        if not self.shown:
            self.out.mkdir(parents=True, exist_ok=True)
            self._write_numbers([])  # whose folder it is, should this be stopped
        self.shown.append(Shown(picture, found, warning))
        png = f"{len(self.shown):03d}-{slug(Path(picture.name).stem)[:LONGEST]}.png"
        write_figure(draw(self.explainer, picture, found, warning), self.out / png)
        rows = [
            _numbers(self.explainer, picture, one) | {"warning": warning, "png": png}
            for one in found
        ]
        self.rows += rows
        told = " | ".join(_line(self.explainer, picture, one) for one in found)
        print(
            f"{picture.name}: {told} -> {png}{f' (warning: {warning})' if warning else ''}",
            flush=True,
        )

    def finish(self, unread: Sequence[str]) -> None:
        """Write the numbers and the page."""
        from dogmed.console import count
        from dogmed.inference.explain.page import page
        from dogmed.runs import write_atomic

        self._write_numbers(unread)
        write_atomic(self.out / PAGE, page(self.explainer, self.shown, unread))
        told = f"; {count(len(unread), 'file')} not read" if unread else ""
        print(f"{self.out}: {PAGE}, {NUMBERS}, {count(len(self.shown), 'picture')}{told}")

    def _write_numbers(self, unread: Sequence[str]) -> None:
        from dogmed.runs import write_atomic

        content = {"request": self.request, "explanations": self.rows, "not_read": list(unread)}
        text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False)
        write_atomic(self.out / NUMBERS, text + "\n")


def _numbers(explainer: Explainer, picture: Picture, one: Explanation) -> dict[str, Any]:
    """Every number of an explanation but the map's cells, as JSON holds them."""
    return {
        "file": picture.name,
        "class": one.name,
        "probability": one.probability,
        "decided": one.decided,
        "layer": explainer.layer.name,
        "cells": explainer.layer.side,
        "cell_px": explainer.cell,
        "largest": float(one.cells.max()),
        "peak": None if one.peak is None else one.peak._asdict(),
        "width": picture.width,
        "height": picture.height,
        "kernel_layer": explainer.dog,
        "channels": [
            {"channel": k.channel, "pattern": k.pattern, "weight": k.weight, "activation": k.activation,
             "part": k.part}
            for k in one.kernels
        ],
    }  # fmt: skip


def _line(explainer: Explainer, picture: Picture, one: Explanation) -> str:
    from dogmed.inference.explain.pictures import title

    told = [title(one, explainer.classifier.kind)]
    if one.peak is None:
        told.append("the map is 0 everywhere")
    else:
        told.append(f"largest at {one.peak.pixel} of {picture.width}×{picture.height} px")
    if one.kernels:
        told.append("kernels " + ", ".join(f"{k.pattern} #{k.channel}" for k in one.kernels[:3]))
    return "; ".join(told)


def _introduce(explainer: Explainer, files: int) -> None:
    from dogmed.console import count
    from dogmed.inference.explain.pictures import caveat

    classifier, layer = explainer.classifier, explainer.layer
    print(
        f"{classifier.trained.title}: Grad-CAM of {layer.name} ({layer.side}×{layer.side} cells of "
        f"{explainer.cell:.3g} px), {explainer.dog or 'no DoG kernels at or before it'}; "
        f"{count(files, 'file')} on {classifier.device}"
    )
    if explainer.passed_over:
        print("note: later maps have a single cell and show no place")
    for note in classifier.notes:
        print(f"note: {note}")
    print(f"note: {caveat(explainer)}")
    if layer.side < COARSE:
        finer = [f"{name} ({side}×{side})" for name, side in explainer.places.items()
                 if name in explainer.stages and side > layer.side]  # fmt: skip
        if finer:
            print(
                f"note: finer maps, of layers that know less of the whole: --layer {', '.join(finer)}"
            )

"""Exporting a trained network: written aside, opened again, compared, and only then put in place."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor

from dogmed.console import count
from dogmed.errors import ConfigError, WeightsError, reason
from dogmed.inference.classifier import Classifier, load
from dogmed.inference.export import graph
from dogmed.inference.export.bundle import needs_dogmed, run_bundle, write_bundle
from dogmed.inference.export.card import write_card
from dogmed.inference.export.command import Format
from dogmed.inference.export.files import write_sums
from dogmed.inference.export.images import Images, given_images, task_images
from dogmed.models.folding import reparameterize
from dogmed.models.trained import dog_layers
from dogmed.runs import slug
from dogmed.weights.exporting import export_weights, why_not_plain

LIMIT = 1e-4
"""Largest difference of any output that is taken for rounding."""
RUNS = 20  # timed, of each
RECORD = "model.json"

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Exported:
    """What was written, and how it compares."""

    folder: Path
    format: Format
    opens_as: str
    """What the user gets who opens it."""
    output: str
    """"logits" or "probabilities"."""
    difference: float
    """Largest, of any output, from the original network's."""
    images: str
    """Those that it was found on."""
    notes: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    """Median of one image, with "onnxruntime" and "torch"."""
    threads: str = ""

    @property
    def proof(self) -> str:
        """The comparison, in one line."""
        return f"largest difference {self.difference:.2g} in {self.output} (limit {LIMIT:g}), on {self.images}"


def export_model(
    model: str,
    format: Format,
    out: Path | None = None,
    *,
    with_preprocessing: bool = False,
    images: Sequence[Path] = (),
    data_dir: Path | None = None,
    cache_dir: Path | None = None,
    weights_dir: Path | None = None,
) -> Exported:
    """Export a fine-tuned network with its model card; the folder comes into being whole or not at all.

    Args:
        model: as ``dogmed.load`` takes it.
        format: a folder that timm or MONAI opens, or a graph.
        out: folder, empty or not there; None is named after the model, in the working folder.
        with_preprocessing: of a graph, see :class:`dogmed.inference.export.graph.Deployed`.
        images: to compare on; empty is the test split, or noise.
        data_dir: folder with official files, for the test split.
        cache_dir: where these are prepared; None is the user's.
        weights_dir: the store; None is the user's.

    Raises:
        WeightsError: no such network, the export computes something else, or it cannot be written.
        ConfigError: options that do not go together, a folder that is in use, ONNX is missing.
        DataError: the images cannot be read.
    """
    if with_preprocessing and format not in ("onnx", "torch-export"):
        where = "config.json" if format == "timm" else "configs/inference.json"
        raise ConfigError(
            f"--with-preprocessing is for onnx and torch-export: a {format} folder has its "
            f"preprocessing in {where}; leave it out"
        )
    if format == "onnx":
        graph.refuse_missing_onnx()
    classifier = load(model, device="cpu", weights_dir=weights_dir)
    record = classifier.trained.record
    out = out or Path(f"{slug(record.model)}-{slug(record.data.name)}-{format}")
    out = out.expanduser()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is there already and not empty: give another --out")
    tried = (
        given_images(classifier, images) if images else task_images(classifier, data_dir, cache_dir)
    )
    new = [folder for folder in (out.parent, *out.parent.parents) if not folder.exists()]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=out.parent) as aside:
            staged = Path(aside) / "export"
            staged.mkdir()
            done = _export(classifier, format, staged, tried, with_preprocessing)
            staged.rename(out)
    except OSError as error:
        raise WeightsError(f"cannot write to {out}: {reason(error)}") from error
    finally:
        for folder in new:
            with contextlib.suppress(OSError):  # in use now
                folder.rmdir()
    return dataclasses.replace(done, folder=out)


def compare(run: Callable[[np.ndarray], Tensor], expected: Tensor, images: Images) -> float:
    """Let an export compute the outputs, for one image and for all the others at once.

    Args:
        run: gives an export's outputs for pictures (N, S, S, 3) uint8.
        expected: the original network's, of all images.
        images: at least two.

    Raises:
        WeightsError: some output differs by more than ``LIMIT``.
    """
    pixels = images.pixels
    found = torch.cat([run(pixels[:1]), run(pixels[1:])] if len(pixels) > 1 else [run(pixels)])
    difference = (found.double() - expected.double()).abs().max().item()
    if not difference <= LIMIT:  # NaN too
        raise WeightsError(
            f"the export does not compute what the network does: largest difference {difference:.3g} in outputs "
            f"up to {expected.abs().max().item():.3g}, on {images.said}, where {LIMIT:g} is allowed; nothing was "
            "written"
        )
    return difference


def open_export(
    classifier: Classifier, format: Format, folder: Path, with_preprocessing: bool
) -> Callable[[np.ndarray], Tensor]:
    """Open an export as its user would.

    Returns:
        Its outputs as a function of pictures (N, S, S, 3) uint8.
    """
    if format == "monai-bundle":
        return lambda pixels: run_bundle(folder, pixels)
    opened: Run
    if format == "timm":
        opened = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    elif format == "onnx":
        opened = graph.open_onnx(folder)
    else:
        opened = graph.open_torch(folder)
    prepare = graph_input(classifier, with_preprocessing)

    @torch.no_grad()
    def run(pixels: np.ndarray) -> Tensor:
        return opened(prepare(pixels))

    return run


def graph_input(classifier: Classifier, with_preprocessing: bool) -> Callable[[np.ndarray], Tensor]:
    """What a graph takes, as a function of pictures (N, S, S, 3) uint8."""
    normalise = graph.Normalise(classifier)

    def prepare(pixels: np.ndarray) -> Tensor:
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()  # (N, 3, S, S)
        return images if with_preprocessing else normalise(images)

    return prepare


def _export(
    classifier: Classifier, format: Format, folder: Path, images: Images, with_preprocessing: bool
) -> Exported:
    """Write into an empty folder, and compare."""
    licence = classifier.trained.record.licence or "not stated"
    opens_as, notes = _opens_as(classifier, format)
    whole = with_preprocessing or format == "monai-bundle"
    output = "probabilities" if whole else "logits"
    if format == "timm":
        _write_timm(classifier, folder)
    elif format == "monai-bundle":
        write_bundle(classifier, folder, licence)
    else:
        _write_graph(classifier, format, folder, images, with_preprocessing, output)
    logits = classifier.logits(images.pixels)
    expected = torch.from_numpy(classifier.probabilities(logits)) if whole else logits
    run = open_export(classifier, format, folder, with_preprocessing)
    difference = compare(run, expected, images)
    done = Exported(folder, format, opens_as, output, difference, images.said, notes)
    if format == "onnx":
        done = _timed(done, classifier, images, with_preprocessing)
    write_card(folder, classifier, done)
    write_sums(folder)
    return done


def _opens_as(classifier: Classifier, format: Format) -> tuple[str, tuple[str, ...]]:
    """What the export is to its user, and what should be said of it."""
    record = classifier.trained.record
    notes = classifier.notes
    if format in ("onnx", "torch-export"):
        return f"a graph of {record.model}", notes
    if why := needs_dogmed(classifier):
        notes += (f"it needs dogmed where it is opened: {why}",)
        return record.model, notes
    plain = record.model.replace("dognext_", "convnextv2_")
    return f"{plain} of timm, without dogmed", notes


def _write_timm(classifier: Classifier, folder: Path) -> None:
    trained = classifier.trained
    folded = bool(dog_layers(classifier.model)) and not why_not_plain(trained.record)
    export_weights(
        trained.path, trained.record, folder, format="timm", folded=folded, overwrite=False
    )


def _write_graph(
    classifier: Classifier,
    format: Format,
    folder: Path,
    images: Images,
    with_preprocessing: bool,
    output: str,
) -> None:
    module = graph.graph_module(classifier, with_preprocessing)
    pixels = np.repeat(images.pixels[:1], 2, axis=0)
    example = graph_input(classifier, with_preprocessing)(pixels)
    told = _told(classifier, example, output)
    try:
        program = graph.trace(module, example)
        if format == "onnx":
            graph.write_onnx(program, folder, output, told)
        else:
            graph.write_torch(program, folder)
    except (
        RuntimeError
    ) as error:  # what both exporters raise, and what PyTorch makes of a full disk
        raise WeightsError(
            f"{told['model']} cannot be exported as {format}: {reason(error)}; nothing was written"
        ) from error
    text = graph.as_json(told)
    (folder / RECORD).write_text(text + "\n", encoding="utf-8")


def _told(classifier: Classifier, example: Tensor, output: str) -> dict[str, Any]:
    """What must be known to use a graph."""
    record, seen = classifier.trained.record, classifier.seen
    return {
        "model": record.model,
        "task": seen.name,
        "kind": seen.kind,
        "classes": list(seen.classes),
        "input": {
            "name": graph.INPUT,
            "dtype": str(example.dtype).removeprefix("torch."),
            "shape": ["batch", *example.shape[1:]],
            "mean": list(seen.mean),
            "std": list(seen.std),
        },
        "output": output,
        "temperature": record.temperature,
        "weights_sha256": record.sha256,
        "licence": record.licence,
    }


def _timed(
    done: Exported, classifier: Classifier, images: Images, with_preprocessing: bool
) -> Exported:
    """Time onnxruntime beside PyTorch as dogmed runs it: folded, its memory laid out channels last."""
    one = graph_input(classifier, with_preprocessing)(images.pixels[:1])
    runtime = graph.open_onnx(done.folder)
    module = reparameterize(classifier.model)
    if with_preprocessing:
        module = graph.Deployed(module, classifier)
    module = module.eval().to(memory_format=torch.channels_last)
    laid_out = one.to(memory_format=torch.channels_last)
    seconds = graph.latencies(
        {"onnxruntime": lambda: runtime(one), "torch": lambda: module(laid_out)}, RUNS
    )
    threads = count(torch.get_num_threads(), "thread")
    return dataclasses.replace(done, seconds=seconds, threads=f"{RUNS} runs of each, {threads}")

"""Opening a trained model: from a weights file, and nothing else, to the network that it belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from dogmed.errors import WeightsError
from dogmed.models.dog import DoGConv2d
from dogmed.models.factory import build_model
from dogmed.runs import slug
from dogmed.weights.records import (
    WeightsRecord,
    default_weights_dir,
    find_weights,
    read_record,
)


@dataclass(frozen=True)
class Trained:
    """A trained network and what is known of it."""

    model: nn.Module
    """On the CPU, in eval mode, its parameters without gradients."""
    record: WeightsRecord
    path: Path
    """Of the weights file."""

    @property
    def title(self) -> str:
        """What tables call it: architecture, what it was trained on, from what, and how it differs."""
        record = self.record
        name, details = f"{record.model} {record.recipe}", []
        if record.recipe == "finetune":
            name, details = f"{record.model} {record.data.name}", [slug(record.init)]
            details += [] if record.seed is None else [f"seed {record.seed}"]
            scaled = record.training.get("scale_aug", "off")
            said = record.training.get("label") or (
                "" if scaled == "off" else f"scale-aug {scaled}"
            )
            details += [said] if said else []
        details += [f"{option} {value}" for option, value in record.options.items()]
        if record.data.trained_size is not None:
            details.append(f"{record.data.size} px")
        return f"{name} ({', '.join(details)})" if details else name


def open_trained(name: str, weights_dir: str | Path | None = None) -> Trained:
    """Build the network that weights belong to, with the options it was trained with, and load them.

    Args:
        name: as ``dogmed weights show`` takes it: ``MODEL.RECIPE`` or a recipe's name in the store, a
            .safetensors file, or the folder of a finished run (its best epoch) or of an export to timm.
        weights_dir: the store; None is ``default_weights_dir()``.

    Raises:
        WeightsError: no such weights, damaged ones, ones without a record, or a run that has not ended.
    """
    store = default_weights_dir() if weights_dir is None else Path(weights_dir).expanduser()
    path = find_weights(name, store)
    folder = Path(name).expanduser()
    if (folder / "checkpoints").is_dir() and not (folder / "result.json").is_file():
        raise WeightsError(
            f"{name} is a run that has not ended (no result.json): its own command continues it; what "
            f"it has so far is {path}"
        )
    record = _record(path)
    model, loaded = build_model(
        record.model,
        record.num_classes,
        init=str(path.absolute()),
        drop_path_rate=0.0,
        in_chans=record.in_chans,
    )
    if loaded.not_taken:
        raise WeightsError(f"{path}: {', '.join(loaded.not_taken)} do not fit {record.model}")
    return Trained(model.eval().requires_grad_(False), record, path)


def dog_layers(model: nn.Module) -> dict[str, DoGConv2d]:
    """The DoGConvs of a network by name, in the order of the forward pass; empty for other families."""
    return {name: m for name, m in model.named_modules() if isinstance(m, DoGConv2d)}


def _record(path: Path) -> WeightsRecord:
    record = read_record(path) if path.suffix == ".safetensors" else None
    if record is None:
        raise WeightsError(
            f"{path} has no record of what it holds; make one with: "
            f"dogmed weights import {path} --model MODEL --recipe NAME"
        )
    return record

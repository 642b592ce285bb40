"""Giving weights away in timm's forms, opened again by timm before they count as written."""

from __future__ import annotations

import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import timm
import torch
from safetensors import SafetensorError
from torch import nn

from dogmed.errors import WeightsError, reason
from dogmed.models.dog import DoGConv2d
from dogmed.models.factory import build_model
from dogmed.models.folding import reparameterize
from dogmed.models.loading import load_into
from dogmed.models.weights import save_weights
from dogmed.weights.comparing import Difference, compare
from dogmed.weights.records import SUFFIX, WeightsRecord, to_give_away

NO_LICENCE = "other"
"""The hub's word for a licence that is not in its list: nobody has said under which."""

# Options of DoGNeXt that a folded network does not have any more.
_FOLDED_AWAY = (
    "order",
    "extent",
    "downsample",
    "dog_init",
    "dog_margin",
    "dog_bias",
    "double_residual",
)


@dataclass(frozen=True)
class Exported:
    """What an export wrote."""

    path: Path
    """The folder that timm opens, or the file."""
    record: WeightsRecord
    difference: Difference
    """Between outputs of what timm opened and of the weights in the store."""


def export_weights(
    path: Path,
    record: WeightsRecord,
    out: Path,
    *,
    format: Literal["timm", "safetensors", "pt"],
    folded: bool,
    overwrite: bool,
) -> Exported:
    """Write weights so that timm opens them.

    Args:
        path: of a weights file.
        record: its record.
        out: folder to write into, made if it is not there.
        format: "timm" writes config.json and model.safetensors; the others one file with timm's
            names, and the record beside it.
        folded: fold DoGConvs and write the plain ConvNeXt V2 that results.
        overwrite: replace files of the same names.

    Raises:
        WeightsError: the weights cannot be read; no class of timm can hold them folded; a file is
            in the way; it cannot be written, or timm makes something else of it. ``out`` then
            holds what it held.
    """
    with torch.random.fork_rng(devices=[]):
        network = original = _build(path, record)
        record = to_give_away(record)
        if folded:
            network, record = fold(original, record, path)
        name = {"timm": "model"}.get(format, f"{record.model}.{record.recipe}")
        last = ".pt" if format == "pt" else SUFFIX
        files = [f"{name}{last}", f"{name}.json", *(["config.json"] if format == "timm" else [])]
        _prepare(out, files, overwrite)
        try:
            with tempfile.TemporaryDirectory(prefix=".export-", dir=out) as folder:
                staged = Path(folder)
                record = _write(network, record, staged, name, format)
                opened = _open(staged, f"{name}{last}", record, format)
                _check_tensors(opened, network)
                difference = compare(opened, original, record.in_chans)
                for file in files:
                    (staged / file).replace(out / file)
        except (OSError, SafetensorError) as error:  # the latter is timm's for a full disk
            raise WeightsError(f"cannot write to {out}: {reason(error)}") from error
    return Exported(out if format == "timm" else out / files[0], record, difference)


def fold(network: nn.Module, record: WeightsRecord, path: Path) -> tuple[nn.Module, WeightsRecord]:
    """Turn a DoGNeXt without DoGConvs into timm's ConvNeXt V2, where that has the same layers.

    Args:
        network: of ``record``.
        record: of its weights.
        path: of their file, for messages and the record.

    Raises:
        WeightsError: the network has no DoGConv, or timm's ConvNeXt has no place for its layers.
    """
    if not any(isinstance(module, DoGConv2d) for module in network.modules()):
        raise WeightsError(f"{record.model} has no DoGConv: leave out --reparameterize")
    target, options = _plain_name(record), dict(record.options)
    if why := why_not_plain(record):
        raise WeightsError(
            f"{path}, folded, is no network of timm's: {why}; export it without --reparameterize, "
            f"and fold it where it is used with dogmed.models.reparameterize(model)"
        )
    options = {name: value for name, value in options.items() if name not in _FOLDED_AWAY}
    if "kernel_size" in options:
        options["kernel_sizes"] = options.pop("kernel_size")
    plain = timm.create_model(
        target, num_classes=record.num_classes, in_chans=record.in_chans, **options
    )
    load_into(plain, reparameterize(network).state_dict(), source=f"{path}, folded,")
    return plain, dataclasses.replace(
        record,
        model=target,
        options=options,
        params=sum(p.numel() for p in plain.parameters()),
        origin=f"folded from {path.name}, sha256 of its tensors {record.sha256}",
    )


def why_not_plain(record: WeightsRecord) -> str:
    """Why timm's ConvNeXt V2 cannot hold a DoGNeXt of this record once it is folded, or nothing."""
    options, target = record.options, _plain_name(record)
    if options.get("downsample", "dog") == "dog":
        return (
            "its blocks stride in their depthwise convolutions, with a pool as shortcut, "
            "which timm's ConvNeXt does not"
        )
    if options.get("double_residual", False):
        return "its blocks have two shortcuts, timm's ConvNeXt one"
    if options.get("dog_bias", "output") == "kernel":
        return "its depthwise convolutions have no bias, timm's ConvNeXt has none or all"
    return "" if timm.is_model(target) else f"timm has no {target}"


def _plain_name(record: WeightsRecord) -> str:
    return record.model.replace("dognext_", "convnextv2_")


def _build(path: Path, record: WeightsRecord) -> nn.Module:
    network, loaded = build_model(
        record.model,
        record.num_classes,
        init=str(path.absolute()),
        drop_path_rate=0.0,
        in_chans=record.in_chans,
        options=record.options,
    )
    if loaded.not_taken:
        raise WeightsError(
            f"{path} is not what its record says: {', '.join(loaded.not_taken)} do not fit "
            f"{record.num_classes} classes"
        )
    return network.eval()


def _prepare(out: Path, files: list[str], overwrite: bool) -> None:
    """Make the folder, if nothing is in the way."""
    there = [file for file in files if (out / file).exists()]
    if there and not overwrite:
        raise WeightsError(
            f"{out} holds {', '.join(there)} already: give another --out, or --overwrite"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WeightsError(f"cannot make {out}: {reason(error)}") from error


def _write(
    network: nn.Module, record: WeightsRecord, folder: Path, name: str, format: str
) -> WeightsRecord:
    """Write everything into ``folder``."""
    state = network.state_dict()
    if format == "timm":
        data = record.data
        timm.models.save_for_hf(
            network,
            str(folder),
            model_config={
                # timm would leave the licence of the architecture's own weights
                "pretrained_cfg": {"license": record.licence or NO_LICENCE, "tag": record.recipe},
                "label_names": list(data.classes) or None,
            },
            model_args=record.options,
            safe_serialization=True,
            data_config={
                "input_size": (record.in_chans, data.size, data.size),
                "mean": data.mean,
                "std": data.std,
                **({"interpolation": data.interpolation} if data.interpolation else {}),
                **({"crop_pct": data.crop_pct} if data.crop_pct else {}),
            },
        )
    record = save_weights(folder / f"{name}{SUFFIX}", state, record)  # timm's had no record
    if format == "pt":
        torch.save(state, folder / f"{name}.pt")
    return record


def _open(folder: Path, file: str, record: WeightsRecord, format: str) -> nn.Module:
    """Open what was written as a user of timm would."""
    if format == "timm":
        return timm.create_model(f"local-dir:{folder}", pretrained=True)
    return timm.create_model(
        record.model,
        pretrained=True,
        pretrained_cfg_overlay={
            "file": str(folder / file),
            "num_classes": record.num_classes,
            "input_size": (record.in_chans, record.data.size, record.data.size),
            "custom_load": False,
        },
        num_classes=record.num_classes,
        in_chans=record.in_chans,
        **record.options,
    )


def _check_tensors(opened: nn.Module, network: nn.Module) -> None:
    read, written = opened.state_dict(), network.state_dict()
    same = read.keys() == written.keys()
    if not same or not all(torch.equal(read[name], written[name]) for name in written):
        raise WeightsError("timm does not read back what was written: nothing is exported")

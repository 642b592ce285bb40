"""Taking a foreign checkpoint into the store: names converted, fit checked, result proven."""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.convnext import ConvNeXt, checkpoint_filter_fn
from torch import Tensor, nn

from dogmed.errors import ConfigError, WeightsError, reason
from dogmed.models.factory import build_model
from dogmed.models.loading import load_into
from dogmed.models.weights import read_weights, save_weights
from dogmed.weights.comparing import Difference, compare
from dogmed.weights.records import DataRecord, WeightsRecord, check_name, weights_path

PUBLISHED_LICENCE = "cc-by-nc-4.0"
"""What ConvNeXt V2's authors publish their weights under."""
_ORIGINAL = "downsample_layers."  # begins names in ConvNeXt's own repositories, never in timm's


@dataclass(frozen=True)
class Imported:
    """What an import did."""

    path: Path
    record: WeightsRecord
    notes: tuple[str, ...]
    """What the user did not say and should know, a line each."""
    difference: Difference
    """Between outputs of the stored weights and of those that timm loaded from the file."""


def import_weights(
    file: Path,
    model: str,
    recipe: str,
    *,
    stated: Mapping[str, Any],
    stated_data: Mapping[str, Any],
    average: bool | None,
    weights_dir: Path,
    overwrite: bool,
) -> Imported:
    """Put a timm checkpoint, or one with ConvNeXt's original names, into the store.

    Args:
        file: .safetensors, or what ``torch.save`` wrote; a record in it is kept but for what is
            stated here.
        model: timm name of the architecture.
        recipe: name in the store.
        stated: fields of ``WeightsRecord``: licence, epochs, score.
        stated_data: fields of its ``DataRecord``; the others are timm's for the model.
        average: see :func:`read_weights`.
        weights_dir: the store, made if it is not there.
        overwrite: replace weights of this name.

    Raises:
        ConfigError: unknown model.
        WeightsError: the file cannot be read or does not fit the model; the name is taken or none;
            no licence; or timm makes something else of the file. The store is then as it was.
    """
    target = _target(weights_dir, model, recipe, overwrite)
    state, found, _ = read_weights(file, average=average)
    if found is not None and found.model != model:
        raise WeightsError(f"{file} holds weights of {found.model}, not of {model}")
    with torch.random.fork_rng(devices=[]):
        network, notes = _fit(model, state, found.options if found is not None else {}, file)
        base = _describe(network, recipe, file) if found is None else found
        if found is None and not {"size", "interpolation", "mean", "std"} <= stated_data.keys():
            notes.append(_assumed(base.data, model))
        if "licence" not in stated and base.licence is None:
            stated = {**stated, "licence": _known_licence(state, file)}
            notes.append(
                f"licence {PUBLISHED_LICENCE} (non-commercial), as ConvNeXt V2's authors publish "
                f"theirs; --licence says otherwise"
            )
        data = _stated(base, stated_data)
        record = dataclasses.replace(base, recipe=recipe, origin=_origin(file), data=data, **stated)
        difference, record = _store(target, network, record, file, state, average)
    return Imported(target, record, tuple(notes), difference)


def to_timm_names(state: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Convert the names of ConvNeXt's own repositories to timm's, by timm's own rules.

    A tensor that the rules drop, or for which they find no place, keeps its name, so that a strict
    load refuses it by that name.

    Args:
        state: with either kind of names.
        network: the model they are for; where it is no ConvNeXt nothing is converted.
    """
    if not isinstance(network, ConvNeXt) or not _is_original(state):
        return dict(state)
    converted: dict[str, Tensor] = {}
    for name, value in state.items():  # one at a time, to know which one does not fit
        try:
            renamed = checkpoint_filter_fn({name: value}, network)
        except (KeyError, RuntimeError):
            renamed = {}
        converted |= renamed or {name: value}
    return converted


def _target(weights_dir: Path, model: str, recipe: str, overwrite: bool) -> Path:
    """Where the weights will be, in a store that exists."""
    check_name(recipe)
    target = weights_path(weights_dir, model, recipe)
    if target.exists() and not overwrite:
        raise WeightsError(f"{target} exists: give another --recipe, or --overwrite to replace it")
    try:
        weights_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WeightsError(f"cannot make {weights_dir}: {reason(error)}") from error
    return target


def _fit(
    model: str, state: Mapping[str, Tensor], options: Mapping[str, Any], file: Path
) -> tuple[nn.Module, list[str]]:
    """Build the model that ``state`` is of, with as many classes and channels, and load it."""
    built: dict[str, Any] = {"drop_path_rate": 0.0, "options": options}
    probe, _ = build_model(model, 0, **built)
    cfg: Any = probe.pretrained_cfg
    notes = []
    if _is_original(state):
        state = to_timm_names(state, probe)
        notes.append(f"names of ConvNeXt's own repositories, {len(state)} tensors, became timm's")
    built["in_chans"] = _channels(cfg, state)
    head = state.get(f"{_first(cfg['classifier'])}.weight")
    network, _ = build_model(model, 0 if head is None else len(head), **built)
    left_out = load_into(network, state, source=str(file))
    if left_out:
        network, _ = build_model(model, 0, **built)
        load_into(network, state, source=str(file))
        notes.append(f"no classifier was taken; left out: {', '.join(left_out)}")
    return network, notes


def _describe(network: nn.Module, recipe: str, file: Path) -> WeightsRecord:
    """What the network and timm's configuration tell of weights that have no record."""
    cfg: Any = network.pretrained_cfg
    data = dataclasses.replace(DataRecord.of_timm(cfg, "unknown"), crop_pct=cfg["crop_pct"])
    return WeightsRecord(
        model=cfg["architecture"],
        num_classes=int(getattr(network, "num_classes", 0)),
        params=sum(p.numel() for p in network.parameters()),
        recipe=recipe,
        init="unknown",
        epochs=None,
        score={},
        data=data,
        licence=None,
        in_chans=_channels(cfg, network.state_dict()),
    )


def _first(names: str | tuple[str, ...]) -> str:
    """timm names a model's first convolution and its classifier, or several of either."""
    return names if isinstance(names, str) else names[0]


def _channels(cfg: Mapping[str, Any], state: Mapping[str, Tensor]) -> int:
    """Channels of the images, by the first convolution."""
    weight = state.get(f"{_first(cfg['first_conv'])}.weight")
    return weight.shape[1] if weight is not None and weight.ndim == 4 else cfg["input_size"][0]


def _is_original(state: Mapping[str, Tensor]) -> bool:
    return any(name.startswith(_ORIGINAL) for name in state)


def _stated(base: WeightsRecord, stated: Mapping[str, Any]) -> DataRecord:
    """The data record with what the user says of the images."""
    for name in ("mean", "std"):
        values = stated.get(name, ())
        if values and len(values) != base.in_chans:
            raise ConfigError(
                f"--{name} has {len(values)} values, but the weights take images of "
                f"{base.in_chans} channels"
            )
    return dataclasses.replace(base.data, **stated)


def _assumed(data: DataRecord, model: str) -> str:
    mean, std = (" ".join(f"{value:g}" for value in values) for values in (data.mean, data.std))
    return (
        f"what is not stated of the images is timm's for {model}: --size {data.size} "
        f"--interpolation {data.interpolation} --mean {mean} --std {std}"
    )


def _known_licence(state: Mapping[str, Tensor], file: Path) -> str:
    """The licence of weights from the ConvNeXt V2 repository, which name GRN in their own way."""
    if _is_original(state) and any(name.endswith(".grn.gamma") for name in state):
        return PUBLISHED_LICENCE
    raise WeightsError(
        f"{file} does not say under which licence the weights may be used: give --licence, for "
        f"example apache-2.0 or cc-by-nc-4.0, as their authors state it"
    )


def _origin(file: Path) -> str:
    with file.open("rb") as content:
        return f"{file.name}, sha256 {hashlib.file_digest(content, 'sha256').hexdigest()}"


def _store(
    target: Path,
    network: nn.Module,
    record: WeightsRecord,
    file: Path,
    state: Mapping[str, Tensor],
    average: bool | None,
) -> tuple[Difference, WeightsRecord]:
    """Write the weights beside the store, prove them, and move them in."""
    try:
        with tempfile.TemporaryDirectory(prefix=".import-", dir=target.parent) as folder:
            staged = Path(folder) / target.name
            record = save_weights(staged, network.state_dict(), record)
            ours, _ = build_model(
                record.model,
                record.num_classes,
                init=record.recipe,
                drop_path_rate=0.0,
                in_chans=record.in_chans,
                weights_dir=folder,
                options=record.options,
            )
            difference = compare(
                ours, _as_timm_loads(file, state, record, average), record.in_chans
            )
            for suffix in (".json", target.suffix):
                staged.with_suffix(suffix).replace(target.with_suffix(suffix))
    except OSError as error:
        raise WeightsError(f"cannot write to {target.parent}: {reason(error)}") from error
    return difference, record


def _as_timm_loads(
    file: Path, state: Mapping[str, Tensor], record: WeightsRecord, average: bool | None
) -> nn.Module:
    """The model with the weights of ``file`` as timm itself reads, converts and loads them."""
    theirs = timm.models.load_state_dict(str(file), use_ema=average is not False)
    if not all(isinstance(value, Tensor) for value in theirs.values()):
        theirs = dict(state)  # where timm does not look for weights
    known = timm.models.get_pretrained_cfg(record.model)
    assert known is not None
    overlay = {
        "state_dict": theirs,
        # where they differ, timm leaves the file's classifier out
        "num_classes": record.num_classes or -1,
        "input_size": (record.in_chans, *known.input_size[1:]),
        "custom_load": False,
    }
    try:
        return timm.create_model(
            record.model,
            pretrained=True,
            pretrained_cfg_overlay=overlay,
            num_classes=record.num_classes,
            in_chans=record.in_chans,
            **record.options,
        )
    except (RuntimeError, LookupError, ValueError) as error:
        raise WeightsError(
            f"timm itself cannot load {file} as {record.model}: {reason(error)}"
        ) from error

"""Models by name with their initial weights: what ``--model`` and ``--init`` mean."""

from __future__ import annotations

import inspect
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import DropPath
from torch import Tensor, nn

import dogmed.models  # noqa: F401  (registers our families in timm)
from dogmed.config import recipes
from dogmed.errors import ConfigError, WeightsError, nearest
from dogmed.models.dognext import DoGNeXt
from dogmed.models.gaussderresnet import GaussDerResNet
from dogmed.models.grn import with_fast_grn
from dogmed.models.hub import fetch
from dogmed.models.loading import Loaded, architecture, load_into, same_classes
from dogmed.models.weights import read_weights
from dogmed.weights.records import (
    DataRecord,
    WeightsRecord,
    default_weights_dir,
    list_weights,
    looks_like_file,
    weights_file,
    weights_path,
)

# timm's tag for the weights that ConvNeXt V2's authors published after ImageNet-1K fine-tuning: for
# atto to nano those of 600 epochs, so they stand in for imagenet600ep where the store has none.
_PUBLISHED = {"imagenet600ep": "fcmae_ft_in1k"}

# Our families, each with the model to name where an option is of its family alone.
_FAMILIES = {DoGNeXt: "dognext_atto", GaussDerResNet: "gaussderresnet_multi"}


def build_model(
    name: str,
    num_classes: int,
    *,
    init: str = "scratch",
    drop_path_rate: float = 0.1,
    in_chans: int = 3,
    weights_dir: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
    classes: Sequence[str] | None = None,
) -> tuple[nn.Module, Loaded]:
    """Build a timm model, ours included, and give it its initial weights.

    ``init`` is one of

    - ``scratch``: the model's own random initialisation;
    - a name such as ``imagenet50ep``: ``<weights_dir>/<model>.<name>.safetensors``; without such
      a file, ``imagenet600ep`` is what ConvNeXt V2's authors published, where they did;
    - ``timm`` or ``timm:TAG``: timm's published weights of the model, through the hub;
    - ``hf-hub:ORG/NAME``: a hub repository in timm's form;
    - a file (.safetensors, or .pt and the like), or the folder of a finished run.

    Weights must fit strictly: only the classifier may differ, and ``Loaded`` says what was not
    taken. Nothing falls back to scratch.

    Args:
        name: any name of ``timm.list_models()``.
        num_classes: outputs of the classifier; 0 leaves it out.
        init: as above.
        drop_path_rate: stochastic depth; for a model without any, ``Loaded.notes`` says so.
        in_chans: channels of the images. timm adapts its own weights to it; no others are adapted.
        weights_dir: the store of named weights; None is ``default_weights_dir()``.
        options: further arguments of the model's constructor. Where weights were trained with some
            (their record says which), the model gets the same unless others are given here.
        classes: names of what the outputs stand for. The weights' classifier is then taken only if
            their record names the same ones in the same order; None takes it wherever it fits.

    Returns:
        The model, on the CPU and in training mode, and what was loaded; its ``str()`` is one line.

    Raises:
        ConfigError: unknown model or option.
        WeightsError: weights not found, damaged, or not those of this model.
    """
    options = dict(options or {})
    _refuse_unknown(name)
    found = None
    if init != "scratch":
        store = default_weights_dir() if weights_dir is None else Path(weights_dir)
        found = _find(init, name, in_chans, store, options)
        if found.record is not None and found.trained == name:
            options = {**found.record.options, **options}
    model = with_fast_grn(_create(name, num_classes, in_chans, drop_path_rate, options))
    notes = []
    if drop_path_rate and not any(isinstance(m, DropPath) for m in model.modules()):
        notes.append(f"{name} has no drop path: the rate of {drop_path_rate:g} does nothing")
    if found is None:
        return model, Loaded(init, options=options, notes=tuple(notes))
    not_taken = load_into(
        model,
        found.state,
        source=found.source,
        trained=found.trained,
        classifier=classes is None or same_classes(found.data, classes),
    )
    if found.record is not None and found.record.options != options:
        notes.append(f"trained with options {found.record.options}, built with {options}")
    elif options:
        notes.append(f"built with {', '.join(f'{k}={v}' for k, v in options.items())}")
    return model, Loaded(
        init,
        source=found.source,
        licence=found.licence,
        sha256=found.sha256,
        not_taken=not_taken,
        classes=tuple(classes or ()),
        data=found.data,
        record=found.record,
        options=options,
        notes=(*found.notes, *notes),
    )


@dataclass(frozen=True)
class _Found:
    """Weights, before it is known whether they fit."""

    state: Mapping[str, Tensor]
    source: str
    sha256: str
    trained: str | None = None  # architecture they come from, where known
    licence: str | None = None
    data: DataRecord | None = None
    record: WeightsRecord | None = None
    notes: tuple[str, ...] = ()


def _refuse_unknown(name: str) -> None:
    """Raise ConfigError unless ``name`` is a model's, without a tag."""
    if "." in name and timm.is_model(name):
        base, _, tag = name.partition(".")
        raise ConfigError(
            f"model '{name}' names weights too: give --model {base} --init timm:{tag}"
        )
    if not timm.is_model(name):
        raise ConfigError(f"unknown model '{name}'{nearest(name, timm.list_models())}")


def _create(
    name: str, num_classes: int, in_chans: int, drop_path_rate: float, options: dict[str, Any]
) -> nn.Module:
    """Create the model with drop path if its constructor takes it, else without."""
    arguments = {"num_classes": num_classes, "in_chans": in_chans, **options}
    before = torch.get_rng_state()
    try:
        return timm.create_model(name, drop_path_rate=drop_path_rate, **arguments)
    except TypeError:
        torch.set_rng_state(before)  # so that the attempt leaves no trace in the random weights
    try:
        return timm.create_model(name, **arguments)
    except TypeError as error:
        foreign = [option for option in options if f"'{option}'" in str(error)]
        for option, (family, example) in itertools.product(foreign, _FAMILIES.items()):
            if option in inspect.signature(family).parameters:
                flag = "--net." + option.replace("_", "-")
                raise ConfigError(
                    f"{name} has no option {option}: the {example.partition('_')[0]}_* models have it; leave "
                    f"{flag} out, or give --model {example}"
                ) from error
        raise ConfigError(f"{name} cannot be built with {arguments}: {error}") from error


def _find(init: str, name: str, in_chans: int, store: Path, options: dict[str, Any]) -> _Found:
    """Read the weights that ``init`` stands for."""
    scheme, _, rest = init.partition(":")
    if scheme == "timm":
        return _from_timm(name, rest or _default_tag(name), in_chans, options)
    if scheme == "hf-hub":
        return _from_hub(rest)
    if looks_like_file(init):
        return _from_file(weights_file(Path(init).expanduser()))
    if not re.fullmatch(r"[\w.+-]+", init):
        raise WeightsError(f"--init '{init}' is neither a name of weights nor a file")
    path = weights_path(store, name, init)
    if path.is_file():
        return _from_file(path)
    tag = _PUBLISHED.get(init)
    if tag in _tags(name):
        return _from_timm(name, tag, in_chans, options)
    raise WeightsError(_nothing_found(init, name, store, path))


def _nothing_found(init: str, name: str, store: Path, path: Path) -> str:
    """Say what was looked for where, what comes close, and what to do."""
    files = [file.stem for file in list_weights(store)]
    here = [file.removeprefix(f"{name}.") for file in files if file.startswith(f"{name}.")]
    shipped = recipes("pretrain")
    recipe = init.removeprefix(f"{name}.")  # the model is named already
    close = nearest(recipe, here if init in shipped else [*here, *shipped, "scratch"])
    ways = ["dogmed weights list shows all; --weights-dir names another store, --init PATH a file"]
    if init in shipped:
        ways = [
            f"dogmed pretrain --recipe {init} --model {name} --data IMAGENET makes it, or "
            f"dogmed weights import FILE --recipe {init} --model {name} takes it from a file, or "
            f"name its folder with --weights-dir or itself with --init PATH"
        ]
    if init in _PUBLISHED:
        ways.append("published are those of convnextv2_* only: give --model convnextv2_atto")
    if _tags(name):
        ways.append("--init timm fetches what timm publishes for this model")
    return (
        f"no weights '{init}' for {name}{close}: {path} does not exist "
        f"(there for this model: {', '.join(here) or 'none'}); {'; '.join(ways)}"
    )


def _from_file(path: Path) -> _Found:
    state, record, sha256 = read_weights(path)
    if record is None:
        return _Found(state, str(path), sha256)
    return _Found(state, str(path), sha256, record.model, record.licence, record.data, record)


def _from_hub(repository: str) -> _Found:
    """Weights of a repository in timm's form: config.json beside model.safetensors."""
    config_path = fetch(repository, ["config.json"])
    path = fetch(repository, ["model.safetensors", "pytorch_model.bin"])
    source = f"hf-hub:{repository}"
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
        trained = config["architecture"]
        cfg = config.get("pretrained_cfg", config)
        data = DataRecord.of_timm(cfg, cfg.get("tag") or "unknown")
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{source} has no config.json in timm's form: {error!r}") from error
    state, record, sha256 = read_weights(path)
    licence = cfg.get("license")
    if record is not None:
        data, licence = record.data, record.licence
    return _Found(state, source, sha256, trained, licence, data, record)


def _from_timm(name: str, tag: str, in_chans: int, options: dict[str, Any]) -> _Found:
    """timm's published weights, read by timm's own code into a second model, strictly."""
    tags = _tags(name)
    if not tags:
        raise WeightsError(f"timm publishes no weights of {name}")
    if tag not in tags:
        close = nearest(tag, tags)
        raise WeightsError(f"no weights timm:{tag} of {name}{close}; there are: {', '.join(tags)}")
    published = timm.models.get_pretrained_cfg(f"{name}.{tag}")
    assert published is not None
    cfg = published.to_dict()
    if not cfg.get("hf_hub_id"):
        raise WeightsError(
            f"timm's weights {name}.{tag} are not on the hub: download them from "
            f"{cfg.get('url')} and give the file with --init PATH"
        )
    path = fetch(cfg["hf_hub_id"], [cfg.get("hf_hub_filename") or "model.safetensors"])
    _, record, sha256 = read_weights(path)
    with torch.random.fork_rng(devices=[]):
        reference = timm.create_model(
            f"{name}.{tag}",
            pretrained=True,
            pretrained_cfg_overlay={"file": str(path), "custom_load": False},
            in_chans=in_chans,
            **options,
        )
    channels = cfg["input_size"][0]
    notes: tuple[str, ...] = ()
    if in_chans != channels:
        notes = (f"timm adapted the first layer from {channels} to {in_chans} channels",)
    source = f"hf-hub:{cfg['hf_hub_id']}"
    state = reference.state_dict()
    return _Found(
        state,
        source,
        sha256,
        architecture(reference),
        cfg.get("license"),
        DataRecord.of_timm(cfg, cfg.get("tag") or "unknown"),
        record,
        notes,
    )


def _tags(name: str) -> list[str]:
    """timm's tags of published weights of a model."""
    return [full.partition(".")[2] for full in timm.list_pretrained(f"{name}.*")]


def _default_tag(name: str) -> str:
    """The tag that timm takes where none is given."""
    published = timm.models.get_pretrained_cfg(name)
    return (published and published.tag) or ""

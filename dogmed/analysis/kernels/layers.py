"""The depthwise layers of a network, and the network that it was trained from."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dogmed.errors import ConfigError, WeightsError, reason
from dogmed.models.dog import DoGConv2d
from dogmed.models.factory import build_model
from dogmed.models.sampling import DoGParameters
from dogmed.models.stem import Factored
from dogmed.models.trained import Trained, open_trained
from dogmed.weights.records import default_weights_dir, looks_like_file, weights_path
from dogmed.yamlfile import parse_yaml

SMALLEST = 3
"""Cells along a kernel that has a shape."""


@dataclass(frozen=True)
class Layer:
    """The kernels of one depthwise convolution."""

    name: str
    """Of the module."""
    kernels: Tensor
    """(C, K, K), float64."""
    extent: float
    """Half-width of the kernel in the unit of sigma."""
    reduction: int
    """Pixels of the image to a cell of the kernel: to one of the layer's input, times its dilation."""
    stride: int
    functions: DoGParameters | None
    """What a DoGConv samples its kernels from."""

    @property
    def size(self) -> int:
        return self.kernels.shape[-1]


class Origin(NamedTuple):
    """What a network's training began with; ``model`` is None where that cannot be had, ``note`` says why."""

    model: nn.Module | None
    title: str
    note: str


@torch.no_grad()
def depthwise_layers(model: nn.Module, in_chans: int, title: str) -> list[Layer]:
    """List the depthwise layers with square kernels of 3 cells or more, in the order of the forward pass.

    Args:
        model: on the CPU, in eval mode; it classifies one empty image of its own size.
        in_chans: channels of its images.
        title: of the model, for the message.

    Raises:
        ConfigError: there is none.
    """
    found = _depthwise(model)
    if not found:
        raise ConfigError(
            f"{title}: no layer is a depthwise convolution with square kernels of {SMALLEST} cells or more, "
            "so that there is nothing to draw or fit; give a DoGNeXt, a ConvNeXt or the like"
        )
    reductions = _reductions(model, in_chans, found)
    return [_layer(name, found[name], reduction) for name, reduction in reductions.items()]


@torch.no_grad()
def counterparts(
    layers: Sequence[Layer], model: nn.Module, origin: nn.Module
) -> dict[str, Layer | None]:
    """Find the layers of a model, by name, in the network that it began as; None where one differs.

    DoGConvs are functions: the origin's are sampled as the model's are, whatever their own size and stride.

    Args:
        layers: of ``model``.
        model: the trained network.
        origin: what it began as; a layer that it alone has is None too.
    """
    own, found = _depthwise(model), _depthwise(origin)
    same: dict[str, Layer | None] = {name: None for name in found if name not in own}
    return same | {layer.name: _as_in(layer, found.get(layer.name)) for layer in layers}


def find_origin(trained: Trained, before: str | None, weights_dir: Path | None) -> Origin:
    """Find the network that ``trained`` began as: the one named, or what its record says.

    A training from scratch draws its first weights from its seed, and nothing is drawn before them: they
    are drawn again. Named weights are looked for where the run's own configuration says, if its
    folder is there, and then in the store.

    Args:
        trained: a trained model.
        before: as ``open_trained`` takes it; None goes by the record.
        weights_dir: the store; None is the user's.

    Raises:
        WeightsError: ``before`` is not there or cannot be used.
    """
    if before is not None:
        named = open_trained(before, weights_dir)
        return Origin(named.model, named.title, "given with --before")
    init = trained.record.init
    if init == "scratch":
        return _drawn_again(trained)
    run = _run_folder(trained.path)
    stores = [weights_dir, _own_store(run), default_weights_dir()]
    candidates = [weights_path(store, trained.record.model, init) for store in stores if store]
    if looks_like_file(init):
        candidates = [Path(init).expanduser()]
    path = next((path for path in candidates if path.exists()), None)
    if path is None:
        places = " or ".join(map(str, dict.fromkeys(candidates)))
        why = f"its training began with '{init}', and there is no {places}: name it with --before"
        return Origin(None, init, why)
    try:
        first = open_trained(str(path.absolute()))
    except WeightsError as error:
        return Origin(
            None, init, f"its training began with '{init}', which cannot be used: {error}"
        )
    expected = _first_hash(run)
    if expected not in (None, first.record.sha256):
        return Origin(
            None,
            init,
            f"{path} is not what its training began with (sha256): name that with --before",
        )
    sure = "same sha256" if expected else "by its name; the record tells no more"
    return Origin(first.model, first.title, f"what its training began with ({sure})")


def _drawn_again(trained: Trained) -> Origin:
    record = trained.record
    if record.seed is None or "dogmed" not in record.versions:
        return Origin(None, "scratch", "its record does not tell the seed of its first weights")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(record.seed)
        model, _ = build_model(
            record.model,
            record.num_classes,
            in_chans=record.in_chans,
            drop_path_rate=0.0,
            options=record.options,
        )
    note = "its first weights, drawn again"
    differing = [
        f"{name} {record.versions.get(name)}"
        for name in ("torch", "timm")
        if record.versions.get(name) != importlib.metadata.version(name)
    ]
    if differing:
        note += f"; they were drawn with {', '.join(differing)}, and may have been others"
    title = f"initialisation (seed {record.seed})"
    return Origin(model.eval().requires_grad_(False), title, note)


def _run_folder(path: Path) -> Path | None:
    """The folder of the run that wrote a weights file, if that is where it lies."""
    folder = path.parent.parent
    return (
        folder if path.parent.name == "checkpoints" and (folder / "config.yaml").is_file() else None
    )


def _own_store(run: Path | None) -> Path | None:
    """Where the run looked for weights."""
    if run is None:
        return None
    file = run / "config.yaml"
    store = parse_yaml(file.read_text(), str(file)).get("weights_dir")
    return Path(store).expanduser() if isinstance(store, str) else None


def _first_hash(run: Path | None) -> str | None:
    """The hash of the weights that a finished run began with."""
    file = None if run is None else run / "result.json"
    if file is None or not file.is_file():
        return None
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise WeightsError(f"{file} cannot be read: {reason(error)}") from error
    return content.get("weights_sha256") if isinstance(content, dict) else None


def _depthwise(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if _is_depthwise(module)}


def _is_depthwise(module: nn.Module) -> bool:
    if isinstance(module, DoGConv2d):
        return module.kernel_size >= SMALLEST
    if not isinstance(module, nn.Conv2d) or module.groups == 1:
        return False
    height, width = module.kernel_size
    return module.groups == module.in_channels and height == width >= SMALLEST


def _as_in(layer: Layer, module: Any) -> Layer | None:
    """The layer with the kernels of the origin's module of that name, if there is one and they fit."""
    if module is None or isinstance(module, DoGConv2d) != (layer.functions is not None):
        return None
    if isinstance(module, DoGConv2d):
        kernels, functions = module.kernel(layer.size, layer.extent), module.functions()
    else:
        kernels, functions = module.weight, None
    fits = kernels[:, 0].shape == layer.kernels.shape
    return replace(layer, kernels=kernels[:, 0].double(), functions=functions) if fits else None


def _layer(name: str, module: nn.Module, reduction: int) -> Layer:
    if isinstance(module, DoGConv2d):
        kernels, extent = module.kernel()[:, 0], module.extent
        return Layer(name, kernels.double(), extent, reduction, module.stride, module.functions())
    weight: Any = module.weight
    stride: Any = module.stride
    dilation: Any = module.dilation
    extent = 2 * weight.shape[-1] / 7
    return Layer(name, weight[:, 0].double(), extent, reduction * dilation[0], stride[0], None)


def _reductions(model: Any, in_chans: int, layers: dict[str, nn.Module]) -> dict[str, int]:
    """Side of the image over that of each layer's input, by name, in the order they are called.

    Of an image that all strides divide: of another, maps are rounded up or down.
    """
    side = model.pretrained_cfg["input_size"][-1]
    stages = getattr(model, "feature_info", None)  # not all of timm's networks tell
    side += -side % (stages[-1]["reduction"] if stages else 1)
    found: dict[str, int] = {}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            maps = args[0].maps if isinstance(args[0], Factored) else args[0]
            found.setdefault(name, round(side / maps.shape[-1]))

        return hook

    handles = [module.register_forward_pre_hook(watch(name)) for name, module in layers.items()]
    try:
        model(torch.zeros(1, in_chans, side, side))
    finally:
        for handle in handles:
            handle.remove()
    return found

"""Grad-CAM: where on a layer's maps a network's score for a class comes from.

"Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization" (Selvaraju et al., 2017,
https://arxiv.org/abs/1610.02391), as MONAI computes it: the maps A of a layer, each weighted with the mean
of the score's gradient over it, summed over channels, and what is below 0 left out. Ours is what is
round it: which layer, networks whose maps are laid out otherwise, and the share of each DoG kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dogmed.errors import ConfigError, nearest
from dogmed.inference.classifier import Classifier
from dogmed.inference.explain.kernels import Kernel, strongest
from dogmed.inference.reading.pictures import Picture
from dogmed.models.dog import DoGConv2d
from dogmed.models.gaussderresnet import GaussDerResNet


class Peak(NamedTuple):
    """The cell of a map that has the largest value."""

    row: int
    column: int
    x: float
    """Of its middle, in pixels of the upright image before resizing, from the left."""
    y: float
    """From the top."""

    @property
    def pixel(self) -> str:
        """The pixel that it lies in."""
        return f"x {int(self.x)}, y {int(self.y)}"


@dataclass(frozen=True)
class Explanation:
    """What a network's answer for one class comes from."""

    label: int
    name: str
    """Of the class."""
    probability: float
    decided: bool
    """Whether it is what the network decides for."""
    cells: np.ndarray
    """(h, w) float32: the map, a value of 0 or more for each cell of the layer."""
    heat: np.ndarray
    """(side, side) float32 in [0, 1]: the map over the largest of its cells, blown up to the picture."""
    peak: Peak | None
    """None where the map is 0 everywhere."""
    kernels: tuple[Kernel, ...]
    """The strongest DoG kernels, the strongest first."""


class Place(NamedTuple):
    """A layer and the side of its square maps."""

    name: str
    side: int


class Explainer:
    """Explains the answers of a classifier; it is left as it is.

    Args:
        classifier: the network.
        layer: name of the module whose maps are looked at; None is the last that the network lists of its
            stages (before pooling), of those whose maps have more than one cell.

    Raises:
        ConfigError: there is no such layer, or no Grad-CAM of it.
    """

    def __init__(self, classifier: Classifier, layer: str | None = None):
        self.classifier = classifier
        shapes = _trace(classifier)
        _refuse_derivatives(classifier.model)
        self.places = {name: side for name, shape in shapes.items() if (side := _side(shape)) > 1}
        self.layer = Place(*self._choose(layer, shapes))
        self.passed_over = layer is None and self.layer.name != _stages(classifier.model)[-1]
        """Whether a later stage has maps of a single cell."""
        before = list(shapes)[: list(shapes).index(self.layer.name) + 1]
        modules = dict(classifier.model.named_modules())
        self.dog = next((n for n in reversed(before) if isinstance(modules[n], DoGConv2d)), None)
        """The nearest DoGConv at or before the layer."""
        self.kernel_pixels = 0
        """Pixels of the network's image to a cell of its kernels."""
        if self.dog is not None:
            dog: Any = modules[self.dog]
            self.kernel_pixels = round(classifier.size / (_side(shapes[self.dog]) * dog.stride))

    @property
    def cell(self) -> float:
        """Side of a cell of the map, in pixels of the network's image."""
        return self.classifier.size / self.layer.side

    def explain(self, picture: Picture, label: int | None = None) -> list[Explanation]:
        """Explain what is decided for, or a class; of labels none of which is decided for the likeliest.

        Args:
            picture: as ``Classifier.read`` gives it.
            label: number of the class.
        """
        images, probabilities = self._seen(picture)
        decided = _decided(self.classifier, probabilities)
        labels = [label] if label is not None else decided or [int(probabilities.argmax())]
        return [
            self._explain(images, picture, k, float(probabilities[k]), k in decided) for k in labels
        ]

    def _explain(
        self, images: Tensor, picture: Picture, label: int, probability: float, decided: bool
    ) -> Explanation:
        from monai.visualize import GradCAM

        watched = _Watched(
            self.classifier, self.layer.name, self.dog
        ).eval()  # MONAI goes back to its mode
        places: Any = ("cells",) if self.dog is None else ("cells", "responses")
        cam = GradCAM(watched, places)
        with torch.enable_grad():
            maps = cam.compute_map(images.clone().requires_grad_(), class_idx=label, layer_idx=0)
        side = picture.pixels.shape[0]
        heat = cam.upsampler((side, side))(maps.detach())[0, 0].cpu().numpy()
        cells = maps.detach()[0, 0].float().cpu().numpy()
        peak = _peak(cells, picture)
        kernels: tuple[Kernel, ...] = ()
        if self.dog is not None:
            dog: Any = self.classifier.model.get_submodule(self.dog)
            seen = cam.nn_module
            kernels = strongest(dog, seen.activations["responses"], seen.gradients["responses"])
        return Explanation(
            label, self.classifier.classes[label], probability, decided, cells,
            np.minimum(heat / cells.max(), 1) if peak else np.zeros_like(heat), peak, kernels,
        )  # fmt: skip

    def _seen(self, picture: Picture) -> tuple[Tensor, np.ndarray]:
        """What the network is given for a picture, (1, I, H, W), and its probabilities (C,)."""
        given: list[Tensor] = []
        handle = self.classifier.model.register_forward_pre_hook(
            lambda _, args: given.append(args[0])
        )
        try:
            predicted = self.classifier.classify([picture])
        finally:
            handle.remove()
        with torch.inference_mode(False):
            images = given[0].clone()  # one that gradients may flow to
        return images, predicted.probabilities[0]

    def _choose(self, layer: str | None, shapes: dict[str, tuple[int, ...]]) -> tuple[str, int]:
        title = self.classifier.trained.record.model
        if layer is None:
            stages = _stages(self.classifier.model)
            found = next((name for name in reversed(stages) if name in self.places), None)
            if found is None:
                raise ConfigError(
                    f"{title} has no stage with square maps (B, C, H, W) of more than a cell, which "
                    "Grad-CAM is made of: a DoGNeXt, a ConvNeXt or a ResNet has"
                )
            return found, self.places[found]
        if layer not in shapes:
            hint = nearest(layer, self.places) or f" (its stages: {', '.join(self.stages)})"
            raise ConfigError(f"--layer {layer}: {title} has no such layer{hint}")
        if layer not in self.places:
            gives = f"gives {shapes[layer]}" if shapes[layer] else "gives no single tensor"
            raise ConfigError(
                f"--layer {layer} {gives}, expected square maps (B, C, H, W) of more than a cell, as of "
                f"{', '.join(self.stages)}"
            )
        return layer, self.places[layer]

    @property
    def stages(self) -> list[str]:
        """The layers that the network lists as its stages, of those that can be explained."""
        return [name for name in _stages(self.classifier.model) if name in self.places]


class _Watched(nn.Module):
    """Scores of the classes, with the maps of two layers led through modules that MONAI watches.

    Watching the layers themselves would fail where the next one works in place, and leave hooks behind.
    """

    def __init__(self, classifier: Classifier, layer: str, dog: str | None):
        super().__init__()
        self.model, self.objective = classifier.model, classifier.objective
        self.cells, self.responses = nn.Identity(), nn.Identity()
        self.through = {self.cells: layer} | ({} if dog is None else {self.responses: dog})

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) -> (B, C)"""
        handles = [
            self.model.get_submodule(name).register_forward_hook(_lead_through(place))
            for place, name in self.through.items()
        ]
        try:
            logits = self.model(x)
        finally:
            for handle in handles:
                handle.remove()
        if self.objective.num_outputs == self.objective.num_classes:
            return logits
        return self.objective.probabilities(logits).log()  # an output fewer: none is a class's own


def _lead_through(place: nn.Module) -> Callable[..., Tensor]:
    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        if output.ndim == 5:
            scales = output.shape[0]
            maps = place(output.permute(3, 0, 1, 2, 4).flatten(1, 2))
            return maps.unflatten(1, (scales, -1)).permute(1, 2, 3, 0, 4).contiguous()
        return place(output).clone()

    return hook


@torch.no_grad()
def _trace(classifier: Classifier) -> dict[str, tuple[int, ...]]:
    """Shapes that layers give of one empty image, in the order they end in; () for other than a tensor.

    Maps of a GaussDerResNet, (S, C, H, B, W), are told as those of so many more channels.
    """
    model = classifier.model
    shapes: dict[str, tuple[int, ...]] = {}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            shapes.pop(name, None)
            shape = tuple(output.shape) if isinstance(output, Tensor) else ()
            if isinstance(model, GaussDerResNet) and len(shape) == 5:
                scales, channels, height, batch, width = shape
                shape = (batch, scales * channels, height, width)
            shapes[name] = shape

        return hook

    handles = [m.register_forward_hook(watch(name)) for name, m in model.named_modules() if name]
    try:
        size, channels = classifier.size, classifier.trained.record.in_chans
        model(torch.zeros(1, channels, size, size, device=classifier.device))
    finally:
        for handle in handles:
            handle.remove()
    return shapes


def _side(shape: tuple[int, ...]) -> int:
    """Of square maps (B, C, H, W); 0 for anything else."""
    return shape[2] if len(shape) == 4 and shape[2] == shape[3] else 0


def _stages(model: Any) -> list[str]:
    """The layers that a network lists as its stages, the last before its pooling."""
    if isinstance(model, GaussDerResNet):
        return [*(f"blocks.{k}" for k in range(len(model.blocks))), "last_norm"]
    return [info["module"] for info in getattr(model, "feature_info", None) or ()]


def _refuse_derivatives(model: nn.Module) -> None:
    if not isinstance(model, GaussDerResNet) or model.selection != "center":
        return
    last: Any = model.last
    if not last.zero_order:
        raise ConfigError(
            "a GaussDerResNet that selects the centre and has no zero order has no Grad-CAM: its last layer "
            "takes derivatives, whose gradient has the mean 0 over every map"
        )


def _decided(classifier: Classifier, probabilities: np.ndarray) -> list[int]:
    """The numbers of the classes decided for: one, or any number if multi-label."""
    from dogmed.metrics import decide

    decision = decide(classifier.kind, probabilities[None])[0]
    return np.flatnonzero(decision).tolist() if np.ndim(decision) else [int(decision)]


def _peak(cells: np.ndarray, picture: Picture) -> Peak | None:
    if not cells.max() > 0:
        return None
    row, column = (int(k) for k in np.unravel_index(cells.argmax(), cells.shape))
    height, width = cells.shape
    return Peak(
        row, column, (column + 0.5) * picture.width / width, (row + 0.5) * picture.height / height
    )

"""All that ``dogmed analyze kernels`` finds out about one network, layer by layer."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dogmed.analysis.kernels.fitting import Fit, fit
from dogmed.analysis.kernels.layers import (
    Layer,
    Origin,
    counterparts,
    depthwise_layers,
    find_origin,
)
from dogmed.analysis.kernels.patterns import (
    dog_patterns,
    fitted_patterns,
    radius,
    response,
)
from dogmed.errors import ConfigError
from dogmed.models.patterns import function_weights
from dogmed.models.trained import Trained

RANDOM = 512
"""Random kernels that are fitted for comparison, of each size that occurs."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Kernels:
    """The kernels of one layer at one time, with what they are; C of them."""

    layer: Layer
    patterns: NDArray[np.str_]
    """(C,), of ``dogmed.models.patterns.NAMES``."""
    radius: Floats
    """(C,), in pixels of the image."""
    response: Floats
    """(C, F)"""
    widths: Floats | None
    """(C, 2), narrow and wide |sigma|, of a DoGConv."""
    weights: Floats | None
    """(C, 6), mixing weights of ``FUNCTIONS``, of a DoGConv."""
    fit: Fit | None
    """Of mixtures, to kernels that are no DoGConv's."""
    single: Fit | None
    """The same of single functions."""

    def __len__(self) -> int:
        return len(self.patterns)


@dataclass(frozen=True)
class LayerStudy:
    """One layer, now and before its training."""

    after: Kernels
    before: Kernels | None

    @property
    def name(self) -> str:
        return self.after.layer.name

    @property
    def similarity(self) -> Floats | None:
        """The cosine (C,) between each kernel and what it was; NaN where one is zero."""
        if self.before is None:
            return None
        a, b = (k.layer.kernels.flatten(1) for k in (self.after, self.before))
        return ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))).numpy()

    @property
    def changed(self) -> NDArray[np.bool_] | None:
        """Whether each kernel has another pattern than before, (C,)."""
        return None if self.before is None else self.after.patterns != self.before.patterns


@dataclass(frozen=True)
class Study:
    """A network's kernels, now and before its training."""

    trained: Trained
    origin: Origin
    layers: Sequence[LayerStudy]
    random: dict[int, tuple[Fit, Fit]]
    """Fits of mixtures and of single functions to random kernels, by their size; empty for a DoGNeXt."""

    @property
    def title(self) -> str:
        """What pages and pictures call the network; invented data must not be overlooked."""
        made = self.trained.record.data.source == "synthetic"
        return f"{self.trained.title}, SYNTHETIC data" if made else self.trained.title

    @property
    def fitted(self) -> list[LayerStudy]:
        """The layers that are no DoGConvs."""
        return [layer for layer in self.layers if layer.after.fit is not None]

    @property
    def dog(self) -> list[LayerStudy]:
        return [layer for layer in self.layers if layer.after.widths is not None]

    def pooled(self, of: Callable[[Kernels], Any], *, before: bool = False) -> Any:
        """One array of all layers."""
        kernels = [layer.before if before else layer.after for layer in self.layers]
        return np.concatenate([of(k) for k in kernels if k is not None])


def study(
    trained: Trained, before: str | None, weights_dir: Any, say: Callable[[str], None]
) -> Study:
    """Look at every kernel of a network, and at what it was before the training.

    Args:
        trained: the network.
        before: what it was; None goes by its record.
        weights_dir: the store of named weights.
        say: told what is worked on.

    Raises:
        ConfigError: it has no depthwise layers, or ``before`` has others.
        WeightsError: ``before`` cannot be used.
    """
    layers = depthwise_layers(trained.model, trained.record.in_chans, trained.title)
    origin = find_origin(trained, before, weights_dir)
    same = {} if origin.model is None else counterparts(layers, trained.model, origin.model)
    differing = [name for name, first in same.items() if first is None]
    if differing:
        told = f"{origin.title} has not the layers of {trained.title} (for example {differing[0]})"
        if before is not None:
            raise ConfigError(f"--before: {told}: give weights of the same architecture")
        origin, same = Origin(None, origin.title, told), {}
    free = [layer for layer in layers if layer.functions is None]
    if free:
        count = sum(len(layer.kernels) for layer in free) * (1 + (origin.model is not None))
        say(f"{trained.title}: fitting DoG kernels to {count:,} learned ones")
    random = {size: _random(RANDOM, size) for size in {layer.size for layer in free}}
    found = [
        LayerStudy(describe(layer), None if first is None else describe(first))
        for layer, first in ((layer, same.get(layer.name)) for layer in layers)
    ]
    return Study(trained, origin, found, random)


def describe(layer: Layer) -> Kernels:
    """Find out what one layer's kernels are."""
    size = radius(layer.kernels) * layer.reduction
    curves = response(layer.kernels)
    if layer.functions is not None:
        widths = layer.functions.sigma.abs().sort(dim=1).values.double().numpy()
        weights = function_weights(layer.functions).double().numpy()
        return Kernels(layer, dog_patterns(layer), size, curves, widths, weights, None, None)
    mixture, single = fit(layer.kernels), fit(layer.kernels, single=True)
    return Kernels(layer, fitted_patterns(single), size, curves, None, None, mixture, single)


def weighted(kernels: Sequence[Kernels]) -> float:
    """The share of the energy of all these kernels that their fits explain together."""
    pairs = [(k.fit.explained, k.layer.kernels) for k in kernels if k.fit is not None]
    energy = torch.cat([learned.square().sum((1, 2)) for _, learned in pairs])
    explained = torch.cat([share for share, _ in pairs]).nan_to_num()
    return float((explained * energy).sum() / energy.sum())


@functools.cache
def _random(count: int, size: int) -> tuple[Fit, Fit]:
    generator = torch.Generator().manual_seed(0)
    kernels = torch.randn(count, size, size, generator=generator, dtype=torch.float64)
    return fit(kernels), fit(kernels, single=True)

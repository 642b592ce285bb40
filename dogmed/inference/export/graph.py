"""A trained network as one graph of PyTorch's or ONNX's: written, opened again, timed."""

from __future__ import annotations

import importlib.util
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dogmed.errors import ConfigError
from dogmed.inference.classifier import Classifier
from dogmed.models.folding import reparameterize
from dogmed.models.gaussderresnet import GaussianDerivative2d

TORCH_FILE, ONNX_FILE = "model.pt2", "model.onnx"
INPUT = "image"
_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_WARM_UP = 3


class Normalise(nn.Module):
    """Pictures as they were at training -> what the network takes.

    Args:
        classifier: whose network it is.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        seen = classifier.seen
        mean, std = (torch.tensor(values)[:, None, None] for values in (seen.mean, seen.std))
        self.register_buffer("scale", 1 / (255 * std))
        self.register_buffer("shift", -mean / std)
        self.size = seen.size

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 -> (B, 3, size, size) float32; S is the side at training."""
        x = pixels.float() * self.scale + self.shift
        if x.shape[-1] != self.size:  # the size was chosen after the training
            x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)
        return x


class Deployed(nn.Module):
    """Pictures in, calibrated probabilities out, with nothing left to be done outside.

    Args:
        network: folded, if there is anything to fold.
        classifier: that it comes from: normalisation, temperature, and what the outputs stand for.
    """

    def __init__(self, network: nn.Module, classifier: Classifier) -> None:
        super().__init__()
        self.normalise, self.network = Normalise(classifier), network
        self.temperature, self.probabilities = (
            classifier.temperature,
            classifier.objective.probabilities,
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 -> (B, classes) float32"""
        return self.probabilities(self.network(self.normalise(pixels)) / self.temperature)


def graph_module(classifier: Classifier, with_preprocessing: bool) -> nn.Module:
    """The network with its DoGConvs as plain convolutions, alone or as :class:`Deployed`."""
    network = reparameterize(classifier.model).to(memory_format=torch.contiguous_format)
    return Deployed(network, classifier).eval() if with_preprocessing else network


@torch.no_grad()
def trace(module: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    """Record what a module computes, for any number of images.

    Args:
        module: as :func:`graph_module` gives it.
        example: two images or more, as it takes them.
    """
    derived = any(isinstance(part, GaussianDerivative2d) for part in module.modules())
    program = torch.export.export(
        module.eval(),
        (example,),
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        strict=derived,  # keeps the matrices as constants, where the other way records their making
    )
    for part in program.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # names folders of this machine
    return program


def write_torch(program: torch.export.ExportedProgram, folder: Path) -> None:
    """Write ``model.pt2``, which PyTorch opens without dogmed or timm."""
    torch.export.save(program, folder / TORCH_FILE)


def open_torch(folder: Path) -> Callable[[Tensor], Tensor]:
    """Open ``model.pt2`` as its user does."""
    return torch.export.load(folder / TORCH_FILE).module()


def refuse_missing_onnx() -> None:
    """Raise ConfigError if ONNX is not installed."""
    missing = [name for name in _ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"--format onnx needs {', '.join(missing)}: pip install 'dogmed[onnx]', or give another --format"
        )


def write_onnx(
    program: torch.export.ExportedProgram, folder: Path, output: str, told: dict[str, Any]
) -> None:
    """Write ``model.onnx``.

    Args:
        program: what is written.
        folder: to write into.
        output: name of the output.
        told: of the model, as JSON in its properties.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own use of other libraries
        exported = torch.onnx.export(
            program, dynamo=True, input_names=[INPUT], output_names=[output], verbose=False
        )
    assert exported is not None
    exported.model.metadata_props.update({"dogmed": as_json(told)})
    exported.save(folder / ONNX_FILE)


def as_json(told: dict[str, Any]) -> str:
    """For a file or a property of one."""
    return json.dumps(told, indent=2, ensure_ascii=False)


def open_onnx(folder: Path) -> Callable[[Tensor], Tensor]:
    """Open ``model.onnx`` with onnxruntime, on as many threads as PyTorch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        folder / ONNX_FILE, options, providers=["CPUExecutionProvider"]
    )
    return lambda images: torch.from_numpy(session.run(None, {INPUT: images.numpy()})[0])


@torch.inference_mode()
def latencies(ways: dict[str, Callable[[], object]], runs: int) -> dict[str, float]:
    """Median seconds of each way, all of them in turn so that they share what else the machine does."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for run in range(_WARM_UP + runs):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if run >= _WARM_UP:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(found) for name, found in seconds.items()}

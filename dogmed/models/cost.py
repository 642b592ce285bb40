"""What a model costs: parameters, multiply-accumulates, and what training keeps in memory."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dogmed.models.dog import DoGConv2d
from dogmed.models.stem import FusedStem


def count_parameters(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, size: int, in_chans: int = 3) -> int:
    """Multiply-accumulates of one forward pass of one ``size`` × ``size`` image.

    Counted by torch's own counter (convolutions and matrix products), a MAC being two FLOPs, plus
    what sampling DoG kernels takes, once for the whole batch. They are those of the network as
    published: a fused stem counts in its plain order. Works on the meta device too.
    """
    stems = [m for m in model.modules() if isinstance(m, FusedStem) and m.fused]
    sampling = sum(m.sampling_macs for m in model.modules() if isinstance(m, DoGConv2d))
    parameter = next(model.parameters())
    image = torch.zeros(1, in_chans, size, size, device=parameter.device, dtype=parameter.dtype)
    training = model.training
    model.eval()
    for stem in stems:
        stem.fused = False
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(image)
    finally:
        model.train(training)
        for stem in stems:
            stem.fused = True
    return counter.get_total_flops() // 2 + sampling


def describe_cost(parameters: int, macs: int) -> str:
    """Say parameters and MACs of one image as tables do: ``3.435 M parameters, 0.548 GMAC``."""
    count = f"{parameters / 1e6:.3f} M" if parameters >= 1e5 else f"{parameters:,}"
    cost = f"{macs / 1e9:.3f} GMAC" if macs >= 1e7 else f"{macs / 1e6:.3f} MMAC"
    return f"{count} parameters, {cost}"


def activation_bytes(model: nn.Module, size: int, in_chans: int = 3) -> int:
    """Bytes that one training image leaves behind for the backward pass, parameters not counted.

    Measured, not modelled: every distinct storage that autograd saves in a forward pass of two images,
    halved. The sum over a batch and the weights, gradients and moments is a lower bound of the peak.
    """
    parameter = next(model.parameters())
    own = {tensor.untyped_storage().data_ptr() for tensor in model.parameters()}
    seen: dict[int, int] = {}

    def remember(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        kept.append(tensor)
        return tensor

    kept: list[torch.Tensor] = []  # so that no address is used twice
    image = torch.zeros(2, in_chans, size, size, device=parameter.device, dtype=parameter.dtype)
    training, state = model.training, torch.get_rng_state()
    model.train()
    try:
        with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
            model(image)
    finally:
        model.train(training)
        torch.set_rng_state(state)
    return sum(seen.values()) // 2

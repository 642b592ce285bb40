"""torch.compile where it works, and training without it where it does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import nn


def compile_or_fall_back(
    model: nn.Module, example: torch.Tensor, sizes: Sequence[int], say: Callable[[str], None]
) -> nn.Module:
    """Compile ``model`` and try it forward and backward; on failure say so in a line and go on without.

    Random number generators, gradients and buffers are left as they were.

    Args:
        model: in training mode or not, on its device.
        example: a batch of images as training will see them.
        sizes: the batch sizes that training will see, the last batch's included.
        say: prints a line.
    """
    amp = torch.autocast("cuda", torch.bfloat16, enabled=example.is_cuda)
    devices = [example.device] if example.is_cuda else []
    training = model.training
    buffers = [buffer.clone() for buffer in model.buffers()]
    with torch.random.fork_rng(devices):
        try:
            # static: at a second size torch would turn to slower kernels for any size
            compiled = cast(nn.Module, torch.compile(model, dynamic=False))
            compiled.train()
            for size in sizes:
                with amp:
                    out = compiled(example[:size])
                out.float().sum().backward()
        except Exception as error:  # whatever a compiler, its back end or its tool chain raises
            lines = str(error).strip().splitlines()
            say(
                f"torch.compile failed, going on without: {lines[0] if lines else type(error).__name__}"
            )
            compiled = model
    model.train(training)
    model.zero_grad(set_to_none=True)
    for buffer, before in zip(model.buffers(), buffers, strict=True):
        buffer.copy_(before)
    return compiled

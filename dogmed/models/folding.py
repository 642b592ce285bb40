"""Folding a DoGNeXt for deployment: sampled kernels become weights, the fused stem a convolution."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dogmed.models.dog import DoGConv2d
from dogmed.models.stem import FusedStem, inverse_norm

Model = TypeVar("Model", bound=nn.Module)


class FoldedStem(nn.Module):
    """Image -> maps f = (X r, 1), see `stem.py`; what multiplies them is in the first block.

    Args:
        root: (R, in_chans + 1), see :meth:`FusedStem.factors`.
        eps: the LayerNorm's.
    """

    def __init__(self, root: Tensor, eps: float) -> None:
        super().__init__()
        self.root = nn.Parameter(root)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) -> (B, I + 2, H, W)"""
        pixels, _, r = inverse_norm(x, self.root, self.eps)
        maps = torch.cat([pixels * r, r, torch.ones_like(r)], dim=1).to(x.dtype)
        return maps.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def reparameterize(model: Model) -> Model:
    """Return a copy whose DoGConvs are ordinary convolutions, with the same outputs up to rounding.

    The copy knows nothing of widths and mixtures: it is for inference, export, or training its
    kernels freely. Its state dict fits into another model of the same architecture that has been
    folded, trained or not. A fused stem becomes its maps, a dense convolution and, on the shortcut,
    a pool and a 1x1 convolution.

    Args:
        model: a DoGNeXt, or anything that holds DoGConv2d; it is left as it is.
    """
    model = copy.deepcopy(model)
    stem: Any = getattr(model, "stem", None)
    if isinstance(stem, FusedStem) and stem.fused:
        _fold_stem(model)
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, DoGConv2d):
                setattr(parent, name, _convolution(layer, layer.kernel(), layer.channels))
    return model


def _fold_stem(model: Any) -> None:
    block = model.stages[0].blocks[0]
    root, matrix = model.stem.factors()  # (R, I + 1), (C, I + 2)
    like, norm = model.stem[0].weight, model.stem[1]
    matrix = matrix.to(like.dtype)[:, :, None, None]
    pointwise = nn.Conv2d(matrix.shape[1], matrix.shape[0], 1, bias=False).to(like)
    pointwise.weight.copy_(matrix)
    dense = _convolution(block.conv_dw, block.conv_dw.kernel() * matrix, groups=1)
    model.stem = FoldedStem(root.clone(), norm.eps).train(model.training)
    block.conv_dw = dense
    block.shortcut = nn.Sequential(block.shortcut, pointwise).train(model.training)


def _convolution(layer: DoGConv2d, weight: Tensor, groups: int) -> nn.Conv2d:
    conv = nn.Conv2d(
        weight.shape[1] * groups,
        layer.channels,
        layer.kernel_size,
        stride=layer.stride,
        padding=layer.kernel_size // 2,
        groups=groups,
        bias=layer.bias_in == "output",
    ).to(weight)
    conv.weight.copy_(weight)
    if conv.bias is not None:
        conv.bias.copy_(layer.bias)
    return conv.train(layer.training)

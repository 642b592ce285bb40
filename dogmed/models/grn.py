"""Global response normalisation in two passes over the activation instead of ten.

ConvNeXt V2 (https://arxiv.org/abs/2301.00808, section 3.3) computes, with G_c the norm of channel c
over the pixels and N_c = G_c / mean(G), x + (gamma * (x * N) + beta). Since N is one number per
image and channel, that is x * (1 + gamma * N) + beta. Ours: this order, and its derivative written
out. Parameters, names and, up to rounding, values and gradients are those of timm's layer.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers.grn import GlobalResponseNorm
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class _Normalise(torch.autograd.Function):
    """(x, gamma, beta) -> x * (1 + gamma * N) + beta; keeps x and a number per image and channel."""

    @staticmethod
    def forward(
        x: Tensor, gamma: Tensor, beta: Tensor, space: tuple[int, int], channel: int, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Return the output and the norms, which are not differentiable."""
        dtype = torch.promote_types(x.dtype, gamma.dtype)
        norm = _norm(x, space, dtype)
        ratio = norm / (norm.mean(channel, keepdim=True) + eps)
        return torch.addcmul(beta, x, 1 + gamma * ratio), norm

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, gamma, _, ctx.space, ctx.channel, ctx.eps = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(x, gamma, output[1])

    @staticmethod
    @once_differentiable  # the saved norm would count as a constant in a second derivative
    def backward(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
        x, gamma, norm = ctx.saved_tensors
        mean = norm.mean(ctx.channel, keepdim=True) + ctx.eps
        ratio = norm / mean
        grad_scale = (grad * x).sum(ctx.space, keepdim=True)
        grad_gamma = (grad_scale * ratio).sum(0, keepdim=True)
        grad_beta = grad.sum((0, *ctx.space), keepdim=True)
        grad_ratio = grad_scale * gamma
        grad_mean = (grad_ratio * ratio).mean(ctx.channel, keepdim=True)
        grad_norm = (grad_ratio - grad_mean) / mean
        slope = (grad_norm / norm).masked_fill(norm == 0, 0)  # as the norm's own derivative at 0
        grad_x = (grad * (1 + gamma * ratio)).addcmul_(x, slope)
        return grad_x, grad_gamma, grad_beta, None, None, None


def _norm(x: Tensor, space: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Norm over the pixels; on a CPU torch's own takes twice as long for a channels-last tensor."""
    if x.device.type == "cpu":
        return x.to(dtype).square().sum(space, keepdim=True).sqrt()
    return torch.linalg.vector_norm(x, dim=space, keepdim=True, dtype=dtype)


class FastGlobalResponseNorm(GlobalResponseNorm):
    """timm's GlobalResponseNorm, computed in fewer passes."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), or (B, H, W, C), -> the same"""
        gamma, beta = self.weight.view(self.wb_shape), self.bias.view(self.wb_shape)
        traced = torch.jit.is_tracing() or not torch.is_grad_enabled()
        normalise = _Normalise.forward if traced else _Normalise.apply
        output, _ = normalise(x, gamma, beta, self.spatial_dim, self.channel_dim, self.eps)
        return output


def with_fast_grn(model: nn.Module) -> nn.Module:
    """Compute every GRN of a network, DoGNeXt's or timm's ConvNeXt V2's, the fast way; in place.

    Parameters and state_dict stay what they were.
    """
    for parent in model.modules():
        for name, layer in parent.named_children():
            if type(layer) is not GlobalResponseNorm:
                continue
            fast = FastGlobalResponseNorm(
                len(layer.weight), layer.eps, channels_last=layer.channel_dim == -1
            )
            fast.weight, fast.bias = layer.weight, layer.bias
            setattr(parent, name, fast.train(layer.training))
    return model

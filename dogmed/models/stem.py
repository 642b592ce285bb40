"""The exact fused stem: DoGNeXt's stem and its first DoGConv as one dense convolution.

Written out, the stem of DoGNeXt (a 1x1 convolution and a LayerNorm, both at full resolution) makes
an activation as large as C/3 images. It need not exist; all of this is our own. With W' and b' the
weights and bias of the 1x1 convolution centred over its C outputs, A = [W' b'] and X = (x, 1) a
pixel with a one appended, LayerNorm of the convolution's output is

    gamma * A X r + beta = V f,    r = (X^T (A^T A / C) X + eps)^(-1/2),
    f = (X r, 1),                  V = [gamma * A, beta]

so that the stem's output is a matrix V times five maps f (in general in_chans + 2). A depthwise
convolution of V f with kernels K_c is a dense convolution of f with V[c, j] K_c, and an average
pool of V f is V times the pool of f. The zero padding is right because f carries the ones.

Parameters, their names and, up to rounding, all values and gradients are those of the plain order.
The fused order leaves the modules of the stem uncalled, so whoever watches or replaces one of them
(a hook, a parametrisation) gets the plain order, as does ``stem.fused = False``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from dogmed.models.dog import DoGConv2d


class Factored(NamedTuple):
    """A stem's output that is not multiplied out: ``matrix`` times ``maps``."""

    maps: Tensor  # (B, J, H, W)
    matrix: Tensor  # (C, J)


class NormalisedMaps(torch.autograd.Function):
    """(x, root) -> f = (X r, 1) with r = (|root X|^2 + eps)^(-1/2): (B, I, H, W) -> (B, I + 2, H, W).

    One function, because autograd would keep four times what it keeps of it: the image.
    """

    @staticmethod
    def forward(x: Tensor, root: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        """The maps, channels last; ``root`` is (R, I + 1), ``dtype`` that of the maps."""
        x, _, r = inverse_norm(x, root, eps)
        inputs = x.shape[1]
        maps = torch.empty(
            (x.shape[0], inputs + 2, *x.shape[2:]),
            dtype=dtype,
            device=x.device,
            memory_format=torch.channels_last,
        )
        maps[:, :inputs] = x * r
        maps[:, inputs : inputs + 1] = r
        maps[:, inputs + 1 :] = 1
        return maps

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, root, ctx.eps, _ = inputs
        ctx.save_for_backward(x, root)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        image, root = ctx.saved_tensors
        x, y, r = inverse_norm(image, root, ctx.eps)
        inputs = x.shape[1]
        grad = grad[:, : inputs + 1].to(x.dtype, memory_format=torch.contiguous_format)
        grad_r = (grad[:, :inputs] * x).sum(1, keepdim=True) + grad[:, inputs:]
        grad_y = y * (grad_r * r.pow(3)).neg()  # (B, R, H, W)
        products = (grad_y.flatten(2) @ x.flatten(2).mT).sum(0)
        grad_root = torch.cat([products, grad_y.sum((0, 2, 3))[:, None]], dim=1)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad[:, :inputs] * r + (root[:, :inputs].T @ grad_y.flatten(2)).view_as(x)
            grad_x = grad_x.to(image.dtype)
        return grad_x, grad_root, None, None


def inverse_norm(x: Tensor, root: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return x in root's dtype, y = root X and r.

    Planes, not pixels, lie together, and y is a matrix product: both are faster on a CPU.
    """
    x = x.to(root.dtype).contiguous()
    weight = root[:, :-1].expand(x.shape[0], -1, -1)
    y = torch.baddbmm(root[:, -1:], weight, x.flatten(2)).unflatten(2, x.shape[2:])  # (B, R, H, W)
    return x, y, (y.square().sum(1, keepdim=True) + eps).rsqrt()


class FusedStem(nn.Sequential):
    """A 1x1 convolution and a LayerNorm whose output may stay factored, see :class:`Factored`.

    ``fused`` chooses between the fused and the plain order; it starts as fused
    where the image has fewer than half as many channels as the stem puts out.

    Args:
        conv: the 1x1 convolution.
        norm: the LayerNorm.
    """

    def __init__(self, conv: nn.Conv2d, norm: LayerNorm2d) -> None:
        super().__init__(conv, norm)
        self.fused = 2 * conv.in_channels < conv.out_channels

    def forward(self, x: Tensor) -> Tensor | Factored:
        """(B, I, H, W) -> (B, C, H, W), as a tensor or factored"""
        conv, norm = self[0], self[1]
        if not self.fused or type(conv) is not nn.Conv2d or type(norm) is not LayerNorm2d:
            return super().forward(x)
        if any(map(_has_hooks, (self, conv, norm))):
            return super().forward(x)
        kind = x.device.type
        if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
            return self._factored(x, x.dtype)
        with torch.autocast(kind, enabled=False):
            return self._factored(x, torch.get_autocast_dtype(kind))

    def _factored(self, x: Tensor, dtype: torch.dtype) -> Factored:
        root, matrix = self.factors()
        norm: Any = self[1]
        return Factored(NormalisedMaps.apply(x, root, norm.eps, dtype), matrix)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return root, (R, I + 1) with root^T root = A^T A / C, and V, (C, I + 2); float32 at least.

        root is Q^T A / sqrt(C) with an orthonormal basis Q of A's columns that is held constant:
        since Q Q^T A = A, the gradient of |root X|^2 with respect to A is still exact, at every
        rank of A, where that of a factorisation would be infinite (a bias that starts at 0).
        """
        conv: Any = self[0]
        norm: Any = self[1]
        dtype = torch.promote_types(conv.weight.dtype, torch.float32)
        affine = torch.cat([conv.weight.flatten(1), conv.bias[:, None]], dim=1).to(dtype)
        affine = affine - affine.mean(0)  # (C, I + 1)
        basis = torch.linalg.qr(affine.detach() / len(affine) ** 0.5).Q
        root = basis.T @ (affine / len(affine) ** 0.5)
        scaled = norm.weight.to(dtype)[:, None] * affine
        return root, torch.cat([scaled, norm.bias.to(dtype)[:, None]], dim=1)


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


class StemDoGConv2d(DoGConv2d):
    """The first DoGConv after the stem; takes its output as a tensor or factored."""

    def forward(self, x: Tensor | Factored) -> Tensor:
        """(B, C, H, W) -> (B, C, H', W')"""
        if isinstance(x, Tensor):
            return super().forward(x)
        dtype = x.maps.dtype
        kernel = (self.current_kernel() * x.matrix[:, :, None, None]).to(dtype)  # (C, J, K, K)
        bias = self.bias.to(dtype) if self.bias_in == "output" else None
        return F.conv2d(x.maps, kernel, bias, self.stride, self.kernel_size // 2)


class StemPool2d(nn.AvgPool2d):
    """The shortcut past the first DoGConv; takes the stem's output as a tensor or factored."""

    def forward(self, x: Tensor | Factored) -> Tensor:
        """(B, C, H, W) -> (B, C, H', W')"""
        if isinstance(x, Tensor):
            return super().forward(x)
        matrix = x.matrix.to(x.maps.dtype)
        return F.conv2d(super().forward(x.maps), matrix[:, :, None, None])

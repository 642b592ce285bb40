"""GaussDerResNet: residual networks of Gaussian derivatives, covariant with scale by construction.

"Scale-invariant Gaussian derivative residual networks" (Perzanowski and Lindeberg, 2026,
https://arxiv.org/abs/2603.02843), after "Scale-covariant and scale-invariant Gaussian derivative
networks" (Lindeberg, 2021, https://arxiv.org/abs/2011.14759) and their extension (Perzanowski and
Lindeberg, 2024, https://arxiv.org/abs/2409.11140). From the abstracts of these papers: layers that
are learned linear combinations of scale-normalised Gaussian derivatives, zero order optional;
scale-covariant residual blocks in cascade; weights shared by scale channels, and the pooling of
these; the selection of a point of the image, or of the largest response; the depthwise-separable
variant. Ours, where the abstracts are silent: depths, widths and scales of the variants; a block's
layers have one scale, which grows from block to block; the order of normalisation, ReLU and skip;
a linear classifier behind the last layer; a stem that may stride; Gaussians integrated over cells of
the image (`sampling.py`) instead of their discrete analogue, and layers computed as products with
matrices, which cost the same whatever the scale.

Covariance: an image enlarged by a factor f gives in scale channel sigma * f, at corresponding points,
what the image gives in channel sigma. Nothing else in the network knows of positions or scales: a skip,
ReLU, 1x1 convolution or batch norm with its running statistics is the same at every point and scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from dogmed.errors import ConfigError
from dogmed.models.dog import check_choice
from dogmed.models.sampling import SIGMA_LIMIT, derivative_matrices

ORDERS = 3
"""Derivatives along an axis: none, first, second."""


class GaussianDerivative2d(nn.Module):
    """Learned linear combinations of Gaussian derivatives up to second order, at several scales.

    The derivatives are scale-normalised (d/dx times sigma), so that one set of weights means the
    same at each scale. Maps are laid out as (S, C, H, B, W): the derivatives along y, those along x and
    the combination of channels are then products of matrices, without a copy between them.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        sigmas: scale of each scale channel, in cells of the input.
        zero_order: combine the smoothed maps themselves too.
        separable: combine the derivatives of each channel apart, then mix channels: C (P + C')
            weights in place of C P C', P derivatives.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        sigmas: tuple[float, ...],
        *,
        zero_order: bool = False,
        separable: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.sigmas, self.zero_order, self.separable = sigmas, zero_order, separable
        terms = [(p, q) for p in range(ORDERS) for q in range(ORDERS - p)]  # along y, along x
        self.terms = tuple(terms if zero_order else terms[1:])
        shape = (in_channels,) if separable else (out_channels, in_channels)
        self.weight = nn.Parameter(torch.empty(len(self.terms), *shape))
        fan_in = len(self.terms) * (1 if separable else in_channels)
        nn.init.normal_(self.weight, std=fan_in**-0.5)
        self.pointwise = Pointwise(in_channels, out_channels) if separable else None
        self._kept: dict[Any, Tensor] = {}

    def forward(self, x: Tensor, cells: tuple[int, int] | None = None) -> Tensor:
        """(S, C, H, B, W) -> (S, C', H', B, W')

        Args:
            x: maps of each scale channel.
            cells: H' and W', the grid on which the derivatives are taken; None is the input's. (1, 1)
                is the centre alone.
        """
        scales, channels, height, batch, width = x.shape
        rows, columns = (height, width) if cells is None else cells
        x = x.reshape(scales, channels, height, batch * width)
        along_y = [m[:, None] @ x for m in self._matrices(height, rows, x)]  # (S, C, H', B W)
        along_x = self._matrices(width, columns, x)
        combine = self._combine_apart if self.separable else self._combine
        x = combine(along_y, along_x, (scales, rows * batch, width))
        x = x.view(scales, -1, rows, batch, columns)
        return x if self.pointwise is None else self.pointwise(x)

    def _combine(
        self, along_y: list[Tensor], along_x: Tensor, shape: tuple[int, int, int]
    ) -> Tensor:
        """Sum over the terms, each with weights for every pair of channels: (S, C' H' B, W')."""
        scales, _, width = shape
        mixed: list[Tensor | None] = [None] * ORDERS
        for weight, (p, q) in zip(self.weight, self.terms, strict=True):
            maps = along_y[p].view(scales, self.in_channels, -1)
            weight = weight.expand(scales, -1, -1)
            before = mixed[q]
            mixed[q] = weight @ maps if before is None else torch.baddbmm(before, weight, maps)
        return _sum_of_products(
            [m.view(scales, -1, width) for m in mixed if m is not None], along_x.mT
        )

    def _combine_apart(
        self, along_y: list[Tensor], along_x: Tensor, shape: tuple[int, int, int]
    ) -> Tensor:
        """Sum over the terms, each with a weight for every channel: (S C, H' B, W')."""
        scales, lines, width = shape
        orders = range(ORDERS)
        matrices = []
        for p in orders:
            used = [i for i, term in enumerate(self.terms) if term[0] == p]
            derivatives = along_x[[self.terms[i][1] for i in used]]  # (Q, S, W', W)
            matrix = torch.einsum("qc,qsvw->scwv", self.weight[used], derivatives)
            matrices.append(matrix.flatten(0, 1).to(along_y[p]))
        return _sum_of_products(
            [along_y[p].view(scales * self.in_channels, lines, width) for p in orders], matrices
        )

    def _matrices(self, cells_in: int, cells_out: int, like: Tensor) -> Tensor:
        """The matrices of each order and scale channel, (3, S, out, in), made once for a size."""
        key = (cells_in, cells_out, like.device, like.dtype)
        if torch.compiler.is_compiling():
            return sampled(self.sigmas, cells_in, cells_out).to(like)
        if key not in self._kept:
            with torch.inference_mode(False):  # training may use them next
                self._kept[key] = sampled(self.sigmas, cells_in, cells_out).to(like)
        return self._kept[key]

    def extra_repr(self) -> str:
        sigmas = ", ".join(f"{sigma:.3g}" for sigma in self.sigmas)
        options = f"zero_order={self.zero_order}, separable={self.separable}"
        return f"{self.in_channels}, {self.out_channels}, sigmas=({sigmas}), {options}"


def _sum_of_products(left: Sequence[Tensor], right: Sequence[Tensor] | Tensor) -> Tensor:
    """Sum of batched matrix products."""
    total = torch.bmm(left[0], right[0])
    for a, b in zip(left[1:], right[1:], strict=True):
        total = torch.baddbmm(total, a, b)
    return total


@torch.compiler.assume_constant_result
def sampled(sigmas: tuple[float, ...], cells_in: int, cells_out: int) -> Tensor:
    """Derivative matrices of several scales, (3, S, out, in)."""
    made = [derivative_matrices(sigma, cells_in, cells_out, ORDERS - 1) for sigma in sigmas]
    return torch.stack(made, dim=1)


class Pointwise(nn.Module):
    """1x1 convolution, without a bias, of maps in this file's layout.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels))
        nn.init.normal_(self.weight, std=in_channels**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(S, C, H, B, W) -> (S, C', H, B, W)"""
        return (self.weight @ x.flatten(2)).unflatten(2, x.shape[2:])


class GaussDerBlock(nn.Module):
    """Two Gaussian derivative layers of one scale and a skip.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output; where they differ the skip is a 1x1 convolution.
        sigmas: scale of each scale channel, in cells.
        options: of :class:`GaussianDerivative2d`.
    """

    def __init__(
        self, in_channels: int, out_channels: int, sigmas: tuple[float, ...], **options: Any
    ) -> None:
        super().__init__()
        self.conv1 = GaussianDerivative2d(in_channels, out_channels, sigmas, **options)
        self.norm1 = nn.BatchNorm3d(out_channels)
        self.conv2 = GaussianDerivative2d(out_channels, out_channels, sigmas, **options)
        self.norm2 = nn.BatchNorm3d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.shortcut = Pointwise(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(S, C, H, B, W) -> (S, C', H, B, W)"""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.shortcut(x) + self.norm2(self.conv2(y)))


class GaussDerResNet(nn.Module):
    """Residual network of Gaussian derivatives whose weights are shared by scale channels.

    Scale channel i has the scale sigma * channel_ratio^i in the stem and ``growth`` times more with each
    block. A cell is ``stride`` pixels; no layer but the stem changes the grid.

    Args:
        in_chans: channels of the image.
        num_classes: outputs of the classifier; 0 leaves it out.
        dims: channels of the stem, which the first block keeps, and of each block.
        stride: pixels to a cell along each axis.
        sigma: scale of the stem in the finest channel, in cells.
        growth: ratio of the scales of successive blocks.
        scale_channels: number of scale channels.
        channel_ratio: ratio of the scales of neighbouring channels.
        zero_order: combine the smoothed maps too, not their derivatives alone.
        separable: depthwise-separable layers, but for the stem.
        pooling: of the classes' scores over the scale channels: "max", "avg" or "logsumexp".
        selection: of the point whose features are classified: "center", which must show the object;
            "max", the best point for each class; "avg", the mean of all.
        drop_rate: dropout before the classifier.

    Raises:
        ConfigError: no scale channel, a scale below the sampling limit, or a value out of range.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        dims: tuple[int, ...] = (32, 32, 64, 64, 128, 128),
        stride: int = 4,
        sigma: float = 0.75,
        growth: float = 1.25,
        scale_channels: int = 5,
        channel_ratio: float = math.sqrt(2),
        zero_order: bool = False,
        separable: bool = False,
        pooling: Literal["max", "avg", "logsumexp"] = "max",
        selection: Literal["center", "max", "avg"] = "center",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        check_choice("GaussDerResNet", "pooling", pooling, ("max", "avg", "logsumexp"))
        check_choice("GaussDerResNet", "selection", selection, ("center", "max", "avg"))
        if not dims or min(dims) < 1 or stride < 1:
            raise ConfigError(
                f"GaussDerResNet: dims and stride must be at least 1, got {dims!r} and {stride!r}"
            )
        self.channel_scales = channel_scales(sigma, scale_channels, channel_ratio, growth)
        self.num_classes, self.num_features = num_classes, dims[-1]
        self.head_hidden_size = dims[-1]
        self.dims, self.stride, self.growth = tuple(dims), stride, growth
        self.pooling, self.selection = pooling, selection
        options = {"zero_order": zero_order, "separable": separable}
        self.stem = GaussianDerivative2d(
            in_chans, dims[0], self._sigmas(0, stride), zero_order=zero_order
        )
        self.stem_norm = nn.BatchNorm3d(dims[0])
        self.blocks = nn.Sequential(
            *(
                GaussDerBlock(dims[max(k - 1, 0)], width, self._sigmas(k + 1), **options)
                for k, width in enumerate(dims)
            )
        )
        self.last = GaussianDerivative2d(dims[-1], dims[-1], self._sigmas(len(dims) + 1), **options)
        self.last_norm = nn.BatchNorm3d(dims[-1])
        self.head_drop = nn.Dropout(drop_rate)
        self.fc: nn.Module = nn.Identity()
        self.reset_classifier(num_classes)

    def _sigmas(self, depth: int, pixels: int = 1) -> tuple[float, ...]:
        return tuple(pixels * scale * self.growth**depth for scale in self.channel_scales)

    def get_classifier(self) -> nn.Module:
        """Return the classifier, as timm's models do."""
        return self.fc

    def reset_classifier(self, num_classes: int) -> None:
        """Put a new classifier in place; 0 leaves it out."""
        self.num_classes = num_classes
        self.fc = nn.Identity()
        if num_classes > 0:
            self.fc = nn.Linear(self.num_features, num_classes)
            trunc_normal_(self.fc.weight, std=0.02)
            nn.init.zeros_(self.fc.bias)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (S, C, H', B, W'); H' = W' = 1, the centre, with its selection."""
        cells = (max(1, round(x.shape[2] / self.stride)), max(1, round(x.shape[3] / self.stride)))
        x = x.permute(1, 2, 0, 3).expand(len(self.channel_scales), -1, -1, -1, -1)
        x = F.relu(self.stem_norm(self.stem(x, cells)))
        x = self.blocks(x)
        x = self.last(x, (1, 1) if self.selection == "center" else cells)
        return F.relu(self.last_norm(x))

    def forward_channels(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Score the features of each scale channel: (S, C, H', B, W') -> (S, B, classes).

        Args:
            x: what :meth:`forward_features` returns.
            pre_logits: leave the classifier out; "max" is then that of each feature.
        """
        x = x.permute(0, 3, 2, 4, 1)  # (S, B, H', W', C)
        if self.selection == "avg":
            x = x.mean((2, 3), keepdim=True)
        x = self.head_drop(x)
        x = x if pre_logits else self.fc(x)
        return x.amax((2, 3))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(S, C, H', B, W') -> (B, classes), or (B, C) before the classifier."""
        x = self.forward_channels(x, pre_logits)
        if self.pooling == "max":
            return x.amax(0)
        return x.mean(0) if self.pooling == "avg" else x.logsumexp(0)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, classes)"""
        return self.forward_head(self.forward_features(x))


def channel_scales(
    sigma: float, scale_channels: int, channel_ratio: float, growth: float
) -> tuple[float, ...]:
    """Return the scale of each channel's stem, in cells.

    Raises:
        ConfigError: there is none, or one is below the sampling limit.
    """
    if scale_channels < 1:
        raise ConfigError(
            f"GaussDerResNet: scale_channels must be at least 1, got {scale_channels!r}"
        )
    if not sigma >= SIGMA_LIMIT:
        raise ConfigError(
            f"GaussDerResNet: sigma must be at least {SIGMA_LIMIT} cells, below which Gaussian derivatives "
            f"cannot be sampled, got {sigma!r}"
        )
    for name, ratio in (("channel_ratio", channel_ratio), ("growth", growth)):
        if not 1 <= ratio <= 8:
            raise ConfigError(f"GaussDerResNet: {name} must be from 1 to 8, got {ratio!r}")
    return tuple(sigma * channel_ratio**i for i in range(scale_channels))


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": None,
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem",
        "classifier": "fc",
        "license": "apache-2.0",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "gaussderresnet_test": _cfg(input_size=(3, 32, 32)),
        "gaussderresnet_single": _cfg(),
        "gaussderresnet_multi": _cfg(),
        "gaussderresnet_single_dw": _cfg(),
        "gaussderresnet_multi_dw": _cfg(),
    }
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> GaussDerResNet:
    return build_model_with_cfg(GaussDerResNet, variant, pretrained, **kwargs)


@register_model
def gaussderresnet_test(pretrained: bool = False, **kwargs: Any) -> GaussDerResNet:
    """A very small network of three scale channels for tests."""
    args = {"dims": (8, 12), "stride": 2, "scale_channels": 3, "separable": True}
    return _create("gaussderresnet_test", pretrained, **{**args, **kwargs})


@register_model
def gaussderresnet_single(pretrained: bool = False, **kwargs: Any) -> GaussDerResNet:
    """One scale channel: covariant, not invariant."""
    args = {"scale_channels": 1, "sigma": 1.0}
    return _create("gaussderresnet_single", pretrained, **{**args, **kwargs})


@register_model
def gaussderresnet_multi(pretrained: bool = False, **kwargs: Any) -> GaussDerResNet:
    """Five scale channels over a factor of four."""
    return _create("gaussderresnet_multi", pretrained, **kwargs)


@register_model
def gaussderresnet_single_dw(pretrained: bool = False, **kwargs: Any) -> GaussDerResNet:
    """One scale channel, depthwise-separable layers."""
    args = {"scale_channels": 1, "sigma": 1.0, "separable": True}
    return _create("gaussderresnet_single_dw", pretrained, **{**args, **kwargs})


@register_model
def gaussderresnet_multi_dw(pretrained: bool = False, **kwargs: Any) -> GaussDerResNet:
    """Five scale channels over a factor of four, depthwise-separable layers."""
    args = {"separable": True}
    return _create("gaussderresnet_multi_dw", pretrained, **{**args, **kwargs})

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
the image (`sampling.py`) instead of their discrete analogue, and how layers are computed
(`gaussder.py`).

Covariance: an image enlarged by a factor f gives in scale channel sigma * f, at corresponding points,
what the image gives in channel sigma. Nothing else in the network knows of positions or scales: a skip,
ReLU, 1x1 convolution or batch norm with its running statistics is the same at every point and scale.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import trunc_normal_
from timm.models import (
    build_model_with_cfg,
    checkpoint_seq,
    generate_default_cfgs,
    register_model,
)
from torch import Tensor, nn

from dogmed.errors import ConfigError
from dogmed.models.dog import check_choice
from dogmed.models.gaussder import GaussianDerivative2d, Pointwise
from dogmed.models.sampling import SIGMA_LIMIT

SIGMA_MOST = 128.0
"""Largest scale of a layer, in cells: sampling takes 14 times as many cells at once."""


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
        self.channel_scales = channel_scales(
            sigma, scale_channels, channel_ratio, growth ** (len(dims) + 1)
        )
        self.num_classes, self.num_features = num_classes, dims[-1]
        self.head_hidden_size = dims[-1]
        self.dims, self.stride, self.growth = tuple(dims), stride, growth
        self.pooling, self.selection = pooling, selection
        self.grad_checkpointing = False
        options = {"zero_order": zero_order, "separable": separable}
        self.stem = GaussianDerivative2d(
            in_chans, dims[0], self._sigmas(0, stride), zero_order=zero_order, pitch=stride
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

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new classifier in place; 0 leaves it out.

        Raises:
            ConfigError: a pooling is named: ``selection`` and ``pooling`` are what there is.
        """
        if global_pool is not None:
            raise ConfigError(
                f"GaussDerResNet: has no global_pool (got {global_pool!r}): give selection and pooling"
            )
        self.num_classes = num_classes
        self.fc = nn.Identity()
        if num_classes > 0:
            self.fc = nn.Linear(self.num_features, num_classes)
            trunc_normal_(self.fc.weight, std=0.02)
            nn.init.zeros_(self.fc.bias)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep no maps inside blocks for the backward pass, which computes them again."""
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameters by depth, as timm groups them."""
        return {"stem": r"^stem", "blocks": r"^blocks\.(\d+)"}

    def blind_channels(self, side: int) -> int:
        """Count the scale channels that tell little of a ``side`` x ``side`` image.

        Their last layer smooths over more than half of it on either side, so that its derivatives vanish.
        """
        cells = self.stem.cells(side)
        return sum(sigma > cells / 2 for sigma in self.last.sigmas)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, S, C, H', W'); H' = W' = 1, the centre, with its selection."""
        x = x.permute(1, 2, 0, 3).expand(len(self.channel_scales), -1, -1, -1, -1)
        x = F.relu(self.stem_norm(self.stem(x)))
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = checkpoint_seq(self.blocks, x)
        else:
            x = self.blocks(x)
        x = self.last(x, (1, 1) if self.selection == "center" else None)
        return F.relu(self.last_norm(x)).permute(3, 0, 1, 2, 4)

    def forward_channels(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Score the features of each scale channel: (B, S, C, H', W') -> (S, B, classes).

        Args:
            x: what :meth:`forward_features` returns.
            pre_logits: leave the classifier out; "max" is then that of each feature.
        """
        x = x.permute(1, 0, 3, 4, 2)  # (S, B, H', W', C)
        if self.selection == "avg":
            x = x.mean((2, 3), keepdim=True)
        x = self.head_drop(x)
        x = x if pre_logits else self.fc(x)
        return x.amax((2, 3))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, S, C, H', W') -> (B, classes), or (B, C) before the classifier.

        Features are pooled as scores are; what is classified afterwards is not the pooled score."""
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

    Args:
        sigma: of the finest channel.
        scale_channels: number of channels.
        channel_ratio: ratio of the scales of neighbouring channels.
        growth: ratio of the scales of the last layer and the stem.

    Raises:
        ConfigError: there is none, two are equal, or one is below the sampling limit or too large.
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
    if not growth >= 1:
        raise ConfigError("GaussDerResNet: growth must be at least 1: scales grow with depth")
    if scale_channels > 1 and not channel_ratio > 1:
        raise ConfigError(
            f"GaussDerResNet: channel_ratio must be above 1, got {channel_ratio!r}: scale channels differ"
        )
    largest = sigma * growth * channel_ratio ** (scale_channels - 1)
    if not largest <= SIGMA_MOST:
        raise ConfigError(
            f"GaussDerResNet: the last layer's scale in the coarsest channel must be at most {SIGMA_MOST:g} "
            f"cells, got {largest:.4g}: give a smaller sigma, growth, channel_ratio or scale_channels"
        )
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
    if kwargs.get("features_only"):
        raise ConfigError(f"{variant} has maps of one size at several scales: no features_only")
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

"""DoGNeXt: ConvNeXt V2 with difference-of-Gaussians kernels for every spatial aggregation.

The DoGNeXt thesis, sections 3.2 and 4.2, on "ConvNeXt V2: Co-designing and Scaling ConvNets with
Masked Autoencoders" (Woo et al., 2023, https://arxiv.org/abs/2301.00808) as timm implements it:
blocks, norms, GRN MLP, drop path, head, initialisation and module names are timm's. From the
thesis: 1x1 convolutions for the stem and for downsampling, DoGConvs that stride (4, 2, 2, 2) in the
first block of each stage with an average pool as shortcut, another stride and kernel in the first of
them (section 4.5), and the ablations of Table 4.2. Ours: how the pool meets sizes that the stride does
not divide, `dognext_test`, and the order in which the stem (`stem.py`) and GRN (`grn.py`) are computed.
"""

from __future__ import annotations

import contextlib
from typing import Any, Literal

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.convnext import ConvNeXt, ConvNeXtBlock
from torch import Tensor, nn

from dogmed.errors import ConfigError
from dogmed.models.dog import MARGIN, DoGConv2d, Order, check_choice, sampled_together
from dogmed.models.grn import with_fast_grn
from dogmed.models.stem import FusedStem, StemDoGConv2d, StemPool2d

STEM_STRIDE = 4
"""By which ConvNeXt reduces the image before its first stage, and DoGNeXt in its first DoGConv."""


class DoubleResidualBlock(nn.Module):
    """A ConvNeXt block's parts, joined by two skips: one round the convolution, one round the MLP.

    The "double residual" of Table 4.2. Drop path acts on each branch.

    Args:
        block: timm's block, without layer scale, whose parts are taken over under their names.
    """

    def __init__(self, block: ConvNeXtBlock) -> None:
        super().__init__()
        self.use_conv_mlp = block.use_conv_mlp
        self.conv_dw, self.norm, self.mlp = block.conv_dw, block.norm, block.mlp
        self.shortcut, self.drop_path = block.shortcut, block.drop_path

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H', W')"""
        x = self.shortcut(x) + self.drop_path(self.conv_dw(x))
        if self.use_conv_mlp:
            return x + self.drop_path(self.mlp(self.norm(x)))
        y = self.mlp(self.norm(x.permute(0, 2, 3, 1)))  # (B, H', W', C)
        return x + self.drop_path(y.permute(0, 3, 1, 2))


class DoGNeXt(ConvNeXt):
    """ConvNeXt V2 whose depthwise convolutions are DoGConvs, which also do the downsampling.

    Takes images of any size: a stage's output has ceil(H / stride) rows, and where the stride does
    not divide H the last window of the shortcut's pool averages the pixels there are.

    Args:
        in_chans: channels of the image.
        num_classes: outputs of the classifier; 0 leaves it out.
        global_pool: timm's name of the pooling before the classifier.
        output_stride: only what the strides make, 8 * stem_stride: a DoGConv has no dilation.
        depths: blocks of each stage.
        dims: channels of each stage.
        conv_mlp: compute the MLP as 1x1 convolutions, faster for small networks.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0.
        order: functions mixed in a kernel: "base", "d1" or "d2".
        kernel_size: odd; of every DoGConv.
        extent: half-width of the region a kernel samples. None: 2 * kernel_size / 7, so that larger
            kernels are rings round the same 7x7 core (Table 4.2); 2 resizes the pattern instead.
        stem_stride: of the first DoGConv and the pool beside it; the later stages stride by 2.
        stem_kernel_size: odd; of the first DoGConv alone, whose extent stays: its pattern is resized.
            None: kernel_size.
        downsample: "dog" strides in DoGConvs; "conv" keeps ConvNeXt V2's 4x4 stem and 2x2
            convolutions, so that only the depthwise convolutions differ from it.
        double_residual: skip convolution and MLP separately, see :class:`DoubleResidualBlock`.
        use_grn: ConvNeXt V2's global response normalisation in the MLP.
        dog_init: initial kernels, "patterns" or "random".
        dog_margin: initial lead of the chosen function's logit.
        dog_bias: bias added to the "output" of a DoGConv or to its "kernel".
        device: device of the parameters.
        dtype: type of the parameters.

    Raises:
        ConfigError: an even kernel size, an output stride that the strides do not make, a stride of
            the stem or a kernel size of its own without DoGConvs that stride, or an unknown choice.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        output_stride: int | None = None,
        depths: tuple[int, ...] = (2, 2, 6, 2),
        dims: tuple[int, ...] = (40, 80, 160, 320),
        conv_mlp: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        order: Order = "d2",
        kernel_size: int = 7,
        extent: float | None = None,
        stem_stride: int = STEM_STRIDE,
        stem_kernel_size: int | None = None,
        downsample: Literal["dog", "conv"] = "dog",
        double_residual: bool = False,
        use_grn: bool = True,
        dog_init: Literal["patterns", "random"] = "patterns",
        dog_margin: float = MARGIN,
        dog_bias: Literal["output", "kernel"] = "output",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_choice("DoGNeXt", "downsample", downsample, ("dog", "conv"))
        if downsample == "conv" and (stem_stride != STEM_STRIDE or stem_kernel_size is not None):
            raise ConfigError(
                'DoGNeXt: stem_stride and stem_kernel_size are of a DoGConv that strides: downsample="dog"'
            )
        if output_stride not in (None, 8 * stem_stride):
            raise ConfigError(
                f"DoGNeXt: output_stride must be {8 * stem_stride}, got {output_stride!r}"
            )
        for name, size in (("kernel_size", kernel_size), ("stem_kernel_size", stem_kernel_size)):
            if size is not None and size % 2 == 0:
                raise ConfigError(f"DoGNeXt: {name} must be odd, got {size!r}")
        super().__init__(
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            depths=depths,
            dims=dims,
            ls_init_value=None,
            patch_size=1 if downsample == "dog" else STEM_STRIDE,
            conv_mlp=conv_mlp,
            use_grn=use_grn,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
            device=device,
            dtype=dtype,
        )
        if downsample == "dog":
            self._stride_in_blocks((stem_stride, 2, 2, 2))
            self.stem = FusedStem(*self.stem)
        stages: Any = self.stages
        for stage in stages:
            for j, block in enumerate(stage.blocks):
                strided = j == 0 and downsample == "dog"
                first = strided and stage is stages[0]
                layer = StemDoGConv2d if first else DoGConv2d
                block.conv_dw = layer(
                    block.conv_dw.out_channels,
                    stem_kernel_size if first and stem_kernel_size is not None else kernel_size,
                    stride=block.shortcut.stride if strided else 1,
                    extent=2 * kernel_size / 7 if extent is None else extent,
                    order=order,
                    init=dog_init,
                    bias=dog_bias,
                    margin=dog_margin,
                ).to(block.conv_dw.weight)
                if double_residual:
                    stage.blocks[j] = DoubleResidualBlock(block)
        with_fast_grn(self)

    def _stride_in_blocks(self, strides: tuple[int, ...]) -> None:
        """Make timm's downsampling convolutions 1x1 and pool the shortcut of the strided blocks."""
        stages: Any = self.stages
        reduction = 1
        for stage, stride, info in zip(stages, strides, self.feature_info, strict=True):
            if not isinstance(stage.downsample, nn.Identity):
                norm, conv = stage.downsample
                pointwise: Any = nn.Conv2d(conv.in_channels, conv.out_channels, 1).to(conv.weight)
                trunc_normal_(pointwise.weight, std=0.02)
                nn.init.zeros_(pointwise.bias)
                stage.downsample = nn.Sequential(norm, pointwise)
            pool = StemPool2d if stage is stages[0] else nn.AvgPool2d
            # the pool rounds up, as a DoGConv does
            stage.blocks[0].shortcut = pool(stride, ceil_mode=True, count_include_pad=False)
            reduction *= stride
            info["reduction"] = reduction

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, C, H / s, W / s), s = 8 * stem_stride"""
        with self._sampled_kernels():
            return super().forward_features(x)

    def forward_intermediates(self, *args: Any, **kwargs: Any) -> Any:
        """As timm's."""
        with self._sampled_kernels():
            return super().forward_intermediates(*args, **kwargs)

    def _sampled_kernels(self) -> contextlib.AbstractContextManager[None]:
        stages: Any = self.stages
        caching = not (self.training or torch.is_grad_enabled())
        if caching or any(stage.grad_checkpointing for stage in stages):  # it samples again
            return contextlib.nullcontext()
        return sampled_together(m for m in self.modules() if isinstance(m, DoGConv2d))

    def no_weight_decay(self) -> set[str]:
        """Name every DoGConv parameter; decay would pull widths and mixtures towards 0 (4.1)."""
        return {
            f"{name}.{parameter}"
            for name, module in self.named_modules()
            if isinstance(module, DoGConv2d)
            for parameter, _ in module.named_parameters()
        }


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.0",
        "classifier": "head.fc",
        "license": "apache-2.0",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "dognext_test": _cfg(input_size=(3, 64, 64), pool_size=(2, 2)),
        "dognext_atto": _cfg(),
        "dognext_femto": _cfg(),
        "dognext_pico": _cfg(),
        "dognext_nano": _cfg(),
        "dognext_tiny": _cfg(),
        "dognext_base": _cfg(),
        "dognext_large": _cfg(),
        "dognext_huge": _cfg(),
    }
)


def _create_dognext(variant: str, pretrained: bool, **kwargs: Any) -> DoGNeXt:
    feature_cfg = {"out_indices": (0, 1, 2, 3), "flatten_sequential": True}
    return build_model_with_cfg(DoGNeXt, variant, pretrained, feature_cfg=feature_cfg, **kwargs)


@register_model
def dognext_test(pretrained: bool = False, **kwargs: Any) -> DoGNeXt:
    """A very small DoGNeXt for tests."""
    args = {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32), "conv_mlp": True}
    return _create_dognext("dognext_test", pretrained, **{**args, **kwargs})


@register_model
def dognext_atto(pretrained: bool = False, **kwargs: Any) -> DoGNeXt:
    """DoGNeXt with ConvNeXt V2 atto's depths and widths, the thesis's network."""
    args = {"depths": (2, 2, 6, 2), "dims": (40, 80, 160, 320), "conv_mlp": True}
    return _create_dognext("dognext_atto", pretrained, **{**args, **kwargs})


@register_model
def dognext_femto(pretrained: bool = False, **kwargs: Any) -> DoGNeXt:
    """DoGNeXt with ConvNeXt V2 femto's depths and widths."""
    args = {"depths": (2, 2, 6, 2), "dims": (48, 96, 192, 384), "conv_mlp": True}
    return _create_dognext("dognext_femto", pretrained, **{**args, **kwargs})


@register_model
def dognext_pico(pretrained: bool = False, **kwargs: Any) -> DoGNeXt:
    """DoGNeXt with ConvNeXt V2 pico's depths and widths."""
    args = {"depths": (2, 2, 6, 2), "dims": (64, 128, 256, 512), "conv_mlp": True}
    return _create_dognext("dognext_pico", pretrained, **{**args, **kwargs})


@register_model
def dognext_nano(pretrained: bool = False, **kwargs: Any) -> DoGNeXt:
    """DoGNeXt with ConvNeXt V2 nano's depths and widths."""
    args = {"depths": (2, 2, 8, 2), "dims": (80, 160, 320, 640), "conv_mlp": True}
    return _create_dognext("dognext_nano", pretrained, **{**args, **kwargs})


@register_model
def dognext_tiny(pretrained: bool = False, **kwargs: Any) -> DoGNeXt:
    """DoGNeXt with ConvNeXt V2 tiny's depths and widths."""
    args = {"depths": (3, 3, 9, 3), "dims": (96, 192, 384, 768)}
    return _create_dognext("dognext_tiny", pretrained, **{**args, **kwargs})


@register_model
def dognext_base(pretrained: bool = False, **kwargs: Any) -> DoGNeXt:
    """DoGNeXt with ConvNeXt V2 base's depths and widths."""
    args = {"depths": (3, 3, 27, 3), "dims": (128, 256, 512, 1024)}
    return _create_dognext("dognext_base", pretrained, **{**args, **kwargs})


@register_model
def dognext_large(pretrained: bool = False, **kwargs: Any) -> DoGNeXt:
    """DoGNeXt with ConvNeXt V2 large's depths and widths."""
    args = {"depths": (3, 3, 27, 3), "dims": (192, 384, 768, 1536)}
    return _create_dognext("dognext_large", pretrained, **{**args, **kwargs})


@register_model
def dognext_huge(pretrained: bool = False, **kwargs: Any) -> DoGNeXt:
    """DoGNeXt with ConvNeXt V2 huge's depths and widths."""
    args = {"depths": (3, 3, 27, 3), "dims": (352, 704, 1408, 2816)}
    return _create_dognext("dognext_huge", pretrained, **{**args, **kwargs})

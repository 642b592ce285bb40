"""Models: importing this package registers the DoGNeXt and GaussDerResNet families in timm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dogmed.models.dog import DoGConv2d
from dogmed.models.dognext import DoGNeXt
from dogmed.models.folding import reparameterize
from dogmed.models.gaussderresnet import GaussDerResNet

if TYPE_CHECKING:
    from dogmed.models.factory import build_model

__all__ = ["DoGConv2d", "DoGNeXt", "GaussDerResNet", "build_model", "reparameterize"]


def __getattr__(name: str) -> Any:
    if name == "build_model":
        from dogmed.models.factory import build_model

        return build_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

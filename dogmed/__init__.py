"""dogmed: medical image classification with DoGNeXt and ConvNeXt V2 on MedMNIST."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dogmed.inference.classifier import load as load

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """``dogmed.load``, imported with PyTorch when it is first asked for."""
    if name == "load":
        from dogmed.inference.classifier import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

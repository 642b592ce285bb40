"""Print the README's table of models: parameters and MACs, at 224 px and 1000 classes.

    python benchmarks/model_table.py

Models are built, and run once, on the meta device: nothing is allocated or computed. A MAC is half
a FLOP of torch.utils.flop_counter (convolutions and matrix products); DoGNeXt's include what
sampling its kernels takes, once for the whole batch.
"""

from __future__ import annotations

import timm
import torch

from dogmed.models.cost import count_macs, count_parameters

SIZES = ("atto", "femto", "pico", "nano", "tiny", "base", "large", "huge")
OTHERS = (
    "gaussderresnet_single",
    "gaussderresnet_single_dw",
    "gaussderresnet_multi",
    "gaussderresnet_multi_dw",
    "resnet18",
    "resnet50",
)


def count(name: str) -> tuple[int, int]:
    """Return the parameters of a timm model and the MACs of its forward pass, for one image.

    Args:
        name: timm's name of the model.
    """
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=1000)
        macs = count_macs(model, 224)
    return count_parameters(model), macs


def cells(name: str) -> str:
    """Return a model's two cells of the table: millions of parameters, billions of MACs."""
    parameters, macs = count(name)
    return f"{parameters / 1e6:.3f} | {macs / 1e9:.3f}"


def table() -> str:
    """Return the table in Markdown."""
    lines = [
        "| size | DoGNeXt, M parameters | GMAC | ConvNeXt V2, M parameters | GMAC |",
        "|---|--:|--:|--:|--:|",
        *(f"| {s} | {cells(f'dognext_{s}')} | {cells(f'convnextv2_{s}')} |" for s in SIZES),
        "",
        "| model | M parameters | GMAC |",
        "|---|--:|--:|",
        *(f"| {name} | {cells(name)} |" for name in OTHERS),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())

"""The networks that are compared, and a step of each: training and inference."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import timm
import torch
import torch.nn.functional as F
from torch import nn

from dogmed.models import reparameterize
from dogmed.models.grn import with_fast_grn

REFERENCE = "convnextv2_atto"
FAST_GRN = "convnextv2_atto, GRN as in dogmed"
DOGNEXT = "dognext_atto"
PLAIN = "dognext_atto, plain stem"
FOLDED = "dognext_atto, reparameterized"
RESNET = "resnet18"


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all models of a comparison share."""

    size: int
    """Side of the image in pixels."""
    batch: int
    device: str
    compiled: bool

    @property
    def amp(self) -> torch.autocast:
        """bfloat16 on CUDA, float32 on a CPU."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda")


def build(name: str, setting: Setting) -> nn.Module:
    """Return a model with 1000 classes, channels-last; everything but dogmed's own is timm's."""
    torch.manual_seed(0)
    model = timm.create_model(name.partition(",")[0])
    if name == PLAIN:
        model.stem.fused = False
    if name == FAST_GRN:
        model = with_fast_grn(model)
    if name == FOLDED:
        model = reparameterize(model)
    return model.to(setting.device, memory_format=torch.channels_last)


def images(setting: Setting) -> torch.Tensor:
    """Return a batch of noise."""
    x = torch.randn(setting.batch, 3, setting.size, setting.size, device=setting.device)
    return x.contiguous(memory_format=torch.channels_last)


def train_step(name: str, setting: Setting) -> Callable[[], None]:
    """Return a function that does one training step of a model with AdamW."""
    model, x = build(name, setting).train(), images(setting)
    labels = torch.arange(setting.batch, device=setting.device) % 1000
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=setting.device == "cuda")
    forward = torch.compile(model) if setting.compiled else model

    def step() -> None:
        with setting.amp:
            loss = F.cross_entropy(forward(x), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def inference(name: str, setting: Setting) -> Callable[[], None]:
    """Return a function that does one forward pass of a model, without gradients."""
    model, x = build(name, setting).eval(), images(setting)
    forward = torch.compile(model) if setting.compiled else model

    def step() -> None:
        with torch.no_grad(), setting.amp:
            forward(x)

    return step

"""What is minimised for each kind of task, and what probabilities the outputs stand for.

Cross-entropy and binary cross-entropy follow MedMNIST's official training script; the ordinal
continuation-ratio head is the model of Fienberg (1980), trained as in CORN (Shi, Cao and Raschka,
"Deep neural networks for rank-consistent ordinal regression", 2021).
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dogmed.errors import ConfigError, nearest
from dogmed.metrics import KINDS

ORDINAL = ("cross-entropy", "continuation-ratio")


@dataclass(frozen=True)
class Objective:
    """The loss and the probabilities of one kind of task.

    Label smoothing moves the fraction ``label_smoothing`` of each target to the uniform
    distribution. For multi-label it is symmetric, y(1 - e) + e/2: an uninformed output stays at
    1/2, and the loss's minimiser crosses 1/2 where the true probability does, so the official
    threshold of 0.5 stays right.

    Args:
        kind: one of ``metrics.KINDS``.
        num_classes: classes, or labels of a multi-label task; 2 for a binary one.
        label_smoothing: in [0, 1).
        ordinal: the head of an ordinal task. ``"cross-entropy"`` ignores the order, as the official
            script does; ``"continuation-ratio"`` has one output fewer, with sigmoid(z_k) as
            P(y > k | y >= k), and its class probabilities are consistent by construction.

    Raises:
        ConfigError: the combination does not exist.
    """

    kind: str
    num_classes: int
    _: KW_ONLY
    label_smoothing: float = 0.0
    ordinal: str = "cross-entropy"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(
                f"unknown kind of task '{self.kind}'{nearest(self.kind, KINDS)}: "
                f"expected one of {', '.join(KINDS)}"
            )
        if self.ordinal not in ORDINAL:
            raise ConfigError(
                f"unknown ordinal head '{self.ordinal}'{nearest(self.ordinal, ORDINAL)}: "
                f"expected one of {', '.join(ORDINAL)}"
            )
        if self.ordinal != "cross-entropy" and self.kind != "ordinal":
            raise ConfigError(
                f"the {self.ordinal} head is for ordinal tasks, and this one is {self.kind}: "
                "leave it at cross-entropy"
            )
        if self.kind == "binary" and self.num_classes != 2:
            raise ConfigError(f"a binary task has 2 classes, received {self.num_classes}")
        if self.num_classes < (1 if self.kind == "multi-label" else 2):
            raise ConfigError(f"a {self.kind} task cannot have {self.num_classes} class(es)")
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"label_smoothing must be in [0, 1), received {self.label_smoothing}")

    @classmethod
    def of_outputs(cls, kind: str, num_classes: int, num_outputs: int) -> Objective:
        """The objective of a trained network; an ordinal head with an output fewer is a continuation ratio."""
        fewer = kind == "ordinal" and num_outputs == num_classes - 1
        return cls(kind, num_classes, ordinal="continuation-ratio" if fewer else "cross-entropy")

    @property
    def num_outputs(self) -> int:
        """Logits the network must give for one image."""
        return self.num_classes - (self.ordinal == "continuation-ratio")

    def loss(self, logits: Tensor, labels: Tensor, *, reduction: str = "mean") -> Tensor:
        """Measure how far the outputs are from the labels, in float32, or float64 where the logits are.

        Args:
            logits: (B, num_outputs).
            labels: (B, L) int64, L = 1 unless multi-label.
            reduction: ``"mean"``, or ``"none"`` for one loss a sample, (B,). A multi-label loss is
                the mean over samples and labels alike, as in ``BCEWithLogitsLoss``.
        """
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.kind == "multi-label":
            smoothing = self.label_smoothing
            targets = labels.to(logits.dtype) * (1 - smoothing) + smoothing / 2
            losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)
            return losses.mean() if reduction == "mean" else losses
        return F.cross_entropy(
            self._class_scores(logits),
            labels[:, 0],
            label_smoothing=self.label_smoothing,
            reduction=reduction,
        )

    def probabilities(self, logits: Tensor) -> Tensor:
        """Turn logits (B, num_outputs) into float32 probabilities (B, num_classes)."""
        logits = logits.float()
        if self.kind == "multi-label":
            return logits.sigmoid()
        return self._class_scores(logits).softmax(1)

    def _class_scores(self, logits: Tensor) -> Tensor:
        """The scores (B, num_classes) whose softmax is the class probabilities."""
        if self.ordinal == "cross-entropy":
            return logits
        passed = F.logsigmoid(logits).cumsum(1)  # (B, C-1)  log P(y > k)
        stays = F.logsigmoid(-logits)  # (B, C-1)  log P(y = k | y >= k)
        start = torch.zeros_like(logits[:, :1])
        return torch.cat([start, passed], 1) + torch.cat([stays, start], 1)

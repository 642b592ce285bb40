"""One temperature for a trained network: Guo et al., "On calibration of modern neural networks" (2017).

The logits are divided by it, which changes no multi-class decision and says how sure the network is.
"""

from __future__ import annotations

import math
from dataclasses import replace

from scipy.optimize import minimize_scalar
from torch import Tensor

from dogmed import metrics
from dogmed.objective import Objective

BOUNDS = (1 / 20, 20.0)
"""Of the temperature: of a split without an error the best one is 0, and no network is as sure as that."""


def fit_temperature(objective: Objective, logits: Tensor, labels: Tensor) -> float:
    """Find the temperature at which a split is most likely, in float64 and without label smoothing.

    The likelihood has one maximum: its logarithm is concave in the inverse of the temperature. Labels of a
    multi-label task share one.

    Args:
        objective: of the training.
        logits: (N, num_outputs), of a split that was not trained on.
        labels: (N, L).
    """
    found = minimize_scalar(
        lambda log: nll(objective, logits, labels, math.exp(log)),
        bounds=[math.log(bound) for bound in BOUNDS],
        method="bounded",
        options={"xatol": 1e-9},
    )
    return math.exp(float(found.x))


def nll(objective: Objective, logits: Tensor, labels: Tensor, temperature: float) -> float:
    """Mean negative log-likelihood of the labels (N, L) under logits (N, num_outputs)."""
    plain = replace(objective, label_smoothing=0.0)
    return float(plain.loss(logits.double() / temperature, labels))


def describe(
    objective: Objective, logits: Tensor, labels: Tensor, temperature: float
) -> dict[str, dict[str, float]]:
    """``nll`` and ``ece`` of a split, ``raw`` and ``calibrated``."""
    told = {}
    for name, divisor in (("raw", 1.0), ("calibrated", temperature)):
        probabilities = objective.probabilities(logits / divisor).double().numpy()
        told[name] = {
            "nll": nll(objective, logits, labels, divisor),
            "ece": metrics.score(objective.kind, labels.numpy(), probabilities)["ece"],
        }
    return told

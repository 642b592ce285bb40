"""The temperature against an independent minimisation of the likelihood, written out in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import expit, log_expit, log_softmax

from dogmed import metrics
from dogmed.calibration import BOUNDS, describe, fit_temperature, nll
from dogmed.objective import Objective

CASES = [
    ("binary", 2, "cross-entropy"),
    ("multi-class", 5, "cross-entropy"),
    ("multi-label", 4, "cross-entropy"),
    ("ordinal", 4, "cross-entropy"),
    ("ordinal", 4, "continuation-ratio"),
]


def log_likelihood(kind: str, ordinal: str, z: np.ndarray, labels: np.ndarray) -> float:
    if kind == "multi-label":
        return float(np.where(labels == 1, log_expit(z), log_expit(-z)).mean())
    if ordinal == "continuation-ratio":
        below = np.arange(z.shape[1]) < labels
        stops = np.arange(z.shape[1]) == labels
        return float((below * log_expit(z) + stops * log_expit(-z)).sum(1).mean())
    return float(np.take_along_axis(log_softmax(z, 1), labels, 1).mean())


def case(kind: str, classes: int, ordinal: str) -> tuple[Objective, torch.Tensor, torch.Tensor]:
    """Logits three times too large for what the labels were drawn from."""
    rng = np.random.default_rng(0)
    objective = Objective(kind, classes, label_smoothing=0.2, ordinal=ordinal)
    z = rng.normal(size=(400, objective.num_outputs))
    if kind == "multi-label":
        labels = (rng.random(z.shape) < expit(z)).astype(np.int64)
    else:
        p = objective.probabilities(torch.tensor(z)).double().numpy().cumsum(1)
        labels = (rng.random((400, 1)) > p[:, :-1]).sum(1, keepdims=True)
    return objective, torch.tensor(3 * z, dtype=torch.float32), torch.tensor(labels)


@pytest.mark.parametrize("kind, classes, ordinal", CASES)
def test_the_temperature_is_where_the_likelihood_is_highest(kind, classes, ordinal) -> None:
    objective, logits, labels = case(kind, classes, ordinal)
    z, y = logits.double().numpy(), labels.numpy()
    best = minimize(
        lambda scale: -log_likelihood(kind, ordinal, z * scale[0], y), [1.0], method="Nelder-Mead",
        options={"xatol": 1e-10, "fatol": 1e-14},
    )  # fmt: skip
    temperature = fit_temperature(objective, logits, labels)
    assert temperature == pytest.approx(1 / best.x[0], rel=1e-5)
    assert nll(objective, logits, labels, temperature) == pytest.approx(best.fun, abs=1e-12)
    assert 2 < temperature < 4.5, "the logits were made three times too large"


@pytest.mark.parametrize("kind, classes, ordinal", CASES)
def test_the_description_has_the_scores_of_both(kind, classes, ordinal) -> None:
    objective, logits, labels = case(kind, classes, ordinal)
    told = describe(objective, logits, labels, 3.0)
    for name, divisor in (("raw", 1), ("calibrated", 3)):
        p = objective.probabilities(logits / divisor).double().numpy()
        assert told[name]["ece"] == metrics.score(kind, labels.numpy(), p)["ece"]
        z = logits.double().numpy() / divisor
        assert told[name]["nll"] == pytest.approx(-log_likelihood(kind, ordinal, z, labels.numpy()))
    assert told["calibrated"]["nll"] < told["raw"]["nll"]
    assert told["calibrated"]["ece"] < told["raw"]["ece"]


def test_a_split_without_an_error_does_not_make_the_network_infinitely_sure() -> None:
    labels = torch.arange(30)[:, None] % 3
    logits = torch.nn.functional.one_hot(labels[:, 0], 3).float()
    assert fit_temperature(Objective("multi-class", 3), logits, labels) == pytest.approx(BOUNDS[0])

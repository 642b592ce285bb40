"""The losses against torch's own and against the definitions written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dogmed.errors import ConfigError
from dogmed.objective import Objective


def softmax_targets(labels: torch.Tensor, classes: int, smoothing: float) -> torch.Tensor:
    return F.one_hot(labels[:, 0], classes) * (1 - smoothing) + smoothing / classes


@pytest.mark.parametrize("kind, classes", [("binary", 2), ("multi-class", 9), ("ordinal", 5)])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_is_the_smoothed_definition(kind, classes, smoothing):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(17, classes, generator=generator)
    labels = torch.randint(classes, (17, 1), generator=generator)
    objective = Objective(kind, classes, label_smoothing=smoothing)
    expected = -(softmax_targets(labels, classes, smoothing) * logits.log_softmax(1)).sum(1)
    torch.testing.assert_close(objective.loss(logits, labels, reduction="none"), expected)
    torch.testing.assert_close(objective.loss(logits, labels), expected.mean())
    torch.testing.assert_close(objective.probabilities(logits), logits.softmax(1))
    assert objective.num_outputs == classes


def test_multi_label_without_smoothing_is_bce():
    logits = torch.randn(6, 14)
    labels = (torch.rand(6, 14) > 0.8).long()
    objective = Objective("multi-label", 14)
    expected = torch.nn.BCEWithLogitsLoss()(logits, labels.float())
    torch.testing.assert_close(objective.loss(logits, labels), expected)
    losses = objective.loss(logits, labels, reduction="none")
    assert losses.shape == (6,)
    torch.testing.assert_close(losses.mean(), expected)
    torch.testing.assert_close(objective.probabilities(logits), logits.sigmoid())


@pytest.mark.parametrize("rate", [0.1, 0.4, 0.5, 0.6, 0.95])
def test_multi_label_smoothing_keeps_the_threshold(rate):
    """Over samples of which ``rate`` are positive the best output is (1 - e) rate + e/2."""
    labels = (torch.arange(100) < 100 * rate).long()[:, None]
    objective = Objective("multi-label", 1, label_smoothing=0.2)
    best = torch.tensor(0.8 * rate + 0.1)
    z = torch.full((1, 1), float(torch.logit(best)), requires_grad=True)
    objective.loss(z.expand(100, 1), labels).backward()
    assert z.grad.abs().item() < 1e-6
    assert (best.item() > 0.5) == (rate > 0.5)


def test_continuation_ratio_is_the_product_of_conditionals():
    logits = torch.randn(50, 4) * 3
    objective = Objective("ordinal", 5, ordinal="continuation-ratio")
    assert objective.num_outputs == 4
    up = logits.double().sigmoid()  # P(y > k | y >= k)
    expected = [torch.ones(50, dtype=torch.float64)]
    for k in range(4):
        expected[k:] = [expected[k] * (1 - up[:, k]), expected[k] * up[:, k]]
    probabilities = objective.probabilities(logits)
    torch.testing.assert_close(
        probabilities.double(), torch.stack(expected, 1), rtol=1e-5, atol=1e-7
    )
    beyond = 1 - probabilities.cumsum(1)
    assert (beyond.diff(dim=1) <= 1e-6).all(), "P(y > k) must fall with k"


def test_continuation_ratio_loss_is_the_sum_of_corn_terms():
    """The negative log-likelihood splits into one binary cross-entropy for each step reached."""
    logits = torch.randn(30, 3)
    labels = torch.randint(4, (30, 1))
    expected = torch.zeros(30)
    for k in range(3):
        step = F.binary_cross_entropy_with_logits(
            logits[:, k], (labels[:, 0] > k).float(), reduction="none"
        )
        expected += step * (labels[:, 0] >= k)
    objective = Objective("ordinal", 4, ordinal="continuation-ratio")
    torch.testing.assert_close(objective.loss(logits, labels, reduction="none"), expected)


def test_continuation_ratio_smooths_the_classes():
    logits = torch.randn(12, 4)
    labels = torch.randint(5, (12, 1))
    objective = Objective("ordinal", 5, ordinal="continuation-ratio", label_smoothing=0.2)
    log_probabilities = objective.probabilities(logits).log()
    expected = -(softmax_targets(labels, 5, 0.2) * log_probabilities).sum(1).mean()
    torch.testing.assert_close(objective.loss(logits, labels), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "kind, classes, ordinal",
    [("binary", 2, "cross-entropy"), ("multi-class", 3, "cross-entropy"),
     ("multi-label", 3, "cross-entropy"), ("ordinal", 4, "cross-entropy"),
     ("ordinal", 4, "continuation-ratio")],
)  # fmt: skip
def test_half_precision_and_extreme_logits_stay_finite(kind, classes, ordinal):
    objective = Objective(kind, classes, label_smoothing=0.1, ordinal=ordinal)
    logits = torch.tensor([[300.0], [-300.0], [0.0]], dtype=torch.bfloat16)
    logits = logits.repeat(1, objective.num_outputs).requires_grad_()
    columns = classes if kind == "multi-label" else 1
    loss = objective.loss(logits, torch.ones(3, columns, dtype=torch.int64))
    loss.backward()
    probabilities = objective.probabilities(logits)
    assert loss.dtype == probabilities.dtype == torch.float32
    assert loss.isfinite() and logits.grad.isfinite().all()
    assert ((probabilities >= 0) & (probabilities <= 1)).all()
    if kind != "multi-label":
        torch.testing.assert_close(probabilities.sum(1), torch.ones(3))


@pytest.mark.parametrize(
    "arguments, options, words",
    [
        (("multiclass", 3), {}, "did you mean 'multi-class'"),
        (("binary", 3), {}, "2 classes"),
        (("multi-class", 1), {}, "1 class"),
        (("multi-label", 0), {}, "0 class"),
        (("multi-class", 3), {"label_smoothing": 1.0}, r"\[0, 1\)"),
        (("multi-class", 3), {"label_smoothing": float("nan")}, r"\[0, 1\)"),
        (("multi-class", 3), {"ordinal": "continuation-ratio"}, "for ordinal tasks"),
        (("ordinal", 3), {"ordinal": "corn"}, "unknown ordinal head"),
    ],
)
def test_impossible_combinations_are_refused_in_one_line(arguments, options, words):
    with pytest.raises(ConfigError, match=words) as error:
        Objective(*arguments, **options)
    assert "\n" not in str(error.value)

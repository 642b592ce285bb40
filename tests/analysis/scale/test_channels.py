"""Which scale channel decides, counted by ``dogmed analyze scale --rescale``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from dogmed.analysis.evaluation import classified
from dogmed.analysis.scale.channels import Selection
from dogmed.models import GaussDerResNet


def test_the_deciding_channel_has_the_highest_score_of_all() -> None:
    torch.manual_seed(0)
    network = GaussDerResNet(dims=(4,), num_classes=3, scale_channels=4, stride=2).eval()
    images = torch.randn(16, 3, 24, 24)
    with torch.no_grad():
        network.fc.weight.mul_(50)
        logits, channels = classified(network, images)
        torch.testing.assert_close(logits, network(images))
        assert channels is not None and len(set(channels.tolist())) > 1
        alone = network.forward_channels(network.forward_features(images))  # (S, B, classes)
    for image, channel in enumerate(channels):
        assert alone[channel, image].max() == alone[:, image].max() == logits[image].max()


def test_where_no_channel_decides_there_is_none() -> None:
    averaging = GaussDerResNet(dims=(4,), scale_channels=2, pooling="avg").eval()
    single = GaussDerResNet(dims=(4,), scale_channels=1).eval()
    for network in (torch.nn.Conv2d(3, 2, 1), single, averaging):
        assert classified(network, torch.randn(1, 3, 8, 8))[1] is None


def test_a_network_that_follows_the_scale_has_slope_one() -> None:
    """Every octave of the image moves every decision two channels of ratio sqrt(2) on."""
    sigmas = tuple(2 ** (k / 2) for k in range(5))
    subject = object()
    followed = Selection(subject, sigmas, (0.5, 1, 2), np.eye(5)[[0, 2, 4]])  # type: ignore[arg-type]
    stays = Selection(subject, sigmas, (0.5, 1, 2), np.eye(5)[[2, 2, 2]])  # type: ignore[arg-type]
    assert followed.slope == pytest.approx(1)
    assert stays.slope == pytest.approx(0)
    assert 2**followed.mean == pytest.approx([1, 2, 4])


def test_the_analysis_leaves_the_histogram_in_every_form(
    analyze: Callable[..., int],
    make_weights: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = {"stride": 4, "channel_ratio": 2.0}
    weights = make_weights(model="gaussderresnet_test", options=options), make_weights("other")
    words = ("scale", tmp_path / "out", *weights, "--rescale", "0.5,1,2", "--kernel-sizes", 5)
    assert analyze(*words) == 0
    (path,) = (tmp_path / "out").rglob("rescale.json")
    found = json.loads(path.read_text())
    (of_channels,) = found["channels"]  # the other model has none
    assert of_channels["model"] == found["models"][0]["title"]
    assert of_channels["sigmas"] == pytest.approx([3, 6, 12])  # 0.75 cells of 4 px, and doubled
    shares = np.array(of_channels["shares"])
    assert shares.shape == (3, 3)
    assert shares.sum(1) == pytest.approx([1, 1, 1])
    for file in ("rescale-channels.png", "rescale-channels.svg"):
        assert (path.parent / file).stat().st_size > 1000
    said = f"{found['models'][0]['title']}: the deciding scale channel"
    printed = capsys.readouterr().out
    for text in (
        printed,
        path.with_suffix(".md").read_text(),
        path.with_suffix(".html").read_text(),
    ):
        assert said in text
        assert f"{100 * shares[0, 0]:.1f}" in text

    assert analyze(*words) == 0
    assert "of 15" not in capsys.readouterr().out  # all of it was kept
    assert json.loads(path.read_text())["channels"] == found["channels"]

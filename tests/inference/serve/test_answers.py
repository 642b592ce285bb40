"""One network asked from several threads, and one without Grad-CAM."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dogmed.errors import ConfigError
from dogmed.inference.classifier import Classifier
from dogmed.inference.serve.answers import Answers


def test_requests_at_once_do_not_mix(answers: Any, npz: Path, as_png: Callable) -> None:
    """Grad-CAM watches the network's layers: two at once would see each other's maps."""
    with np.load(npz) as file:
        contents = [as_png(image) for image in file["test_images"][:12]]
    pictures = [answers.read(content, "a", 1)[0] for content in contents]
    alone = [answers.explain(picture)[0].cells for picture in pictures]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda picture: answers.explain(picture)[0].cells, pictures * 3))
    for got, expected in zip(together, alone * 3, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


def test_a_network_without_maps_answers_without(
    classifier: Classifier,
    images: list[np.ndarray],
    as_png: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*args: object) -> None:
        raise ConfigError("no stage with square maps")

    monkeypatch.setattr("dogmed.inference.serve.answers.Explainer", refuse)
    answers = Answers(classifier)
    assert "no stage with square maps" in answers.notes
    pytest.importorskip("gradio", reason="the extra dogmed[serve] is missing")
    from starlette.testclient import TestClient

    from dogmed.inference.serve.app import make_app

    with TestClient(make_app(answers)) as client:
        answer = client.post("/page", files={"image": ("a", as_png(images[0]))}).json()
        assert set(answer["probabilities"]) == set(classifier.classes)
        assert "<img" not in answer["html"]
        answer = client.post("/predict?overlay=1", files={"image": ("a", as_png(images[0]))})
        assert answer.status_code == 400 and "no stage" in answer.json()["error"]
        assert 'visible": false' in client.get("/config").text.replace('":', '": ')

"""The server's answers as JSON, beside what ``predict`` and ``explain`` say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from dogmed.inference.classifier import Classifier
from dogmed.inference.explain.maps import Explainer
from dogmed.inference.explain.pictures import overlay

pytest.importorskip("gradio", reason="the extra dogmed[serve] is missing")


@pytest.fixture(scope="module")
def client(answers: Any) -> Iterator[Any]:
    from starlette.testclient import TestClient

    from dogmed.inference.serve.app import make_app

    with TestClient(make_app(answers)) as client:
        yield client


@pytest.fixture(scope="module")
def post(client: Any) -> Callable[..., Any]:
    def post(*files: tuple[str, bytes], **options: str) -> Any:
        return client.post("/predict", files=[("image", file) for file in files], params=options)

    return post


def test_json_says_what_predict_says(
    post: Callable,
    classifier: Classifier,
    images: list[np.ndarray],
    as_png: Callable,
) -> None:
    answer = post(*((f"{k}.png", as_png(image)) for k, image in enumerate(images)))
    assert answer.status_code == 200
    expected = classifier.predict(images)
    told = answer.json()["predictions"]
    assert [row["file"] for row in told] == ["0.png", "1.png", "2.png"]
    assert [tuple(row["predicted"]) for row in told] == expected.names
    values = [list(row["probabilities"].values()) for row in told]
    np.testing.assert_allclose(values, expected.probabilities, atol=1e-6)
    assert list(told[0]["probabilities"]) == list(classifier.classes)
    assert answer.json()["not_read"] == []
    raw = post(("0.png", as_png(images[0])), raw="true").json()["predictions"][0]
    expected = classifier.predict(images[:1], raw=True)
    np.testing.assert_allclose(
        list(raw["probabilities"].values()), expected.probabilities[0], atol=1e-6
    )


def test_overlays_are_those_of_explain(
    post: Callable,
    classifier: Classifier,
    images: list[np.ndarray],
    as_png: Callable,
    pixels_of: Callable,
) -> None:
    content, chosen = as_png(images[1]), classifier.classes[2]
    (row,) = post(("a.png", content), overlay="true", **{"class": chosen}).json()["predictions"]
    (picture,) = classifier.read(content, "a.png")
    (expected,) = Explainer(classifier).explain(picture, 2)
    (told,) = row["overlays"]
    assert np.abs(pixels_of(told["png"]) - overlay(picture.pixels, expected.heat)).max() <= 1
    assert told["class"] == chosen
    assert expected.peak is not None
    assert told["peak"] == {"x": expected.peak.x, "y": expected.peak.y}


def test_facts_of_the_network(client: Any, classifier: Classifier) -> None:
    told = client.get("/model").json()
    assert told["classes"] == list(classifier.classes) and told["size"] == classifier.size
    assert told["temperature"] == classifier.temperature != 1
    assert told["sha256"] == classifier.trained.record.sha256
    assert "no medical device" in told["intended_use"]


def test_what_cannot_be_read_stops_nothing(
    post: Callable, images: list[np.ndarray], as_png: Callable
) -> None:
    good = ("good.png", as_png(images[0]))
    answer = post(("../../x\n.png", b"no image"), good, ("empty.png", b""))
    assert answer.status_code == 200
    assert [row["file"] for row in answer.json()["predictions"]] == ["good.png"]
    unread = answer.json()["not_read"]
    assert "is no image that is read here" in unread[0]["error"]
    assert "/" not in unread[0]["error"].split(" is ")[0] and "\n" not in unread[0]["error"]
    assert "is empty" in unread[1]["error"]
    answer = post(("bad.png", b"no image"))
    assert answer.status_code == 422 and answer.json()["predictions"] == []
    assert answer.json()["error"] == "no image could be read"


@pytest.mark.parametrize(
    "options, words",
    [
        ({"overlays": "1"}, "no option overlays: there are raw, overlay, class"),
        ({"raw": "perhaps"}, "raw=perhaps: expected true or false"),
        ({"class": "hue", "overlay": "1"}, "class hue: hues has no such class"),
        ({"class": "0"}, "class is for an overlay"),
    ],
)
def test_a_wrong_question_gets_one_line(
    options: dict[str, str],
    words: str,
    post: Callable,
    images: list[np.ndarray],
    as_png: Callable,
) -> None:
    answer = post(("a.png", as_png(images[0])), **options)
    assert answer.status_code == 400 and words in answer.json()["error"]


def test_each_page_is_an_image_of_the_request(
    post: Callable,
    classifier: Classifier,
    images: list[np.ndarray],
    as_tiff: Callable,
) -> None:
    answer = post(("bad", b"x"), ("a.tif", as_tiff(images)), overlay="1").json()
    told, expected = answer["predictions"], classifier.predict(images)
    assert [row["file"] for row in told] == [f"a.tif[{k}]" for k in range(3)]
    assert [tuple(row["predicted"]) for row in told] == expected.names
    assert [row["overlays"][0]["class"] for row in told] == [name for (name,) in expected.names]
    assert len(answer["not_read"]) == 1
    answer = post(("most.tif", as_tiff(images[:1] * 63)), ("a.tif", as_tiff(images[:2]))).json()
    assert len(answer["predictions"]) == 63
    assert "one image too many for a request" in answer["not_read"][0]["error"]


def test_a_form_without_a_file(client: Any, post: Callable) -> None:
    for form in (
        {"data": {"image": "x"}},
        {"data": {"image": "x"}, "files": {"none": (None, "x")}},
        {"json": {"image": "x"}},
        {"content": b"&&&&&&&&&&&&&&&"},
        {},
    ):
        answer = client.post("/predict", **form)
        assert answer.status_code == 400 and "no file in a form" in answer.json()["error"]
    answer = post(*((f"{k}.png", b"x") for k in range(65)))
    assert answer.status_code == 400 and "64" in answer.json()["error"]


def test_the_page_gets_the_first_of_several_pages(
    client: Any, classifier: Classifier, images: list[np.ndarray], as_tiff: Callable
) -> None:
    form = {"image": ("<a>.tif", as_tiff(images))}
    answer = client.post("/page?label=1", files=form).json()
    (expected,) = classifier.predict(images[0]).probabilities
    np.testing.assert_allclose(list(answer["probabilities"].values()), expected, atol=1e-6)
    assert "the first of 3 pages" in answer["warning"] and "&lt;a&gt;.tif[0]" in answer["html"]
    assert f"{classifier.classes[1]}: probability" in answer["html"]
    for label in ("3", "-1", "", "one", "1" * 5000):
        answer = client.post(f"/page?label={label}", files=form)
        assert answer.status_code == 400 and "there are 3 classes" in answer.json()["error"]


def test_a_failure_is_told_and_shown(
    client: Any, images: list[np.ndarray], as_png: Callable, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def fail(*args: object, **named: object) -> None:
        raise RuntimeError("the network is on fire")

    monkeypatch.setattr(Classifier, "classify", fail)
    with pytest.raises(
        RuntimeError, match="on fire"
    ):  # the client's way; a server answers with 500
        client.post("/predict", files={"image": ("a", as_png(images[0]))})
    assert "on fire" in capsys.readouterr().err

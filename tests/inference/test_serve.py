"""The server as a process of its own, asked by programs and in a browser."""

from __future__ import annotations

import base64
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image

from dogmed.errors import ConfigError
from dogmed.inference.classifier import Classifier
from dogmed.inference.explain_maps import Explainer
from dogmed.inference.explain_pictures import overlay
from dogmed.inference.serve import serve
from dogmed.server import listen

pytest.importorskip("gradio", reason="the extra dogmed[serve] is missing")
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
from starlette.testclient import TestClient

from dogmed.inference.serve_answers import Answers
from dogmed.inference.serve_app import make_app

START_SECONDS = 120
MAX_MB = 0.5


def start(run: Path, folder: Path, *words: str) -> tuple[subprocess.Popen[bytes], str, Path]:
    """Start ``dogmed serve`` in an empty folder, with another for temporary files; its address and words."""
    (folder / "here").mkdir(parents=True)
    (folder / "tmp").mkdir()
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "dogmed", "serve", str(run), "--device", "cpu", *words],
            cwd=folder / "here", env=os.environ | {"TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1"},
            stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    end = time.monotonic() + START_SECONDS
    while "Ctrl-C stops" not in log.read_text():
        assert process.poll() is None and time.monotonic() < end, log.read_text()
        time.sleep(0.1)
    match = re.search(r"Drop images at (\S+)", log.read_text())
    assert match
    return process, match[1], log


def written(folder: Path) -> list[Path]:
    """Files that a server has left, of those that ``start`` has given it places for."""
    return [p for place in ("here", "tmp") for p in (folder / place).rglob("*") if p.is_file()]


@pytest.fixture(scope="module")
def server(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    process, address, log = start(run, folder, "--port", "0", "--max-mb", str(MAX_MB))
    try:
        yield address
        assert process.poll() is None, log.read_text()
        assert written(folder) == [], "while it runs"
    finally:
        process.terminate()
        assert process.wait(30) == 0, log.read_text()
    assert written(folder) == []
    assert "Traceback" not in log.read_text(), log.read_text()


@pytest.fixture(scope="module")
def images(npz: Path) -> list[np.ndarray]:
    with np.load(npz) as file:
        return list(file["test_images"][:3])


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def decoded(content: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))), dtype=int)


def post(address: str, *files: tuple[str, bytes], **options: str) -> requests.Response:
    form = [("image", file) for file in files]
    return requests.post(f"{address}/predict", files=form, params=options, timeout=60)


def test_json_says_what_predict_says(
    server: str, classifier: Classifier, images: list[np.ndarray]
) -> None:
    answer = post(server, *((f"{k}.png", png(image)) for k, image in enumerate(images)))
    assert answer.status_code == 200
    expected = classifier.predict(images)
    told = answer.json()["predictions"]
    assert [row["file"] for row in told] == ["0.png", "1.png", "2.png"]
    assert [tuple(row["predicted"]) for row in told] == expected.names
    values = [list(row["probabilities"].values()) for row in told]
    np.testing.assert_allclose(values, expected.probabilities, atol=1e-6)
    assert list(told[0]["probabilities"]) == list(classifier.classes)
    assert answer.json()["not_read"] == []
    raw = post(server, ("0.png", png(images[0])), raw="true").json()["predictions"][0]
    expected = classifier.predict(images[:1], raw=True)
    np.testing.assert_allclose(
        list(raw["probabilities"].values()), expected.probabilities[0], atol=1e-6
    )


def test_overlays_are_those_of_explain(
    server: str, classifier: Classifier, images: list[np.ndarray]
) -> None:
    content, chosen = png(images[1]), classifier.classes[2]
    (row,) = post(server, ("a.png", content), overlay="true", **{"class": chosen}).json()[
        "predictions"
    ]
    (picture,) = classifier.read(content, "a.png")
    (expected,) = Explainer(classifier).explain(picture, 2)
    (told,) = row["overlays"]
    assert np.abs(decoded(told["png"]) - overlay(picture.pixels, expected.heat)).max() <= 1
    assert told["class"] == chosen
    assert expected.peak is not None
    assert told["peak"] == {"x": expected.peak.x, "y": expected.peak.y}


def test_facts_of_the_network(server: str, classifier: Classifier) -> None:
    told = requests.get(f"{server}/model", timeout=60).json()
    assert told["classes"] == list(classifier.classes) and told["size"] == classifier.size
    assert told["temperature"] == classifier.temperature != 1
    assert told["sha256"] == classifier.trained.record.sha256
    assert "no medical device" in told["intended_use"]


def test_what_cannot_be_read_stops_nothing(server: str, images: list[np.ndarray]) -> None:
    good = ("good.png", png(images[0]))
    answer = post(server, ("../../x\n.png", b"no image"), good, ("empty.png", b""))
    assert answer.status_code == 200
    assert [row["file"] for row in answer.json()["predictions"]] == ["good.png"]
    unread = answer.json()["not_read"]
    assert "is no image that is read here" in unread[0]["error"]
    assert "/" not in unread[0]["error"].split(" is ")[0] and "\n" not in unread[0]["error"]
    assert "is empty" in unread[1]["error"]
    answer = post(server, ("bad.png", b"no image"))
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
    options: dict[str, str], words: str, server: str, images: list[np.ndarray]
) -> None:
    answer = post(server, ("a.png", png(images[0])), **options)
    assert answer.status_code == 400 and words in answer.json()["error"]


def tiff(images: list[np.ndarray]) -> bytes:
    file, pages = io.BytesIO(), [Image.fromarray(image) for image in images]
    pages[0].save(file, "TIFF", save_all=True, append_images=pages[1:])
    return file.getvalue()


def test_each_page_is_an_image_of_the_request(
    server: str, classifier: Classifier, images: list[np.ndarray]
) -> None:
    answer = post(server, ("bad", b"x"), ("a.tif", tiff(images)), overlay="1").json()
    told, expected = answer["predictions"], classifier.predict(images)
    assert [row["file"] for row in told] == [f"a.tif[{k}]" for k in range(3)]
    assert [tuple(row["predicted"]) for row in told] == expected.names
    assert [row["overlays"][0]["class"] for row in told] == [name for (name,) in expected.names]
    assert len(answer["not_read"]) == 1
    answer = post(server, ("most.tif", tiff(images[:1] * 63)), ("a.tif", tiff(images[:2]))).json()
    assert len(answer["predictions"]) == 63
    assert "one image too many for a request" in answer["not_read"][0]["error"]


def test_a_form_without_a_file(server: str) -> None:
    answer = requests.get(f"{server}/predict", timeout=60)
    assert answer.status_code == 405 and "POST a form" in answer.json()["error"]
    answer = requests.post(f"{server}/predict", data={"image": "x"}, timeout=60)
    assert answer.status_code == 400 and "no file in the form" in answer.json()["error"]
    answer = requests.post(f"{server}/predict", json={"image": "x"}, timeout=60)
    assert answer.status_code == 400 and "no file in the form" in answer.json()["error"]
    answer = post(server, *((f"{k}.png", b"x") for k in range(65)))
    assert answer.status_code == 400 and "64" in answer.json()["error"]


def test_what_is_too_large_is_refused(server: str) -> None:
    size = int(MAX_MB * 1e6) + 70_000
    answer = post(server, ("a.png", bytes(size)))
    assert answer.status_code == 413 and "too large" in answer.json()["error"]

    def unannounced() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        yield from (bytes(10_000) for _ in range(size // 10_000))

    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = requests.post(f"{server}/predict", data=unannounced(), headers=kind, timeout=60)
    assert answer.status_code == 413 and "too large" in answer.json()["error"]


def test_pages_of_others_get_nothing(server: str, images: list[np.ndarray]) -> None:
    for name, value, status in (
        ("Host", "evil.example", 403),
        ("Host", "localhost.evil.example", 403),
        ("Host", "[x", 400),
        ("Origin", "https://evil.example", 403),
        ("Origin", "null", 403),
        ("Origin", "http://[x", 400),
    ):
        for path in ("/", "/model", "/predict"):
            answer = requests.get(f"{server}{path}", headers={name: value}, timeout=60)
            assert answer.status_code == status and answer.json()["error"], (name, path)
    port = server.rpartition(":")[2]
    for host in ("localhost", "[::1]"):
        headers = {"Host": f"{host}:{port}"}
        assert requests.get(f"{server}/model", headers=headers, timeout=60).status_code == 200


@pytest.mark.parametrize(
    "method, path",
    [
        ("POST", "/gradio_api/upload"),
        ("POST", "/gradio_api/queue/join"),
        ("GET", "/gradio_api/queue/data"),
        ("POST", "/gradio_api/run/predict"),
        ("GET", "/assets/%2e%2e/%2e%2e/gradio_api/info"),
        ("GET", "//gradio_api/info"),
        ("GET", "/gradio_api/file=https://example.org/a.png"),
        ("GET", "/gradio_api/file=/etc/passwd"),
        ("GET", "/gradio_api/proxy=https://example.org/"),
        ("GET", "/gradio_api/info"),
        ("GET", "/monitoring"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("GET", "/assets/../gradio_api/info"),
    ],
)
def test_what_gradio_serves_beside_the_page_is_closed(method: str, path: str, server: str) -> None:
    with requests.Session() as session:
        request = requests.Request(method, server).prepare()
        request.url = f"{server}{path}"  # not made shorter
        answer = session.send(request, timeout=60)
    assert answer.status_code == 404 and "nothing here at" in answer.json()["error"]


def test_behind_a_proxy_on_a_busy_port_and_ctrl_c_while_it_answers(
    run: Path, images: list[np.ndarray], tmp_path: Path
) -> None:
    with listen("127.0.0.1", 0) as busy:
        port = busy.getsockname()[1]
        words = ("--port", str(port), "--address", "https://lab.example/")
        process, address, log = start(run, tmp_path, *words)
    try:
        assert address == "https://lab.example"
        match = re.search(rf"port {port} is busy, using (\d+)", log.read_text())
        assert match
        here = f"http://127.0.0.1:{match[1]}"
        for headers in (
            {"Host": "lab.example", "Origin": "https://lab.example"},
            {"Origin": "https://lab.example"},
        ):
            answer = requests.get(f"{here}/model", headers=headers, timeout=60)
            assert answer.status_code == 200, "as proxies have it that keep Host, or do not"
        with ThreadPoolExecutor(1) as pool:
            content = tiff(images[:1] * 64)
            answer = pool.submit(post, here, ("a.tif", content), overlay="1")
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0, log.read_text()
            answer.exception()
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in log.read_text()
    assert written(tmp_path) == []


def test_requests_at_once_do_not_mix(classifier: Classifier, npz: Path) -> None:
    """Grad-CAM watches the network's layers: two at once would see each other's maps."""
    answers = Answers(classifier)
    with np.load(npz) as file:
        contents = [png(image) for image in file["test_images"][:12]]
    pictures = [answers.read(content, "a", 1)[0] for content in contents]
    alone = [answers.explain(picture)[0].cells for picture in pictures]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda picture: answers.explain(picture)[0].cells, pictures * 3))
    for got, expected in zip(together, alone * 3, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


def test_a_network_without_maps_answers_without(
    classifier: Classifier, images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise ConfigError("no stage with square maps")

    monkeypatch.setattr("dogmed.inference.serve_answers.Explainer", refuse)
    answers = Answers(classifier)
    assert "no stage with square maps" in answers.notes
    with TestClient(make_app(answers)) as client:
        answer = client.post("/page", files={"image": ("a", png(images[0]))}).json()
        assert set(answer["probabilities"]) == set(classifier.classes)
        assert "<img" not in answer["html"]
        answer = client.post("/predict?overlay=1", files={"image": ("a", png(images[0]))})
        assert answer.status_code == 400 and "no stage" in answer.json()["error"]
        assert 'visible": false' in client.get("/config").text.replace('":', '": ')


@pytest.mark.parametrize(
    "options, words",
    [
        ({"host": "203.0.113.1"}, r"--host 203\.0\.113\.1 --port 7860: cannot listen there"),
        ({"host": "no such host"}, "--host no such host: there is no such address"),
        ({"address": "lab.example"}, "--address lab.example: expected a URL"),
    ],
)
def test_a_wrong_address_is_one_line(options: dict[str, str], words: str, run: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        serve(model=str(run), **options)


CHROMIUM = next(
    (p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None
)


@pytest.fixture
def browse() -> Iterator[Callable[..., Any]]:
    """Open pages in Chromium; errors on them, and requests to others, are faults."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    from playwright.sync_api import sync_playwright

    faults = list[str]()
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])

        def browse(address: str, width: int, scheme: Any) -> Any:
            viewport: Any = {"width": width, "height": 800}
            page = chromium.new_context(viewport=viewport, color_scheme=scheme).new_page()
            page.set_default_timeout(60_000)
            page.on(
                "console",
                lambda m: (
                    None
                    if m.type != "error"
                    or "/page" in m.location["url"]  # a refusal, which is shown
                    else faults.append(m.text)
                ),
            )
            page.on("pageerror", lambda error: faults.append(str(error)))
            page.on(
                "request",
                lambda r: None if r.url.startswith((address, "data:")) else faults.append(r.url),
            )
            page.goto(address)
            page.wait_for_selector(".drop")
            return page

        yield browse
        assert faults == []
        chromium.close()


@pytest.fixture
def ultrasound(tmp_path: Path) -> bytes:
    """A PNG of BreastMNIST if there are real data, else of grey noise."""
    if folder := os.environ.get("DOGMED_TEST_DATA"):
        with np.load(Path(folder) / "medmnist" / "breastmnist_224.npz") as npz:
            return png(npz["test_images"][0])
    return png(np.random.default_rng(0).integers(0, 120, (224, 224), dtype=np.uint8))


@pytest.mark.slow
@pytest.mark.parametrize("width, scheme", [(390, "dark"), (1280, "light")])
def test_the_page_in_a_browser(
    width: int, scheme: str, server: str, classifier: Classifier, images: list[np.ndarray],
    ultrasound: bytes, browse: Callable, tmp_path: Path,
) -> None:  # fmt: skip
    """An ultrasound, which the network of hues is warned of; another class; no image; two in a row."""
    (tmp_path / "<b>scan&.png").write_bytes(ultrasound)
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "large.png").write_bytes(bytes(int(MAX_MB * 1e6) + 70_000))
    (tmp_path / "hue.png").write_bytes(png(images[0]))
    expected = post(server, ("a", ultrasound), overlay="true").json()["predictions"][0]
    page = browse(server, width, scheme)
    assert f"{server}/predict" in page.inner_text("code:has(.address)")

    page.set_input_files("input[type=file]", tmp_path / "<b>scan&.png")
    page.wait_for_selector("figure img")
    assert page.inner_text("section h2") == page.inner_text(".drop output") == "<b>scan&.png"
    assert expected["warning"] and expected["warning"] in page.inner_text(".warning")
    assert_shown(page, expected["probabilities"])
    source = page.locator("figure img").nth(1).get_attribute("src")
    told = expected["overlays"][0]["png"]
    assert np.abs(decoded(source.partition(",")[2]) - decoded(told)).max() <= 1
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")

    other = next(name for name in classifier.classes if name not in expected["predicted"])
    page.get_by_label("Explain").click()
    page.get_by_role("option", name=other, exact=True).click()
    page.wait_for_selector(f"figcaption b:has-text('{other}: probability')")
    assert_shown(page, expected["probabilities"])

    for name, words in (("text.png", "is no image that is read here"), ("large.png", "too large")):
        page.set_input_files("input[type=file]", tmp_path / name)
        page.wait_for_selector(f".warning:has-text('{words}')")
        assert page.locator("figure").count() == page.locator("dt").count() == 0

    page.set_input_files("input[type=file]", tmp_path / "<b>scan&.png")
    page.set_input_files("input[type=file]", tmp_path / "hue.png")
    page.wait_for_selector("section h2:has-text('hue.png')")
    page.wait_for_timeout(1000)  # an answer to the first would come now
    assert page.inner_text("section h2") == page.inner_text(".drop output") == "hue.png"
    (row,) = post(server, ("a", png(images[0]))).json()["predictions"]
    assert_shown(page, row["probabilities"])

    dropped = page.evaluate_handle(
        """content => { const transfer = new DataTransfer();
          transfer.items.add(new File([Uint8Array.from(atob(content), c => c.charCodeAt(0))], "dropped.png"));
          return transfer; }""",
        base64.b64encode(ultrasound).decode(),
    )
    page.dispatch_event(".drop", "drop", {"dataTransfer": dropped})
    page.wait_for_selector("section h2:has-text('dropped.png')")
    assert_shown(page, expected["probabilities"])


def assert_shown(page: Any, probabilities: dict[str, float]) -> None:
    """Assert that the page's bars are these, in whole percents."""
    names, values = (page.locator(kind).all_inner_texts() for kind in ("dt", "dd"))
    shown = {k.strip(): float(v.strip().rstrip("%")) for k, v in zip(names, values, strict=True)}
    assert shown == {name: pytest.approx(100 * p, abs=0.51) for name, p in probabilities.items()}

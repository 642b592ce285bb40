"""The server as a process of its own, asked by programs and in a browser."""

from __future__ import annotations

import base64
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

from dogmed.errors import ConfigError
from dogmed.inference.classifier import Classifier
from dogmed.inference.serve.command import serve
from dogmed.server import listen

pytest.importorskip("gradio", reason="the extra dogmed[serve] is missing")
START_SECONDS = 120
MAX_MB = 0.5


@pytest.fixture(scope="module")
def start(start_dogmed: Callable, run: Path) -> Callable[..., tuple[ForkServerProcess, str, Path]]:
    """Start ``dogmed serve`` with a place of its own for temporary files; its address and what it says."""

    def start(folder: Path, *words: str) -> tuple[ForkServerProcess, str, Path]:
        (folder / "tmp").mkdir()
        log = folder / "log"
        log.touch()
        command = ["serve", str(run), "--device", "cpu", *words]
        process = start_dogmed(command, log, TMPDIR=str(folder / "tmp"))
        end = time.monotonic() + START_SECONDS
        while "Ctrl-C stops" not in log.read_text():
            assert process.is_alive() and time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        match = re.search(r"Drop images at (\S+)", log.read_text())
        assert match
        return process, match[1], log

    return start


def written(folder: Path) -> list[Path]:
    """Files that a server has left where temporary ones go."""
    return [path for path in (folder / "tmp").rglob("*") if path.is_file()]


@pytest.fixture(scope="module")
def server(start: Callable, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    process, address, log = start(folder, "--port", "0", "--max-mb", str(MAX_MB))
    try:
        yield address
        assert process.is_alive(), log.read_text()
        assert written(folder) == [], "while it runs"
    finally:
        process.terminate()
        process.join(30)
        assert process.exitcode == 0, log.read_text()
    assert written(folder) == []
    assert "Traceback" not in log.read_text(), log.read_text()


def post(address: str, *files: tuple[str, bytes], **options: str) -> requests.Response:
    form = [("image", file) for file in files]
    return requests.post(f"{address}/predict", files=form, params=options, timeout=60)


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


def test_behind_a_proxy_on_a_busy_port_and_ctrl_c_while_it_answers(
    start: Callable, images: list[np.ndarray], as_tiff: Callable, tmp_path: Path
) -> None:
    with listen("127.0.0.1", 0) as busy:
        port = busy.getsockname()[1]
        words = ("--port", str(port), "--address", "https://lab.example/")
        process, address, log = start(tmp_path, *words)
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
            content = as_tiff(images[:1] * 64)
            answer = pool.submit(post, here, ("a.tif", content), overlay="1")
            time.sleep(0.5)
            os.kill(process.pid, signal.SIGINT)
            process.join(30)
            assert process.exitcode == 0, log.read_text()
            answer.exception()
    finally:
        process.kill()
    assert "Traceback" not in log.read_text()
    assert written(tmp_path) == []


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
def ultrasound(as_png: Callable) -> bytes:
    """A PNG of BreastMNIST if there are real data, else of grey noise."""
    if folder := os.environ.get("DOGMED_TEST_DATA"):
        with np.load(Path(folder) / "medmnist" / "breastmnist_224.npz") as npz:
            return as_png(npz["test_images"][0])
    return as_png(np.random.default_rng(0).integers(0, 120, (224, 224), dtype=np.uint8))


@pytest.mark.slow
@pytest.mark.parametrize("width, scheme", [(390, "dark"), (1280, "light")])
def test_the_page_in_a_browser(
    width: int, scheme: str, server: str, classifier: Classifier, images: list[np.ndarray],
    ultrasound: bytes, as_png: Callable, pixels_of: Callable, browse: Callable, tmp_path: Path,
) -> None:  # fmt: skip
    """An ultrasound, which the network of hues is warned of; another class; no image; two in a row."""
    (tmp_path / "<b>scan&.png").write_bytes(ultrasound)
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "large.png").write_bytes(bytes(int(MAX_MB * 1e6) + 70_000))
    (tmp_path / "hue.png").write_bytes(as_png(images[0]))
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
    assert np.abs(pixels_of(source.partition(",")[2]) - pixels_of(told)).max() <= 1
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.locator(".drop").bounding_box()["width"] >= 280

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
    (row,) = post(server, ("a", as_png(images[0]))).json()["predictions"]
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

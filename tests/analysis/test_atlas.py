"""Pictures of kernels: colours, places, and the page in a browser."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dogmed.analysis.atlas import (
    CELLS,
    NEGATIVE,
    POSITIVE,
    Group,
    data_uri,
    draw_layer,
    mosaic,
    tint,
)
from dogmed.analysis.kernels_page import page
from dogmed.analysis.kernels_study import study
from dogmed.analysis.kernels_tables import tables
from dogmed.models.trained import open_trained
from dogmed.plots import save_figure

CHROMIUM = next(
    (p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None
)
PROBE = """<script>
addEventListener("load", () => {
  document.querySelectorAll("details").forEach(d => d.open = true);
  const pre = document.createElement("pre"); pre.id = "probe"; pre.style.display = "none";
  const outside = [...document.querySelectorAll("body *")].filter(
    e => !e.closest(".scroll") && e.getBoundingClientRect().right > innerWidth + 0.5);
  pre.textContent = JSON.stringify({width: innerWidth, scroll: document.documentElement.scrollWidth,
    outside: outside.slice(0, 3).map(e => e.tagName + e.className),
    paper: getComputedStyle(document.body).backgroundColor,
    requests: performance.getEntriesByType("resource").map(r => r.name).filter(n => !n.startsWith("data:")).length,
    broken: [...document.images].filter(i => !i.naturalWidth).length, images: document.images.length});
  document.body.append(pre);
});
</script></head>"""
FRAME = """<iframe id="f" style="width:390px;height:800px;border:0" src="page.html"></iframe><script>
addEventListener("load", () => {
  const p = document.createElement("pre"); p.id = "probe";
  p.textContent = document.getElementById("f").contentDocument.getElementById("probe").textContent;
  document.body.append(p);
})</script>"""


def test_a_kernel_has_the_colours_of_its_own_symmetric_scale() -> None:
    kernel = np.array([[-2.0, 0.0], [1.0, 4.0]])
    found = tint(kernel)
    assert found[1, 1].tolist() == [*POSITIVE, 255] and found[0, 1, 3] == 0
    assert found[0, 0].tolist() == [*NEGATIVE, 128] and found[1, 0].tolist() == [*POSITIVE, 64]
    assert np.array_equal(tint(1e-9 * kernel), found)
    assert not tint(np.zeros((3, 3)))[..., 3].any()


def test_a_pixel_of_the_embedded_picture_is_a_cell() -> None:
    kernel = np.random.default_rng(0).normal(size=(7, 7))
    data = base64.b64decode(data_uri(kernel).partition("base64,")[2])
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), tint(kernel))


def test_a_mosaic_has_every_kernel_at_its_place() -> None:
    kernels = np.zeros((5, 3, 3))
    kernels[4, 1, 1] = 1
    image = mosaic(kernels, 2)
    side, gap = 3 * CELLS, CELLS // 2
    assert image.shape == (3 * (side + gap) + gap, 2 * (side + gap) + gap, 3)
    ys, xs = np.nonzero((image == POSITIVE).all(-1))
    assert (ys.min(), ys.max()) == (
        gap + 2 * (side + gap) + CELLS,
        gap + 2 * (side + gap) + 2 * CELLS - 1,
    )
    assert (xs.min(), xs.max()) == (gap + CELLS, gap + 2 * CELLS - 1)


def test_a_layer_is_written_as_png_and_svg_with_the_same_bytes_again(tmp_path: Path) -> None:
    kernels = np.random.default_rng(0).normal(size=(9, 5, 5))
    groups = [Group("one", np.arange(6)), Group("two", np.arange(6, 9))]
    written = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        figure = draw_layer(
            "title", [("before", -kernels), ("after", kernels)], groups, np.arange(9) == 7
        )
        written.append(save_figure(figure, tmp_path / name / "layer"))
    assert [path.name for path in written[0]] == ["layer.png", "layer.svg"]
    assert [p.read_bytes() for p in written[0]] == [p.read_bytes() for p in written[1]]
    assert Image.open(written[0][0]).width > 500


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_the_page_fits_a_phone_dark_and_a_desktop_light(
    make_weights: Callable[..., Path], tmp_path: Path
) -> None:
    after, before = make_weights("after", seed=1), make_weights("before", seed=2)
    found = study(open_trained(str(after)), str(before), None, print)
    text = page(found, tables(found))  # without the pictures that lie beside it
    (tmp_path / "page.html").write_text(text.replace("</head>", PROBE))
    (tmp_path / "frame.html").write_text(FRAME)
    papers = set()
    for name, width, dark in (("frame", 390, True), ("page", 1280, False)):
        run = subprocess.run(
            [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars",
             "--enable-logging=stderr", f"--user-data-dir={tmp_path / f'user{width}'}",
             "--allow-file-access-from-files", f"--blink-settings=preferredColorScheme={int(not dark)}",
             f"--window-size={max(width, 800)},900", "--virtual-time-budget=4000", "--dump-dom",
             (tmp_path / f"{name}.html").as_uri()],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert "CONSOLE" not in run.stderr, run.stderr
        match = re.search(r'<pre id="probe"[^>]*>(.*?)</pre>', run.stdout, re.S)
        assert match, run.stderr[-800:]
        seen = json.loads(match[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
        assert seen["width"] == width and seen["scroll"] <= width and not seen["outside"], seen
        assert seen["images"] > 100 and not seen["broken"] and not seen["requests"]
        papers.add(seen["paper"])
    assert len(papers) == 2

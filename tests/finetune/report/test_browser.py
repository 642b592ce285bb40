"""The page in a browser: nothing in the console, nothing wider than the window, light and dark."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from dogmed.finetune.report.assembly import assemble
from dogmed.finetune.report.page import page

CHROMIUM = next(
    (p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None
)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
         "--enable-logging=stderr"]  # fmt: skip
PROBE = """<script>
const errors = []; addEventListener("error", e => errors.push(e.message), true);
addEventListener("load", () => {
  document.querySelectorAll("details").forEach(d => d.open = true);
  const pre = document.createElement("pre"); pre.id = "probe"; pre.style.display = "none";
  const dim = s => getComputedStyle(document.querySelector(s));
  const outside = [...document.querySelectorAll("body *")].filter(
    e => !e.closest(".scroll, .hidden") && e.getBoundingClientRect().right > innerWidth + 0.5);
  const small = [...document.querySelectorAll("svg.plot text")].map(t => t.getBoundingClientRect().height);
  pre.textContent = JSON.stringify({errors, width: innerWidth, scroll: document.documentElement.scrollWidth,
    outside: outside.slice(0, 3).map(e => e.outerHTML.slice(0, 120)), paper: dim("body").backgroundColor,
    ink: dim("body").color, requests: performance.getEntriesByType("resource").map(r => r.name),
    smallest: Math.min(...small), texts: small.length});
  document.body.append(pre);
});
</script></head>"""

FRAME = """<iframe id="f" style="width:390px;height:800px;border:0" src="report.html"></iframe><script>
addEventListener("load", () => {
  const p = document.createElement("pre"); p.id = "probe";
  p.textContent = document.getElementById("f").contentDocument.getElementById("probe").textContent;
  document.body.append(p);
})</script>"""


@pytest.fixture
def written(add_run: Callable[..., Path], tmp_path: Path) -> Path:
    for task in ("breastmnist", "bloodmnist"):
        for model, skill in (("dognext_test", 3.0), ("convnextv2_atto", 1.5)):
            for seed in (0, 1):
                add_run(skill, task=task, model=model, seed=seed)
    file = tmp_path / "report.html"
    file.write_text(page(assemble(tmp_path / "runs", resamples=100)).replace("</head>", PROBE))
    return file


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_it_fits_phone_and_desktop_without_a_word_in_the_console(
    written: Path, tmp_path: Path
) -> None:
    papers = {}
    for width, dark in ((390, True), (1280, False)):  # the layout does not know the colours
        frame = written
        if (
            width == 390
        ):  # headless windows are 500 pixels wide at least: a frame is as narrow as asked
            frame = tmp_path / "frame.html"
            frame.write_text(FRAME)
        run = subprocess.run(
            [str(CHROMIUM), *FLAGS, f"--user-data-dir={tmp_path / f'user{width}{dark}'}",
             "--allow-file-access-from-files", f"--blink-settings=preferredColorScheme={int(not dark)}",
             f"--window-size={max(width, 800)},900", "--virtual-time-budget=4000", "--dump-dom", frame.as_uri()],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert "CONSOLE" not in run.stderr, run.stderr
        match = re.search(r'<pre id="probe"[^>]*>(.*?)</pre>', run.stdout, re.S)
        assert match, run.stderr[-800:]
        seen = json.loads(match[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
        assert seen["errors"] == [] and seen["requests"] == []
        assert seen["scroll"] <= seen["width"] and not seen["outside"], seen
        assert seen["width"] == (390 if width == 390 else 1280)
        assert seen["texts"] > 20 and seen["smallest"] > 7
        papers[dark] = seen["paper"], seen["ink"]
    assert papers[False] != papers[True]

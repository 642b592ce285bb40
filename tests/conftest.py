"""Fixtures shared by all tests."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

COMMAND = """
import os, sys, tempfile
from dogmed.cli import main
os.environ |= environment
tempfile.tempdir = None  # found anew
if "RANK" in environment:
    import torch
    torch.set_num_threads(1)  # as torchrun
output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
os.dup2(output, 1)
os.dup2(output, 2)
sys.stdout.reconfigure(line_buffering=True)
sys.exit(main(words))
"""


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data named by DOGMED_TEST_DATA; tests that need it are skipped without it."""
    folder = os.environ.get("DOGMED_TEST_DATA")
    if not folder:
        pytest.skip("DOGMED_TEST_DATA is not set: no real data to test on")
    path = Path(folder).resolve()
    assert path.is_dir(), f"DOGMED_TEST_DATA names {path}, which is not a folder"
    return path


@pytest.fixture(scope="session")
def warm() -> ForkServerContext:
    """Starts processes at once: forked from one that has imported the pipelines, which takes seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dogmed.finetune.run", "dogmed.pretrain.run"])
    return context


@pytest.fixture(scope="session")
def start_dogmed(warm: ForkServerContext) -> Callable[..., ForkServerProcess]:
    """Start ``dogmed WORDS`` as a process of its own that adds what it says to a file."""

    def start(words: Sequence[str], log: Path, **environment: str) -> ForkServerProcess:
        names = {"words": list(words), "log": str(log), "environment": environment}
        process = warm.Process(target=exec, args=(COMMAND, names))
        process.start()
        return process

    return start


@pytest.fixture(scope="session")
def run_pair(
    start_dogmed: Callable[..., ForkServerProcess],
) -> Callable[..., list[tuple[int | None, str]]]:
    """Run ``dogmed WORDS`` as two processes of a group: what each said, and its exit code."""

    def run(words: Sequence[str], folder: Path) -> list[tuple[int | None, str]]:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = str(free.getsockname()[1])
        group = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": "2"}  # as torchrun
        logs = {rank: folder / f"rank{rank}.log" for rank in "01"}
        pair = [
            start_dogmed(words, log, **group, RANK=rank, LOCAL_RANK=rank)
            for rank, log in logs.items()
        ]
        for process in pair:
            process.join(300)
        codes = [process.exitcode for process in pair]
        return list(zip(codes, (log.read_text() for log in logs.values()), strict=True))

    return run


@pytest.fixture(scope="session")
def fresh_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty store of MLflow, set up once: that takes seconds."""
    from dogmed.tracking import default_uri, open_store

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        folder = tmp_path_factory.mktemp("store")
        open_store(default_uri(folder), folder)
    return folder / "mlflow.db"


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """The URL, without a database, of a PostgreSQL server that lives as long as the tests."""
    psycopg2 = pytest.importorskip("psycopg2", reason="the extra dogmed[postgresql] is missing")
    newest = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: path.parent.name)
    where = os.pathsep.join([os.environ["PATH"], *map(str, reversed(newest))])
    initdb, postgres = shutil.which("initdb", path=where), shutil.which("postgres", path=where)
    if not (initdb and postgres):
        pytest.skip("PostgreSQL (initdb, postgres) is not installed")
    folder = Path(tempfile.mkdtemp(prefix="dogmed-postgresql-"))
    log = folder / "log"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    login: dict[str, Any] = {"cwd": folder}
    if os.geteuid() == 0:  # the server refuses to be root
        known = {user.pw_name: user for user in pwd.getpwall()}
        user = known.get("postgres") or known["nobody"]
        os.chown(folder, user.pw_uid, user.pw_gid)
        login |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    data = str(folder / "data")
    create = [initdb, "-D", data, "-U", "dogmed", "-A", "trust", "--no-sync", "-E", "UTF8"]
    subprocess.run(create, check=True, stdout=subprocess.DEVNULL, **login)
    options = ["-p", str(port), "-h", "127.0.0.1", "-k", "", "-F"]
    with log.open("wb") as output:
        server = subprocess.Popen(
            [postgres, "-D", data, *options], stdout=output, stderr=output, **login
        )
    url = f"postgresql://dogmed@127.0.0.1:{port}"
    try:
        for _ in range(300):
            assert server.poll() is None, log.read_text()
            with contextlib.suppress(psycopg2.OperationalError):
                psycopg2.connect(f"{url}/postgres").close()
                break
            time.sleep(0.1)
        yield url
    finally:
        server.send_signal(signal.SIGINT)  # drops its connections and ends
        server.wait(timeout=60)
        shutil.rmtree(folder)


@pytest.fixture
def postgresql(postgresql_server: str) -> str:
    """The URL of a fresh, empty PostgreSQL database."""
    import psycopg2

    name = f"test_{uuid.uuid4().hex}"
    connection = psycopg2.connect(f"{postgresql_server}/postgres")
    connection.autocommit = True
    with contextlib.closing(connection), connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name}")
    return f"{postgresql_server}/{name}"


CHROMIUM = next(
    (p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None
)
PROBE = """<script>
const errors = []; addEventListener("error", e => errors.push(e.message));
addEventListener("load", () => {
  document.querySelectorAll("details").forEach(d => d.open = true);
  const pre = document.createElement("pre"); pre.id = "probe"; pre.style.display = "none";
  const body = getComputedStyle(document.body);
  const outside = [...document.querySelectorAll("body *")].filter(
    e => !e.closest("SCROLLING") && e.getBoundingClientRect().right > innerWidth + 0.5);
  const small = [...document.querySelectorAll("svg.plot text")].map(t => t.getBoundingClientRect().height);
  pre.textContent = JSON.stringify({errors, width: innerWidth, scroll: document.documentElement.scrollWidth,
    outside: outside.slice(0, 3).map(e => e.outerHTML.slice(0, 120)), paper: body.backgroundColor,
    ink: body.color, resources: performance.getEntriesByType("resource").map(r => r.name),
    broken: [...document.images].filter(i => !i.naturalWidth).length, images: document.images.length,
    smallest: Math.min(...small), texts: small.length});
  document.body.append(pre);
});
</script></head>"""
FRAME = """<iframe id="f" style="width:390px;height:800px;border:0" src="page.html"></iframe><script>
addEventListener("load", () => {
  const p = document.createElement("pre"); p.id = "probe";
  p.textContent = document.getElementById("f").contentDocument.getElementById("probe").textContent;
  document.body.append(p);
})</script>"""


@pytest.fixture
def look_at(tmp_path: Path) -> Callable[..., dict[int, dict[str, Any]]]:
    """Open a page in Chromium, on a phone (390 pixels) in the dark and on a desktop (1280) in the light.

    A headless window is 500 pixels wide at least: a frame is as narrow as asked.
    """
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")

    def look(text: str, scrolling: str = ".scroll") -> dict[int, dict[str, Any]]:
        """What a browser sees, by width.

        Args:
            text: of the page.
            scrolling: selects what may be wider than the page.
        """
        probe = PROBE.replace("SCROLLING", scrolling)
        (tmp_path / "page.html").write_text(text.replace("</head>", probe))
        (tmp_path / "frame.html").write_text(FRAME)
        found = {}
        for name, width, light in (("frame", 390, 0), ("page", 1280, 1)):
            run = subprocess.run(
                [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
                 "--no-first-run", "--disable-sync", "--hide-scrollbars", "--enable-logging=stderr",
                 f"--user-data-dir={tmp_path / f'user{width}'}", "--allow-file-access-from-files",
                 f"--blink-settings=preferredColorScheme={light}", f"--window-size={max(width, 800)},900",
                 "--virtual-time-budget=4000", "--dump-dom", (tmp_path / f"{name}.html").as_uri()],
                capture_output=True, text=True, timeout=120,
            )  # fmt: skip
            assert "CONSOLE" not in run.stderr, run.stderr
            match = re.search(r'<pre id="probe"[^>]*>(.*?)</pre>', run.stdout, re.S)
            assert match, run.stderr[-800:]
            plain = match[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
            found[width] = json.loads(plain)
            assert found[width]["width"] == width
        return found

    return look

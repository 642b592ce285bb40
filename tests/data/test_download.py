"""Downloads from a server on this machine: resumed, verified, refused in one line."""

from __future__ import annotations

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from dogmed.data import prepare, tasks
from dogmed.data.download import download
from dogmed.data.progress import Console, Quiet, human
from dogmed.errors import DataError

CONTENT = b"PK" + np.random.default_rng(0).integers(0, 256, 1_000_000, dtype=np.uint8).tobytes()
MD5 = hashlib.md5(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves ``server.content``; ``server.plan`` says per request what goes wrong."""

    def do_GET(self):
        server = self.server
        server.requests.append(self.headers.get("Range"))
        fault = server.plan.pop(0) if server.plan else None
        if isinstance(fault, int) and fault >= 400:
            self.send_error(fault)
            return
        content, start = server.content, 0
        if isinstance(fault, str) and fault.startswith("http"):
            self.send_response(302)
            self.send_header("Location", fault)
            self.end_headers()
            return
        if fault == "part unasked":
            self.send_response(206)
        elif self.headers.get("Range") and fault != "no ranges":
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        kind = "text/html" if fault == "html" else "application/octet-stream"
        self.send_header("Content-Type", kind)
        length = {"no number": "many", "no length": None}.get(fault, str(len(content) - start))
        if length is not None:
            self.send_header("Content-Length", length)
        self.end_headers()
        body = content[start:]
        if fault == "broken":  # the connection ends in the middle
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self.close_connection = True
        elif fault == "not a zip":
            self.wfile.write(b"??" + body[2:])
        else:
            self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    found = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.content, found.plan, found.requests = CONTENT, [], []
    found.url = f"http://127.0.0.1:{found.server_port}/pathmnist.npz?download=1"
    thread = threading.Thread(target=found.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield found
    found.shutdown()
    found.server_close()
    thread.join()


def fetch(server, tmp_path, md5=MD5):
    target = tmp_path / "files" / "pathmnist.npz"
    return download(server.url, target, md5=md5, progress=Quiet(), backoff=0.01, timeout=5)


def names(tmp_path):
    return sorted(p.name for p in (tmp_path / "files").iterdir())


def test_whole(server, tmp_path):
    path = fetch(server, tmp_path)
    assert path.read_bytes() == CONTENT and names(tmp_path) == ["pathmnist.npz"]
    assert server.requests == [None]


def test_broken_connection_is_resumed(server, tmp_path):
    server.plan = ["broken", "broken", 503]
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    first, *resumed = server.requests
    starts = [int(r.removeprefix("bytes=").removesuffix("-")) for r in resumed]
    assert first is None and 0 < starts[0] < starts[1] == starts[2] < len(CONTENT)


def test_an_earlier_part_is_continued(server, tmp_path):
    (tmp_path / "files").mkdir()
    part = tmp_path / "files" / "pathmnist.npz.part"
    part.write_bytes(CONTENT[:300_000])
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.requests == ["bytes=300000-"] and names(tmp_path) == ["pathmnist.npz"]
    (tmp_path / "files" / "pathmnist.npz").rename(part)  # all there already
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    part.write_bytes(CONTENT[:1000])  # a server without ranges begins again
    server.plan = ["no ranges"]
    assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_a_spoilt_part_is_fetched_anew_once(server, tmp_path):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "pathmnist.npz.part").write_bytes(bytes(1000))
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.requests == ["bytes=1000-", None]


def test_wrong_md5(server, tmp_path):
    with pytest.raises(DataError, match=f"has MD5 {MD5}, expected {'0' * 32}; .*--data-dir"):
        fetch(server, tmp_path, md5="0" * 32)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (403, "403 Forbidden"),
        (404, "404 Not Found"),
        ("html", "a web page"),
        ("not a zip", "no npz"),
    ],
)
def test_refusals_are_told_at_once(server, tmp_path, fault, words):
    server.plan = [fault]
    with pytest.raises(DataError, match=words) as caught:
        fetch(server, tmp_path)
    line = str(caught.value)
    assert server.url in line and "--data-dir" in line and "\n" not in line
    assert len(server.requests) == 1 and "pathmnist.npz" not in names(tmp_path)


@pytest.mark.parametrize("fault", ["no number", "no length", "part unasked"])
def test_odd_answers_are_lived_with(server, tmp_path, fault):
    server.plan = [fault]
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert names(tmp_path) == ["pathmnist.npz"]


def test_a_redirect_to_no_address(server, tmp_path):
    server.plan = ["http://[bad"] * 3
    with pytest.raises(DataError, match=r"failed.*--data-dir") as caught:
        fetch(server, tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_without_end_stops_before_the_disk_is_full(server, tmp_path, monkeypatch):
    left = [10**12, 10**12, 10**6]
    monkeypatch.setattr("dogmed.data.writer.free_space", lambda _: left.pop(0))
    monkeypatch.setattr("dogmed.data.download._CHECK_BYTES", 100_000)
    server.plan = ["no length"]
    with pytest.raises(DataError, match=r"downloading pathmnist.npz needs .* 1.0 MB are free"):
        fetch(server, tmp_path)
    assert left == []


def test_gives_up_after_three_tries_without_progress(server, tmp_path):
    server.plan = [500, 502, 503, 504]
    with pytest.raises(DataError, match="failed 3 times, last: the server answered 503"):
        fetch(server, tmp_path)
    assert len(server.requests) == 3


def test_no_server(tmp_path):
    url = "http://127.0.0.1:9/pathmnist.npz"
    with pytest.raises(DataError, match="failed 3 times, last: no connection to the server"):
        download(url, tmp_path / "x.npz", md5=MD5, progress=Quiet(), backoff=0.01)


@pytest.fixture
def published(server, monkeypatch, tmp_path, arrays):
    """BreastMNIST as if published on this machine's server, with an MD5 of its own."""
    base = arrays(n=20, size=28, classes=2)
    path = tmp_path / "breastmnist.npz"
    np.savez_compressed(path, **base)
    server.content = path.read_bytes()
    file = tasks.OfficialFile(
        name="breastmnist.npz", url=server.url, md5=hashlib.md5(server.content).hexdigest()
    )
    monkeypatch.setattr("dogmed.data.sources.official_file", lambda *_: file)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    return base


def test_prepare_downloads_once_and_creates_no_medmnist_folder(server, published, cache, tmp_path):
    found = prepare("breastmnist", size=28, cache_dir=cache)
    assert found.source == "official"
    assert np.array_equal(found.images("train"), published["train_images"])
    assert len(server.requests) == 1
    prepare("breastmnist", size=28, cache_dir=cache)
    prepare("breastmnist", size=40, upsample_from=28, cache_dir=cache)
    assert len(server.requests) == 1
    assert list((tmp_path / "home").iterdir()) == []


def test_medmnists_own_folder_is_used_when_whole(server, published, cache, tmp_path):
    folder = tmp_path / "home" / ".medmnist"
    folder.mkdir()
    (folder / "breastmnist.npz").write_bytes(server.content[:-100])
    assert prepare("breastmnist", size=28, cache_dir=cache).source == "official"
    assert len(server.requests) == 1, "a damaged file there is passed over"
    (folder / "breastmnist.npz").write_bytes(server.content)
    prepare("breastmnist", size=28, cache_dir=tmp_path / "other")
    assert len(server.requests) == 1
    assert [p.name for p in folder.iterdir()] == ["breastmnist.npz"]


def test_two_at_once_download_once(server, published, cache):
    found = []
    threads = [
        threading.Thread(
            target=lambda: found.append(prepare("breastmnist", size=28, cache_dir=cache))
        )
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({p.folder for p in found}) == 1 and len(found) == 3
    assert len(server.requests) == 1


def test_plain_lines_without_a_terminal(capsys):
    progress = Console(every=0)
    progress.start("downloading x", 4_000_000)
    progress.advance(1_000_000)
    progress.note("a note")
    progress.finish()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "downloading x (4.0 MB)" and lines[-1] == "a note"
    assert lines[1].startswith("downloading x: 1.0 MB of 4.0 MB, ")
    assert [human(n) for n in (5, 1500, 16.1e9, 2e13)] == ["5 B", "1.5 kB", "16.1 GB", "20.0 TB"]

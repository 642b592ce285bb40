"""Fetching from a hub: a small real server over HTTP, no network, and nobody answering."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from dogmed.errors import WeightsError
from dogmed.models.hub import fetch, reachable


class _Hub(BaseHTTPRequestHandler):
    """Serves lab/dog with one file, the way the hub does."""

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        content = b"woof"
        if self.path == "/lab/dog/resolve/main/model.safetensors":
            self.send_response(200)
            self.send_header("X-Repo-Commit", "1" * 40)
            self.send_header("ETag", '"abc"')
        else:
            known = self.path.startswith("/lab/dog/") or self.path.startswith("/api/models/lab/dog")
            content = b"not found"
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
            if known:
                self.send_header("X-Repo-Commit", "1" * 40)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Stay quiet."""


@pytest.fixture
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Hub) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


@pytest.fixture
def silent() -> Iterator[str]:
    """A host that takes no connection and refuses none: its queue is full."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for client in waiting:
            client.setblocking(False)
            client.connect_ex(listening.getsockname())
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        for client in waiting:
            client.close()


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """``fetch`` with an empty cache, at an endpoint of the test's choice."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    def ask(endpoint: str, *words: str, offline: bool = False) -> Path:
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        return fetch(words[0], words[1:])

    return ask


def test_download_then_cache(server: str, ask: Callable[..., Path]) -> None:
    wanted = ("lab/dog", "absent.json", "model.safetensors")
    assert ask(server, *wanted).read_text() == "woof"
    assert ask("http://127.0.0.1:9", *wanted).read_text() == "woof"
    assert ask(server, *wanted, offline=True).read_text() == "woof"


def test_what_the_hub_lacks(server: str, ask: Callable[..., Path]) -> None:
    with pytest.raises(WeightsError, match=r"lab/dog on the hub has none of a\.bin, b\.bin"):
        ask(server, "lab/dog", "a.bin", "b.bin")
    with pytest.raises(WeightsError, match="no repository lab/cat"):
        ask(server, "lab/cat", "a.bin")


def test_without_network(silent: str, ask: Callable[..., Path]) -> None:
    for endpoint in ("http://127.0.0.1:9", "http://no-such-host.invalid", silent):
        with pytest.raises(WeightsError, match=f"{endpoint} does not answer") as caught:
            ask(endpoint, "lab/dog", "a.bin")
        assert "\n" not in str(caught.value)
    with pytest.raises(WeightsError, match="HF_HUB_OFFLINE forbids asking the hub"):
        ask(silent, "lab/dog", "a.bin", offline=True)


def test_reachable(server: str, silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert reachable(server, 5)
    assert not reachable(silent, 0.3)
    assert not reachable("http://[bad", 5)
    monkeypatch.setenv("http_proxy", server)
    assert reachable("http://no-such-host.invalid", 5)
    monkeypatch.setenv("http_proxy", "http://proxy:port")
    assert not reachable("http://no-such-host.invalid", 5)
    monkeypatch.setenv("no_proxy", "no-such-host.invalid")
    assert not reachable("http://no-such-host.invalid", 5)

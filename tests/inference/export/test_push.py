"""``dogmed push``: nothing is sent without --yes; with it, to a small real server over HTTP."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from dogmed import cli
from dogmed.inference.export.files import read_sums, sha256, write_sums

CARD = "---\nlicense: cc-by-4.0\n---\n\n# A model\n"


class Hub(ThreadingHTTPServer):
    """Takes a commit of small files, as the hub does, from who has the right token."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[str] = []
        self.created: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length)
        while not length and self.headers.get("Transfer-Encoding") == "chunked":
            size = int(self.rfile.readline(), 16)
            body += self.rfile.read(size)
            self.rfile.readline()
            if not size:
                break
        self.server.asked.append(self.path)
        if self.headers.get("Authorization") != "Bearer hf_right":
            self._answer(401, {"error": "Invalid token"})
        elif self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            self._answer(200, {"url": f"{self.server.url}/lab/dog"})
        elif self.path == "/api/validate-yaml":
            assert json.loads(body)["content"] == CARD
            self._answer(200, {"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            modes = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files
            ]
            self._answer(200, {"files": modes})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    self.server.files[value["path"]] = base64.b64decode(value["content"])
            told = {"commitUrl": f"{self.server.url}/lab/dog/commit/1", "commitOid": "1" * 40,
                    "success": True}  # fmt: skip
            self._answer(200, told)
        else:
            self._answer(404, {"error": "not found"})

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self._answer(404, {"error": "not found"})

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """Stay quiet."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setenv("HF_TOKEN", "hf_right")
        yield served
        served.shutdown()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    export = tmp_path / "export"
    (export / "models").mkdir(parents=True)
    (export / "README.md").write_text(CARD)
    (export / "models" / "model.pt").write_bytes(b"weights")
    write_sums(export)
    return export


def push(folder: Path, *words: str) -> int:
    return cli.main(["push", str(folder), *words])


def test_without_yes_nobody_is_asked(
    hub: Hub, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert push(folder, "--repo", "lab/dog") == 0
    said = capsys.readouterr().out
    assert "models/model.pt" in said and "licence cc-by-4.0" in said
    assert f"would go to {hub.url}/lab/dog (private if it is new; a token is configured)" in said
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "none"))
    assert push(folder, "--repo", "lab/dog") == 0
    assert "no token is configured" in capsys.readouterr().out
    assert hub.asked == []


@pytest.mark.parametrize("public", [False, True])
def test_with_yes_all_files_arrive(
    hub: Hub, folder: Path, capsys: pytest.CaptureFixture[str], public: bool
) -> None:
    assert push(folder, "--repo", "lab/dog", "--yes", *(["--public"] * public)) == 0
    assert f"pushed  {hub.url}/lab/dog/commit/1" in capsys.readouterr().out
    sums = (folder / "SHA256SUMS").read_bytes()
    files = {"README.md": CARD.encode(), "models/model.pt": b"weights", "SHA256SUMS": sums}
    assert hub.files == files
    (created,) = hub.created
    assert (created["organization"], created["name"]) == ("lab", "dog")
    private = created.get("private", created.get("visibility") == "private")
    assert private is not public


def test_only_what_the_export_wrote_is_uploaded_and_what_was_changed_is_told(
    hub: Hub, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "image.png").write_bytes(b"a patient")
    (folder / "models" / "predictions.csv").write_text("a patient,0.5\n")
    (folder / "models" / "model.pt").write_bytes(b"others")
    assert push(folder, "--repo", "lab/dog", "--yes") == 0
    said = capsys.readouterr().out
    assert "left    image.png stays here: not written by the export\n" in said
    assert "left    models/predictions.csv stays here" in said
    assert "changed models/model.pt is not as the export wrote it\n" in said
    assert set(hub.files) == {"README.md", "models/model.pt", "SHA256SUMS"}
    told = dict(line.split("  ")[::-1] for line in hub.files["SHA256SUMS"].decode().splitlines())
    assert told == {name: sha256(folder / name) for name in ("README.md", "models/model.pt")}
    assert told["models/model.pt"] != read_sums(folder)["models/model.pt"]
    for number in range(25):
        (folder / f"{number}.png").write_bytes(b"another")
    assert push(folder, "--repo", "lab/dog") == 0
    said = capsys.readouterr().out
    assert said.count(" stays here: ") == 20 and "left    7 more files, not written by" in said


def test_a_list_that_does_not_fit_is_one_line(
    hub: Hub, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sums = folder / "SHA256SUMS"
    text = sums.read_text()
    for content, told in (
        (text + f"{'0' * 64}  ../secret\n", "lacks ../secret, by its SHA256SUMS"),
        (text + "words\n", "is no list of digests and names"),
        (text + f"{'x' * 64}  README.md\n", "is no list of digests and names"),
        (None, "has no SHA256SUMS"),
    ):
        sums.unlink()
        (folder.parent / "secret").write_text("not of the export")
        if content is not None:
            sums.write_text(content)
        assert push(folder, "--repo", "lab/dog", "--yes") == 2
        error = capsys.readouterr().err
        assert told in error and error.count("\n") == 1, error
        sums.touch()
    assert hub.asked == []


def test_what_goes_wrong_is_one_line(
    hub: Hub, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(*words: str, where: Path = folder) -> str:
        assert push(where, *words) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1, error
        return error

    assert "is no export: it has no README.md" in said("--repo", "lab/dog", where=folder / "models")
    assert "expected ORGANISATION/NAME" in said("--repo", "dog")
    assert "--repo 'lab/a dog'" in said("--repo", "lab/a dog")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert f"uploading to {hub.url}/lab/dog failed" in said("--repo", "lab/dog", "--yes")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "does not answer: nothing was uploaded" in said("--repo", "lab/dog", "--yes")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE forbids" in said("--repo", "lab/dog", "--yes")
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "none"))
    assert "no token of the hub is configured" in said("--repo", "lab/dog", "--yes")
    (folder / "README.md").write_text("# no front matter\n")
    assert "names no licence" in said("--repo", "lab/dog")
    assert hub.files == {}

"""An analysis that is stopped: the same command goes on with what is left."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from dogmed.console import Console


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("flops", ("--strides", 8, "--resolutions", 20)),
        ("scale", ("--resolutions", 28, 30, "--fit", "resize", "--kernel-sizes", 5)),
    ],
)
def test_a_stopped_analysis_goes_on(
    what: str,
    words: tuple[object, ...],
    analyze: Callable[..., int],
    make_weights: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    command = (what, out, make_weights(), *words)
    tell = Console.line

    def then_interrupt(self: Console, text: str) -> None:
        tell(self, text)
        if " 3 of 8 " in text:
            os.kill(os.getpid(), signal.SIGINT)

    def kept() -> dict[str, int]:
        (folder,) = out.rglob("predictions")
        return {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}

    with monkeypatch.context() as patched:
        patched.setattr(Console, "line", then_interrupt)
        assert analyze(*command) == 130
    *_, stopped = capsys.readouterr().err.splitlines()
    assert stopped == "dogmed: stopped with 3 of 8 points; the same command continues"
    before = kept()
    assert len(before) == 3 and not list(out.rglob(f"{what}.json"))
    assert analyze(*command) == 0
    after = kept()
    assert len(after) == 8 and before.items() <= after.items()
    assert analyze(*command) == 0
    assert kept() == after

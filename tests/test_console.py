"""What stops a run: signals that come while nobody can be told, and how numbers are written."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from dogmed.console import Console, Stopper, count, duration
from dogmed.errors import Interrupted


def test_a_signal_that_a_finalizer_swallows_stops_the_run_before_it_trains(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lost = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: lost.append(args.exc_type))

    class Dying:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    with Stopper(Console(False)) as stopper:
        Dying()  # what the handler raises in it, Python drops
        assert lost == [Interrupted]
        with pytest.raises(Interrupted) as caught:
            stopper.deferring = True
    assert caught.value.exit_code == 128 + signal.SIGTERM


def test_a_signal_waits_for_the_loop_and_a_second_one_does_not() -> None:
    before = signal.getsignal(signal.SIGTERM)  # Ray's, where its tests ran in this process
    with Stopper(Console(False)) as stopper:
        stopper.deferring = True
        os.kill(os.getpid(), signal.SIGINT)
        assert stopper.requested == signal.SIGINT
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_terminal_that_closes_stops_the_run_in_good_order(tmp_path: Path) -> None:
    """A process on a terminal of its own: after the hang-up it can save, and prints without an error."""
    code = (
        "import sys, time; from pathlib import Path\n"
        "from dogmed.console import Console, Stopper\n"
        "console = Console(True)\n"
        "with Stopper(console) as stopper:\n"
        "    stopper.deferring = True\n"
        "    console.line('runs')\n"
        "    while not stopper.requested: time.sleep(0.01)\n"
        "console.line('saving')\n"
        "Path(sys.argv[1]).write_text(str(stopper.requested))\n"
    )
    saved = tmp_path / "saved"
    pid, terminal = pty.fork()
    if not pid:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored where the tests run under nohup
        signal.alarm(60)  # outlives exec: a process that does not notice ends, and fails
        os.execv(sys.executable, [sys.executable, "-c", code, str(saved)])
    said = b""
    while b"runs" not in said:
        said += os.read(terminal, 1024)
    os.close(terminal)
    assert os.waitpid(pid, 0)[1] == 0
    assert saved.read_text() == str(int(signal.SIGHUP))


def test_under_nohup_a_hang_up_is_nothing() -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with Stopper(Console(False)) as stopper:
        os.kill(os.getpid(), signal.SIGHUP)
        assert stopper.requested is None
    assert signal.signal(signal.SIGHUP, previous) is signal.SIG_IGN


def test_a_signal_is_told_in_the_middle_of_a_print(capfd: pytest.CaptureFixture[str]) -> None:
    """A buffered writer cannot be entered twice, so that to print there would end the run."""

    class Slow(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            os.kill(os.getpid(), signal.SIGINT)
            return len(data)

    out = io.TextIOWrapper(io.BufferedWriter(Slow()))
    with Stopper(Console(True)) as stopper, contextlib.redirect_stdout(out):
        stopper.deferring = True
        print("a line", flush=True)
        assert stopper.requested == signal.SIGINT
    assert "stopping after this step" in capfd.readouterr().err


def test_numbers_in_words() -> None:
    assert [count(n, "epoch") for n in (0, 1, 2)] == ["0 epochs", "1 epoch", "2 epochs"]
    assert [duration(s) for s in (0.4, 42, 200, 7500)] == ["0 s", "42 s", "3 min 20 s", "2 h 5 min"]

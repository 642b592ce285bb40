"""What stops a run: signals that come while nobody can be told, and how numbers are written."""

from __future__ import annotations

import os
import signal
import sys

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
    with Stopper(Console(False)) as stopper:
        stopper.deferring = True
        os.kill(os.getpid(), signal.SIGINT)
        assert stopper.requested == signal.SIGINT
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_numbers_in_words() -> None:
    assert [count(n, "epoch") for n in (0, 1, 2)] == ["0 epochs", "1 epoch", "2 epochs"]
    assert [duration(s) for s in (0.4, 42, 200, 7500)] == ["0 s", "42 s", "3 min 20 s", "2 h 5 min"]

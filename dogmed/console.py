"""What a run shows while it works: a bar with img/s and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any

from tqdm import tqdm

from dogmed.errors import Interrupted

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STDOUT, STDERR = 1, 2  # whatever sys.stdout and sys.stderr are


class Console:
    """Print for the main process; stay silent on the others.

    Args:
        enabled: whether this process prints.
    """

    def __init__(self, enabled: bool):
        self.enabled = enabled
        self.bar: tqdm[Any] | None = None
        self.is_terminal = enabled and sys.stderr.isatty()
        self.started = time.monotonic()
        self.first_epoch: int | None = None

    def line(self, text: str) -> None:
        """Print one line, above the bar if there is one."""
        if self.enabled:
            with tqdm.external_write_mode(file=sys.stdout):
                print(text, flush=True)

    def step(
        self, epoch: int, epochs: int, step: int, steps: int, batch_size: int, note: str = ""
    ) -> None:
        """Show that ``step`` of ``steps`` is done, and a note (terminals only)."""
        if not self.is_terminal:
            return
        if self.bar is None:
            self.bar = tqdm(
                total=steps * batch_size,
                initial=(step - 1) * batch_size,
                desc=f"epoch {epoch}/{epochs}",
                unit="img",
                leave=False,
                dynamic_ncols=True,
            )
        if note:
            self.bar.set_postfix_str(note, refresh=False)
        self.bar.update(batch_size)

    def epoch(self, epoch: int, epochs: int, seconds: float, text: str) -> None:
        """Close the bar and print an epoch's line: its number, ``text``, and the time left.

        Args:
            epoch: epochs done, this one included.
            epochs: of the whole run.
            seconds: that this epoch took.
            text: what is said of it.
        """
        self.close()
        if self.first_epoch is None:
            self.first_epoch = epoch
            self.started = time.monotonic() - seconds
        pace = (time.monotonic() - self.started) / (epoch - self.first_epoch + 1)
        number = f"{epoch:>{len(str(epochs))}}/{epochs}"
        self.line(f"epoch {number}  {text}  left {duration(pace * (epochs - epoch))}")

    def close(self) -> None:
        """Remove an unfinished bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


class Stopper:
    """Catch the signals of ``STOPS``: while ``deferring``, note them for the loop; otherwise stop at once.

    A second signal stops at once too; what was saved last then stands. What a handler raises is lost
    where Python can pass nothing on, in a finalizer say; so every signal is noted, and whoever begins
    to defer after such a loss is stopped there.

    SIGHUP is left alone where it is ignored, as under nohup; else the terminal has gone, and what is
    still to be said is thrown away, for a write to it would fail.
    """

    def __init__(self, console: Console):
        self.console = console
        self.requested: int | None = None
        self._deferring = False
        self._previous: dict[int, Any] = {}
        self._terminals: list[int] = []

    @property
    def deferring(self) -> bool:
        """Whether a signal waits for the loop.

        Raises:
            Interrupted: (on setting) one came before, and what it raised was lost.
        """
        return self._deferring

    @deferring.setter
    def deferring(self, value: bool) -> None:
        if value and self.requested is not None:
            raise _interrupted(self.requested)
        self._deferring = value

    def __enter__(self) -> Stopper:
        self._terminals = [number for number in (STDOUT, STDERR) if os.isatty(number)]
        for number in STOPS:
            if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue
            try:
                self._previous[number] = signal.signal(number, self._handle)
            except ValueError:  # not the main thread: the program around us handles signals
                break
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        first, self.requested = self.requested is None, number
        if number == signal.SIGHUP:
            for terminal in self._terminals:
                os.dup2(os.open(os.devnull, os.O_WRONLY), terminal)
        if not (self.deferring and first):
            raise _interrupted(number)
        if self.console.enabled:  # print may be at work already, and cannot be entered twice
            with contextlib.suppress(OSError):
                os.write(STDERR, b"\nstopping after this step (once more to stop at once)\n")


def _interrupted(number: int) -> Interrupted:
    return Interrupted("stopped; the same command continues from the last saved state", number)


def count(number: int, what: str) -> str:
    """Write a number of things: 1 epoch, 1,251 steps."""
    return f"{number:,} {what}{'s' * (number != 1)}"


def duration(seconds: float) -> str:
    """Write a time span as people say it: 42 s, 3 min 20 s, 2 h 5 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def table(rows: Sequence[tuple[str, ...]]) -> None:
    """Print left-aligned columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())

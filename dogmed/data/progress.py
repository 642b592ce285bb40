"""How long-running data work reports itself: silent, or bars and plain lines."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any, Protocol

logger = logging.getLogger("dogmed.data")


class Progress(Protocol):
    """What ``prepare`` and ``download`` report to; one step at a time."""

    def start(self, what: str, total: int | None, done: int = 0) -> None:
        """A step of ``total`` bytes begins (None: unknown), ``done`` of them already there."""

    def advance(self, amount: int) -> None:
        """So many more bytes are done."""

    def finish(self) -> None:
        """The step is over, for good or bad."""

    def note(self, line: str) -> None:
        """One line that the user should read."""


class Quiet:
    """No bars; notes go to the logger ``dogmed.data`` as warnings."""

    def start(self, what: str, total: int | None, done: int = 0) -> None:
        pass

    def advance(self, amount: int) -> None:
        pass

    def finish(self) -> None:
        pass

    def note(self, line: str) -> None:
        logger.warning(line)


class Console:
    """On stderr: a tqdm bar on a terminal; otherwise a line at the start and every 30 s."""

    def __init__(self, every: float = 30.0):
        self.every = every
        self._bar: Any = None
        self._what = ""

    def start(self, what: str, total: int | None, done: int = 0) -> None:
        self.finish()
        self._what, self._total, self._done = what, total, done
        self._began = self._last = time.monotonic()
        self._first = done
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                desc=what, total=total, initial=done, unit="B", unit_scale=True, leave=False
            )
        else:
            size = f" ({human(total)})" if total else ""
            print(f"{what}{size}", file=sys.stderr, flush=True)

    def advance(self, amount: int) -> None:
        self._done += amount
        if self._bar is not None:
            self._bar.update(amount)
        elif time.monotonic() - self._last > self.every:
            self._last = time.monotonic()
            speed = (self._done - self._first) / (self._last - self._began)
            of = f" of {human(self._total)}" if self._total else ""
            print(
                f"{self._what}: {human(self._done)}{of}, {human(speed)}/s",
                file=sys.stderr,
                flush=True,
            )

    def finish(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def note(self, line: str) -> None:
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)


def human(size: float) -> str:
    """A number of bytes for reading: ``16.1 GB`` (powers of 1000)."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"

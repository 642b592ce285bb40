"""The errors a user can cause, each told in one line: what, where, what was expected, how to mend it.

The command line prints the line and exits with the class's ``exit_code``; a library user catches
``DogmedError`` (a ``ValueError``) or one of the narrower classes.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable


class DogmedError(ValueError):
    """Something the user gave cannot be used; the message says what to change."""

    exit_code = 2


class ConfigError(DogmedError):
    """An option, a flag or a configuration file is wrong."""


class DataError(DogmedError):
    """A data file is missing, damaged or not of the expected form."""


class WeightsError(DogmedError):
    """Weights were not found, are damaged or do not fit the model."""


class TrainingError(DogmedError):
    """Training cannot go on (for example: the loss is not finite)."""

    exit_code = 1


class Interrupted(KeyboardInterrupt):
    """Training was stopped by a signal and can be resumed; the exit code is the shell's 128 + signal.

    Not an ``Exception``, so that no handler of wrong input takes it for one.
    """

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.exit_code = 128 + signal_number


def nearest(name: str, choices: Iterable[str]) -> str:
    """Say which of ``choices`` is closest to a mistyped ``name``: `` (did you mean 'x'?)`` or nothing."""
    close = difflib.get_close_matches(str(name), list(choices), n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""


def reason(error: BaseException) -> str:
    """Return an error's own text in one line, fit to stand inside another message.

    torch's writer hides a full disk behind an error of its own; the system's word is preferred.
    """
    for origin in (error, error.__context__):
        if isinstance(origin, OSError) and origin.strerror:
            return origin.strerror.lower()
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(". ") if lines else type(error).__name__


def printable(text: str | os.PathLike[str]) -> str:
    """Keep a text on one line and in UTF-8, and control characters of file names off the terminal."""
    plain = os.fsencode(text).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in plain)

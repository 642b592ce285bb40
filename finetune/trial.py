"""A run that is tried out among others: it is watched epoch by epoch, and test is never read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dogmed.console import Stopper
from dogmed.finetune.folder import FinetuneFolder

SPLITS = ("train", "val")


class HopelessError(Exception):
    """Raised by ``Trial.report``: the run is not worth its remaining epochs."""


class TrialFolder(FinetuneFolder):
    """The folder of a trial; its ``result.json`` holds no scores of test."""

    required = ("data.sha256", "val.n", "weights_sha256")


@dataclass(frozen=True)
class Trial:
    """What ``finetune`` needs to know of a run that is one of many tried.

    Args:
        folder: where the run goes.
        report: given the line of ``metrics.jsonl`` of every epoch, before its checkpoint is written;
            raises ``HopelessError`` to end the run.
        stopper: catches the signals, for whoever tries the runs must know of them too.
    """

    folder: TrialFolder
    report: Callable[[dict[str, Any]], None]
    stopper: Stopper

"""What both training loops keep to: how often they look up, and what they say when stopped."""

from __future__ import annotations

import signal

from dogmed.errors import Interrupted

LOSS_CHECK_STEPS = 50
"""On CUDA the losses are looked at (a host synchronisation) once in so many steps."""
AGREE_STEPS = 8
"""Several processes agree on stopping and saving once in so many steps."""


def stopped(epoch: int, step: int, steps: int, signal_number: int | None) -> Interrupted:
    """What a loop raises, once its state is saved, when it is asked to stop.

    Args:
        epoch: epochs completed.
        step: steps completed of the epoch under way.
        steps: of an epoch.
        signal_number: that this process got; None where only another one did.
    """
    where = f"epoch {epoch + 1}, step {step} of {steps}" if step else f"epoch {epoch}"
    return Interrupted(
        f"stopped after {where}; the state is saved, and the same command continues from there",
        signal_number or signal.SIGTERM,
    )

"""Which corruptions a task gets, how strong each is, and the published figures to normalise by.

All of it is data, in ``configs/stress.yaml``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from dogmed.config import recipe
from dogmed.errors import ConfigError, nearest

SEVERITIES = 5
RESOLUTION = "resolution"
PUBLISHED_SIZE = 224
COLOUR_ONLY = frozenset({"saturate"})


@dataclass(frozen=True)
class Stress:
    """One thing that is done to all images, at one strength or more."""

    name: str
    group: str
    strengths: tuple[Any, ...]
    """By severity, from 1 on; of a lowered resolution the one side in pixels."""

    @property
    def corrupts(self) -> bool:
        """Whether it counts in means over corruptions; a lowered resolution does not."""
        return self.group != RESOLUTION

    @property
    def title(self) -> str:
        """What tables call it."""
        return self.name.replace("_", " ")


def chosen(task: str | None, names: Sequence[str], *, colour: bool) -> list[Stress]:
    """The corruptions of a task, or those that are named.

    Strengths are the task's own where the benchmark has it, and else those of the set ``generic``.

    Args:
        task: an official one; None of one's own images.
        names: of corruptions, of groups of them, and of official tasks, whose sets are then taken.
        colour: whether the images have colours.

    Raises:
        ConfigError: there is no such name, or nothing is left for grey images.
    """
    refuse_unknown(names)
    known, own = _known(), _known()["tasks"].get(task, {})
    wanted: dict[str, list[Any]] = {}
    for name in names:
        if name in known["tasks"]:
            wanted |= known["tasks"][name]
        else:
            of_name = known["groups"].get(name, [name])
            wanted |= {one: own.get(one, known["generic"][one]) for one in of_name}
    if not names:
        wanted = own or {name: known["generic"][name] for name in known["usual"]}
    usable = {n: strengths for n, strengths in wanted.items() if colour or n not in COLOUR_ONLY}
    if not usable:
        raise ConfigError(
            f"--corruptions {' '.join(names)}: for colour images alone, and these are grey; give others"
        )
    ordered = [name for name in _groups() if name in usable]
    return [Stress(name, _groups()[name], _strengths(usable[name])) for name in ordered]


def refuse_unknown(names: Sequence[str]) -> None:
    """Make sure that there is everything of these names.

    Raises:
        ConfigError: there is not; the nearest name is told.
    """
    known = _known()
    choices = [*known["generic"], *known["groups"], *known["tasks"]]
    for name in names:
        if name not in choices:
            raise ConfigError(
                f"--corruptions: unknown '{name}'{nearest(name, choices)}; there are "
                f"{', '.join(known['generic'])}; the groups {', '.join(known['groups'])}; and the sets of "
                "the official tasks, by the task's name"
            )


def resolutions(sides: Sequence[int], size: int) -> list[Stress]:
    """Lowered resolutions: those below the side of the images."""
    return [Stress(f"{side} px", RESOLUTION, (side,)) for side in sides if side < size]


def published(task: str | None) -> dict[str, float] | None:
    """Balanced errors of the benchmark's AlexNet by corruption, and ``clean``; None if it has no such task."""
    return _known()["alexnet"].get(task)


def _strengths(listed: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(tuple(one) if isinstance(one, list) else one for one in listed)


@cache
def _known() -> dict[str, Any]:
    return recipe("stress")


@cache
def _groups() -> dict[str, str]:
    """The group of each corruption, in the order of the tables."""
    return {name: group for group, names in _known()["groups"].items() for name in names}

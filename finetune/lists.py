"""Flags that take a list: words apart by commas or spaces, and the tasks of a command for several."""

from __future__ import annotations

from collections.abc import Iterable

from dogmed.data.tasks import official_tasks
from dogmed.errors import ConfigError


def split_words(values: Iterable[float | str]) -> list[str]:
    """The words of a list whose items may hold several, apart by commas; each once."""
    words = (word.strip() for value in values for word in str(value).split(","))
    return list(dict.fromkeys(word for word in words if word))


def chosen_tasks(values: Iterable[str], every: bool) -> list[str]:
    """The tasks of ``--task``, each once, or with ``--all`` the twelve official ones.

    Raises:
        ConfigError: both, or none.
    """
    tasks = split_words(values)
    if every and tasks:
        raise ConfigError(f"--all is all twelve tasks, --task {','.join(tasks)} some: give one")
    if not every and not tasks:
        raise ConfigError("which tasks? --all, or for example --task breastmnist,pneumoniamnist")
    return list(official_tasks()) if every else tasks

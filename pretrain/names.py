"""The names of a million files without a million Python objects, and orders that never change."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np


class Names(Sequence[str]):
    """Immutable strings in one array of bytes; workers forked from a process share its memory.

    A list of 1.28 million ``str`` costs 100 MB in every worker, because counting references writes
    to each of them; this costs their characters once.

    Args:
        characters: all names in UTF-8, one after the other, uint8.
        ends: (N,) where each name ends in ``characters``.
    """

    def __init__(self, characters: np.ndarray, ends: np.ndarray):
        self.characters, self.ends = characters, ends

    @classmethod
    def pack(cls, names: Iterable[str]) -> Names:
        """Copy ``names`` in."""
        encoded = [name.encode("utf-8", "surrogateescape") for name in names]
        ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), dtype=np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        start = self.ends[index - 1] if index else 0
        return (
            self.characters[start : self.ends[index]].tobytes().decode("utf-8", "surrogateescape")
        )


def rank(name: str) -> tuple[str, str]:
    """What files of a class are sorted by: the name without its suffix, dots as underscores.

    Packing into shards changes suffixes and dots; sorted so, the order stays.
    """
    stem = name.rpartition(".")[0] or name
    return stem.replace(".", "_"), name


def shuffled(n: int, *key: int) -> np.ndarray:
    """A permutation of 0..n-1 that ``key`` decides, the same on every platform and numpy version.

    numpy guarantees the raw stream of PCG64 for ever, but not what its ``permutation`` makes of it
    (NEP 19); so the raw 64-bit words are sorted.
    """
    words = np.random.PCG64(np.random.SeedSequence(key)).random_raw(n)
    return np.argsort(words, kind="stable")

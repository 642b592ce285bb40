"""Fixtures of the data tests: small files in MedMNIST's format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dogmed.data import Prepared
from dogmed.data.tasks import SPLITS


def small_arrays(
    *, n: int = 24, size: int = 12, channels: int = 1, classes: int = 3, seed: int = 0
) -> dict[str, np.ndarray]:
    """The six arrays of a small multi-class file; every class occurs in every split."""
    rng = np.random.default_rng(seed)
    shape = (size, size) if channels == 1 else (size, size, channels)
    found = {}
    for split, count in (("train", n), ("val", n // 2), ("test", n // 2)):
        found[f"{split}_images"] = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
        found[f"{split}_labels"] = (np.arange(count) % classes).astype(np.uint8)[:, None]
    return found


class Notes:
    """A progress that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.steps: list[str] = []

    def start(self, what: str, total: int, done: int = 0) -> None:
        self.steps.append(what)

    def advance(self, amount: int) -> None: ...

    def finish(self) -> None: ...

    def note(self, line: str) -> None:
        self.notes.append(line)


@pytest.fixture(scope="session")
def make_notes() -> type[Notes]:
    return Notes


@pytest.fixture(scope="session")
def assert_equals() -> Callable[[Prepared, dict[str, np.ndarray]], None]:
    """Assert that what was prepared is, array by array, what the source holds."""

    def check(prepared: Prepared, source: dict[str, np.ndarray]) -> None:
        for split in SPLITS:
            assert isinstance(prepared.images(split), np.memmap)
            assert np.array_equal(prepared.images(split), source[f"{split}_images"])
            assert np.array_equal(prepared.labels(split), source[f"{split}_labels"])
            assert prepared.labels(split).dtype == np.int64

    return check


@pytest.fixture
def make_npz(tmp_path: Path) -> Callable[..., Path]:
    """Write an npz; keyword arguments replace (or with None remove) arrays of the small default."""

    def make(
        name: str = "mine.npz", compressed: bool = True, base: Any = None, **changed: Any
    ) -> Path:
        content = {**(base or small_arrays()), **changed}
        path = tmp_path / "source" / name
        path.parent.mkdir(exist_ok=True)
        save = np.savez_compressed if compressed else np.savez
        save(path, **{k: v for k, v in content.items() if v is not None})
        return path

    return make


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def arrays() -> Callable[..., dict[str, np.ndarray]]:
    return small_arrays


@pytest.fixture
def leftovers(cache: Path) -> Callable[[], list[str]]:
    """Lists temporary or half-written things in the cache."""

    def find() -> list[str]:
        names = (p.relative_to(cache) for p in cache.rglob("*"))
        return [str(p) for p in names if p.name.startswith((".tmp", ".old")) or p.suffix == ".part"]

    return find

"""A small run that takes seconds, in this process and as a command of its own."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest

from dogmed import cli, config
from dogmed.finetune.config import FinetuneConfig
from dogmed.finetune.executors.base import Job
from dogmed.finetune.run import finetune

TINY = {
    "task": "breastmnist",
    "data": "synthetic",
    "model": "dognext_test",
    "size": 28,
    "epochs": 2,
    "batch_size": 64,
    "tracking": "off",
    "optim.lr_base": 1e-3,
    "eval.resamples": 50,
}


class Here:
    """An executor that runs each job to its end in this process: what is done with them is the same."""

    slots = 1

    def __init__(self) -> None:
        self.started: list[str] = []
        self.codes: dict[str, int] = {}

    def start(self, job: Job) -> None:
        self.started.append(job.name)
        with (
            job.log.open("a") as log,
            contextlib.redirect_stdout(log),
            contextlib.redirect_stderr(log),
        ):
            assert job.command[:3] == (sys.executable, "-m", "dogmed")
            self.codes[job.name] = cli.main(job.command[3:])

    def ended(self) -> dict[str, int]:
        codes, self.codes = self.codes, {}
        return codes

    def stop(self) -> None: ...

    def kill(self) -> None: ...

    def waiting(self) -> set[str]:
        return set()

    def close(self) -> None: ...


class Forked:
    """An executor of two processes that start at once: forked from one that has imported everything."""

    slots = 2

    def __init__(self, start_dogmed: Callable[..., ForkServerProcess]) -> None:
        self.start_dogmed = start_dogmed
        self.running: dict[str, ForkServerProcess] = {}

    def start(self, job: Job) -> None:
        assert job.command[:3] == (sys.executable, "-m", "dogmed")
        self.running[job.name] = self.start_dogmed(job.command[3:], job.log)

    def ended(self) -> dict[str, int]:
        codes = {name: process.exitcode for name, process in self.running.items()}
        done = {name: code for name, code in codes.items() if code is not None}
        for name in done:
            del self.running[name]
        return done

    def stop(self) -> None:
        for process in self.running.values():
            process.terminate()

    def kill(self) -> None:
        for process in self.running.values():
            process.kill()
            process.join()

    def waiting(self) -> set[str]:
        return set()

    def close(self) -> None:
        self.kill()


@pytest.fixture
def forked(start_dogmed: Callable[..., ForkServerProcess]) -> Iterator[Forked]:
    executor = Forked(start_dogmed)
    yield executor
    executor.close()


@pytest.fixture(scope="session")
def make_here() -> type[Here]:
    return Here


@pytest.fixture
def here() -> Here:
    return Here()


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def make_config(tmp_path: Path, cache_dir: Path) -> Callable[..., FinetuneConfig]:
    def make(**overrides: Any) -> FinetuneConfig:
        options = {key.replace("__", "."): value for key, value in overrides.items()}
        values = {**TINY, "out": str(tmp_path / "runs"), "cache_dir": str(cache_dir), **options}
        base = config.merge(config.recipe("finetune/default"), values)
        return config.build(FinetuneConfig, base)

    return make


@pytest.fixture
def run_tiny(make_config: Callable[..., FinetuneConfig]) -> Callable[..., dict[str, Any]]:
    def run(**overrides: Any) -> dict[str, Any]:
        result = finetune(make_config(**overrides))
        assert result is not None
        return result

    return run


@pytest.fixture
def words(cache_dir: Path) -> Callable[..., list[str]]:
    """The tiny run as the words of a command line, for tests that kill it."""

    def build(out: Path, *flags: str) -> list[str]:
        options = {**TINY, "out": str(out), "cache_dir": str(cache_dir)}
        words = [f"--{key.replace('_', '-')}={value}" for key, value in options.items()]
        return ["finetune", *words, *flags]

    return build

"""Benchmarks that are stopped or killed, and runs that end with them."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest

from dogmed.errors import Interrupted
from dogmed.finetune.benchmark.sitting import benchmark
from dogmed.finetune.config import FinetuneConfig
from dogmed.finetune.executors.base import Job
from dogmed.finetune.executors.local import Local

Parse = Callable[..., list[FinetuneConfig]]
Results = Callable[[Path], dict[str, tuple[int, float]]]
ReadTable = Callable[[Path], list[dict[str, str]]]


class Light(Local):
    """Starts a process of a few lines in place of each run."""

    def __init__(self, code: str):
        super().__init__([None])
        self.code = code

    def start(self, job: Job) -> None:
        super().start(replace(job, command=(sys.executable, "-c", self.code)))


def test_a_run_that_was_done_when_the_stop_came_is_done(
    parse: Parse, out: Path, make_here: type[Any], read_table: ReadTable
) -> None:
    class Late(make_here):
        def start(self, job: Job) -> None:
            super().start(job)
            self.codes[job.name] = 128 + signal.SIGTERM

    runs = parse("--task=breastmnist", "--data=synthetic")
    late = Late()
    assert benchmark(runs, executor=late) == 0
    assert len(late.started) == 1
    assert [row["state"] for row in read_table(out)] == ["done"]


@pytest.mark.parametrize(
    ("signals", "said"),
    [(1, "asked to save\n"), (2, "asked to save\nand went on\n")],
)
def test_a_stop_lets_runs_save_and_a_second_one_ends_them_at_once(
    parse: Parse, out: Path, signals: int, said: str, read_table: ReadTable
) -> None:
    runs = parse("--task=breastmnist", "--data=synthetic", "--seeds=2")
    log = out / "benchmark/cells/breastmnist-synthetic+dognext_test-scratch-28+seed0.log"
    code = (
        "import signal, sys, time\n"
        "def save(*_):\n"
        "    print('asked to save', flush=True)\n"
        f"    if {signals} == 1: sys.exit(143)\n"
        "    print('and went on', flush=True)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "print('runs', flush=True)\n"
        "while True: time.sleep(1)\n"
    )

    def send() -> None:
        for word in ("runs", "went on")[:signals]:
            while not (log.is_file() and word in log.read_text()):
                time.sleep(0.02)
            os.kill(os.getpid(), signal.SIGINT)

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    with pytest.raises(Interrupted, match="same command continues") as caught:
        benchmark(runs, executor=Light(code))
    assert caught.value.exit_code == 130
    assert log.read_text() == f"runs\n{said}"
    assert [row["state"] for row in read_table(out)] == ["to do"] * 2


@pytest.mark.slow
def test_killed_in_the_middle_it_is_continued_by_the_same_command(
    flags: Sequence[str],
    parse: Parse,
    out: Path,
    tmp_path: Path,
    make_here: type[Any],
    start_dogmed: Callable[..., ForkServerProcess],
    read_table: ReadTable,
    results: Results,
) -> None:
    more = (
        "--task=breastmnist", "--data=synthetic", "--train-fraction=0.2", "--seeds=2", "--epochs=3",
        "--batch-size=16",
    )  # fmt: skip
    assert benchmark(parse(*more, "--seeds=1"), executor=make_here()) == 0
    said = tmp_path / "said"
    often = "--checkpoint.minutes=0.00001"
    process = start_dogmed(["benchmark", *flags, *more, often], said)
    while process.is_alive() and not list(out.glob("finetune/*/*/seed1/checkpoints/last.pt")):
        time.sleep(0.02)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, said.read_text()
    kept = results(out)
    assert len(kept) == 1
    here = make_here()
    assert benchmark(parse(*more), executor=here) == 0
    assert [name[-5:] for name in here.started] == ["seed1"]
    assert kept.items() <= results(out).items()
    log = out / "benchmark" / "cells" / f"{here.started[0]}.log"
    assert "continuing after" in log.read_text()
    whole = tmp_path / "whole"
    assert benchmark(parse(*more, f"--out={whole}"), executor=make_here()) == 0
    tables = [[row | {"seconds": ""} for row in read_table(folder)] for folder in (out, whole)]
    assert tables[0] == tables[1]  # equal to the undisturbed one
    assert [row["state"] for row in tables[0]] == ["done", "done"]

"""The benchmark: what is done, kept, tried again, refused and shown."""

from __future__ import annotations

import csv
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock

from dogmed import cli, config
from dogmed.console import Console
from dogmed.errors import ConfigError, Interrupted, WeightsError
from dogmed.finetune.benchmark.board import Board, seconds_left
from dogmed.finetune.benchmark.cells import find_cells
from dogmed.finetune.benchmark.matrix import BenchmarkConfig, combine
from dogmed.finetune.benchmark.sitting import FILES, _claims_allowed, benchmark
from dogmed.finetune.config import FinetuneConfig
from dogmed.finetune.executors.base import Job
from dogmed.finetune.executors.local import Local
from dogmed.models import build_model
from dogmed.models.weights import DataRecord, WeightsRecord, save_weights

TINY = (
    "--model=dognext_test", "--init=scratch", "--size=28", "--epochs=1", "--batch-size=64",
    "--tracking=off", "--eval.resamples=20", "--device=cpu",
)  # fmt: skip
Parse = Callable[..., list[FinetuneConfig]]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def flags(out: Path, cache_dir: Path, tmp_path: Path) -> list[str]:
    folders = {"out": out, "cache-dir": cache_dir, "weights-dir": tmp_path / "weights"}
    return [*TINY, *(f"--{name}={folder}" for name, folder in folders.items())]


@pytest.fixture
def parse(flags: list[str]) -> Parse:
    recipe = config.recipe("finetune/benchmark")

    def make(*more: str) -> list[FinetuneConfig]:
        argv = [*flags, *more]
        return combine(config.parse(BenchmarkConfig, argv, prog="dogmed benchmark", base=recipe))

    return make


def read_table(out: Path) -> list[dict[str, str]]:
    with (out / "benchmark" / "results.csv").open() as file:
        return list(csv.DictReader(file))


def results(out: Path) -> dict[str, tuple[int, float]]:
    """Content and age of every result."""
    files = out.glob("finetune/*/*/seed*/result.json")
    return {str(f.relative_to(out)): (hash(f.read_text()), f.stat().st_mtime_ns) for f in files}


def write_npz(path: Path, value: int = 7) -> None:
    arrays: dict[str, Any] = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = np.full((16, 28, 28), value, np.uint8)
        arrays[f"{split}_labels"] = np.arange(16)[:, None] % 2
    np.savez(path, **arrays)


def damage(path: Path) -> None:
    """Change a pixel and nothing else: the header is sound, the checksum is wrong."""
    content = bytearray(path.read_bytes())
    content[content.index(bytes([7] * 100)) + 50] = 8
    path.write_bytes(content)


def test_a_failing_cell_is_tried_twice_while_the_others_go_on(
    parse: Parse,
    out: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    make_here: type[Any],
) -> None:
    good, broken = tmp_path / "good.npz", tmp_path / "broken.npz"
    write_npz(good)
    write_npz(broken)
    damage(broken)
    runs = parse("--task", f"{broken},{good}", "--seeds=2")
    here = make_here()
    assert benchmark(runs, executor=here) == 1
    names = [
        f"{task}+dognext_test-scratch-28+seed{s}" for s in (0, 1) for task in ("broken", "good")
    ]
    assert here.started == [*names, names[0], names[2]]  # the second attempts come last
    rows = read_table(out)
    assert [row["state"] for row in rows] == ["failed", "done"] * 2
    assert "broken.npz" in rows[0]["note"] and "exit code 2" in rows[0]["note"]
    assert rows[0]["acc"] == ""
    result = json.loads((out / rows[1]["folder"] / "result.json").read_text())
    assert float(rows[1]["acc"]) == result["test"]["acc"]
    low, high = result["test"]["intervals_95"]["auc"]
    assert (float(rows[1]["auc_low"]), float(rows[1]["auc_high"])) == (low, high)
    shown = capsys.readouterr()
    assert shown.err.count("FAILED  broken dognext_test scratch seed") == 2
    assert "[2/4 done] done" in shown.out and "left about" in shown.out
    log = out / "benchmark" / "cells" / f"{names[0]}.log"
    assert log.read_text().count("dogmed: ") == 2

    kept = results(out)
    write_npz(broken)
    here = make_here()
    assert benchmark(runs, executor=here) == 0
    assert here.started == [names[0], names[2]]
    assert kept.items() <= results(out).items()
    assert [row["state"] for row in read_table(out)] == ["done"] * 4
    assert benchmark(runs, executor=make_here()) == 0  # nothing to do


def test_missing_weights_are_told_before_anything_starts(
    parse: Parse, out: Path, capsys: pytest.CaptureFixture[str], make_here: type[Any]
) -> None:
    more = ("--task=breastmnist", "--data=synthetic", "--init=scratch,imagenet50ep")
    with pytest.raises(WeightsError, match=r"1 of 2 cells have no initial weights.*--skip-missing"):
        benchmark(parse(*more), make_here())
    told = capsys.readouterr().err
    assert "dognext_test × imagenet50ep: 1 cells cannot run (breastmnist)" in told
    assert "dogmed pretrain --recipe imagenet50ep --model dognext_test" in told
    assert len(told.strip().splitlines()) == 1
    assert benchmark(parse(*more, "--dry-run"), make_here()) == 0
    told = capsys.readouterr().out
    for fact in (
        "to do       breastmnist",
        "no weights  breastmnist",
        "img/s",
        "CPU-hours",
        "free at",
    ):
        assert fact in told
    assert not out.exists()

    here = make_here()
    assert benchmark(parse(*more), skip_missing=True, executor=here) == 0
    assert len(here.started) == 1
    assert [row["state"] for row in read_table(out)] == ["done", "no weights"]


def test_cells_of_other_settings_weights_or_data_do_not_join(
    parse: Parse, out: Path, tmp_path: Path, make_here: type[Any]
) -> None:
    task = tmp_path / "my.npz"
    write_npz(task)
    store = tmp_path / "weights"
    store.mkdir()
    _save(store / "dognext_test.mine.safetensors", seed=0)
    more = (f"--task={task}", "--init=mine")
    assert benchmark(parse(*more), executor=make_here()) == 0
    with pytest.raises(ConfigError, match=r"other settings \(--epochs 1 -> 2\)"):
        benchmark(parse(*more, "--epochs=2"), make_here())
    _save(store / "dognext_test.mine.safetensors", seed=1)
    with pytest.raises(ConfigError, match="other initial weights"):
        benchmark(parse(*more), make_here())
    _save(store / "dognext_test.mine.safetensors", seed=0)
    write_npz(task, value=9)
    with pytest.raises(ConfigError, match="other data"):
        benchmark(parse(*more), make_here())
    copy = tmp_path / "elsewhere"
    copy.mkdir()
    shutil.copy(task, copy)
    with pytest.raises(ConfigError, match="two runs share the folder"):
        benchmark(parse(f"--task={task},{copy / task.name}"), make_here())


def _save(path: Path, seed: int) -> None:
    torch.manual_seed(seed)
    model, _ = build_model("dognext_test", 2)
    seen = DataRecord(
        name="x", size=28, source_size=28, interpolation=None, mean=(0.5,) * 3, std=(0.5,) * 3,
        licence=None,
    )  # fmt: skip
    record = WeightsRecord(
        model="dognext_test", num_classes=2, params=1, recipe="mine", init="scratch", epochs=1,
        score={}, data=seen, licence=None, git_commit=None, versions={},
    )  # fmt: skip
    save_weights(path, model.state_dict(), record)


def test_a_cell_that_another_process_runs_is_waited_for(parse: Parse, make_here: type[Any]) -> None:
    runs = parse("--task=breastmnist", "--data=synthetic")
    (cell,) = find_cells(runs)
    cell.folder.root.mkdir(parents=True)
    here = make_here()
    with FileLock(cell.folder.root / ".lock"):
        assert cell.is_busy()
        worker = threading.Thread(target=benchmark, args=[runs], kwargs={"executor": here})
        worker.start()
        time.sleep(1)
        assert here.started == []
    worker.join()
    assert len(here.started) == 1
    assert find_cells(runs)[0].state == "done"


def test_a_cell_that_another_benchmark_has_claimed_is_left_to_it(
    parse: Parse, out: Path, make_here: type[Any]
) -> None:
    """Between a start and the run's own lock lie seconds, in which others must not start it too."""
    runs = parse("--task=breastmnist", "--data=synthetic", "--seeds=2")
    first, second = find_cells(runs)
    claim = out / "benchmark" / "cells" / f"{first.key.replace('/', '+')}.claim"
    claim.parent.mkdir(parents=True)
    here = make_here()
    with FileLock(claim):
        worker = threading.Thread(target=benchmark, args=[runs], kwargs={"executor": here})
        worker.start()
        while not second.folder.result.is_file() and worker.is_alive():
            time.sleep(0.1)
        assert [name.rpartition("+")[2] for name in here.started] == ["seed1"]
    worker.join()
    assert [name.rpartition("+")[2] for name in here.started] == ["seed1", "seed0"]
    assert [cell.state for cell in find_cells(runs)] == ["done", "done"]


def test_claims_are_open_files_and_as_many_as_the_system_allows() -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    pid = os.fork()
    if not pid:  # a hard limit once lowered stays so
        resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, 2 * FILES))
        few = _claims_allowed(10), resource.getrlimit(resource.RLIMIT_NOFILE)
        many = _claims_allowed(1000), resource.getrlimit(resource.RLIMIT_NOFILE)
        right = few == (10, (FILES + 10, 2 * FILES)) and many == (FILES, (2 * FILES, 2 * FILES))
        os._exit(0 if right else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert _claims_allowed(1) == 1
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == limits


def test_the_time_left_follows_each_model_s_pace(parse: Parse) -> None:
    runs = parse(
        "--task=breastmnist", "--data=synthetic", "--seeds=2", "--model=dognext_test,resnet18"
    )
    cells = find_cells(runs)
    assert seconds_left(cells, 1) is None
    for cell in cells[:2]:
        cell.state, cell.seconds = (
            "done",
            {"dognext_test": 10.0, "resnet18": 30.0}[cell.config.model],
        )
    assert seconds_left(cells, 1) == pytest.approx(40)
    assert seconds_left(cells, 2) == pytest.approx(20)
    cells[0].overhead, cells[2].state = 5.0, "running"  # its process has started already
    assert seconds_left(cells, 1) == pytest.approx(40 + 5)
    cells[0].overhead = None
    cells[1].state = "failed"
    assert seconds_left(cells, 1) == pytest.approx(20)  # both as fast as the only model known


def test_torchrun_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main(["benchmark", "--all"]) == 2
    assert "without torchrun" in capsys.readouterr().err


class Light(Local):
    """Starts a process of a few lines in place of each run."""

    def __init__(self, code: str):
        super().__init__([None])
        self.code = code

    def start(self, job: Job) -> None:
        super().start(replace(job, command=(sys.executable, "-c", self.code)))


def test_a_run_that_was_done_when_the_stop_came_is_done(
    parse: Parse, out: Path, make_here: type[Any]
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


def test_a_file_in_the_place_of_out_is_refused(
    parse: Parse, out: Path, make_here: type[Any]
) -> None:
    out.write_text("mine")
    for more in ((), ("--dry-run",)):
        with pytest.raises(ConfigError, match=r"--out .*: expected a folder, this is a file"):
            benchmark(parse("--task=breastmnist", "--data=synthetic", *more), executor=make_here())
    assert out.read_text() == "mine"


@pytest.mark.parametrize(
    ("signals", "said"),
    [(1, "asked to save\n"), (2, "asked to save\nand went on\n")],
)
def test_a_stop_lets_runs_save_and_a_second_one_ends_them_at_once(
    parse: Parse, out: Path, signals: int, said: str
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
    flags: Sequence[str], parse: Parse, out: Path, tmp_path: Path, make_here: type[Any]
) -> None:
    more = ("--task=breastmnist", "--data=synthetic", "--seeds=2", "--epochs=3")
    often = ("--batch-size=16", "--checkpoint.minutes=0.00001")
    assert benchmark(parse(*more, *often, "--seeds=1"), executor=make_here()) == 0
    command = [sys.executable, "-m", "dogmed", "benchmark", *flags, *more, *often]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while process.poll() is None and not list(out.glob("finetune/*/*/seed1/checkpoints/last.pt")):
        time.sleep(0.02)
    process.kill()
    said, _ = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, said
    kept = results(out)
    assert len(kept) == 1
    here = make_here()
    assert benchmark(parse(*more, *often), executor=here) == 0
    assert [name[-5:] for name in here.started] == ["seed1"]
    assert kept.items() <= results(out).items()
    log = out / "benchmark" / "cells" / f"{here.started[0]}.log"
    assert "continuing after" in log.read_text()
    whole = tmp_path / "whole"
    assert benchmark(parse(*more, *often, f"--out={whole}"), executor=make_here()) == 0
    tables = [[row | {"seconds": ""} for row in read_table(folder)] for folder in (out, whole)]
    assert tables[0] == tables[1]  # equal to the undisturbed one
    assert [row["state"] for row in tables[0]] == ["done", "done"]


def test_a_cell_that_waits_on_a_cluster_is_not_told_as_running(
    parse: Parse, capsys: pytest.CaptureFixture[str], make_here: type[Any]
) -> None:
    class Queue(make_here):
        """A cluster that begins a job only when it is asked a third time what waits."""

        def __init__(self) -> None:
            super().__init__()
            self.asked, self.queue = 0, list[Job]()

        def start(self, job: Job) -> None:
            self.queue.append(job)

        def waiting(self) -> set[str]:
            self.asked += 1
            return {job.name for job in self.queue} if self.asked < 3 else set()

        def ended(self) -> dict[str, int]:
            if self.asked >= 3 and self.queue:
                super().start(self.queue.pop())
            return super().ended()

    cells = find_cells(parse("--task=breastmnist", "--data=synthetic"))
    cells[0].queue()
    assert "0 running, 0 to do, 1 queued" in Board(cells, 1, Console(True)).summary()
    queue = Queue()
    assert benchmark(parse("--task=breastmnist", "--data=synthetic"), queue) == 0
    assert queue.asked >= 3
    assert capsys.readouterr().out.count("] begin ") == 1

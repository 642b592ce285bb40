"""A sitting: what is done, kept, tried again, refused and waited for."""

from __future__ import annotations

import json
import os
import resource
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from dogmed import cli
from dogmed.errors import ConfigError, WeightsError
from dogmed.finetune.benchmark.cells import find_cells
from dogmed.finetune.benchmark.sitting import FILES, _claims_allowed, benchmark
from dogmed.finetune.config import FinetuneConfig

Parse = Callable[..., list[FinetuneConfig]]
Results = Callable[[Path], dict[str, tuple[int, float]]]
ReadTable = Callable[[Path], list[dict[str, str]]]


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
    read_table: ReadTable,
    write_npz: Callable[..., None],
    results: Results,
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
    parse: Parse,
    out: Path,
    capsys: pytest.CaptureFixture[str],
    make_here: type[Any],
    read_table: ReadTable,
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


def test_torchrun_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main(["benchmark", "--all"]) == 2
    assert "without torchrun" in capsys.readouterr().err


def test_a_file_in_the_place_of_out_is_refused(
    parse: Parse, out: Path, make_here: type[Any]
) -> None:
    out.write_text("mine")
    for more in ((), ("--dry-run",)):
        with pytest.raises(ConfigError, match=r"--out .*: expected a folder, this is a file"):
            benchmark(parse("--task=breastmnist", "--data=synthetic", *more), executor=make_here())
    assert out.read_text() == "mine"

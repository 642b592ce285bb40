"""What is shown while a benchmark runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dogmed.console import Console
from dogmed.finetune.benchmark.board import Board, seconds_left
from dogmed.finetune.benchmark.cells import find_cells
from dogmed.finetune.benchmark.sitting import benchmark
from dogmed.finetune.config import FinetuneConfig
from dogmed.finetune.executors.base import Job

Parse = Callable[..., list[FinetuneConfig]]


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

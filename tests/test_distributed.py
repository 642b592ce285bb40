"""Meeting of processes in a store of their own, whatever earlier ones left behind, and their parting."""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
import threading

import pytest
import torch
import torch.distributed as dist

from dogmed.distributed import fresh_store, join, open_device
from dogmed.errors import DogmedError, TrainingError


def test_processes_meet_though_dead_ones_have_left_their_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    agent = dist.TCPStore("localhost", 0, is_master=True)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", str(agent.port))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    seen = []
    for start in range(3):
        if start == 1:  # the first start: a process died before the others came
            dist.PrefixStore("dogmed", agent).set("hello2", "dead")
        stores: dict[int, dist.Store] = {}

        def meet(rank: int) -> None:
            stores[rank] = fresh_store(rank, 3)  # noqa: B023

        threads = [threading.Thread(target=meet, args=(rank,)) for rank in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=30)
        assert set(stores) == {0, 1, 2}
        assert not stores[2].check(["key"])
        stores[1].set("key", str(start))
        assert {store.get("key") for store in stores.values()} == {str(start).encode()}
        seen.append(stores)


def test_an_opened_device_computes_float32_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert open_device("cuda:1") == torch.device("cuda", 1)
    assert chosen == [torch.device("cuda", 1)] and not torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    with join("cuda") as world:
        assert world.device == torch.device("cuda", 0) and not torch.backends.cudnn.allow_tf32


def test_when_one_process_raises_alone_the_other_ends_with_one_line() -> None:
    # forked from a process of its own: the threads of other tests must not be
    command = [sys.executable, __file__]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for fails, said in enumerate(done.stdout.split("next\n")[:2]):
        lines = sorted(said.splitlines())
        assert len(lines) == 2
        assert lines[fails] == f"{fails}: the loss is not finite"
        assert lines[1 - fails].startswith(f"{1 - fails}: another process of this run ended")


def _raise_alone(rank: int, failing: int, port: int) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    try:
        with join("cpu") as world:
            assert world.any(rank == 1)
            if rank == failing:
                raise TrainingError("the loss is not finite")
            world.any(False)
    except DogmedError as error:
        print(f"{rank}: {error}", flush=True)


def _raise_alone_by_turns() -> None:
    fork = multiprocessing.get_context("fork")
    for failing in (0, 1):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        pair = [fork.Process(target=_raise_alone, args=(rank, failing, port)) for rank in (0, 1)]
        for process in pair:
            process.start()
        for process in pair:
            process.join()
        print("next", flush=True)


if __name__ == "__main__":
    _raise_alone_by_turns()

"""Meeting of processes in a store of their own, whatever earlier ones have left behind."""

from __future__ import annotations

import threading

import pytest
import torch.distributed as dist

from dogmed.distributed import fresh_store


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

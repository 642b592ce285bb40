"""Jobs through submitit, whose local stand-in takes the place of Slurm; skipped without submitit."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dogmed.errors import ConfigError
from dogmed.finetune.executors.base import BEGUN
from dogmed.finetune.executors.options import ExecutorConfig, SlurmConfig, build_executor
from dogmed.finetune.executors.slurm import QUEUE, Slurm

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


@pytest.fixture
def start() -> Callable[[], Slurm]:
    pytest.importorskip("submitit", reason="submitit is missing: pip install 'dogmed[slurm]'")
    return lambda: Slurm({"timeout_min": 3}, None, cluster="local")


def test_jobs_end_with_their_codes_and_are_asked_to_save(
    start: Callable[[], Slurm], small: Any
) -> None:
    slurm = start()
    assert slurm.slots == QUEUE
    jobs = [small.job("bad", "import sys; sys.exit('wrong')")]
    jobs += [small.job(name, small.saves) for name in ("stopped", "limit", "cancelled")]
    for job in jobs[:3]:
        slurm.start(job)
    assert slurm.waiting() == {"bad", "stopped", "limit"}
    codes: dict[str, int] = {}
    small.wait_for(
        lambda: (
            bool(codes.update(slurm.ended()))
            or all(small.words(job) == ["runs"] for job in jobs[1:3])
        )
    )
    assert slurm.waiting() == set()
    limit = jobs[2].log.read_text().splitlines()[0]
    assert limit.startswith(BEGUN)
    os.kill(int(limit.split()[-1]), signal.SIGUSR2)  # as Slurm does shortly before the limit
    slurm.start(jobs[3])  # was not given to Slurm yet
    slurm.stop()
    codes |= small.end_all(slurm, 4 - len(codes))
    assert codes == {"bad": 1, "stopped": 143, "limit": 143, "cancelled": -signal.SIGTERM}
    said = [["wrong"], ["runs", "saved"], ["runs", "saved"], []]
    assert [small.words(job) for job in jobs] == said
    assert not list(small.folder.glob("*.stop"))
    slurm.close()


def test_it_takes_options_of_sbatch_and_refuses_what_it_cannot_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("submitit", reason="submitit is missing: pip install 'dogmed[slurm]'")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="no sbatch and srun"):
        build_executor(ExecutorConfig(executor="slurm"), "cpu")
    for name in ("sbatch", "srun"):
        (tmp_path / name).write_text(
            "#!/bin/sh\necho sbatch: error: no such partition >&2; exit 1\n"
        )
        (tmp_path / name).chmod(0o755)
    wrong = SlurmConfig(options=("--qos=high",))
    with pytest.raises(ConfigError, match="NAME=VALUE without dashes, got '--qos=high'"):
        build_executor(ExecutorConfig(executor="slurm", slurm=wrong), "cpu")
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ConfigError, match=r"needs submitit: pip install 'dogmed\[slurm\]'$"):
        build_executor(ExecutorConfig(executor="slurm"), "cpu")


def test_several_jobs_become_one_array_with_the_options_given(
    monkeypatch: pytest.MonkeyPatch, small: Any
) -> None:
    """sbatch itself is a script here that keeps what it is given: there is no Slurm to ask."""
    pytest.importorskip("submitit", reason="submitit is missing: pip install 'dogmed[slurm]'")
    tools = small.folder / "bin"
    tools.mkdir()
    kept = small.folder / "kept"
    (tools / "sbatch").write_text(f"#!/bin/sh\ncp $1 {kept}\necho Submitted batch job 7\n")
    (tools / "srun").write_text("#!/bin/sh\n")
    (tools / "sacct").write_text(
        "#!/bin/sh\necho 'JobID|State|NodeList'\necho '7_[0-1]|PENDING|'\n"
    )
    (tools / "scancel").write_text(f"#!/bin/sh\necho $@ >> {kept}.cancelled\n")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    options = SlurmConfig(
        partition="gpu", account="me", minutes=90, options=("qos=high", "requeue")
    )
    slurm = build_executor(ExecutorConfig(executor="slurm", slurm=options), "auto")
    for name in ("a", "b"):
        slurm.start(small.job(name, ""))
    assert slurm.ended() == {}
    lines = set(kept.read_text().splitlines())
    given = {"partition=gpu", "account=me", "time=90", "qos=high", "requeue", "cpus-per-task=4"}
    given |= {"mem=16GB", "gpus-per-node=1", "signal=USR2@90", "array=0-1%2"}
    assert {f"#SBATCH --{option}" for option in given} <= lines
    assert slurm.waiting() == {"a", "b"}
    slurm.stop()
    assert slurm.ended() == {"a": -signal.SIGTERM, "b": -signal.SIGTERM}
    assert Path(f"{kept}.cancelled").read_text().splitlines() == ["7_0", "7_1"]

    (tools / "sbatch").write_text("#!/bin/sh\necho sbatch: error: no such partition >&2; exit 1\n")
    slurm.start(small.job("c", ""))
    with pytest.raises(ConfigError, match="sbatch: error: no such partition"):
        slurm.ended()
    slurm.close()

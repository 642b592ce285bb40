"""Jobs as Slurm jobs, on scripts in the place of Slurm's commands; skipped without submitit.

The scripts run what they are given at once, on this machine, and signal every process of a job as Slurm
does; a job with the option ``hold`` never begins.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dogmed.errors import ConfigError
from dogmed.finetune.executors import slurm as slurm_module
from dogmed.finetune.executors.options import ExecutorConfig, SlurmConfig, build_executor
from dogmed.finetune.executors.slurm import QUEUE, Slurm

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

TOOLS = {
    "sbatch": """
        id=$(($(ls | grep -c script) + 1)); cp $1 $id.script
        last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' $1)
        for i in $(test -n "$last" && seq 0 $last || echo .); do
            name=$id; test -n "$last" && name=${id}_$i && export SLURM_ARRAY_JOB_ID=$id SLURM_ARRAY_TASK_ID=$i
            if grep -q -- --hold $1; then echo PENDING > $name.state; continue; fi
            echo RUNNING > $name.state
            SLURM_JOB_ID=$id setsid sh $1 > /dev/null 2>&1 & echo $! > $name.pid
        done
        echo Submitted batch job $id""",
    "srun": """
        while test "${1#--}" != "$1"; do
            case $1 in --output|--error) shift;; esac; shift
        done
        exec "$@" """,
    "squeue": """
        test -f down && echo slurm_load_jobs error: Unable to contact slurm controller >&2 && exit 1
        for file in *.state; do test -f $file && echo "${file%.state}|$(cat $file)"; done; exit 0""",
    "scancel": """
        echo "$@" >> cancelled
        for name in "$@"; do
            case $name in --*) continue;; esac
            echo CANCELLED > $name.state; test -f $name.pid && kill -TERM -$(cat $name.pid)
        done""",
}


@pytest.fixture
def cluster(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """The folder where the scripts keep what they know."""
    pytest.importorskip("submitit", reason="submitit is missing: pip install 'dogmed[slurm]'")
    tools, state = tmp_path_factory.mktemp("bin"), tmp_path_factory.mktemp("slurm")
    for name, code in TOOLS.items():
        (tools / name).write_text(f"#!/bin/sh\n{'' if name == 'srun' else f'cd {state}'}\n{code}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setattr(slurm_module, "ASK_SECONDS", 0.5)
    monkeypatch.setattr(slurm_module, "GRACE_SECONDS", 0.5)
    yield state
    for file in state.glob("*.pid"):
        subprocess.run(["pkill", "-KILL", "-s", file.read_text().strip()])


def build(*options: str) -> Slurm:
    chosen = SlurmConfig(minutes=3, options=options)
    slurm = build_executor(ExecutorConfig(executor="slurm", slurm=chosen), "cpu")
    assert isinstance(slurm, Slurm)
    return slurm


def send(cluster: Path, job: str, number: int) -> None:
    """As Slurm does: to every process of the job."""
    os.killpg(int((cluster / f"{job}.pid").read_text()), number)


def test_jobs_end_with_their_codes_and_save_once(cluster: Path, small: Any) -> None:
    slurm = build()
    assert slurm.slots == QUEUE
    jobs = [small.job("bad", "import sys; sys.exit('wrong')")]
    jobs += [small.job(name, small.saves) for name in ("limit", "outside", "stopped", "new")]
    for job in jobs[:4]:
        slurm.start(job)
    assert slurm.waiting() == {"bad", "limit", "outside", "stopped"}
    codes: dict[str, int] = {}
    small.wait_for(
        lambda: (
            bool(codes.update(slurm.ended()))
            or (all(small.words(job) == ["runs"] for job in jobs[1:4]) and slurm.waiting() == set())
        )
    )
    send(cluster, "1_1", signal.SIGUSR2)  # shortly before the limit
    send(cluster, "1_2", signal.SIGTERM)  # scancel by hand, or a preemption
    small.wait_for(lambda: all("saved" in small.words(job) for job in jobs[1:3]))
    slurm.start(jobs[4])  # was not given to Slurm yet
    slurm.stop()
    codes |= small.end_all(slurm, 5 - len(codes))
    saved = dict.fromkeys(("limit", "outside", "stopped"), 143)
    assert codes == {"bad": 1, **saved, "new": -signal.SIGTERM}
    said = [["wrong"], *[["runs", "saved"]] * 3, []]
    assert [small.words(job) for job in jobs] == said
    assert not list(small.folder.glob("*.stop"))
    slurm.close()


def test_a_job_that_slurm_ends_without_a_result_has_failed(cluster: Path, small: Any) -> None:
    slurm = build()
    jobs = {name: small.job(name, small.saves) for name in ("lost", "killed", "forgotten")}
    for job in jobs.values():
        slurm.start(job)
    slurm.ended()
    small.wait_for(lambda: not slurm.waiting())
    for number, state in enumerate(("NODE_FAIL", "OUT_OF_MEMORY", None)):
        send(cluster, f"1_{number}", signal.SIGKILL)
        file = cluster / f"1_{number}.state"
        file.unlink() if state is None else file.write_text(state)
    (cluster / "down").touch()  # while Slurm does not answer, nothing is known
    slurm.ended()
    (cluster / "down").unlink()
    assert small.end_all(slurm, 3) == dict.fromkeys(jobs, 1)
    for job, why in zip(
        jobs.values(), ("NODE_FAIL", "OUT_OF_MEMORY", "knows it no more"), strict=True
    ):
        assert why in small.words(job)[-1]
    slurm.close()


def test_one_that_waits_is_cancelled_and_never_runs_if_slurm_was_not_reached(
    cluster: Path, small: Any
) -> None:
    slurm = build("hold")
    jobs = [small.job(name, "print('begun')") for name in ("a", "b")]
    for job in jobs:
        slurm.start(job)
    assert slurm.ended() == {}
    slurm.stop()
    assert slurm.ended() == {"a": -signal.SIGTERM, "b": -signal.SIGTERM}
    assert sorted((cluster / "cancelled").read_text().split()) == ["1_0", "1_1"]
    assert all(job.log.with_suffix(".stop").is_file() for job in jobs)
    again = build()
    again.start(jobs[0])
    assert small.end_all(again, 1) == {"a": 0}
    assert not jobs[0].log.with_suffix(".stop").exists()


def test_what_a_killed_command_left_in_the_queue_is_taken_out_of_it(
    cluster: Path, small: Any
) -> None:
    killed, job = build("hold"), small.job("a", "print('done')")
    killed.start(job)
    killed.ended()
    assert job.log.with_suffix(".slurm").read_text() == "1"
    again = build()
    again.start(job)
    assert small.end_all(again, 1) == {"a": 0}
    assert (cluster / "cancelled").read_text() == "--quiet --name=dogmed --state=PENDING 1\n"
    assert small.words(job) == ["done"]
    assert not job.log.with_suffix(".slurm").exists()
    again.close()


def test_no_secret_of_the_environment_is_left_on_the_disk(
    cluster: Path, small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_TOKEN", "very-secret")
    slurm = build()
    slurm.start(small.job("a", "import os; print(os.environ['SOME_TOKEN'][:4])"))
    assert small.end_all(slurm, 1) == {"a": 0}
    files = [file for file in small.folder.rglob("*") if file.is_file()]
    assert any(file.suffix == ".pkl" for file in files)
    assert not any(b"very-secret" in file.read_bytes() for file in files)
    assert small.words(small.job("a", "")) == ["very"]
    slurm.close()


def test_without_an_answer_nothing_begins_and_later_jobs_wait(cluster: Path, small: Any) -> None:
    (cluster / "down").touch()
    with pytest.raises(ConfigError, match=r"Slurm does not answer: .*Unable to contact") as told:
        build()
    assert "\n" not in str(told.value)
    (cluster / "down").unlink()
    slurm = build()
    (cluster / "down").touch()
    sbatch = Path(os.environ["PATH"].split(":")[0]) / "sbatch"
    works = sbatch.read_text()
    sbatch.write_text("#!/bin/sh\necho sbatch: error: Unable to contact >&2; exit 1\n")
    slurm.start(small.job("late", "print('ok')"))
    assert slurm.ended() == {}
    assert slurm.waiting() == {"late"}
    sbatch.write_text(works)
    (cluster / "down").unlink()
    assert small.end_all(slurm, 1) == {"late": 0}


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
    cluster: Path, small: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    options = SlurmConfig(
        partition="gpu", account="me", minutes=90, options=("qos=high", "requeue", "hold")
    )
    slurm = build_executor(ExecutorConfig(executor="slurm", slurm=options), "auto")
    for name in ("a", "b"):
        slurm.start(small.job(name, ""))
    assert slurm.ended() == {}
    script = (cluster / "1.script").read_text()
    given = {"partition=gpu", "account=me", "time=90", "qos=high", "requeue", "cpus-per-task=4"}
    given |= {"mem=16GB", "gpus-per-node=1", "signal=USR2@90", "array=0-1%2"}
    assert {f"#SBATCH --{option}" for option in given} <= set(script.splitlines())
    assert " --cpus-per-task=4 " in script.splitlines()[-1]
    slurm.close()

    sbatch = Path(os.environ["PATH"].split(":")[0]) / "sbatch"
    gres = "Invalid generic resource (gres) specification"
    for wrong, hint in (("no such partition", ""), (gres, "; --slurm.gpus 0 asks for no GPU")):
        sbatch.write_text(f"#!/bin/sh\necho 'sbatch: error: {wrong}' >&2; exit 1\n")
        slurm = build()
        slurm.start(small.job("c", ""))
        with pytest.raises(ConfigError) as told:
            slurm.ended()
        assert str(told.value) == f"Slurm takes no such jobs: sbatch: error: {wrong}{hint}"
        assert capsys.readouterr().err == "", "sbatch's own words are in the one line"
        assert slurm.waiting() == {"c"}
        slurm.close()


@pytest.mark.parametrize(("minutes", "seconds"), [(1, 15), (6, 90), (240, 90)])
def test_a_short_limit_is_told_of_later(cluster: Path, minutes: int, seconds: int) -> None:
    options = SlurmConfig(minutes=minutes)
    slurm = build_executor(ExecutorConfig(executor="slurm", slurm=options), "cpu")
    assert isinstance(slurm, Slurm)
    assert slurm._parameters["slurm_signal_delay_s"] == seconds

"""Kill a benchmark twice at random, continue it, and compare it with one that nobody disturbed.

    python -m benchmarks.survival [--out DIR]

`dogmed benchmark` over 12 tasks × 2 models × 2 inits on synthetic data, as small as it gets. The second
initialisation is a stand-in: random weights, saved under a name. All processes of the benchmark get
SIGKILL at once, so that none can save: when a random number of cells is done and a run has saved
something. In the end results.csv and the tables of `dogmed report` must be equal but for what is a time.
Exit code 1 if they are not. Starting a process is most of a cell's time.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from dogmed import cli

MODELS = ("dognext_test", "test_resnet")
KILLS = 2
TIMES = ("seconds", "hours", "images_per_second")  # columns named so are measured anew


def main() -> int:
    """Do it and tell."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder to keep; by default a temporary one")
    parser.add_argument("--task", default="", help="some tasks, apart by commas, in place of all")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        return survive(args.out or Path(scratch), args.task, args.jobs, random.Random(args.seed))


def survive(out: Path, tasks: str, jobs: int, rng: random.Random) -> int:
    """Run both benchmarks below ``out`` and compare them; returns the exit code."""
    out.mkdir(parents=True, exist_ok=True)
    save_weights(out / "weights")
    quiet, disturbed = out / "undisturbed", out / "killed"
    began = time.monotonic()
    run(*words(quiet, out, tasks, jobs))
    seconds = time.monotonic() - began
    cells = len(finished(quiet))
    print(
        f"undisturbed: {cells} cells in {seconds:.0f} s, {seconds / cells:.1f} s a cell", flush=True
    )
    # each run under way may end before the kill: something must be left to do then
    for after in sorted(rng.sample(range(cells - jobs), KILLS)):
        command = [sys.executable, "-m", "dogmed", *words(disturbed, out, tasks, jobs)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while process.poll() is None and not (
            len(finished(disturbed)) >= after and under_way(disturbed)
        ):
            time.sleep(0.02)
        time.sleep(rng.uniform(0, seconds / cells))
        count = kill(process)
        print(f"killed {count} processes with {len(finished(disturbed))} cells done", flush=True)
    run(*words(disturbed, out, tasks, jobs))
    for folder in (quiet, disturbed):
        run("report", f"--out={folder}", "--resamples=100")
    differences = list(compare(quiet, disturbed))
    for difference in differences:
        print(difference)
    print("DIFFERENT" if differences else "equal: results.csv and the tables of the report")
    return int(bool(differences))


def run(*command: str) -> None:
    """Run a command of dogmed quietly in this process."""
    with contextlib.redirect_stdout(io.StringIO()):
        code = cli.main(command)
    if code:
        raise SystemExit(f"dogmed {command[0]}: exit code {code}")


def words(out: Path, shared: Path, tasks: str, jobs: int) -> list[str]:
    """The benchmark as the words of a command."""
    which = f"--task={tasks}" if tasks else "--all"
    return [
        "benchmark", which, f"--model={','.join(MODELS)}",
        "--init=scratch,standin", "--data=synthetic", "--size=28", "--epochs=2", "--batch-size=64",
        "--device=cpu", "--tracking=off", "--eval.resamples=20", "--checkpoint.minutes=0.0001",
        f"--jobs={jobs}", f"--out={out}", f"--cache-dir={shared / 'cache'}",
        f"--weights-dir={shared / 'weights'}",
    ]  # fmt: skip


def save_weights(folder: Path) -> None:
    """Random weights in the form of a pretraining's, for each model."""
    import torch

    from dogmed.models import build_model
    from dogmed.models.weights import save_weights
    from dogmed.weights.records import DataRecord, WeightsRecord

    folder.mkdir(parents=True, exist_ok=True)
    data = DataRecord(
        name="none", size=28, source_size=28, interpolation=None, mean=(0.5,) * 3, std=(0.5,) * 3, licence=None,
    )  # fmt: skip
    for name in MODELS:
        torch.manual_seed(1)
        model, _ = build_model(name, 10)
        record = WeightsRecord(
            model=name, num_classes=10, params=1, recipe="standin", init="scratch", epochs=1, score={},
            data=data, licence=None, git_commit=None, versions={},
        )  # fmt: skip
        save_weights(folder / f"{name}.standin.safetensors", model.state_dict(), record)


def finished(out: Path) -> list[Path]:
    """Results that are there."""
    return list(out.glob("finetune/*/*/seed*/result.json"))


def under_way(out: Path) -> list[Path]:
    """Runs that have saved something and have no result."""
    saved = out.glob("finetune/*/*/seed*/checkpoints/last.pt")
    return [path for path in saved if not (path.parents[1] / "result.json").is_file()]


def kill(process: subprocess.Popen[bytes]) -> int:
    """End a benchmark and all that it has started at once; returns how many processes that were."""
    if process.poll() is not None:
        raise SystemExit(f"the benchmark ended by itself, with exit code {process.returncode}")
    process.send_signal(signal.SIGSTOP)  # it must not see its runs die before it dies itself
    below = psutil.Process(process.pid).children(recursive=True)
    for child in below:
        child.kill()
    process.kill()
    process.wait()
    while any(lives(child) for child in below):
        time.sleep(0.01)
    return 1 + len(below)


def lives(process: psutil.Process) -> bool:
    """Whether it is there and not only unclaimed, as in a container whose first process claims nobody."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def compare(quiet: Path, disturbed: Path) -> Iterator[str]:
    """Tell which tables differ, and in which rows."""
    tables = {path.relative_to(quiet) for path in quiet.glob("report/**/*.csv")}
    tables |= {path.relative_to(disturbed) for path in disturbed.glob("report/**/*.csv")}
    for name in [Path("benchmark/results.csv"), *sorted(tables)]:
        first, second = read(quiet / name), read(disturbed / name)
        if len(first) != len(second):
            yield f"{name}: {len(first)} rows, {len(second)} after the kills"
        for one, other in zip(first, second, strict=False):
            if one != other:
                changed = {k: (one[k], other.get(k)) for k in one if one[k] != other.get(k)}
                yield f"{name}: {' '.join(list(one.values())[:7])}: {changed}"


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a table without the columns of times; none where there is no such file."""
    if not path.is_file():
        return []
    with path.open() as file:
        rows = list(csv.DictReader(file))
    return [
        {name: value for name, value in row.items() if not any(word in name for word in TIMES)}
        for row in rows
    ]


if __name__ == "__main__":
    sys.exit(main())

"""Part 4b: preparing a large npz, against ``unzip`` of the same file, stored and deflated.

Our preparation reads the archive once, checks its sums, hashes what it writes and lays it out for
memory-mapping; unzip reads it, checks its sums and writes. They take turns in processes of their own.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.timing import peak_memory  # nothing heavier: it would not be counted

SIDE = 224


def measure(gigabytes: float, count: int, scratch: Path | None) -> list[dict[str, Any]]:
    """Return a row for each way of packing; ``scratch`` is where the files go for a while."""
    unzip = shutil.which("unzip")
    if unzip is None:
        raise SystemExit("unzip is not installed; leave out --parts prepare")
    rows = []
    for packing in ("stored", "deflated"):
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            path = Path(folder) / "pixels.npz"
            pixels = write_npz(path, int(gigabytes * 1e9), packing == "deflated")
            ours, theirs = [], []
            for _ in range(count):
                ours.append(in_a_process(path, Path(folder) / "prepared"))
                theirs.append(unpack([unzip, "-q", str(path)], Path(folder) / "unzipped"))
            rows.append(
                {
                    "packing": packing,
                    "pixels_gb": pixels / 1e9,
                    "file_gb": path.stat().st_size / 1e9,
                    "dogmed_s": statistics.median(seconds for seconds, _ in ours),
                    "unzip_s": statistics.median(theirs),
                    "speed_ratio": statistics.median(
                        t / o for (o, _), t in zip(ours, theirs, strict=True)
                    ),
                    "peak_mb": max(peak for _, peak in ours),
                }
            )
    return rows


def write_npz(path: Path, size: int, deflated: bool) -> int:
    """Write smooth noise of ``size`` bytes in MedMNIST's six keys; return the bytes of its pixels."""
    import numpy as np

    draw = np.random.default_rng(0)
    counts = {"train": size * 8 // 10, "val": size // 10, "test": size // 10}
    how = zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED
    total = 0
    with zipfile.ZipFile(path, "w", how, compresslevel=1 if deflated else None) as archive:
        for split, part in counts.items():
            n = part // SIDE**2
            total += n * SIDE**2
            with archive.open(f"{split}_images.npy", "w", force_zip64=True) as member:
                header = {"descr": "|u1", "fortran_order": False, "shape": (n, SIDE, SIDE)}
                np.lib.format.write_array_header_1_0(member, header)
                for start in range(0, n, 512):
                    some = min(512, n - start)
                    steps = draw.integers(-2, 3, size=(some, SIDE, SIDE), dtype=np.int8)
                    member.write((128 + np.cumsum(steps, axis=2)).astype(np.uint8).tobytes())
            with archive.open(f"{split}_labels.npy", "w") as member:
                np.save(member, draw.integers(4, size=(n, 1), dtype=np.uint8))
    return total


def unpack(command: Sequence[str], folder: Path) -> float:
    """Return the seconds that a command takes in a new folder, which is removed afterwards."""
    folder.mkdir()
    start = time.perf_counter()
    subprocess.run(command, check=True, cwd=folder)
    seconds = time.perf_counter() - start
    shutil.rmtree(folder)
    return seconds


def in_a_process(path: Path, folder: Path) -> tuple[float, float]:
    """Prepare in a fresh process; return seconds and the MB above the bare interpreter."""
    command = [sys.executable, "-m", "benchmarks.prepare", str(path), str(folder)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    shutil.rmtree(folder)
    seconds, peak = output.split()[-2:]
    return float(seconds), float(peak)


if __name__ == "__main__":
    before = peak_memory()
    from dogmed.data.store import prepare

    begin = time.perf_counter()
    prepare(sys.argv[1], size=SIDE, cache_dir=Path(sys.argv[2]))
    print(time.perf_counter() - begin, peak_memory() - before)

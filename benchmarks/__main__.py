"""Measure dogmed's speed and memory beside what one would use otherwise, in one run.

    python -m benchmarks --data-dir DIR

DIR holds breastmnist_224.npz. Everything that is compared takes turns, round by round; figures are
medians, ratios those of the rounds. Writes benchmarks/results/<device>.json and prints its tables; --write
also puts them into README.md and docs/performance.md. On an idle machine two CPU cores take about
half an hour; on a GPU ten minutes are enough.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PARTS = ("train_step", "epoch", "overhead", "ceilings", "startup", "prepare", "allocator")
RESULTS = ROOT / "benchmarks" / "results"


def main() -> None:
    """Measure, write, print."""
    args = arguments()
    if args.render:
        write_tables()
        return
    path = args.out or RESULTS / f"{args.device}.json"
    result = json.loads(path.read_text()) if path.is_file() else {}
    facts = machine(args.device)
    refuse_other_machine(path, result.get("machine", facts), facts)
    load = os.getloadavg()[0]
    for part in args.parts:
        start = time.monotonic()
        print(f"{part} ...", flush=True)
        result[part] = measure(part, args)
        print(f"{part}: {time.monotonic() - start:.0f} s", flush=True)
        result["machine"] = facts | {"load_before": load, "load_after": os.getloadavg()[0]}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=2) + "\n")
    from benchmarks import tables

    print(tables.machine(result), tables.details(result), sep="\n\n")
    if args.write:
        write_tables()


def arguments() -> argparse.Namespace:
    """Read the command line."""
    import torch

    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", type=Path, help="folder of breastmnist_224.npz")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if cuda else "cpu")
    parts = [part for part in PARTS if not (cuda and part == "allocator")]
    parser.add_argument("--parts", choices=PARTS, nargs="+", default=parts)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 224], help="pixels")
    parser.add_argument("--batch", type=int, default=128 if cuda else 16, help="images a step")
    parser.add_argument("--epoch-batch", type=int, default=128 if cuda else 32, help="in part 2")
    parser.add_argument("--rounds", type=int, default=20 if cuda else 7, help="of a step")
    parser.add_argument("--runs", type=int, default=3, help="rounds of whole processes")
    parser.add_argument("--gigabytes", type=float, default=2.0, help="pixels of the npz")
    parser.add_argument("--scratch", type=Path, help="folder with room for three times as much")
    parser.add_argument("--out", type=Path, help="JSON file; parts not measured now stay in it")
    parser.add_argument("--write", action="store_true", help="put the tables into the documents")
    parser.add_argument("--render", action="store_true", help="only put the tables there")
    args = parser.parse_args()
    if "epoch" in args.parts and args.data_dir is None and not args.render:
        parser.error("--data-dir: where is breastmnist_224.npz? (or leave out --parts epoch)")
    return args


def measure(part: str, args: argparse.Namespace) -> Any:
    """Measure one part."""
    device, models = args.device, ("dognext_atto", "convnextv2_atto", "resnet18")
    if part == "train_step":
        from benchmarks.train_step import measure as train_step

        return train_step(device, args.sizes, args.batch, args.rounds, max(args.sizes))
    if part == "epoch":
        from benchmarks.epoch import measure as epoch

        return epoch(args.data_dir, device, models, args.epoch_batch, args.runs)
    if part == "overhead":
        from benchmarks.overhead import measure as overhead

        return overhead(device, args.rounds)
    if part == "ceilings":
        from benchmarks.ceilings import measure as ceilings

        return ceilings(device, max(args.sizes), args.batch, args.rounds)
    if part == "startup":
        from benchmarks.startup import measure as startup

        return startup(args.rounds)
    if part == "allocator":
        from benchmarks.allocator import measure as allocator

        return allocator(max(args.sizes), 16, args.runs)
    from benchmarks.prepare import measure as prepare

    return prepare(args.gigabytes, args.runs, args.scratch)


def refuse_other_machine(path: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    """End where a file's parts would be of two machines or versions: its ratios would not say so."""
    if others := [f"{name} {old[name]}, now {new[name]}" for name in new if old[name] != new[name]]:
        raise SystemExit(
            f"{path} was measured elsewhere ({'; '.join(others)}): remove it, or give --out"
        )


def machine(device: str) -> dict[str, Any]:
    """Say what was measured on."""
    import timm
    import torch

    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
    }


def processor() -> str:
    """The processor's name, as Linux knows it."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.machine()
    found = re.search(r"model name\s*: (.*)", text)
    return found[1] if found else platform.machine()


def write_tables() -> None:
    """Put the tables of the committed results into the documents, between their markers."""
    from benchmarks import tables

    results = {}
    for device in ("cpu", "cuda"):
        path = RESULTS / f"{device}.json"
        results[device] = json.loads(path.read_text()) if path.is_file() else None
    replace(ROOT / "README.md", "performance", tables.summary(results["cpu"], results["cuda"]))
    for device, result in results.items():
        text = "Not measured." if result is None else tables.details(result)
        if result is not None:
            text = f"{tables.machine(result)}.\n\n{text}"
        replace(ROOT / "docs" / "performance.md", f"performance-{device}", text)
    from benchmarks import decode

    rows = json.loads((RESULTS / "decode.json").read_text())
    replace(ROOT / "docs" / "performance.md", "performance-decode", decode.table(rows))


def replace(path: Path, name: str, text: str) -> None:
    """Replace what stands between the markers of that name."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    old = path.read_text()
    before, rest = old.split(begin)
    path.write_text(f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}")


if __name__ == "__main__":
    main()

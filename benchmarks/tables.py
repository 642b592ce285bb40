"""Results as Markdown: the summary that the README includes, and the details of docs/performance.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.models import DOGNEXT, FAST_GRN, FOLDED, REFERENCE

NOT_MEASURED = "not measured"
Result = Mapping[str, Any]


def machine(result: Result) -> str:
    """One line: what was measured on."""
    facts = result["machine"]
    return (
        f"{facts['device']}, {facts['threads']} threads, torch {facts['torch']}, timm {facts['timm']}, "
        f"Python {facts['python']}; load average {facts['load_before']:.1f} before, "
        f"{facts['load_after']:.1f} after"
    )


def summary(cpu: Result | None, cuda: Result | None) -> str:
    """The goals and how far they are reached, on a CPU and on a GPU."""
    rows = [
        ("train step, `dognext_atto` / timm's `convnextv2_atto`", "≤ 1.15, GPU ≤ 1.0",
         lambda r: _step(r, DOGNEXT, "train_time_ratio")),
        ("train step, `dognext_atto` / `convnextv2_atto` with dogmed's GRN", "",
         lambda r: _against_fast_grn(r)),
        ("compiled train step, `dognext_atto` / timm's `convnextv2_atto`", "≤ 1.0",
         lambda r: _step(r, DOGNEXT, "train_time_ratio", True)),
        ("peak training memory, the same two", "≤ 1.0", lambda r: _step(r, DOGNEXT, "train_memory_ratio")),
        ("inference, `dognext_atto` reparameterized / timm's `convnextv2_atto`", "≤ 1.0",
         lambda r: _step(r, FOLDED, "inference_time_ratio")),
        ("kernel sampling, share of a training step", "≤ 2%",
         lambda r: _step(r, DOGNEXT, "sampling_share", shape="{:.1%}")),
        *(
            (f"epoch of `dogmed finetune` / plain loop, `{model}`", "≤ 0.9, GPU ≤ 0.2",
             lambda r, model=model: _epoch(r, model))
            for model in (DOGNEXT, REFERENCE, "resnet18")
        ),
        ("what the harness adds to a step", "≤ 0.1 ms",
         lambda r: "{added_ms:.3f} ms".format(**r["overhead"])),
        ("preparing a 2 GB npz, memory above the interpreter", "≤ 300 MB",
         lambda r: f"{max(row['peak_mb'] for row in r['prepare']):.0f} MB"),
        *(
            (f"preparing it, speed beside `unzip`, {packing}", "≥ 60%",
             lambda r, packing=packing: _prepare(r, packing))
            for packing in ("stored", "deflated")
        ),
        ("`dogmed --help` (Python alone)", "",
         lambda r: "{dogmed --help:.3f} s ({python:.3f} s)".format(**r["startup"])),
    ]  # fmt: skip
    lines = ["| at 224 px | goal | CPU | GPU |", "|---|--:|--:|--:|"]
    for title, goal, cell in rows:
        cells = [_try(cell, result) for result in (cpu, cuda)]
        lines.append(f"| {title} | {goal} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def details(result: Result) -> str:
    """All that was measured on one machine."""
    parts = []
    if "train_step" in result:
        parts.append(_table(result["train_step"], STEP_COLUMNS))
    if "epoch" in result:
        parts.append(_table(result["epoch"], EPOCH_COLUMNS))
    if "ceilings" in result:
        ceilings = result["ceilings"]
        parts.append(
            f"Ceilings: copy {ceilings['copy_gb_s']:.1f} GB/s (read and written), products "
            f"{ceilings['matmul_gflops']:,.0f} GFLOP/s.\n\n"
            + _table(ceilings["rows"], CEILING_COLUMNS)
        )
    if "overhead" in result:
        parts.append(
            "A step of the trivial model: {bare_ms:.3f} ms bare; the harness adds {added_ms:.3f} ms "
            "(rounds from {added_ms_least:.3f} to {added_ms_most:.3f}).".format(
                **result["overhead"]
            )
        )
    if "prepare" in result:
        parts.append(_table(result["prepare"], PREPARE_COLUMNS))
    if "allocator" in result:
        parts.append(_table(result["allocator"], ALLOCATOR_COLUMNS))
    if "startup" in result:
        times = ", ".join(f"`{name}` {value:.3f} s" for name, value in result["startup"].items())
        parts.append(f"Start-up: {times}.")
    return "\n\n".join(parts)


Columns = Mapping[str, tuple[str, str]]

STEP_COLUMNS: Columns = {
    "size": ("px", "{}"),
    "compiled": ("compiled", "{}"),
    "model": ("model", "{}"),
    "train_images_per_s": ("train, img/s", "{:.1f}"),
    "train_time_ratio": ("time ratio", "{:.2f}"),
    "train_processor_ratio": ("processor ratio", "{:.2f}"),
    "train_peak_mb": ("peak MB", "{:.0f}"),
    "train_memory_ratio": ("memory ratio", "{:.2f}"),
    "inference_images_per_s": ("inference, img/s", "{:.1f}"),
    "inference_time_ratio": ("time ratio", "{:.2f}"),
    "inference_processor_ratio": ("processor ratio", "{:.2f}"),
    "sampling_share": ("kernel sampling", "{:.1%}"),
}
EPOCH_COLUMNS: Columns = {
    "model": ("model", "{}"),
    "batch": ("batch", "{}"),
    "dogmed_s": ("`dogmed finetune`, s an epoch", "{:.2f}"),
    "plain_s": ("plain loop, s an epoch", "{:.2f}"),
    "time_ratio": ("ratio", "{:.2f}"),
}
CEILING_COLUMNS: Columns = {
    "model": ("model", "{}"),
    "size": ("px", "{}"),
    "gflop": ("GFLOP a step", "{:.1f}"),
    "gb": ("GB a step", "{:.2f}"),
    "achieved_gflops": ("GFLOP/s", "{:,.0f}"),
    "achieved_gb_s": ("GB/s", "{:.1f}"),
    "bound_by": ("bound by", "{}"),
    "share": ("share of the limit", "{:.0%}"),
}
PREPARE_COLUMNS: Columns = {
    "packing": ("npz", "{}"),
    "pixels_gb": ("pixels, GB", "{:.2f}"),
    "file_gb": ("file, GB", "{:.2f}"),
    "dogmed_s": ("dogmed, s", "{:.1f}"),
    "unzip_s": ("unzip, s", "{:.1f}"),
    "speed_ratio": ("speed beside unzip", "{:.0%}"),
    "peak_mb": ("peak MB above the interpreter", "{:.0f}"),
}
ALLOCATOR_COLUMNS: Columns = {
    "model": ("model", "{}"),
    "size": ("px", "{}"),
    "default_s": ("train step, s", "{:.3f}"),
    "kept_s": ("freed memory kept, s", "{:.3f}"),
    "time_ratio": ("time ratio", "{:.2f}"),
    "memory_ratio": ("peak memory ratio", "{:.2f}"),
}


def _table(rows: Sequence[Result], columns: Columns) -> str:
    used = {name: how for name, how in columns.items() if any(name in row for row in rows)}
    lines = ["| " + " | ".join(title for title, _ in used.values()) + " |"]
    lines.append("|" + "".join("---|" if n in ("model", "npz") else "--:|" for n in used))
    for row in rows:
        cells = [shape.format(row[n]) if n in row else "" for n, (_, shape) in used.items()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _try(cell: Any, result: Result | None) -> str:
    """A cell, or that it was not measured."""
    try:
        return NOT_MEASURED if result is None else cell(result)
    except (KeyError, StopIteration):
        return NOT_MEASURED


def _row(result: Result, model: str, compiled: bool) -> Result:
    return next(
        row
        for row in result["train_step"]
        if (row["model"], row["size"], row["compiled"]) == (model, 224, compiled)
    )


def _step(
    result: Result, model: str, column: str, compiled: bool = False, shape: str = "{:.2f}"
) -> str:
    return shape.format(_row(result, model, compiled)[column])


def _against_fast_grn(result: Result) -> str:
    ours, theirs = (_row(result, name, False)["train_images_per_s"] for name in (DOGNEXT, FAST_GRN))
    return f"{theirs / ours:.2f}"


def _epoch(result: Result, model: str) -> str:
    return "{time_ratio:.2f}".format(**next(r for r in result["epoch"] if r["model"] == model))


def _prepare(result: Result, packing: str) -> str:
    row = next(r for r in result["prepare"] if r["packing"] == packing)
    return f"{row['speed_ratio']:.0%}"

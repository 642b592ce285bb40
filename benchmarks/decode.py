"""Images a second that one worker decodes and augments: full, reduced and packed.

    python -m benchmarks.decode --data DIR --sizes 224 128 --json decode.json

DIR holds full-size JPEGs as ``dogmed pretrain`` takes them. They are packed into a temporary folder first.
The worker's own code runs in this process, on files that are in memory after the first round; what
is compared takes turns, round by round, and figures are those of the median round. ``difference`` is
the mean absolute difference, in grey levels, of the crops from the same crops of fully decoded images.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from benchmarks.timing import median, rounds
from dogmed import config
from dogmed.pretrain.images import ImageSet, load_rgb, open_image, open_images
from dogmed.pretrain.loader import Decoder
from dogmed.pretrain.pack import pack
from dogmed.pretrain.transforms import Decode, TrainTransform, train_transform

COLUMNS = ("decode", "crop", "all")
HEADINGS = (
    "size", "images", "decoding", "kB", "read + decode", "+ crop, flip", "+ RandAugment, erasing",
    "difference",
)  # fmt: skip


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with train and val")
    parser.add_argument("--sizes", type=int, nargs="+", default=[224], help="sides of the crops")
    parser.add_argument("--short-side", type=int, default=256, help="of the packed images")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        sets = {"as they are": open_images(args.data, "train")}
        sets[f"packed, {args.short_side} px"] = packed(args.data, args.short_side, Path(folder))
        rows = [row for size in args.sizes for row in measure(sets, size, args.rounds)]
    print(table(rows))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


def packed(data: Path, short_side: int, folder: Path) -> ImageSet:
    """Pack the images; returns train."""
    with contextlib.redirect_stdout(io.StringIO()):
        pack(
            data=data, out=folder / "packed", short_side=short_side, quality=90, shard_mb=500,
            workers=0, max_bad=1.0, cache_dir=folder,
        )  # fmt: skip
    return open_images(folder / "packed", "train", cache_dir=folder)


def measure(sets: dict[str, ImageSet], size: int, count: int) -> list[dict[str, Any]]:
    """One row for each set and way of decoding: images a second and the difference."""
    candidates, rows = {}, []
    for name, images in sets.items():
        kilobytes = float(np.mean([len(images.read(i)) for i in range(len(images))])) / 1000
        crops = {}
        for decode in ("full", "reduced"):
            crop = Decoder(images, augment(size, decode, False), seed=0, train=True, max_bad=0)
            everything = Decoder(images, augment(size, decode, True), seed=0, train=True, max_bad=0)
            task = (0, np.arange(len(images)))
            if decode == "full":
                candidates[name, decode, "decode"] = lambda images=images: decode_all(images)
            candidates[name, decode, "crop"] = lambda d=crop, task=task: d[task]
            candidates[name, decode, "all"] = lambda d=everything, task=task: d[task]
            crops[decode] = crop[task]["image"].float()
            difference = float((crops[decode] - crops["full"]).abs().mean())
            rows.append({
                "size": size, "images": name, "decode": decode, "kilobytes": kilobytes,
                "difference": difference, "count": len(images),
            })  # fmt: skip
    seconds = rounds({" ".join(key): run for key, run in candidates.items()}, "cpu", count, 1)
    for row in rows:
        for column in COLUMNS:
            key = f"{row['images']} {row['decode']} {column}"
            row[f"{column}_per_second"] = (
                row["count"] / median(seconds, key) if key in seconds else None
            )
    return rows


def decode_all(images: ImageSet) -> None:
    """Read and decode every image fully."""
    for i in range(len(images)):
        load_rgb(open_image(images.read(i)))


def augment(size: int, decode: Decode, everything: bool) -> TrainTransform:
    """The transforms of the recipe imagenet50ep, or their crop and flip alone."""
    values = config.recipe("pretrain/imagenet50ep")["augment"]
    return train_transform(
        size, mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD, decode=decode,
        scale=values["crop_scale"], ratio=values["crop_ratio"],
        interpolation=values["interpolation"], hflip=values["hflip"], color_jitter=None,
        auto_augment=values["auto_augment"] if everything else None,
        re_prob=values["erase"] if everything else 0.0, re_mode=values["erase_mode"],
        re_count=values["erase_count"],
    )  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown; images a second of one worker."""
    lines = [HEADINGS, ("---:", "---", "---", *("---:" for _ in HEADINGS[3:]))]
    for row in rows:
        speeds = [row[f"{column}_per_second"] for column in COLUMNS]
        lines.append((
            f"{row['size']}", row["images"], row["decode"], f"{row['kilobytes']:.0f}",
            *("" if speed is None else f"{speed:.0f}" for speed in speeds), f"{row['difference']:.2f}",
        ))  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()

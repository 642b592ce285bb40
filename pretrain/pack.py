"""``dogmed pretrain pack``: re-encode ImageNet once, to smaller JPEGs in tar shards.

An average ImageNet JPEG has 400 x 350 pixels or more, of which a 224 px crop throws most away; decoding
them is what starves a fast GPU. Packed with a short side of 256 they decode in a fraction of the
time, from files that are read in large pieces. The price: a crop that took little of the image is
enlarged from fewer pixels, and JPEG's losses are there twice. Images that are small already
are copied byte for byte. Train is written shuffled, for readers that stream; ``info.json`` is what
timm's reader (``wds/``) expects. The same input, settings and library versions give the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import os
import signal
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import numpy as np
import PIL
from annotated_types import Ge, Gt, Le
from PIL import Image

from dogmed.config import configclass
from dogmed.data.progress import Console, human
from dogmed.data.request import default_cache_dir
from dogmed.data.writer import free_space, locked, read_json, write_json
from dogmed.errors import DataError, Interrupted
from dogmed.pretrain.class_folders import FolderSource
from dogmed.pretrain.images import ImageError, ImageSet, load_rgb, open_image, open_splits
from dogmed.pretrain.names import Names, shuffled

_KEPT = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}  # formats copied as they are when small
_MARGIN = 64 << 20  # bytes of disk left free
_SAMPLE = 32  # images encoded to foretell the size
_AHEAD = 16  # images each worker encodes in advance
_STATE = "pack.json"  # what is done, while it is not all done
_ORDER_SEED = 0  # of the shuffle


@configclass
class PackConfig:
    """Re-encode train and val to tar shards that decode faster."""

    data: Path
    """Folder with train and val: class folders, tar shards or parquet files."""
    out: Path
    """New folder for the shards."""
    short_side: Annotated[int, Gt(0), Le(16_384)] = 256
    """Pixels of the shorter side; smaller images are copied as they are."""
    quality: Annotated[int, Ge(1), Le(95)] = 90
    """JPEG quality of what is re-encoded."""
    shard_mb: Annotated[int, Gt(0), Le(1_000_000)] = 500
    """Megabytes after which a shard is closed."""
    workers: Annotated[int, Ge(0), Le(1024)] | None = None
    """Processes that encode; None is one per processor."""
    max_bad: Annotated[float, Ge(0), Le(1)] = 0.001
    """Share of unreadable images that is left out (and named in info.json); more is an error."""
    cache_dir: Path | None = None
    """Where indices of tar shards go; None is the user's cache folder."""


def pack(
    *,
    data: Path,
    out: Path,
    short_side: int,
    quality: int,
    shard_mb: int,
    workers: int | None,
    max_bad: float,
    cache_dir: Path | None,
) -> None:
    """Run ``dogmed pretrain pack``; a killed one goes on after its last finished shard.

    Raises:
        DataError: the data cannot be used, ``out`` holds something else, the disk is too small, or
            too many images are unreadable.
    """
    progress = Console()
    cache_dir = default_cache_dir() if cache_dir is None else cache_dir
    splits = open_splits(data, cache_dir=cache_dir, progress=progress)
    _refuse_inside(out, splits)
    settings = {"short_side": short_side, "quality": quality, "shard_mb": shard_mb}
    state: dict[str, Any] = {
        "settings": settings,
        "source": [_fingerprint(images) for images in splits],
        "splits": {images.split: {"shards": [], "left_out": {}} for images in splits},
    }
    place = hashlib.sha256(os.fsencode(out.resolve())).hexdigest()[:24]
    with locked(cache_dir, f"pack-{place}", progress):
        found = _open_out(out, state)
        if found is None:
            print(f"{out} is packed already, with these settings from these images")
            return
        for images in splits:
            _require_space(images, out, found, short_side, quality)
        print(f"packing {', '.join(f'{len(i):,} {i.split}' for i in splits)} images into {out}")
        with _stoppable():
            for images in splits:
                _pack_split(images, out, found, workers=workers, max_bad=max_bad)
        write_json(out / "info.json", _info(splits[0].classes, found))
        (out / _STATE).unlink(missing_ok=True)
    left_out = sum(len(split["left_out"]) for split in found["splits"].values())
    print(
        f"done{f'; {left_out} unreadable images left out, see info.json' if left_out else ''}: {out}"
    )


def encode(data: bytes, short_side: int, quality: int) -> tuple[str, bytes]:
    """A file's suffix and bytes in a shard: copied if small, else resized (bicubic) and re-encoded.

    Raises:
        ImageError: it cannot be decoded.
    """
    image = open_image(data)
    width, height = image.size
    suffix = _KEPT.get(image.format or "")
    rgb = load_rgb(image)  # small ones too: a truncated file is found here
    if min(width, height) <= short_side and suffix is not None:
        return suffix, data
    shrink = min(1.0, short_side / min(width, height))
    size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
    stream = io.BytesIO()
    rgb.resize(size, Image.Resampling.BICUBIC).save(stream, "JPEG", quality=quality)
    return "jpg", stream.getvalue()


class Encoder:
    """What a worker runs: index -> (suffix, bytes), or ("", the reason) for an unreadable image."""

    def __init__(self, images: ImageSet, short_side: int, quality: int):
        self.images, self.short_side, self.quality = images, short_side, quality

    def __getitem__(self, i: int) -> tuple[str, bytes]:
        try:
            return encode(self.images.read(i), self.short_side, self.quality)
        except (ImageError, OSError) as error:
            return "", " ".join(str(error).split()).encode()


def _pack_split(
    images: ImageSet, out: Path, state: dict[str, Any], *, workers: int | None, max_bad: float
) -> None:
    """Write the shards of a split that are missing."""
    from torch.utils.data import DataLoader
    from tqdm import tqdm

    from dogmed.pretrain.loader import ready_worker, worker_errors

    settings, done = state["settings"], state["splits"][images.split]
    workers = _processors() if workers is None else workers
    keys, order = _keys(images), _order(images)
    position = sum(shard["read"] for shard in done["shards"])
    encoded: Any = DataLoader(
        Encoder(images, settings["short_side"], settings["quality"]),  # type: ignore[arg-type]
        batch_size=None,
        sampler=order[position:].tolist(),
        num_workers=workers,
        prefetch_factor=_AHEAD if workers else None,
        collate_fn=_as_it_is,
        worker_init_fn=ready_worker,
    )
    bar = tqdm(total=len(order), initial=position, desc=images.split, unit="img", disable=None)
    with worker_errors(), bar:
        stream = iter(encoded)
        while position < len(order):
            name = f"{images.split}-{len(done['shards']):06d}.tar"
            left_out = dict(done["left_out"])
            with _new_shard(out / name) as tar:
                first, samples = position, 0
                while position < len(order) and tar.offset < settings["shard_mb"] * 1_000_000:
                    i, (suffix, content) = int(order[position]), next(stream)
                    position += 1
                    bar.update()
                    if suffix:
                        _add(tar, f"{keys[i]}.{suffix}", content)
                        _add(tar, f"{keys[i]}.cls", str(images.labels[i]).encode())
                        samples += 1
                    else:
                        left_out[images.name(i)] = content.decode()
                        _check_bad(left_out, images, max_bad)
            shard = {"name": name, "samples": samples, "read": position - first}
            done["shards"].append(shard)
            done["left_out"] = left_out
            write_json(out / _STATE, state)
            size = human((out / name).stat().st_size)
            tqdm.write(f"{name}: {samples:,} images, {size} ({position:,} of {len(order):,} done)")


def _refuse_inside(out: Path, splits: tuple[ImageSet, ImageSet]) -> None:
    """Keep the shards out of the class folders: they would be taken for a class, or its images."""
    for images in splits:
        source, place = images.source, out.resolve()
        if isinstance(source, FolderSource) and source.folder.resolve() in (place, *place.parents):
            raise DataError(
                f"--out {out} lies in {source.folder}, among the images of {images.split}: give a "
                "folder elsewhere"
            )


def _open_out(out: Path, fresh: dict[str, Any]) -> dict[str, Any] | None:
    """The state to go on from; None when all is done. Raises DataError unless ``out`` is ours or empty."""
    info = read_json(out / "info.json")
    held = read_json(out / _STATE) if info is None else info.get("dogmed_pack")
    if held is None:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"--out {out}: cannot be created ({error.strerror})") from error
        if any(p for p in out.iterdir() if p.suffix != ".part"):
            raise DataError(f"--out {out} is not empty; give a new folder")
        return fresh
    for key, what in (("settings", "other settings"), ("source", "other images")):
        if held.get(key) != fresh[key]:
            detail = f": {_differing(held.get(key), fresh[key])}" if key == "settings" else ""
            raise DataError(f"--out {out} holds a pack with {what}{detail}; give another folder")
    missing = [
        shard["name"]
        for split in held["splits"].values()
        for shard in split["shards"]
        if not (out / shard["name"]).is_file()
    ]
    if missing:
        raise DataError(f"--out {out}: {missing[0]} has been removed; give a new folder")
    return None if info is not None else held


def _differing(held: Any, wanted: dict[str, Any]) -> str:
    held = held if isinstance(held, dict) else {}
    return ", ".join(
        f"{key} {held.get(key)}, not {value}"
        for key, value in wanted.items()
        if held.get(key) != value
    )


def _require_space(
    images: ImageSet, out: Path, state: dict[str, Any], short_side: int, quality: int
) -> None:
    """Foretell the size from a sample; DataError when the disk is too small."""
    position = sum(shard["read"] for shard in state["splits"][images.split]["shards"])
    rest = _order(images)[position:]
    if not len(rest):
        return
    encoder = Encoder(images, short_side, quality)
    sample = [encoder[int(i)] for i in rest[:: max(1, len(rest) // _SAMPLE)]]
    sizes = [tarfile.BLOCKSIZE * 4 + len(content) for suffix, content in sample if suffix]
    needed = int(np.mean(sizes or [0]) * len(rest) * 1.05) + _MARGIN
    free = free_space(out)
    if free < needed:
        raise DataError(
            f"{len(rest):,} images of {images.split} need about {human(needed)} of disk, {human(free)} "
            f"are free at {out}; free some, choose another disk with --out, or lower --short-side"
        )


def _order(images: ImageSet) -> np.ndarray:
    n = len(images)
    return shuffled(n, _ORDER_SEED) if images.split == "train" else np.arange(n)


def _keys(images: ImageSet) -> Names:
    """webdataset keys: the names without suffix; a dot would end a key."""
    paths = (PurePosixPath(images.name(i)) for i in range(len(images)))
    keys = [str(path.with_name(path.stem.replace(".", "_"))) for path in paths]
    if len(set(keys)) < len(keys):
        keys = [f"{key}-{i:08d}" for i, key in enumerate(keys)]
    return Names.pack(keys)


def _fingerprint(images: ImageSet) -> str:
    """Names and labels; the content of a million files is not read for it."""
    digest = hashlib.sha256("\0".join(images.classes).encode("utf-8", "surrogateescape"))
    digest.update(np.ascontiguousarray(images.labels).tobytes())
    digest.update(images.source.names.characters.tobytes())
    return digest.hexdigest()


@contextmanager
def _new_shard(path: Path) -> Iterator[tarfile.TarFile]:
    """A tar that is in place only when whole."""
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            with tarfile.open(fileobj=file, mode="w") as tar:
                yield tar
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror}); free some disk") from error
    finally:
        part.unlink(missing_ok=True)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a member without time, owner or any other trace of when and where it was written."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
    tar.members = []  # it would keep them all


def _check_bad(left_out: dict[str, str], images: ImageSet, max_bad: float) -> None:
    if len(left_out) > max_bad * len(images):
        some = "; ".join(f"{name} ({why})" for name, why in list(left_out.items())[:3])
        raise DataError(
            f"{len(left_out)} of {len(images)} images of {images.split} cannot be read, more than "
            f"--max-bad {max_bad:g} allows: {some}"
        )


def _info(classes: tuple[str, ...], state: dict[str, Any]) -> dict[str, Any]:
    """What timm's reader wants to know, the classes' names, and how it was made."""
    splits = {
        name: {
            "name": name,
            "num_samples": sum(shard["samples"] for shard in split["shards"]),
            "filenames": [shard["name"] for shard in split["shards"]],
            "shard_lengths": [shard["samples"] for shard in split["shards"]],
        }
        for name, split in state["splits"].items()
    }
    made = {**state, "pillow": PIL.__version__}
    return {"splits": splits, "classes": list(classes), "dogmed_pack": made}


@contextmanager
def _stoppable() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        message = "stopped; the same command goes on after the last finished shard"
        raise Interrupted(message, signal.SIGINT) from None


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _as_it_is(item: Any) -> Any:
    return item

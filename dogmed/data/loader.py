"""Batches: memory-mapped uint8 to normalised float on the device, in an order that can be repeated.

Pixels stay uint8 until they are on the device; where a split fits there it stays there. Shuffling,
flips, grey to RGB and normalisation run per batch on the device, not per image in worker processes.
The order and the flips of an epoch depend on (seed, epoch) alone and are drawn on the CPU, so every
device, cache and number of processes sees the same global batches.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch

from dogmed.data.progress import human
from dogmed.errors import ConfigError, DataError, nearest

Cache = Literal["auto", "device", "ram", "disk"]
_AHEAD = 2  # batches gathered in advance
_SHARE = 0.5  # of the free memory that ``auto`` may fill with images
_COPY_BYTES = 64 << 20  # read at a time while a split is made resident
T = TypeVar("T")


class Batches:
    """The batches of one split, on a device.

    ``images`` is (N, H, W) or (N, H, W, 3) uint8, often memory-mapped; ``labels`` (N, L) integers.
    ``mean`` and ``std`` are per RGB channel on the scale 0..1; ``hflip`` is the probability of a
    horizontal flip in training. ``batch_size`` counts the images of all ``world_size`` processes
    together: rank r gets every world_size-th image of each batch, from the r-th on. ``indices``
    restricts to a part of the split.

    In training the order is shuffled, and a last, smaller batch is left out when it would give a
    process fewer than two images. In evaluation the order is 0..N-1 without flips,
    and a process may have one batch fewer than another, never an empty one.

    Iterating yields dicts of ``image`` (B, 3, H, W) float32 channels_last and ``label`` (B, L)
    int64 on the device, and ``index`` (B,) int64 on the CPU: the image's place in the split.
    ``cache_used`` says where the pixels are kept and ``resident_bytes`` how many there are.

    Raises ConfigError for arguments that do not fit, DataError when the cache asked for is too big.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        *,
        batch_size: int,
        device: torch.device | str,
        train: bool,
        mean: Sequence[float],
        std: Sequence[float],
        cache: Cache = "auto",
        seed: int = 0,
        hflip: float = 0.5,
        rank: int = 0,
        world_size: int = 1,
        indices: np.ndarray | None = None,
    ):
        if batch_size < world_size or not 0 <= rank < world_size:
            raise ConfigError(
                f"batch size {batch_size} cannot be shared by {world_size} processes "
                f"(rank {rank}); "
                f"raise --batch-size to at least {world_size}"
            )
        assert images.dtype == np.uint8 and images.ndim in (3, 4) and len(images) == len(labels)
        self.device = torch.device(device)
        self.batch_size, self.train, self.seed, self.hflip = batch_size, train, seed, hflip
        self.rank, self.world_size = rank, world_size
        self.epoch = self.start_step = 0
        if indices is None:
            indices = np.arange(len(images))
        self.index = torch.from_numpy(np.asarray(indices, dtype=np.int64))
        self.labels = torch.from_numpy(labels[indices].astype(np.int64)).to(self.device)
        scale = torch.tensor([1 / (255 * s) for s in std], dtype=torch.float32)
        shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], dtype=torch.float32)
        width = images.shape[2]  # of a row of pixels, so that rows are normalised whole
        self._scale = scale.to(self.device).repeat(width)
        self._shift = shift.to(self.device).repeat(width)
        self._keep(images, indices, cache)

    def _keep(self, images: np.ndarray, indices: np.ndarray, cache: Cache) -> None:
        """Choose where the pixels live and bring them there."""
        needed = int(np.prod(images.shape[1:])) * len(indices)
        self.cache_used = choose_cache(cache, needed, self.device, self.world_size)
        self.resident_bytes = 0 if self.cache_used == "disk" else needed
        self._images: np.ndarray | torch.Tensor = images
        if self.cache_used == "disk":
            return
        place = self.device if self.cache_used == "device" else torch.device("cpu")
        kept = torch.empty((len(indices), *images.shape[1:]), dtype=torch.uint8, device=place)
        rows = max(1, _COPY_BYTES // max(1, needed // max(1, len(indices))))
        for start in range(0, len(indices), rows):
            part = np.asarray(images[indices[start : start + rows]])
            kept[start : start + len(part)] = torch.from_numpy(part).to(place)
        self._images = kept

    def __len__(self) -> int:
        """Batches of a whole epoch on this rank (also when ``start_step`` leaves some out)."""
        if self.train:
            return train_steps(len(self.index), self.batch_size, self.world_size)
        full, rest = divmod(len(self.index), self.batch_size)
        return full + int(rest > self.rank)

    def set_epoch(self, epoch: int, start_step: int = 0) -> None:
        """Choose the epoch to iterate next, and the step to start from (to resume within it)."""
        self.epoch, self.start_step = epoch, start_step

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        order, flips = self._draw()
        steps = range(self.start_step, len(self))
        positions = (self._of_rank(order, step) for step in steps)
        if self.cache_used == "device":
            gathered: Iterator[Any] = ((p, self._take_resident(p)) for p in positions)
        elif self.device.type == "cuda":
            gathered = ahead(((p, self._take(p).pin_memory()) for p in positions), _AHEAD)
        else:
            gathered = ((p, self._take(p)) for p in positions)
        for p, raw in gathered:
            raw = raw.to(self.device, non_blocking=True)
            flipped = None
            if flips is not None:  # found on the CPU, so that the device need not wait
                flipped = flips[p].nonzero()[:, 0].to(self.device, non_blocking=True)
            yield {
                "image": self.to_network(raw, flipped),
                "label": self.labels[p.to(self.device, non_blocking=True)],
                "index": self.index[p],
            }

    def _draw(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """This epoch's order of positions, and which positions are flipped."""
        n = len(self.index)
        if not self.train:
            return torch.arange(n), None
        state = np.random.SeedSequence((self.seed, self.epoch)).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(state[0] >> 1))
        order = torch.randperm(n, generator=generator)
        return order, torch.rand(n, generator=generator) < self.hflip

    def _of_rank(self, order: torch.Tensor, step: int) -> torch.Tensor:
        batch = order[step * self.batch_size : (step + 1) * self.batch_size]
        return batch[self.rank :: self.world_size]

    def _take_resident(self, positions: torch.Tensor) -> torch.Tensor:
        assert isinstance(self._images, torch.Tensor)
        return self._images.index_select(0, positions.to(self._images.device, non_blocking=True))

    def _take(self, positions: torch.Tensor) -> torch.Tensor:
        """Pixels of a batch from RAM or disk."""
        if isinstance(self._images, torch.Tensor):
            return self._take_resident(positions)
        return torch.from_numpy(np.asarray(self._images[self.index[positions].numpy()]))

    def to_network(self, raw: torch.Tensor, flipped: torch.Tensor | None) -> torch.Tensor:
        """uint8 (B, H, W[, 3]) -> float32 (B, 3, H, W) channels_last, rows ``flipped`` mirrored.

        ``raw`` is used up: the flips are done in it.
        """
        if flipped is not None:
            raw.index_copy_(0, flipped, raw.index_select(0, flipped).flip(2))
        if raw.ndim == 3:
            raw = raw.unsqueeze(-1).expand(-1, -1, -1, 3)  # (B, H, W) -> (B, H, W, 3)
        b, h, w, c = raw.shape
        x = raw.reshape(b, h, w * c).float()  # long rows: three times as fast on a CPU
        x = x.mul_(self._scale).add_(self._shift)
        return x.view(b, h, w, c).permute(0, 3, 1, 2)  # (B, 3, H, W), channels_last in memory


def train_steps(images: int, batch_size: int, world_size: int = 1) -> int:
    """Steps of a training epoch: a last batch that leaves a process under two images is left out."""
    full, rest = divmod(images, batch_size)
    return full + int(rest >= 2 * world_size or (rest > 0 and full == 0))


def choose_cache(
    cache: Cache, needed: int, device: torch.device, world_size: int
) -> Literal["device", "ram", "disk"]:
    """Where ``needed`` bytes of pixels are to live; on a CPU "device" and "ram" are the same.

    ``auto`` takes the device, else the RAM, if the pixels fill at most half of what is free there.
    """
    if cache not in get_args(Cache):
        raise ConfigError(
            f"unknown cache '{cache}'{nearest(cache, get_args(Cache))}; expected auto, "
            "device, ram or disk"
        )
    if cache == "disk":
        return "disk"
    on_cuda = device.type == "cuda"
    for place in ("device", "ram") if on_cuda else ("ram",):
        if cache not in ("auto", place) and on_cuda:
            continue
        free = torch.cuda.mem_get_info(device)[0] if place == "device" else _free_ram()
        wanted = needed if place == "device" else needed * world_size  # each process keeps its own
        if wanted <= free * (_SHARE if cache == "auto" else 0.9):
            return "device" if place == "device" or cache == "device" else "ram"
        if cache != "auto":
            smaller = "ram or disk" if place == "device" else "disk"
            raise DataError(
                f"--cache {cache} needs {human(wanted)} for the images, {human(free)} are free; "
                f"use --cache {smaller}, or auto"
            )
    return "disk"


def _free_ram() -> int:
    import psutil

    return int(psutil.virtual_memory().available)


def ahead(items: Iterator[T], depth: int) -> Iterator[T]:
    """``items``, computed up to ``depth`` in advance by a thread.

    An exception of ``items`` is raised here; the thread ends when this iterator is closed.
    """
    done = object()
    ready: queue.Queue[Any] = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def put(item: Any) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put((item, None)):
                    return
            put((done, None))
        except BaseException as error:  # handed to the consumer, who raises it
            put((done, error))

    thread = threading.Thread(target=work, name="dogmed-batches", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is done:
                return
            yield item
    finally:
        stop.set()
        thread.join()


def stratified_fraction(labels: np.ndarray, fraction: float, seed: int, kind: str) -> np.ndarray:
    """Sorted indices of about ``fraction`` of the rows of ``labels`` (N, L), class by class.

    Every class keeps its share and at least one image (multi-label: every label that occurs keeps
    at least one positive). With one column, a smaller fraction is a part of a larger one of the
    same seed. Raises ConfigError unless 0 < fraction <= 1.
    """
    if not 0 < fraction <= 1:
        raise ConfigError(f"train fraction is {fraction}, expected more than 0 and at most 1")
    if fraction == 1:
        return np.arange(len(labels))
    rng = np.random.default_rng(seed)
    if kind != "multi-label":
        chosen = []
        for label in np.unique(labels[:, 0]):
            rows = rng.permutation(np.flatnonzero(labels[:, 0] == label))
            chosen.append(rows[: max(1, round(fraction * len(rows)))])
        return np.sort(np.concatenate(chosen))
    # Systematic sampling along the images sorted by their combination of labels.
    shuffled = rng.permutation(len(labels))
    ordered = shuffled[np.lexsort(labels[shuffled].T)]
    count = max(1, round(fraction * len(labels)))
    taken = set(ordered[((np.arange(count) + rng.random()) * len(labels) / count).astype(np.int64)])
    for column in labels.T:
        positives = np.flatnonzero(column)
        if len(positives) and taken.isdisjoint(positives):
            taken.add(rng.choice(positives))
    return np.array(sorted(taken), dtype=np.int64)

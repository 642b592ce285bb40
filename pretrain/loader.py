"""Batches of ImageNet: decoded and augmented by worker processes, in an order that can be repeated.

Rules that everything here serves: the order of an epoch depends on (seed, epoch) alone and is cut into
global batches, of which rank r of W takes ``batch[r::W]``; what is random about an image depends
on (seed, epoch, its position in the data set) alone. So neither the number of workers, nor of
processes, nor a stop and a resume within an epoch changes any pixel of the run. Workers decode chunks of
a few images, so that no batch waits for one of them and little shared memory is needed.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from dogmed.console import STOPS
from dogmed.errors import ConfigError, DataError, TrainingError
from dogmed.pretrain.images import ImageError, ImageSet, open_image
from dogmed.pretrain.names import shuffled
from dogmed.pretrain.transforms import Pixels, Transform, generators_kept, seed_image

_CHUNK = 32  # images a worker decodes for one answer
_AHEAD = 4  # chunks each worker prepares in advance: 20 MB of shared memory at 224 px


Batch = dict[str, torch.Tensor]
Task = tuple[int, np.ndarray]  # epoch, indices into the image set


class ImageBatches:
    """The batches of one image set on a device.

    Iterating yields, for each step, this rank's share of the global batch as a list of micro-batches:
    dicts of ``image`` (b, 3, H, W) float32 channels_last, normalised, and ``label`` (b,) int64 on the
    device, and ``index`` (b,) int64 on the CPU, the image's position in the whole split.

    In training a last, partial global batch is left out, and an unreadable image is replaced by
    the next readable one of the set. In evaluation the order is 0..N-1, nothing is left out or
    repeated except unreadable images, which cannot be scored; a rank's list may be empty.

    Args:
        images: what to load.
        transform: from a file to pixels.
        batch_size: images of a step, of all processes together.
        micro_batch: most images at once; None takes this rank's whole share.
        device: where batches go.
        train: shuffle, and seed each image's random numbers.
        seed: of the order and the random numbers.
        workers: processes that decode; 0 decodes in this one.
        max_bad_share: share of the images that may be unreadable.
        rank: of this process.
        world_size: number of processes.

    Attributes:
        wait_seconds: time spent waiting for decoded images since construction.
        bad: names of the unreadable images met so far by this rank, and why.

    Raises:
        ConfigError: there is no whole batch, or not an image for every process.
        DataError: (iterating) more images are unreadable than ``max_bad_share`` allows.
        TrainingError: (iterating) a worker died, or a transform failed.
    """

    def __init__(
        self,
        images: ImageSet,
        transform: Transform,
        *,
        batch_size: int,
        micro_batch: int | None,
        device: torch.device | str,
        train: bool,
        seed: int,
        workers: int,
        max_bad_share: float,
        rank: int = 0,
        world_size: int = 1,
    ):
        if batch_size < world_size or not 0 <= rank < world_size:
            raise ConfigError(
                f"batch size {batch_size} cannot be shared by {world_size} processes "
                f"(rank {rank}); raise --batch-size to at least {world_size}"
            )
        if train and len(images) < batch_size:
            raise ConfigError(
                f"batch size {batch_size} is more than the {len(images)} training images; "
                f"lower --batch-size to at most {len(images)}"
            )
        self.images, self.transform, self.device = images, transform, torch.device(device)
        self.batch_size, self.micro_batch = batch_size, micro_batch
        self.train, self.seed, self.rank, self.world_size = train, seed, rank, world_size
        self.epoch = self.start_step = 0
        self.wait_seconds = 0.0
        self.bad: dict[str, str] = {}
        self._max_bad = max_bad_share * len(images)
        self._tasks: list[Task] = []
        self._loader: DataLoader[Any] = DataLoader(
            Decoder(images, transform, seed=seed, train=train, max_bad=self._max_bad),
            batch_size=None,
            sampler=self._tasks,
            num_workers=workers,
            collate_fn=_as_it_is,
            worker_init_fn=ready_worker,
            prefetch_factor=_AHEAD if workers else None,
            persistent_workers=workers > 0,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # its own: the global one is the run's
        )
        width = transform.size
        self._mean = (
            torch.tensor(transform.mean).repeat(width).to(self.device)
        )  # a whole row of pixels
        self._std = torch.tensor(transform.std).repeat(width).to(self.device)

    def __len__(self) -> int:
        """Steps of a whole epoch, the same on every rank (also when ``start_step`` leaves some out)."""
        full, rest = divmod(len(self.images), self.batch_size)
        return full if self.train else full + bool(rest)

    def set_epoch(self, epoch: int, start_step: int = 0) -> None:
        """Choose the epoch to iterate next, and the step to start from (to resume within it)."""
        self.epoch, self.start_step = epoch, start_step

    def __iter__(self) -> Iterator[list[Batch]]:
        steps = [self._of_rank(order) for order in self._global_batches()]
        self._tasks[:] = [
            (self.epoch, chunk) for step in steps for micro in step for chunk in micro
        ]
        workers_start = self._loader._iterator is None  # PyTorch has no public way
        with worker_errors(), _signals_held() if workers_start else nullcontext():
            chunks = iter(self._loader)
        for step in steps:
            gathered = [[self._next(chunks) for _ in micro] for micro in step]
            ready = [[c for c in micro if len(c["label"])] for micro in gathered]
            yield [self._to_device(micro) for micro in ready if micro]

    def close(self) -> None:
        """End the workers now; iterating again starts new ones.

        Left to the garbage collector, each may keep the process waiting for seconds at its end.
        """
        running: Any = self._loader._iterator  # PyTorch has no public way
        if running is not None:
            running._shutdown_workers()
            self._loader._iterator = None

    def _global_batches(self) -> list[np.ndarray]:
        """The remaining global batches of the epoch, as indices."""
        n, size = len(self.images), self.batch_size
        order = shuffled(n, self.seed, self.epoch) if self.train else np.arange(n)
        return [
            order[step * size : (step + 1) * size] for step in range(self.start_step, len(self))
        ]

    def _of_rank(self, batch: np.ndarray) -> list[list[np.ndarray]]:
        """This rank's share of a global batch: micro-batches of chunks."""
        share = batch[self.rank :: self.world_size]
        return [_cut(micro, _CHUNK) for micro in _cut(share, self.micro_batch or len(share))]

    def _next(self, chunks: Iterator[dict[str, Any]]) -> dict[str, Any]:
        began = time.perf_counter()
        with worker_errors():
            chunk = next(chunks)
        self.wait_seconds += time.perf_counter() - began
        if "failed" in chunk:
            failure = TrainingError(chunk["failed"])
            failure.add_note(chunk["traceback"])  # for --debug
            raise failure
        self.bad |= chunk["bad"]
        if len(self.bad) > self._max_bad or len(self.bad) == len(self.images):
            some = "; ".join(f"{name} ({why})" for name, why in list(self.bad.items())[:3])
            raise DataError(
                f"{len(self.bad)} of {len(self.images)} images of {self.images.split} in "
                f"{self.images.root} cannot be read, more than the share that is skipped "
                f"({self._max_bad / len(self.images):g}): {some}"
            )
        return chunk

    def _to_device(self, chunks: list[dict[str, Any]]) -> Batch:
        """uint8 chunks -> a normalised micro-batch, with the erased places written last."""
        raw = torch.cat([c["image"].to(self.device, non_blocking=True) for c in chunks])
        b, height, width, channels = raw.shape
        x = raw.view(b, height, width * channels).float()
        x = x.div_(255).sub_(self._mean).div_(self._std)  # as ToTensor and Normalize do
        start, flat = 0, x.view(-1, channels)
        for chunk in chunks:
            if len(chunk["erased"]):
                erased = chunk["erased"].to(self.device, non_blocking=True) + start * height * width
                flat.index_copy_(0, erased, chunk["noise"].to(self.device, non_blocking=True))
            start += len(chunk["label"])
        labels = [c["label"].to(self.device, non_blocking=True) for c in chunks]
        return {
            "image": x.view(b, height, width, channels).permute(0, 3, 1, 2),  # (b, 3, H, W)
            "label": torch.cat(labels),
            "index": torch.cat([c["index"] for c in chunks]),
        }


class Decoder(Dataset[dict[str, Any]]):
    """What a worker runs: decode and transform one chunk.

    Args:
        images: where the files are.
        transform: from a file to pixels.
        seed: of the images' random numbers.
        train: seed each image, and replace unreadable ones.
        max_bad: unreadable images a search for a replacement gives up at.
    """

    def __init__(
        self, images: ImageSet, transform: Transform, *, seed: int, train: bool, max_bad: float
    ):
        self.images, self.transform, self.seed = images, transform, seed
        self.train, self.max_bad = train, max_bad

    def __getitem__(self, task: Task) -> dict[str, Any]:
        """``image`` (b, H, W, 3) uint8, ``label``, ``index`` (b,), ``erased``, ``noise``, and ``bad``.

        ``failed`` and ``traceback`` instead when a transform raises: PyTorch would send many lines.
        """
        try:
            return self._chunk(*task)
        except TrainingError as error:
            return {"failed": str(error), "traceback": traceback.format_exc()}

    def _chunk(self, epoch: int, wanted: np.ndarray) -> dict[str, Any]:
        bad: dict[str, str] = {}
        found: list[tuple[int, Pixels]] = []
        with generators_kept():
            for i in wanted.tolist():
                readable = self._readable(epoch, i, bad)
                if readable is not None:
                    found.append(readable)
        indices = np.array([i for i, _ in found], dtype=np.int64)
        return {
            "label": torch.from_numpy(self.images.labels[indices]),
            "index": torch.from_numpy(self.images.positions[indices]),
            "bad": bad,
            **self._stack([pixels for _, pixels in found]),
        }

    def _readable(self, epoch: int, i: int, bad: dict[str, str]) -> tuple[int, Pixels] | None:
        """The i-th image, in training else the next of the set that can be read, with i's numbers."""
        n = len(self.images)
        for j in ((i + step) % n for step in range(n if self.train else 1)):
            if self.train:
                seed_image(self.seed, epoch, int(self.images.positions[i]))
            try:
                return j, self.transform(open_image(self.images.read(j)))
            except (ImageError, OSError) as error:
                bad[self.images.name(j)] = " ".join(str(error).split())
            except Exception as error:  # of the augmentation: the file is not to blame
                raise TrainingError(
                    f"the augmentation of {self.images.name(j)} failed ({type(error).__name__}: "
                    f"{' '.join(str(error).split())}); --debug shows where"
                ) from error
            if len(bad) > self.max_bad:
                return None
        return None

    def _stack(self, pictures: list[Pixels]) -> dict[str, torch.Tensor]:
        """One tensor of all pixels, and all erased places numbered through the chunk."""
        size = self.transform.size
        image = torch.empty((len(pictures), size, size, 3), dtype=torch.uint8)
        erased, noise = [torch.empty(0, dtype=torch.int64)], [torch.empty(0, 3)]
        for k, picture in enumerate(pictures):
            image[k] = picture.image
            if picture.erased is not None and picture.noise is not None:
                erased.append(picture.erased + k * size * size)
                noise.append(picture.noise)
        return {"image": image, "erased": torch.cat(erased), "noise": torch.cat(noise)}


@contextmanager
def worker_errors() -> Iterator[None]:
    """Tell the death of a worker in one line.

    PyTorch notices it through SIGCHLD and raises wherever the main thread happens to be, so a
    training loop should stand inside this too.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise TrainingError(
            "a process that decodes images died (killed, out of memory, or /dev/shm is full); "
            "lower --loader.workers, or give the container more shared memory"
        ) from error


@contextmanager
def _signals_held() -> Iterator[None]:
    """Hold back stop signals while workers start, which inherit that until they are ready for them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ready_worker(_: int) -> None:
    """Leave stop signals to the main process, which ends its workers itself; end with it if it is killed.

    Ctrl-C, a terminal that closes and Slurm signal every process of a job. A second SIGTERM ends the
    worker: that is how the main process ends one that does not answer.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    warnings.filterwarnings("ignore", module="PIL")  # odd EXIF data, once per worker and file
    parent = os.getppid()  # or a fork server, which ends with the main process
    threading.Thread(target=_end_with, args=(parent,), name="dogmed-parent", daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process when ``parent`` is gone; PyTorch's own watch hangs on a full pipe to it."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _cut(items: np.ndarray, size: int) -> list[np.ndarray]:
    return [items[start : start + size] for start in range(0, len(items), max(1, size))]


def _as_it_is(chunk: Any) -> Any:
    return chunk

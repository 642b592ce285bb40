"""Batches: content, order, flips, ranks, caches, and the thread that gathers ahead."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch

from dogmed.data.loader import Batches, ahead, choose_cache, stratified_fraction
from dogmed.errors import ConfigError, DataError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CPU = torch.device("cpu")


def split(n=50, channels=3, size=10):
    rng = np.random.default_rng(0)
    shape = (n, size, size, 3) if channels == 3 else (n, size, size)
    return rng.integers(0, 256, shape, dtype=np.uint8), np.arange(n)[:, None] % 4


def batches(images, labels, **changed):
    options = {"batch_size": 8, "device": "cpu", "train": True, "mean": MEAN, "std": STD, "seed": 3}
    return Batches(images, labels, **{**options, **changed})


def expected(image):
    """One image as the network should see it, in float64: (3, H, W)."""
    x = np.stack([image] * 3, -1) if image.ndim == 2 else image
    return ((x / 255 - np.array(MEAN)) / np.array(STD)).transpose(2, 0, 1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("cache", ["device", "ram", "disk"])
def test_evaluation_is_the_split_in_order(channels, cache):
    images, labels = split(channels=channels)
    found = list(batches(images, labels, train=False, cache=cache))
    assert torch.cat([b["index"] for b in found]).tolist() == list(range(50))
    assert torch.equal(torch.cat([b["label"] for b in found]), torch.from_numpy(labels))
    pixels = torch.cat([b["image"] for b in found])
    assert pixels.dtype == torch.float32 and pixels.shape == (50, 3, 10, 10)
    assert all(b["image"].is_contiguous(memory_format=torch.channels_last) for b in found)
    own = np.stack([expected(image) for image in images])
    np.testing.assert_allclose(pixels.numpy(), own, atol=2e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_training_shuffles_and_flips_each_image_by_itself(channels):
    images, labels = split(n=400, channels=channels)
    flipped = 0
    seen = []
    for batch in batches(images, labels, batch_size=80):
        for i, pixels, label in zip(batch["index"], batch["image"], batch["label"], strict=True):
            own = expected(images[i])
            straight = np.allclose(pixels, own, atol=2e-6)
            assert straight or np.allclose(pixels, own[..., ::-1], atol=2e-6)
            flipped += not straight
            assert label.tolist() == labels[i].tolist()
            seen.append(int(i))
    assert sorted(seen) == list(range(400)) and seen != sorted(seen)
    assert 150 < flipped < 250
    none = next(iter(batches(images, labels, hflip=0.0)))
    np.testing.assert_allclose(none["image"][0], expected(images[none["index"][0]]), atol=2e-6)


def test_the_source_is_not_changed_by_flips():
    images, labels = split()
    kept = images.copy()
    for cache in ("device", "ram", "disk"):
        loader = batches(images, labels, cache=cache, hflip=1.0)
        first = [b["image"] for b in loader]
        assert all(torch.equal(a, b["image"]) for a, b in zip(first, loader, strict=True))
    assert np.array_equal(images, kept)


def same(a, b):
    return len(a) == len(b) and all(
        torch.equal(x[key], y[key]) for x, y in zip(a, b, strict=True) for key in x
    )


def test_order_depends_on_seed_and_epoch_alone():
    images, labels = split()
    loader = batches(images, labels)
    first = list(loader)
    torch.manual_seed(99)
    torch.rand(7)
    assert same(first, list(batches(images, labels)))
    assert same(first, list(batches(images, labels, cache="disk")))
    loader.set_epoch(1)
    assert not same(first, list(loader))
    loader.set_epoch(0)
    assert same(first, list(loader))
    assert not same(first, list(batches(images, labels, seed=4)))


def test_iterating_leaves_the_global_generators_alone():
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    list(batches(*split()))
    assert torch.equal(torch.get_rng_state(), state[0])
    assert np.array_equal(np.random.get_state()[1], state[1])


def test_resuming_in_the_middle_gives_exactly_the_rest():
    images, labels = split()
    whole = batches(images, labels)
    whole.set_epoch(5)
    resumed = batches(images, labels)
    resumed.set_epoch(5, start_step=4)
    assert same(list(whole)[4:], list(resumed))
    assert len(resumed) == len(whole) == 7
    resumed.set_epoch(6)
    whole.set_epoch(6)
    assert same(list(whole), list(resumed))


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_batches_of_one_process(world_size):
    images, labels = split()
    for train in (True, False):
        alone = list(batches(images, labels, train=train))
        ranks = [
            list(batches(images, labels, train=train, rank=r, world_size=world_size))
            for r in range(world_size)
        ]
        for step, batch in enumerate(alone):
            for r, found in enumerate(ranks):
                if step < len(found):
                    assert torch.equal(found[step]["index"], batch["index"][r::world_size])
                    assert torch.equal(found[step]["image"], batch["image"][r::world_size])
        lengths = {len(found) for found in ranks}
        assert len(lengths) == 1 if train else True
        if not train:
            seen = torch.cat([b["index"] for found in ranks for b in found])
            assert sorted(seen.tolist()) == list(range(50))


@pytest.mark.parametrize(
    ("n", "batch", "world", "train", "lengths"),
    [
        (50, 8, 1, True, [7]),  # the last 2 images are a batch
        (49, 8, 1, True, [6]),  # a single image is left out: batch norm could not use it
        (49, 8, 1, False, [7]),
        (3, 8, 1, True, [1]),
        (1, 8, 1, True, [1]),
        (51, 8, 2, True, [6, 6]),  # 3 images do not give each process two
        (52, 8, 2, True, [7, 7]),
        (49, 8, 2, False, [7, 6]),  # no process gets an empty batch
    ],
)
def test_lengths(n, batch, world, train, lengths):
    images, labels = split(n=n)
    for rank, length in enumerate(lengths):
        loader = batches(images, labels, batch_size=batch, rank=rank, world_size=world, train=train)
        assert len(loader) == length == len(list(loader))


@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_a_part_of_the_split(cache):
    images, labels = split()
    part = np.array([3, 7, 11, 40, 41])
    found = list(batches(images, labels, indices=part, train=False, batch_size=2, cache=cache))
    assert torch.cat([b["index"] for b in found]).tolist() == part.tolist()
    assert torch.cat([b["label"] for b in found])[:, 0].tolist() == (part % 4).tolist()
    for i, pixels in zip(part, torch.cat([b["image"] for b in found]), strict=True):
        np.testing.assert_allclose(pixels, expected(images[i]), atol=2e-6)
    loader = batches(images, labels, indices=part, cache=cache)
    assert sorted(next(iter(loader))["index"].tolist()) == part.tolist()
    assert loader.resident_bytes == (0 if cache == "disk" else 5 * 300)


def test_multi_label_and_grey_bytes():
    images, _ = split(channels=1)
    labels = np.random.default_rng(0).integers(0, 2, (50, 14))
    loader = batches(images, labels)
    batch = next(iter(loader))
    assert batch["label"].shape == (8, 14) and batch["label"].dtype == torch.int64
    assert np.array_equal(batch["label"], labels[batch["index"]])
    assert loader.resident_bytes == 50 * 100 and loader.cache_used == "ram"


def test_choice_of_cache(monkeypatch):
    monkeypatch.setattr("dogmed.data.loader._free_ram", lambda: 1000)
    assert choose_cache("auto", 500, CPU, 1) == "ram"
    assert choose_cache("auto", 501, CPU, 1) == "disk"
    assert choose_cache("auto", 500, CPU, 2) == "disk"  # each process would hold its own
    assert choose_cache("ram", 900, CPU, 1) == "ram"
    assert choose_cache("device", 900, CPU, 1) == "device"
    assert choose_cache("disk", 10**15, CPU, 1) == "disk"
    with pytest.raises(
        DataError, match=r"--cache ram needs 950 B .* 1.0 kB are free; use --cache disk"
    ):
        choose_cache("ram", 950, CPU, 1)
    with pytest.raises(ConfigError, match="did you mean 'device'"):
        choose_cache("devices", 1, CPU, 1)


def test_choice_of_cache_on_a_gpu(monkeypatch):
    gpu = torch.device("cuda")
    monkeypatch.setattr("dogmed.data.loader._free_ram", lambda: 10_000)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (1000, 2000))
    assert choose_cache("auto", 500, gpu, 4) == "device"
    assert choose_cache("auto", 600, gpu, 1) == "ram"
    assert choose_cache("auto", 6000, gpu, 1) == "disk"
    assert choose_cache("ram", 100, gpu, 1) == "ram"
    with pytest.raises(DataError, match="use --cache ram or disk, or auto"):
        choose_cache("device", 950, gpu, 1)


def test_batch_smaller_than_the_processes():
    with pytest.raises(ConfigError, match="batch size 2 cannot be shared by 4 processes"):
        batches(*split(), batch_size=2, world_size=4)


def threads():
    return [t for t in threading.enumerate() if t.name == "dogmed-batches"]


def test_ahead_keeps_order_and_stays_close():
    made = []

    def items():
        for i in range(20):
            made.append(i)
            yield i

    stream = ahead(items(), 2)
    assert next(stream) == 0
    time.sleep(0.3)
    assert len(made) <= 5, "only a few may be made in advance"
    assert list(stream) == list(range(1, 20)) and not threads()


def test_ahead_raises_what_the_source_raises():
    def items():
        yield 1
        raise DataError("the disk is gone")

    stream = ahead(items(), 2)
    assert next(stream) == 1
    with pytest.raises(DataError, match="the disk is gone"):
        next(stream)
    assert not threads()


def test_ahead_ends_its_thread_when_dropped():
    stream = ahead(iter(range(1000)), 2)
    next(stream)
    assert threads()
    stream.close()
    assert not threads()
    other = ahead(iter(range(1000)), 2)
    next(other)
    del other
    assert not threads()


def test_fraction_keeps_every_class():
    labels = np.repeat([0, 1, 2], [900, 90, 3])[:, None]
    part = stratified_fraction(labels, 0.1, 0, "multi-class")
    assert np.bincount(labels[part, 0]).tolist() == [90, 9, 1]
    assert np.array_equal(part, np.unique(part))
    assert np.array_equal(part, stratified_fraction(labels, 0.1, 0, "multi-class"))
    assert not np.array_equal(part, stratified_fraction(labels, 0.1, 1, "multi-class"))
    assert set(part) <= set(stratified_fraction(labels, 0.4, 0, "multi-class"))
    assert np.array_equal(stratified_fraction(labels, 1.0, 0, "multi-class"), np.arange(993))
    for wrong in (0, -1, 1.5):
        with pytest.raises(ConfigError, match="more than 0 and at most 1"):
            stratified_fraction(labels, wrong, 0, "multi-class")


def test_fraction_of_many_labels():
    rng = np.random.default_rng(0)
    shares = np.array([0.3, 0.1, 0.02, 0.0005])
    labels = (rng.random((8000, 4)) < shares).astype(np.int64)
    part = stratified_fraction(labels, 0.05, 0, "multi-label")
    assert 400 <= len(part) <= 404 and np.array_equal(part, np.unique(part))
    assert (labels[part].sum(0) >= 1).all()
    np.testing.assert_allclose(labels[part].mean(0)[:3], labels.mean(0)[:3], atol=0.01)
    assert np.array_equal(part, stratified_fraction(labels, 0.05, 0, "multi-label"))

"""Synthetic data: types, balance, determinism, and that there is something to learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from dogmed.data import official_tasks, prepare
from dogmed.data.loader import Batches
from dogmed.data.synthetic import BALANCE, Synthetic
from dogmed.data.tasks import SPLITS, official_samples
from dogmed.errors import ConfigError

TASKS = list(official_tasks())


@pytest.mark.parametrize("name", TASKS)
def test_types_and_balance_are_the_tasks(name):
    task = official_tasks()[name]
    made = Synthetic(task, 28)
    assert made.samples == {"train": 512, "val": 128, "test": 128}
    counts = np.array(BALANCE[name][0])
    assert len(counts) == task.num_classes
    if task.kind != "multi-label" and name != "organcmnist":
        assert counts.sum() == official_samples(name)["train"]
    for split in SPLITS:
        labels, images = made.labels(split), np.concatenate(list(made.images(split)))
        n = made.samples[split]
        assert labels.shape == (n, task.label_width) and labels.dtype == np.int64
        assert images.shape == ((n, 28, 28, 3) if task.channels == 3 else (n, 28, 28))
        assert images.dtype == np.uint8
        if task.kind == "multi-label":
            share = counts / official_samples(name)["train"]
            assert (labels.sum(0) >= 1).all() and set(np.unique(labels)) == {0, 1}
            np.testing.assert_allclose(labels.mean(0), share, atol=1 / n)
        else:
            found = np.bincount(labels[:, 0], minlength=task.num_classes)
            assert (found >= 1).all()
            np.testing.assert_allclose(found / n, counts / counts.sum(), atol=2.5 / n)


def test_balance_of_the_real_files(real_data):
    for name in ("breastmnist", "pneumoniamnist"):
        labels = np.load(real_data / "medmnist" / f"{name}.npz")["train_labels"]
        assert tuple(np.bincount(labels[:, 0])) == BALANCE[name][0]


def test_same_seed_same_images_whatever_the_size_of_the_set():
    task = official_tasks()["bloodmnist"]
    for split in SPLITS:
        first = np.concatenate(list(Synthetic(task, 32, seed=5).images(split)))
        again = np.concatenate(list(Synthetic(task, 32, seed=5).images(split)))
        other = np.concatenate(list(Synthetic(task, 32, seed=6).images(split)))
        assert np.array_equal(first, again) and not np.array_equal(first, other)
    train = next(Synthetic(task, 32).images("train"))[0]
    assert not np.array_equal(train, next(Synthetic(task, 32).images("test"))[0])


def test_named_synthetic_everywhere(cache, make_notes):
    heard = make_notes()
    found = prepare("dermamnist", size=40, data="synthetic", seed=7, samples=64, cache_dir=cache,
                    progress=heard)  # fmt: skip
    assert found.source == "synthetic" and "-synthetic-" in found.folder.name
    assert not found.task.official and "SYNTHETIC" in found.task.description
    assert "not for" not in found.task.licence and "CC" not in found.task.licence
    assert found.manifest["synthetic"]["seed"] == 7
    assert found.manifest["synthetic"]["balance_source"] == BALANCE["dermamnist"][1]
    assert any("SYNTHETIC" in line for line in heard.notes)
    assert found.images("train").shape == (64, 40, 40, 3)
    other = prepare("dermamnist", size=40, data="synthetic", seed=8, samples=64, cache_dir=cache)
    assert other.folder != found.folder


def test_too_few_samples_are_refused():
    with pytest.raises(ConfigError, match="samples is 20, chestmnist needs at least 112"):
        Synthetic(official_tasks()["chestmnist"], 28, samples=20)


def test_a_small_network_learns_what_a_linear_one_cannot():
    """Balanced accuracy on unseen images after a few epochs; chance is 1/8."""
    torch.manual_seed(0)
    made = Synthetic(official_tasks()["tissuemnist"], 28, samples=2048)
    pixels = {s: np.concatenate(list(made.images(s))) for s in ("train", "test")}
    labels = {s: made.labels(s) for s in ("train", "test")}
    options = {"batch_size": 64, "device": "cpu", "mean": [0.5] * 3, "std": [0.25] * 3}
    train = Batches(pixels["train"], labels["train"], train=True, **options)
    test = Batches(pixels["test"], labels["test"], train=False, **options)
    network = nn.Sequential(
        nn.Conv2d(3, 32, 7, stride=2, padding=3), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 8),
    )  # fmt: skip
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * 28 * 28, 8))

    def balanced_accuracy(model, epochs):
        optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
        for epoch in range(epochs):
            model.train()
            train.set_epoch(epoch)
            for batch in train:
                loss = nn.functional.cross_entropy(model(batch["image"]), batch["label"][:, 0])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        model.eval()
        with torch.no_grad():
            hits = torch.cat([model(b["image"]).argmax(1) == b["label"][:, 0] for b in test])
        own = torch.from_numpy(labels["test"][:, 0])
        return float(np.mean([hits[own == c].float().mean() for c in range(8)]))

    assert balanced_accuracy(network, 6) > 0.5
    assert balanced_accuracy(linear, 6) < 0.3

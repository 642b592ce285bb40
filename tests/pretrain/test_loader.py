"""The loader: one order whatever the workers and processes, and damaged files."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch

from dogmed.console import STOPS
from dogmed.errors import ConfigError, DataError, TrainingError
from dogmed.pretrain.images import ImageSet, open_images
from dogmed.pretrain.loader import Batch, ImageBatches, ready_worker
from dogmed.pretrain.subset import draw
from dogmed.pretrain.transforms import (
    EvalTransform,
    TrainTransform,
    generators_kept,
    seed_image,
)

Batches = Callable[..., ImageBatches]


@pytest.fixture
def spoilt(jpegs: Path, tmp_path: Path) -> ImageSet:
    """The training images, of which the 4th and 5th are cut short and the 20th is no image."""
    for file in (jpegs / "train").rglob("*.JPEG"):
        target = tmp_path / "spoilt" / file.relative_to(jpegs)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    images = open_images(tmp_path / "spoilt", "train")
    for i in (3, 4, 19):
        file = tmp_path / "spoilt" / "train" / images.name(i)
        file.write_bytes(file.read_bytes()[: 0 if i == 19 else file.stat().st_size // 2])
    return images


def epoch(loader: ImageBatches, number: int = 0, start: int = 0) -> list[list[Batch]]:
    loader.set_epoch(number, start)
    return list(loader)


def joined(steps: Iterable[list[Batch]], key: str = "image") -> torch.Tensor:
    return torch.cat([micro[key] for step in steps for micro in step])


def test_a_batch_is_float32_channels_last(batches: Batches) -> None:
    (micro,) = next(iter(batches()))
    assert micro["image"].shape == (12, 3, 24, 24) and micro["image"].dtype == torch.float32
    assert micro["image"].is_contiguous(memory_format=torch.channels_last)
    assert micro["label"].dtype == micro["index"].dtype == torch.int64


def test_an_epoch_is_shuffled_whole_batches_of_different_images(
    batches: Batches,
) -> None:
    loader = batches()
    orders = [joined(epoch(loader, n), "index").tolist() for n in (0, 1, 0)]
    assert len(loader) == 3 and all(len(set(order)) == 36 for order in orders)
    assert orders[0] == orders[2] != orders[1]
    pixels = [joined(epoch(loader, n)) for n in (0, 1)]
    first = orders[0][0]
    if first in orders[1]:
        assert not torch.equal(pixels[0][0], pixels[1][orders[1].index(first)])


def test_workers_and_micro_batches_change_no_pixel(batches: Batches) -> None:
    alone = epoch(batches())
    helped = batches(workers=2, micro_batch=5)
    for _ in range(2):  # the workers stay for the second epoch
        shared = epoch(helped)
        assert [[len(m["label"]) for m in step] for step in shared] == [[5, 5, 2]] * 3
        for key in ("image", "label", "index"):
            assert torch.equal(joined(shared, key), joined(alone, key))
    assert helped.wait_seconds > 0


def test_processes_share_the_same_global_batches(batches: Batches) -> None:
    alone = epoch(batches())
    ranks = [epoch(batches(rank=r, world_size=5)) for r in range(5)]
    for step in range(3):
        for r in range(5):
            for key in ("image", "label", "index"):
                assert torch.equal(ranks[r][step][0][key], alone[step][0][key][r::5])


@pytest.mark.parametrize(("workers", "world"), [(0, 1), (2, 1), (0, 3)])
def test_a_resumed_epoch_is_the_rest_of_it(batches: Batches, workers: int, world: int) -> None:
    whole = epoch(batches(), 2)
    for rank in range(world):
        loader = batches(workers=workers, rank=rank, world_size=world)
        rest = epoch(loader, 2, start=1)
        assert len(loader) == 3 and len(rest) == 2
        for found, expected in zip(rest, whole[1:], strict=True):
            assert torch.equal(found[0]["image"], expected[0]["image"][rank::world])
    assert epoch(batches(), 2, start=3) == []


def test_breaking_off_leaves_nothing_behind(batches: Batches) -> None:
    loader = batches(workers=2, batch_size=4)
    whole = epoch(batches(batch_size=4), 1)
    for _step in loader:
        break
    assert torch.equal(joined(epoch(loader, 1)), joined(whole))


def test_a_subset_sees_the_crops_of_the_whole(train: ImageSet, batches: Batches) -> None:
    part = batches(draw(train, per_class=3, classes=2, seed=0), batch_size=6)
    whole = epoch(batches(batch_size=40))[0][0]
    place = {int(index): k for k, index in enumerate(whole["index"])}
    for step in epoch(part):
        for image, index in zip(step[0]["image"], step[0]["index"], strict=True):
            assert torch.equal(image, whole["image"][place[int(index)]])


def test_the_run_keeps_its_own_random_numbers(batches: Batches) -> None:
    def draws() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(1))

    with generators_kept():
        seed_image(0, 0, 0)
        expected = draws()
        seed_image(0, 0, 0)
        epoch(batches())
        assert draws() == expected


@pytest.mark.parametrize("world", [1, 3])
def test_evaluation_takes_every_image_once(batches: Batches, world: int) -> None:
    loaders = [batches(train=False, batch_size=13, rank=r, world_size=world) for r in range(world)]
    assert {len(loader) for loader in loaders} == {4}
    found = [epoch(loader) for loader in loaders]
    for step in range(4):
        seen = sorted(i for steps in found for m in steps[step] for i in m["index"].tolist())
        assert seen == list(range(13 * step, min(13 * step + 13, 40)))
    assert found[-1][3] == [] if world == 3 else len(found[0][3]) == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_files_are_replaced_by_the_next_and_named(
    spoilt: ImageSet, train: ImageSet, batches: Batches, workers: int
) -> None:
    loader = batches(spoilt, batch_size=40, workers=workers, max_bad_share=0.1)
    (wanted,) = epoch(batches(batch_size=40))[0]
    (found,) = epoch(loader)[0]
    instead = {3: 5, 4: 5, 19: 20}
    expected = [instead.get(i, i) for i in wanted["index"].tolist()]
    assert found["index"].tolist() == expected
    assert found["label"].tolist() == train.labels[expected].tolist()
    untouched = torch.tensor([i not in instead for i in wanted["index"].tolist()])
    assert torch.equal(found["image"][untouched], wanted["image"][untouched])
    assert sorted(loader.bad) == [spoilt.name(i) for i in (3, 4, 19)]
    assert (
        "truncated" in loader.bad[spoilt.name(3)] and loader.bad[spoilt.name(19)] == "an empty file"
    )


def test_evaluation_leaves_damaged_files_out(spoilt: ImageSet, batches: Batches) -> None:
    loader = batches(spoilt, train=False, batch_size=1, max_bad_share=0.1)
    steps = epoch(loader)
    assert [i for i, step in enumerate(steps) if not step] == [3, 4, 19] == [
        i for i in range(40) if spoilt.name(i) in loader.bad
    ]  # fmt: skip
    assert joined(steps, "index").tolist() == [i for i in range(40) if i not in (3, 4, 19)]


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_damaged_files_are_an_error(
    spoilt: ImageSet, batches: Batches, workers: int
) -> None:
    with pytest.raises(DataError, match=r"3 of 40 images of train .* cannot be read") as caught:
        epoch(batches(spoilt, batch_size=40, workers=workers, max_bad_share=0.05))
    assert spoilt.name(3) in str(caught.value) and "\n" not in str(caught.value)


def test_a_disk_that_is_gone_is_an_error_at_once(spoilt: ImageSet, batches: Batches) -> None:
    spoilt.root.rename(spoilt.root.with_name("gone"))
    for share in (0.1, 1.0):
        with pytest.raises(DataError, match="cannot be read"):
            epoch(batches(spoilt, max_bad_share=share))


def test_ctrl_c_does_not_reach_the_workers_and_a_dead_one_is_told(
    batches: Batches,
) -> None:
    loader = batches(workers=2, batch_size=4)
    expected = epoch(batches(batch_size=4))
    steps = iter(loader)
    found = [next(steps), next(steps)]  # one of each worker: both have begun
    pids = [worker.pid for worker in loader._loader._iterator._workers]
    for number in (signal.SIGINT, signal.SIGTERM):
        for pid in pids:
            os.kill(pid, number)
    found += list(steps)
    assert torch.equal(joined(found), joined(expected))
    with pytest.raises(TrainingError, match="a process that decodes images died") as caught:
        os.kill(pids[0], signal.SIGKILL)
        for number in range(100):
            epoch(loader, number)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", STOPS)
def test_a_stop_in_the_first_moments_of_the_workers_ends_none(
    batches: Batches, number: int
) -> None:
    loader = batches(workers=2)

    def signalled_before_it_is_ready(worker: int) -> None:
        os.kill(os.getpid(), number)
        ready_worker(worker)

    loader._loader.worker_init_fn = signalled_before_it_is_ready
    assert len(list(loader)) == len(loader)
    assert not set(STOPS) & signal.pthread_sigmask(signal.SIG_BLOCK, ())
    loader.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_failing_transform_is_told_in_one_line_and_blames_no_file(
    batches: Batches, plain: EvalTransform, workers: int
) -> None:
    plain.transform = lambda image: 1 / 0
    loader = batches(transform=plain, workers=workers)
    with pytest.raises(TrainingError, match=r"n\d+_\d\.JPEG failed \(ZeroDivisionError") as caught:
        epoch(loader)
    assert "\n" not in str(caught.value) and not loader.bad
    assert "line" in caught.value.__notes__[0]


def test_arguments_that_do_not_fit(
    batches: Batches, augment: Callable[..., TrainTransform]
) -> None:
    with pytest.raises(ConfigError, match="batch size 41 is more than the 40 training images"):
        batches(batch_size=41)
    with pytest.raises(ConfigError, match="cannot be shared by 13 processes"):
        batches(world_size=13)
    with pytest.raises(ConfigError, match="timm does not understand it"):
        augment(auto_augment="rnd-m9")


def test_real_images_in_both_forms(real_data: Path, batches: Batches, tmp_path: Path) -> None:
    full = open_images(real_data / "imagenet" / "full", "train")
    small = open_images(real_data / "imagenet", "train", cache_dir=tmp_path)
    for images in (full, small):
        loader = batches(images, batch_size=32, workers=2)
        (micro,) = next(iter(loader))
        assert micro["image"].isfinite().all() and not loader.bad
        assert micro["label"].tolist() == images.labels[micro["index"]].tolist()

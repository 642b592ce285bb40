"""The loader: timm's own pixels, one order whatever the workers and processes, and damaged files."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform

from dogmed.console import STOPS
from dogmed.errors import ConfigError, DataError, TrainingError
from dogmed.pretrain.images import ImageSet, open_image, open_images
from dogmed.pretrain.loader import Batch, ImageBatches, ready_worker
from dogmed.pretrain.subset import draw
from dogmed.pretrain.transforms import (
    EvalTransform,
    TrainTransform,
    eval_transform,
    generators_kept,
    seed_image,
    train_transform,
)

SIZE = 24
TIMM: dict[str, Any] = {
    "scale": (0.08, 1.0),
    "ratio": (3 / 4, 4 / 3),
    "interpolation": "random",
    "hflip": 0.5,
    "color_jitter": None,
    "auto_augment": "rand-m9-mstd0.5-inc1",
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
    "re_prob": 0.5,
    "re_mode": "pixel",
    "re_count": 2,
}


def augment(size: int = SIZE, **changed: Any) -> TrainTransform:
    return train_transform(size, **{"decode": "full", **TIMM, **changed})


def plain() -> EvalTransform:
    return eval_transform(
        SIZE, mean=TIMM["mean"], std=TIMM["std"], crop_pct=0.875, interpolation="bicubic"
    )


@pytest.fixture
def train(jpegs: Path) -> ImageSet:
    return open_images(jpegs, "train")


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


@pytest.fixture
def batches(train: ImageSet) -> Iterable[Callable[..., ImageBatches]]:
    made = []

    def make(images: ImageSet = train, **changed: Any) -> ImageBatches:
        options = {
            "batch_size": 12, "micro_batch": None, "device": "cpu", "train": True, "seed": 7,
            "workers": 0, "max_bad_share": 0.0, **changed,
        }  # fmt: skip
        transform = options.pop("transform", None) or (augment() if options["train"] else plain())
        made.append(ImageBatches(images, transform, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def epoch(loader: ImageBatches, number: int = 0, start: int = 0) -> list[list[Batch]]:
    loader.set_epoch(number, start)
    return list(loader)


def joined(steps: Iterable[list[Batch]], key: str = "image") -> torch.Tensor:
    return torch.cat([micro[key] for step in steps for micro in step])


def test_training_pixels_are_those_of_timm(
    train: ImageSet, batches: Callable[..., ImageBatches]
) -> None:
    reference = create_transform(SIZE, is_training=True, **TIMM)
    erased = 0
    for step in epoch(batches(), 3):
        for image, label, index in zip(
            *(step[0][k] for k in ("image", "label", "index")), strict=True
        ):
            with generators_kept():
                seed_image(7, 3, int(index))
                expected = reference(train.open(int(index)))
            assert torch.equal(image, expected)
            assert label == train.labels[index]
            erased += int((expected.abs() > 2.65).any())  # beyond what a pixel can be
    assert erased >= 5


@pytest.mark.parametrize("mode", ["const", "rand"])
def test_other_erasing_is_that_of_timm(
    train: ImageSet, batches: Callable[..., ImageBatches], mode: str
) -> None:
    reference = create_transform(SIZE, is_training=True, **{**TIMM, "re_mode": mode})
    (micro,) = next(iter(batches(transform=augment(re_mode=mode))))
    for image, index in zip(micro["image"], micro["index"], strict=True):
        with generators_kept():
            seed_image(7, 0, int(index))
            assert torch.equal(image, reference(train.open(int(index))))


def test_evaluation_pixels_are_those_of_timm(
    train: ImageSet, batches: Callable[..., ImageBatches]
) -> None:
    reference = create_transform(
        SIZE, is_training=False, crop_pct=0.875, interpolation="bicubic",
        mean=TIMM["mean"], std=TIMM["std"],
    )  # fmt: skip
    found = joined(epoch(batches(train=False)))
    assert torch.equal(found, torch.stack([reference(train.open(i)) for i in range(len(train))]))


def test_a_batch_is_float32_channels_last(batches: Callable[..., ImageBatches]) -> None:
    (micro,) = next(iter(batches()))
    assert micro["image"].shape == (12, 3, SIZE, SIZE) and micro["image"].dtype == torch.float32
    assert micro["image"].is_contiguous(memory_format=torch.channels_last)
    assert micro["label"].dtype == micro["index"].dtype == torch.int64


def test_an_epoch_is_shuffled_whole_batches_of_different_images(
    batches: Callable[..., ImageBatches],
) -> None:
    loader = batches()
    orders = [joined(epoch(loader, n), "index").tolist() for n in (0, 1, 0)]
    assert len(loader) == 3 and all(len(set(order)) == 36 for order in orders)
    assert orders[0] == orders[2] != orders[1]
    pixels = [joined(epoch(loader, n)) for n in (0, 1)]
    first = orders[0][0]
    if first in orders[1]:
        assert not torch.equal(pixels[0][0], pixels[1][orders[1].index(first)])


def test_workers_and_micro_batches_change_no_pixel(batches: Callable[..., ImageBatches]) -> None:
    alone = epoch(batches())
    helped = batches(workers=2, micro_batch=5)
    for _ in range(2):  # the workers stay for the second epoch
        shared = epoch(helped)
        assert [[len(m["label"]) for m in step] for step in shared] == [[5, 5, 2]] * 3
        for key in ("image", "label", "index"):
            assert torch.equal(joined(shared, key), joined(alone, key))
    assert helped.wait_seconds > 0


def test_processes_share_the_same_global_batches(batches: Callable[..., ImageBatches]) -> None:
    alone = epoch(batches())
    ranks = [epoch(batches(rank=r, world_size=5)) for r in range(5)]
    for step in range(3):
        for r in range(5):
            for key in ("image", "label", "index"):
                assert torch.equal(ranks[r][step][0][key], alone[step][0][key][r::5])


@pytest.mark.parametrize(("workers", "world"), [(0, 1), (2, 1), (0, 3)])
def test_a_resumed_epoch_is_the_rest_of_it(
    batches: Callable[..., ImageBatches], workers: int, world: int
) -> None:
    whole = epoch(batches(), 2)
    for rank in range(world):
        loader = batches(workers=workers, rank=rank, world_size=world)
        rest = epoch(loader, 2, start=1)
        assert len(loader) == 3 and len(rest) == 2
        for found, expected in zip(rest, whole[1:], strict=True):
            assert torch.equal(found[0]["image"], expected[0]["image"][rank::world])
    assert epoch(batches(), 2, start=3) == []


def test_breaking_off_leaves_nothing_behind(batches: Callable[..., ImageBatches]) -> None:
    loader = batches(workers=2, batch_size=4)
    whole = epoch(batches(batch_size=4), 1)
    for _step in loader:
        break
    assert torch.equal(joined(epoch(loader, 1)), joined(whole))


def test_a_subset_sees_the_crops_of_the_whole(
    train: ImageSet, batches: Callable[..., ImageBatches]
) -> None:
    part = batches(draw(train, per_class=3, classes=2, seed=0), batch_size=6)
    whole = epoch(batches(batch_size=40))[0][0]
    place = {int(index): k for k, index in enumerate(whole["index"])}
    for step in epoch(part):
        for image, index in zip(step[0]["image"], step[0]["index"], strict=True):
            assert torch.equal(image, whole["image"][place[int(index)]])


def test_the_run_keeps_its_own_random_numbers(batches: Callable[..., ImageBatches]) -> None:
    def draws() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(1))

    with generators_kept():
        seed_image(0, 0, 0)
        expected = draws()
        seed_image(0, 0, 0)
        epoch(batches())
        assert draws() == expected


@pytest.mark.parametrize("world", [1, 3])
def test_evaluation_takes_every_image_once(
    batches: Callable[..., ImageBatches], world: int
) -> None:
    loaders = [batches(train=False, batch_size=13, rank=r, world_size=world) for r in range(world)]
    assert {len(loader) for loader in loaders} == {4}
    found = [epoch(loader) for loader in loaders]
    for step in range(4):
        seen = sorted(i for steps in found for m in steps[step] for i in m["index"].tolist())
        assert seen == list(range(13 * step, min(13 * step + 13, 40)))
    assert found[-1][3] == [] if world == 3 else len(found[0][3]) == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_files_are_replaced_by_the_next_and_named(
    spoilt: ImageSet, train: ImageSet, batches: Callable[..., ImageBatches], workers: int
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


def test_evaluation_leaves_damaged_files_out(
    spoilt: ImageSet, batches: Callable[..., ImageBatches]
) -> None:
    loader = batches(spoilt, train=False, batch_size=1, max_bad_share=0.1)
    steps = epoch(loader)
    assert [i for i, step in enumerate(steps) if not step] == [3, 4, 19] == [
        i for i in range(40) if spoilt.name(i) in loader.bad
    ]  # fmt: skip
    assert joined(steps, "index").tolist() == [i for i in range(40) if i not in (3, 4, 19)]


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_damaged_files_are_an_error(
    spoilt: ImageSet, batches: Callable[..., ImageBatches], workers: int
) -> None:
    with pytest.raises(DataError, match=r"3 of 40 images of train .* cannot be read") as caught:
        epoch(batches(spoilt, batch_size=40, workers=workers, max_bad_share=0.05))
    assert spoilt.name(3) in str(caught.value) and "\n" not in str(caught.value)


def test_a_disk_that_is_gone_is_an_error_at_once(
    spoilt: ImageSet, batches: Callable[..., ImageBatches]
) -> None:
    spoilt.root.rename(spoilt.root.with_name("gone"))
    for share in (0.1, 1.0):
        with pytest.raises(DataError, match="cannot be read"):
            epoch(batches(spoilt, max_bad_share=share))


def test_ctrl_c_does_not_reach_the_workers_and_a_dead_one_is_told(
    batches: Callable[..., ImageBatches],
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
    batches: Callable[..., ImageBatches], number: int
) -> None:
    loader = batches(workers=2)

    def signalled_before_it_is_ready(worker: int) -> None:
        os.kill(os.getpid(), number)
        ready_worker(worker)

    loader._loader.worker_init_fn = signalled_before_it_is_ready
    assert len(list(loader)) == len(loader)
    assert not set(STOPS) & signal.pthread_sigmask(signal.SIG_BLOCK, ())
    loader.close()


def test_reduced_decoding_takes_the_same_crop_of_fewer_pixels(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    smooth = Image.fromarray(noise).resize((400, 300), Image.Resampling.BICUBIC)
    smooth.save(tmp_path / "x.jpg", quality=95)
    data = (tmp_path / "x.jpg").read_bytes()
    options = {"auto_augment": None, "re_prob": 0.0}
    full, reduced = (augment(32, decode=d, **options) for d in ("full", "reduced"))
    decoded = set()
    with generators_kept():
        for index in range(60):
            pictures = []
            for transform in (full, reduced):
                seed_image(0, 0, index)
                image = open_image(data)
                pictures.append(transform(image).image.float())
            decoded.add(image.size)
            shifted = (pictures[0] - pictures[0].roll(1, dims=1))[:, 1:].abs().mean()
            assert (pictures[0] - pictures[1]).abs().mean() < shifted / 3  # a third of a pixel
    assert {(200, 150), (100, 75)} <= decoded


def test_reduced_decoding_is_full_decoding_where_the_crop_is_small(
    train: ImageSet, batches: Callable[..., ImageBatches]
) -> None:
    reduced = batches(transform=augment(decode="reduced"))
    assert torch.equal(joined(epoch(reduced)), joined(epoch(batches())))


def test_posterizing_to_no_bits_is_black_as_it_used_to_be(train: ImageSet) -> None:
    image, seen = train.open(0), 0
    for policy in ("rand-m10-inc1", "original", "v0", "augmix-m10"):
        steps = augment(auto_augment=policy).rest.transforms
        ops = [op for step in steps for op in getattr(step, "ops", [])]
        ops += [op for step in steps for pair in getattr(step, "policy", []) for op in pair]
        for op in (op for op in ops if op.name.startswith("Posterize")):
            for bits in range(9):  # the definition of Pillow until version 12
                table = [i & ~(2 ** (8 - bits) - 1) for i in range(256)] * 3
                assert op.aug_fn(image, bits).tobytes() == image.point(table).tobytes()
            seen += 1
    assert seen >= 4


def test_every_operation_of_the_recipe_works_at_its_highest_level(train: ImageSet) -> None:
    (policy,) = (
        s for s in augment(auto_augment="rand-m10-inc1").rest.transforms if hasattr(s, "ops")
    )
    assert len(policy.ops) == 15
    with generators_kept():
        for op in policy.ops:
            op.prob = 1.0
            assert op(train.open(0)).size == train.open(0).size


@pytest.mark.parametrize("workers", [0, 2])
def test_a_failing_transform_is_told_in_one_line_and_blames_no_file(
    batches: Callable[..., ImageBatches], workers: int
) -> None:
    broken = plain()
    broken.transform = lambda image: 1 / 0
    loader = batches(transform=broken, workers=workers)
    with pytest.raises(TrainingError, match=r"n\d+_\d\.JPEG failed \(ZeroDivisionError") as caught:
        epoch(loader)
    assert "\n" not in str(caught.value) and not loader.bad
    assert "line" in caught.value.__notes__[0]


def test_arguments_that_do_not_fit(batches: Callable[..., ImageBatches]) -> None:
    with pytest.raises(ConfigError, match="batch size 41 is more than the 40 training images"):
        batches(batch_size=41)
    with pytest.raises(ConfigError, match="cannot be shared by 13 processes"):
        batches(world_size=13)
    with pytest.raises(ConfigError, match="timm does not understand it"):
        augment(auto_augment="rnd-m9")


def test_real_images_in_both_forms(
    real_data: Path, batches: Callable[..., ImageBatches], tmp_path: Path
) -> None:
    full = open_images(real_data / "imagenet" / "full", "train")
    small = open_images(real_data / "imagenet", "train", cache_dir=tmp_path)
    for images in (full, small):
        loader = batches(images, batch_size=32, workers=2)
        (micro,) = next(iter(loader))
        assert micro["image"].isfinite().all() and not loader.bad
        assert micro["label"].tolist() == images.labels[micro["index"]].tolist()

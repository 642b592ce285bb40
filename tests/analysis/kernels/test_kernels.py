"""``dogmed analyze kernels``: first weights drawn again, tables that add up, wrong requests in one line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import dogmed.models  # noqa: F401  (registers DoGNeXt)
from dogmed import config
from dogmed.analysis.kernels.layers import counterparts, depthwise_layers, find_origin
from dogmed.analysis.kernels.study import describe, study, weighted
from dogmed.analysis.subject import refuse_unusable
from dogmed.errors import ConfigError
from dogmed.finetune.config import FinetuneConfig
from dogmed.finetune.run import finetune
from dogmed.models.sampling import sample_kernels
from dogmed.models.trained import open_trained
from dogmed.models.weights import read_weights, save_weights
from dogmed.pretrain.build import build_network
from dogmed.pretrain.config import PretrainConfig
from dogmed.weights.records import DataRecord, WeightsRecord


@pytest.fixture
def run(tmp_path: Path, cache_dir: Path) -> Callable[..., Path]:
    """A real run whose learning rate is too small to change a weight; returns its folder."""

    def train(**options: Any) -> Path:
        values = {
            "task": "breastmnist", "data": "synthetic", "model": "dognext_test", "size": 28,
            "epochs": 1, "tracking": "off", "eval.resamples": 10, "optim.lr": 1e-30,
            "out": str(tmp_path / "runs"), "cache_dir": str(cache_dir), **options,
        }  # fmt: skip
        base = config.merge(config.recipe("finetune/default"), values)
        result = finetune(config.build(FinetuneConfig, base))
        assert result is not None
        (best,) = (tmp_path / "runs").rglob("best.safetensors")
        return best.parent.parent

    return train


def test_the_first_weights_of_a_run_from_scratch_are_drawn_again(run: Callable[..., Path]) -> None:
    trained = open_trained(str(run(seed=3)))
    state = torch.get_rng_state()
    origin = find_origin(trained, None, None)
    assert torch.equal(torch.get_rng_state(), state)
    assert origin.model is not None and "seed 3" in origin.title and "may" not in origin.note
    first = origin.model.state_dict()
    for name, value in trained.model.state_dict().items():
        torch.testing.assert_close(value, first[name], rtol=0, atol=1e-20)
    other = replace(trained, record=replace(trained.record, seed=4))
    again = find_origin(other, None, None).model
    assert again is not None and not torch.equal(again.head.fc.weight, first["head.fc.weight"])  # type: ignore[union-attr]


def test_the_first_weights_of_a_pretraining_are_drawn_again(tmp_path: Path) -> None:
    values = {"recipe": "mine", "model": "dognext_test", "seed": 5, "size": 32,
              "net.dog_init": "random", "net.kernel_size": 5}  # fmt: skip
    base = config.merge(config.recipe("pretrain/imagenet50ep"), values)
    network = build_network(config.build(PretrainConfig, base), 7)
    data = DataRecord("few", 32, None, None, (0.5,) * 3, (0.5,) * 3, None)
    record = WeightsRecord(
        "dognext_test", 7, 1, "mine", "scratch", 1, {}, data, None, seed=5,
        options=network.options, versions={"dogmed": "0", "torch": "1.0"},
    )  # fmt: skip
    save_weights(tmp_path / "a.safetensors", network.model.state_dict(), record)
    origin = find_origin(open_trained(str(tmp_path / "a.safetensors")), None, None)
    assert origin.model is not None and "drawn with torch 1.0" in origin.note
    for name, value in network.model.state_dict().items():
        assert torch.equal(value, origin.model.state_dict()[name]), name


def test_what_a_run_began_with_is_found_and_checked(
    run: Callable[..., Path], make_weights: Callable[..., Path], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    store.mkdir()
    start = make_weights("start", recipe="mine", seed=7).rename(
        store / "dognext_test.mine.safetensors"
    )
    trained = open_trained(str(run(init="mine", weights_dir=str(store))))
    origin = find_origin(trained, None, None)  # where the run's own configuration says
    assert origin.model is not None and "same sha256" in origin.note
    expected, _, _ = read_weights(start)
    assert torch.equal(origin.model.state_dict()["stem.0.weight"], expected["stem.0.weight"])

    make_weights("start", recipe="mine", seed=8).rename(start)
    origin = find_origin(trained, None, None)
    assert origin.model is None and "not what its training began with" in origin.note
    named = find_origin(trained, str(start), None)
    assert named.model is not None
    start.unlink()
    note = find_origin(trained, None, None).note
    assert f"there is no {start} or " in note and note.endswith("name it with --before")


def test_without_a_seed_nothing_is_drawn(make_weights: Callable[..., Path]) -> None:
    origin = find_origin(open_trained(str(make_weights())), None, None)
    assert origin.model is None and "does not tell the seed" in origin.note


@pytest.mark.parametrize(
    ("name", "sizes", "reductions"),
    [
        ("dognext_test", {7}, [1, 4, 8, 16, 16]),
        ("convnextv2_atto", {7}, [4] * 2 + [8] * 2 + [16] * 6 + [32] * 2),
        ("mobilenetv3_small_050", {3, 5}, [2, 4, 8, 8] + [16] * 5 + [32] * 2),
    ],
)
def test_layers_are_found_with_their_reductions(
    name: str, sizes: set[int], reductions: list[int]
) -> None:
    model = timm.create_model(name, num_classes=2).eval()
    layers = depthwise_layers(model, 3, name)
    assert {layer.size for layer in layers} == sizes
    assert [layer.reduction for layer in layers] == reductions
    assert all(layer.kernels.ndim == 3 for layer in layers)


@pytest.mark.parametrize("size", [64, 224])
@pytest.mark.parametrize("stride", [3, 5, 6])
def test_pixels_to_a_cell_are_the_product_of_the_strides(stride: int, size: int) -> None:
    """Also where the strides do not divide the size of the images."""
    model = timm.create_model("dognext_test", stem_stride=stride).eval()
    model.pretrained_cfg["input_size"] = (3, size, size)
    layers = depthwise_layers(model, 3, "stem")
    expected = [1, stride, 2 * stride, 4 * stride, 4 * stride]
    assert [layer.reduction for layer in layers] == expected


def test_pixels_to_a_cell_count_dilation_and_the_bottlenecks_of_a_resnet() -> None:
    small = {"depths": (1, 1, 1, 2), "dims": (8, 8, 8, 8)}
    dilated = timm.create_model("convnextv2_atto", output_stride=16, **small).eval()
    assert [layer.reduction for layer in depthwise_layers(dilated, 3, "a")] == [4, 8, 16, 32, 32]
    resnet = timm.create_model("resnext50_32x4d", cardinality=64, base_width=1).eval()
    found = depthwise_layers(resnet, 3, "b")
    assert [(layer.name, layer.reduction) for layer in found] == [
        (f"layer1.{block}.conv2", 4) for block in range(3)
    ]


def test_larger_kernels_keep_their_cell() -> None:
    model = timm.create_model("dognext_test", num_classes=2, kernel_size=9).eval()
    layers = depthwise_layers(model, 3, "nine")
    assert [2 * layer.extent / layer.size for layer in layers] == pytest.approx(
        [4 / 7] * len(layers)
    )


def quiet(_: str) -> None:
    """Say nothing."""


def test_larger_kernels_are_compared_with_what_they_began_as(
    make_weights: Callable[..., Path],
) -> None:
    """By the record, without --before: the functions of the first weights, sampled as the trained ones."""
    first = make_weights("first", seed=1)
    for options in ({"kernel_size": 9}, {"stem_stride": 6, "stem_kernel_size": 11}):
        trained = open_trained(str(make_weights("after", seed=1, init=str(first), options=options)))
        found = study(trained, None, None, quiet)
        assert found.origin.model is not None and len(found.layers) == 5
        for layer in found.layers:
            assert layer.before is not None and layer.similarity is not None
            after, before = layer.after.layer, layer.before.layer
            assert torch.equal(after.kernels, before.kernels) and not layer.changed.any()  # type: ignore[union-attr]
            assert (after.size, after.extent, after.reduction) == (
                before.size, before.extent, before.reduction
            )  # fmt: skip


@pytest.mark.parametrize("bias", ["output", "kernel"])
def test_a_bias_in_the_kernel_is_part_of_what_it_was(bias: str) -> None:
    models = [
        timm.create_model("dognext_test", dog_bias=bias, kernel_size=size).eval() for size in (9, 7)
    ]
    with torch.no_grad():
        models[1].stages[0].blocks[0].conv_dw.bias.fill_(0.5)  # type: ignore[union-attr]
    layers = depthwise_layers(models[0], 3, "nine")
    first = counterparts(layers, *models)[layers[0].name]
    assert first is not None and first.functions is not None
    plain = sample_kernels(first.functions, 9, layers[0].extent).detach()
    added = 0.5 * (bias == "kernel")
    torch.testing.assert_close(first.kernels, plain.double() + added, check_dtype=False)


@pytest.mark.parametrize("depths", [(1, 1, 1, 1), (1, 1, 3, 1)])
def test_another_network_in_the_record_is_left_out_and_one_asked_for_is_refused(
    depths: tuple[int, ...], make_weights: Callable[..., Path]
) -> None:
    first = make_weights("first", options={"depths": depths})
    trained = open_trained(str(make_weights("after", init=str(first))))
    found = study(trained, None, None, quiet)
    assert found.origin.model is None and "for example stages.2.blocks" in found.origin.note
    assert all(layer.before is None for layer in found.layers)
    with pytest.raises(ConfigError, match=r"has not the layers of .*for example stages\.2\.blocks"):
        study(trained, str(first), None, quiet)


def test_the_share_of_all_energy_is_one_sum_over_kernels() -> None:
    torch.manual_seed(0)
    model = timm.create_model("convnextv2_atto", depths=(1, 1, 1, 1), dims=(4, 4, 4, 4)).eval()
    kernels = [describe(layer) for layer in depthwise_layers(model, 3, "small")[:2]]
    kernels[0].layer.kernels.mul_(10)
    energy = left = 0.0
    for k in kernels:
        scale = 10 if k is kernels[0] else 1
        assert k.fit is not None
        energy += float(k.layer.kernels.square().sum())
        left += float((k.layer.kernels - scale * k.fit.kernels).square().sum())
    assert weighted(kernels) == pytest.approx(1 - left / energy)


def test_a_place_that_cannot_be_written_is_told_first(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--out .*file.*nothing can be written there"):
        refuse_unusable(tmp_path / "file")
    with pytest.raises(ConfigError, match="--out"):
        refuse_unusable(tmp_path / "file" / "below")
    refuse_unusable(tmp_path / "new" / "place")
    assert not (tmp_path / "new").exists()


def test_a_network_without_depthwise_layers_is_refused() -> None:
    with pytest.raises(ConfigError, match="resnet10t: no layer"):
        depthwise_layers(timm.create_model("resnet10t").eval(), 3, "resnet10t")

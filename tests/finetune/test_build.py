"""What is built from the options: the network's own options, and what cannot be built."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm

from dogmed.errors import ConfigError, WeightsError
from dogmed.finetune import build
from dogmed.finetune.config import FinetuneConfig
from dogmed.models import DoGConv2d
from dogmed.models.weights import save_weights
from dogmed.weights.records import DataRecord, WeightsRecord

MakeConfig = Callable[..., FinetuneConfig]


def test_batches_of_one_are_refused_where_they_have_no_statistics(
    make_config: Callable[..., FinetuneConfig],
) -> None:
    with pytest.raises(ConfigError, match="--batch-size"):
        build.refuse_lone_images(timm.create_model("test_resnet"), batch_size=1, processes=1)
    build.refuse_lone_images(timm.create_model("test_convnext"), batch_size=1, processes=1)
    build.refuse_lone_images(timm.create_model("test_resnet"), batch_size=4, processes=2)


@pytest.mark.parametrize(
    ("options", "has"),
    [
        ({"order": "d1"}, lambda model, layer: layer.order == "d1"),
        ({"kernel_size": 9}, lambda model, layer: (layer.kernel_size, layer.extent) == (9, 18 / 7)),
        ({"kernel_size": 9, "extent": 2.0}, lambda model, layer: layer.extent == 2),
        ({"downsample": "conv"}, lambda model, layer: model.stem[0].stride == (4, 4)),
        ({"use_grn": False}, lambda model, layer: not any("grn" in n for n in model.state_dict())),
        ({"dog_bias": "kernel"}, lambda model, layer: layer.bias_in == "kernel"),
    ],
)
def test_options_of_the_network_reach_it_and_its_record(
    make_config: MakeConfig, options: dict[str, Any], has: Callable[[Any, Any], bool]
) -> None:
    config = make_config(size=64, **{f"net__{name}": value for name, value in options.items()})
    network = build.build_network(config, 2)
    layers = [m for m in network.model.modules() if isinstance(m, DoGConv2d)]
    assert all(has(network.model, layer) for layer in layers)
    assert network.loaded.options == options
    assert build.build_network(make_config(), 2).loaded.options == {}


@pytest.mark.parametrize(
    ("trained_size", "size", "told"), [(64, 32, True), (64, 48, False), (None, 32, False)]
)
def test_weights_that_were_chosen_for_another_size_say_so(
    make_config: MakeConfig, tmp_path: Path, trained_size: int | None, size: int, told: bool
) -> None:
    network = timm.create_model("dognext_test", num_classes=2)
    data = DataRecord(
        "imagenet", 48, None, None, (0.5,) * 3, (0.5,) * 3, None, trained_size=trained_size
    )
    record = WeightsRecord("dognext_test", 2, 1, "tiny64", "scratch", 1, {}, data, None)
    save_weights(tmp_path / "w.safetensors", network.state_dict(), record)
    config = make_config(model="dognext_test", init=str(tmp_path / "w.safetensors"), size=size)
    assert ("chosen for 48 px: --size 48" in str(build.build_network(config, 2).loaded)) is told


def test_scale_channels_that_see_little_are_told(make_config: MakeConfig) -> None:
    for size, told in ((8, "coarsest 2 of 3 scale channels smooth over all of 8 px"), (64, None)):
        config = make_config(model="gaussderresnet_test", size=size)
        said = str(build.build_network(config, 2).loaded)
        assert (told in said) if told else ("scale channels" not in said)


@pytest.mark.parametrize(
    ("model", "overrides", "said"),
    [
        ("test_convnext", {"net__order": "d1"}, r"no option order: the dognext_\* models have it"),
        ("test_resnet", {"net__use_grn": False}, r"leave --net.use-grn out"),
        ("dognext_test", {"net__kernel_size": 8}, "kernel_size must be odd"),
        ("test_resnet", {"scale_aug": "hybrid"}, "give --scale-aug scale"),
        (
            "dognext_test",
            {"scale_aug": "scale", "scale__range": [0.9, 0.3]},
            "largest <= 1: give --scale.range",
        ),
        (
            "dognext_test",
            {"scale_aug": "hybrid", "scale__kernel_sizes": [9, 5]},
            "--net.kernel-size",
        ),
    ],
)
def test_options_that_a_model_does_not_have_are_refused_in_one_line(
    make_config: MakeConfig, model: str, overrides: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        build.build_network(make_config(model=model, size=64, **overrides), 2)
    assert "\n" not in str(caught.value)


def test_a_runs_weights_rebuild_with_its_options_and_others_that_do_not_fit_are_refused(
    run_tiny: Callable[..., dict[str, Any]], make_config: MakeConfig, tmp_path: Path
) -> None:
    run_tiny(epochs=1, net__order="d1", net__use_grn=False)
    (best,) = (tmp_path / "runs").rglob("best.safetensors")
    again = build.build_network(make_config(init=str(best)), 2)
    assert again.loaded.options == {"order": "d1", "use_grn": False}
    assert not again.loaded.not_taken
    with pytest.raises(WeightsError, match="grn"):
        build.build_network(make_config(init=str(best), net__use_grn=True), 2)
    other = build.build_network(make_config(init=str(best), net__dog_margin=1.0), 2)
    assert "trained with options" in str(other.loaded)


def test_details_of_scale_augmentation_without_any_are_refused(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match=r"--scale\.threshold does nothing .* --scale-aug"):
        build.build_network(make_config(size=64, scale__threshold=0.5), 2)
    build.build_network(make_config(size=64, scale__threshold=0.5, scale__probability=0.1), 2)
    whole = {
        "probability": 0.0,
        "range": (0.35, 0.9),
        "threshold": 0.6,
    }  # as a config.yaml has them
    build.build_network(make_config(size=64, **{f"scale__{k}": v for k, v in whole.items()}), 2)

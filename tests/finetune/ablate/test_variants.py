"""The variants: what they are, what they cost, and that each of them learns."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import timm
import torch

from dogmed import references
from dogmed.errors import ConfigError
from dogmed.finetune import build
from dogmed.finetune.ablate.variants import BASELINE, choose, read_variants, refuse_equal, run_of
from dogmed.finetune.config import FinetuneConfig
from dogmed.models import DoGConv2d
from dogmed.models.cost import count_parameters
from dogmed.models.dog import MARGIN

VARIANTS = read_variants()


def parameters(model: str, **options: object) -> int:
    with torch.device("meta"):
        return count_parameters(timm.create_model(model, **options))


def test_every_row_of_the_thesis_is_a_variant_but_the_one_of_600_epochs() -> None:
    tables = references.imagenet_tables()
    rows = [*tables["4.2"].rows, "random"]
    named = [v.thesis.row for v in VARIANTS.values() if v.thesis]
    assert sorted(named) == sorted(set(rows) - {"ConvNeXt V2, 600 epochs"})
    found = VARIANTS["random-init"].thesis
    assert found and (found.acc1, found.acc5) == (67.65, 87.85)


def test_the_variants_differ_from_one_another_and_from_the_defaults() -> None:
    nets = [(v.family, tuple(v.net.items())) for v in VARIANTS.values()]
    assert len(set(nets)) == len(nets)
    margins = {v.net["dog_margin"] for v in VARIANTS.values() if "dog_margin" in v.net}
    assert margins == {0.02, 0.1, 1.0} and MARGIN not in margins


def test_the_networks_have_the_parameters_that_follow_from_the_thesis() -> None:
    dims, depths = (40, 80, 160, 320), (2, 2, 6, 2)
    channels = sum(width * depth for width, depth in zip(dims, depths, strict=True))
    count = {name: parameters(v.model("dognext_atto"), **v.net) for name, v in VARIANTS.items()}
    assert count["convnextv2"] == 3_708_400  # as published
    mixed = {
        "base": 1,
        "d1": 3,
        "d2": 6,
    }  # functions; a kernel has a width in x and y, scale and bias
    layer = DoGConv2d(1, 7, order="base")
    base = count_parameters(layer)
    for order, functions in mixed.items():
        per_channel = count_parameters(DoGConv2d(1, 7, order=order))
        expected = count["convnextv2"] - channels * (7 * 7 + 1) + channels * per_channel
        assert count[f"dropin-{order}"] == expected, order
        assert per_channel >= base + functions - 1
    for same in ("k9", "k11", "double-residual", "random-init", "margin-full", "bias-kernel"):
        assert count[same] == count[BASELINE], same
    assert (
        count[BASELINE] - count["no-grn"] == 2 * 4 * channels
    )  # gain and bias of the MLP's widths
    assert count["strided-d1"] < count[BASELINE] < count["dropin-d2"] < count["convnextv2"]
    assert round(count[BASELINE] / 1e6, 3) == 3.435


@pytest.mark.parametrize("name", [name for name, v in VARIANTS.items() if not v.family])
def test_every_variant_trains_with_gradients_everywhere(
    make_config: Callable[..., FinetuneConfig], name: str
) -> None:
    config = run_of(VARIANTS[name], make_config(size=64, net__drop_path=0.0), 3)
    network = build.build_network(config, 3)
    assert network.loaded.options == VARIANTS[name].net
    model = network.model
    optimizer, _ = build.build_optimizer(config, model, 5)
    before = {k: p.detach().clone() for k, p in model.named_parameters()}
    logits = model(torch.randn(4, 3, 64, 64))
    torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0])).backward()
    optimizer.step()
    for parameter, value in model.named_parameters():
        assert value.grad is not None and torch.isfinite(value.grad).all(), parameter
        frozen = name == "margin-full" and "conv_dw.mix" in parameter
        # so far a lead saturates the softmax: what is left of a gradient has underflowed
        assert bool((value.grad.abs() > 1e-30).any()) is not frozen, parameter
        assert torch.equal(before[parameter], value) is frozen, parameter


def test_what_is_asked_for_is_chosen_with_its_baseline_and_misspelt_names_are_told() -> None:
    names = [v.name for v in choose(["no-grn,k9", "convnextv2"])]
    assert names == [BASELINE, "convnextv2", "k9", "no-grn"]
    assert [v.name for v in choose(["all"])] == list(VARIANTS)
    with pytest.raises(ConfigError, match=r"unknown variant 'no-gnr' \(did you mean 'no-grn'\?\)"):
        choose(["no-gnr"])
    with pytest.raises(ConfigError, match="expected all, or some of dognext, convnextv2"):
        choose([])


def test_variants_in_their_first_weights_alone_are_refused_where_these_are_given() -> None:
    every = list(VARIANTS.values())
    refuse_equal(every, "scratch")
    refuse_equal([v for v in every if v.name in ("k9", "no-grn", "convnextv2")], "imagenet50ep")
    with pytest.raises(
        ConfigError, match="all that random-init, margin-small, margin-large, margin-full "
    ):
        refuse_equal(every, "imagenet50ep")


def test_runs_have_folders_of_their_own(make_config: Callable[..., FinetuneConfig]) -> None:
    shared = make_config(model="dognext_femto", label="mine")

    def named() -> Iterator[tuple[str, str]]:
        for variant in VARIANTS.values():
            run = run_of(variant, shared, 7)
            assert run.seed == 7 and run.net.drop_path == shared.net.drop_path
            yield run.model, run.label

    runs = list(named())
    assert len(set(runs)) == len(runs)
    assert runs[:3] == [
        ("dognext_femto", "mine"), ("convnextv2_femto", "mine"), ("dognext_femto", "mine-dropin-base"),
    ]  # fmt: skip

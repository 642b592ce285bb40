"""Strict loading: only the classifier may differ, and what was loaded is said in one line."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
from torch import nn

from dogmed.errors import WeightsError
from dogmed.models.loading import Loaded, load_into

Same = Callable[[dict[str, torch.Tensor], dict[str, torch.Tensor]], bool]


def build(num_classes: int = 2, **options: object) -> nn.Module:
    return timm.create_model("test_convnext", num_classes=num_classes, **options)


HEADS = ["test_convnext", "test_vit", "test_efficientnet", "resnet18", "convnextv2_atto"]


@pytest.mark.parametrize("name", HEADS)
def test_another_number_of_classes_replaces_only_the_classifier(name: str) -> None:
    trained, model = (timm.create_model(name, num_classes=n) for n in (7, 3))
    before = {n: v.clone() for n, v in model.state_dict().items()}
    not_taken = load_into(model, trained.state_dict(), source="x")
    classifier = model.pretrained_cfg["classifier"]
    assert set(not_taken) == {f"{classifier}.weight", f"{classifier}.bias"}
    for n, value in model.state_dict().items():
        assert torch.equal(value, (before if n in not_taken else trained.state_dict())[n]), n


@pytest.mark.parametrize("name", HEADS)
def test_the_same_classes_take_all(name: str, same: Same) -> None:
    trained, model = (timm.create_model(name, num_classes=4) for _ in range(2))
    assert load_into(model, trained.state_dict(), source="x") == ()
    assert same(model.state_dict(), trained.state_dict())


def test_one_side_without_classifier() -> None:
    expected = ("head.fc.bias", "head.fc.weight")
    assert load_into(build(0), build(3).state_dict(), source="x") == expected
    assert load_into(build(3), build(0).state_dict(), source="x") == expected


def test_half_a_classifier_is_not_taken() -> None:
    state = build(3).state_dict()
    del state["head.fc.bias"]
    assert load_into(build(3), state, source="x") == ("head.fc.bias", "head.fc.weight")


def without(state: dict, name: str) -> dict:
    return {n: v for n, v in state.items() if n != name}


@pytest.mark.parametrize(
    ("state", "trained", "message"),
    [
        (
            lambda: timm.create_model("test_convnext2", num_classes=2).state_dict(),
            "test_convnext2",
            r"do not fit test_convnext: they are weights of test_convnext2; tensors: ",
        ),
        (
            lambda: timm.create_model("test_resnet", num_classes=2).state_dict(),
            None,
            r"no name is the same.*\d+ missing \(stem.*, \.\.\.\), \d+ unknown \(",
        ),
        (
            lambda: build(in_chans=1).state_dict(),
            None,
            r"images of 1 channels, the model 3; tensors: 1 of another shape "
            r"\(stem\.0\.weight is \(24, 1, 4, 4\), expected \(24, 3, 4, 4\)\)",
        ),
        (
            lambda: without(build().state_dict(), "stem.1.bias"),
            None,
            r"another version of it; tensors: 1 missing \(stem\.1\.bias\)$",
        ),
        (
            lambda: {**build().state_dict(), "extra": torch.zeros(1)},
            None,
            r"1 unknown \(extra\)$",
        ),
        (
            lambda: build(dims=(32, 48, 64, 96)).state_dict(),
            "test_convnext",
            r"another size of this architecture; .* of another shape",
        ),
    ],
)
def test_anything_else_is_refused(state, trained: str | None, message: str, same: Same) -> None:
    model = build()
    before = {n: v.clone() for n, v in model.state_dict().items()}
    with pytest.raises(WeightsError, match=message) as caught:
        load_into(model, state(), source="weights.pt", trained=trained)
    assert "\n" not in str(caught.value)
    assert same(model.state_dict(), before)


@pytest.mark.parametrize("name", ["conv1.weight", "fc.weight", "bn1.num_batches_tracked"])
def test_integers_are_no_floating_point_numbers(name: str, same: Same) -> None:
    trained, model = (timm.create_model("resnet18", num_classes=2) for _ in range(2))
    before = {n: v.clone() for n, v in model.state_dict().items()}
    state = trained.state_dict()
    state[name] = state[name].int() if state[name].is_floating_point() else state[name].float()
    with pytest.raises(WeightsError, match=f"{name} holds torch.*, expected torch"):
        load_into(model, state, source="weights.pt")
    assert same(model.state_dict(), before)


def test_other_widths_of_the_same_kind_are_taken() -> None:
    model = timm.create_model("resnet18", num_classes=2)
    state = {n: v.clone() for n, v in model.state_dict().items()}
    narrow = {n: v.half() if v.is_floating_point() else v.int() for n, v in state.items()}
    assert load_into(model, narrow, source="x") == ()
    for n, value in model.state_dict().items():
        assert value.dtype == state[n].dtype and torch.equal(value, narrow[n].to(value.dtype))


def test_loaded_in_one_line() -> None:
    loaded = Loaded(
        "imagenet600ep",
        source="hf-hub:timm/convnextv2_atto.fcmae_ft_in1k",
        licence="cc-by-nc-4.0",
        sha256="0123456789abcdef",
        not_taken=("head.fc.bias", "head.fc.weight"),
        notes=("a note",),
    )
    assert str(loaded) == (
        "imagenet600ep from hf-hub:timm/convnextv2_atto.fcmae_ft_in1k, licence cc-by-nc-4.0 "
        "(non-commercial), sha256 0123456789ab; new classifier, not taken: head.fc.bias, "
        "head.fc.weight; a note"
    )
    assert str(Loaded("scratch")) == "from scratch"
    assert str(Loaded("a/best.pt", source="a/best.pt")) == (
        "a/best.pt, licence not stated; classifier taken too"
    )

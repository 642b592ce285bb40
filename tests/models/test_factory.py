"""build_model: every meaning of a model's name and of --init, against timm's own models."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
from pathlib import Path

import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch
from timm.layers import DropPath
from torch import nn

from dogmed import checkpoint
from dogmed.errors import ConfigError, WeightsError
from dogmed.models import build_model
from dogmed.models.weights import save_weights
from dogmed.weights.records import DataRecord, WeightsRecord

RECORD = WeightsRecord(
    model="dognext_test",
    num_classes=7,
    params=1,
    recipe="imagenet50ep",
    init="scratch",
    epochs=50,
    score={"acc1": 0.7},
    data=DataRecord("imagenet-1k", 224, None, "bicubic", (0.5,) * 3, (0.2,) * 3, None),
    licence="Apache-2.0",
)


def _assert_trunk_equal(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    classifier = tuple(
        f"{model.pretrained_cfg['classifier']}.{kind}" for kind in ("weight", "bias")
    )
    for name, value in model.state_dict().items():
        assert name in classifier or torch.equal(value, state[name]), name


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with one pretraining of dognext_test."""
    state = timm.create_model("dognext_test", num_classes=7).state_dict()
    save_weights(tmp_path / "dognext_test.imagenet50ep.safetensors", state, RECORD)
    return tmp_path


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's local cache, empty: what is put there is found without a network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def _cache(hub: Path, repository: str, filename: str, content: bytes) -> None:
    """Put a file where the hub's client would have after downloading it."""
    root = hub / f"models--{repository.replace('/', '--')}"
    file = root / "snapshots" / ("0" * 40) / filename
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    (root / "refs").mkdir(exist_ok=True)
    (root / "refs" / "main").write_text("0" * 40)


# ---- models -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["dognext_test", "dognext_atto", "convnextv2_atto", "resnet18", "vgg11", "test_vit"]
)
def test_from_scratch_is_what_timm_builds(name: str) -> None:
    takes_drop_path = name != "vgg11"
    torch.manual_seed(0)
    model, loaded = build_model(name, 5, drop_path_rate=0.2)
    after = torch.rand(1)
    torch.manual_seed(0)
    options = {"drop_path_rate": 0.2} if takes_drop_path else {}
    reference = timm.create_model(name, num_classes=5, **options)
    assert torch.equal(after, torch.rand(1))
    for (n, ours), theirs in zip(
        model.state_dict().items(), reference.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), n
    rates = [m.drop_prob for m in model.modules() if isinstance(m, DropPath)]
    assert rates == [m.drop_prob for m in reference.modules() if isinstance(m, DropPath)]
    assert bool(rates) == takes_drop_path
    note = f"; {name} has no drop path: the rate of 0.2 does nothing"
    assert str(loaded) == "from scratch" + note * (not takes_drop_path)
    assert model.training


def test_no_note_where_no_drop_path_is_wanted() -> None:
    assert str(build_model("vgg11", 2, drop_path_rate=0.0)[1]) == "from scratch"


def test_channels_and_options_reach_the_constructor() -> None:
    model, _ = build_model(
        "dognext_test", 2, in_chans=1, drop_path_rate=0.0, options={"kernel_size": 9}
    )
    assert model(torch.randn(2, 1, 64, 64)).shape == (2, 2)
    reference = timm.create_model("dognext_test", num_classes=2, in_chans=1, kernel_size=9)
    assert str(model) == str(reference)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dognext_ato", {}, r"unknown model 'dognext_ato' \(did you mean 'dognext_atto'\?\)"),
        ("hf-hub:timm/x", {}, "unknown model"),
        ("convnextv2_atto.fcmae", {}, "--model convnextv2_atto --init timm:fcmae"),
        ("dognext_test", {"kernal": 9}, "unexpected keyword argument 'kernal'"),
    ],
)
def test_bad_model(name: str, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build_model(name, 2, options=options)
    assert "\n" not in str(caught.value)


# ---- named weights and files --------------------------------------------------------------------


def test_named_weights(store: Path) -> None:
    model, loaded = build_model("dognext_test", 3, init="imagenet50ep", weights_dir=store)
    path = store / "dognext_test.imagenet50ep.safetensors"
    _assert_trunk_equal(model, safetensors.torch.load_file(path))
    assert loaded.source == str(path)
    assert loaded.not_taken == ("head.fc.bias", "head.fc.weight")
    assert loaded.licence == "Apache-2.0"
    assert loaded.data == RECORD.data
    assert loaded.record is not None and loaded.record.sha256 == loaded.sha256


@pytest.mark.parametrize(
    ("theirs", "ours", "said"),
    [
        (("cat", "dog"), ("cat", "dog"), "classifier taken too: the same 2 classes (cat, dog)"),
        (("cat", "dog"), ("dog", "cat"), "new classifier (theirs is for cat, dog), not taken: "),
        (("cat", "dog"), ("eel", "yak"), "new classifier (theirs is for cat, dog), not taken: "),
        (("0", "1"), ("0", "1"), "new classifier (theirs is for 0, 1), not taken: head.fc.bias"),
        ((), ("cat", "dog"), "new classifier, not taken: head.fc.bias, head.fc.weight"),
        (("cat", "dog"), None, "classifier taken too"),
    ],
)
def test_only_a_classifier_of_the_same_classes_is_taken(
    tmp_path: Path, theirs: tuple[str, ...], ours: tuple[str, ...] | None, said: str
) -> None:
    trained = timm.create_model("dognext_test", num_classes=2)
    data = dataclasses.replace(RECORD.data, classes=theirs)
    record = dataclasses.replace(RECORD, num_classes=2, data=data)
    path = tmp_path / "dognext_test.imagenet50ep.safetensors"
    save_weights(path, trained.state_dict(), record)
    model, loaded = build_model(
        "dognext_test", 2, init="imagenet50ep", weights_dir=tmp_path, classes=ours
    )
    _assert_trunk_equal(model, trained.state_dict())
    taken = torch.equal(model.head.fc.weight, trained.head.fc.weight)
    assert taken == (loaded.not_taken == ()) == said.startswith("classifier taken")
    assert said in str(loaded)


def test_the_same_seed_gives_the_same_classifier_with_and_without_weights(store: Path) -> None:
    torch.manual_seed(3)
    scratch, _ = build_model("dognext_test", 3)
    torch.manual_seed(3)
    model, _ = build_model("dognext_test", 3, init="imagenet50ep", weights_dir=store)
    assert torch.equal(model.head.fc.weight, scratch.head.fc.weight)


@pytest.mark.parametrize("form", ["file", "pt", "last", "folder"])
def test_files(store: Path, form: str) -> None:
    source = store / "dognext_test.imagenet50ep.safetensors"
    state = safetensors.torch.load_file(source)
    init = source
    if form == "pt":
        init = store / "weights.pt"
        average = {n: torch.zeros_like(v) for n, v in state.items()}
        options = argparse.Namespace(lr=0.1)
        torch.save({"model_ema": average, "model": state, "args": options}, init)
    elif form == "last":
        init = store / "last.pt"
        checkpoint.save(init, {"model": state})
    elif form == "folder":
        init = store / "seed0"
        (init / "checkpoints").mkdir(parents=True)
        save_weights(init / "checkpoints" / "best.safetensors", state, RECORD)
    model, loaded = build_model("dognext_test", 7, init=str(init))
    assert all(torch.equal(v, state[n]) for n, v in model.state_dict().items())
    assert "classifier taken too" in str(loaded)
    assert ("licence not stated" in str(loaded)) == (form in ("pt", "last"))


def test_weights_of_another_model(store: Path) -> None:
    path = store / "dognext_test.imagenet50ep.safetensors"
    with pytest.raises(WeightsError, match="do not fit convnextv2_atto: they are weights of dogn"):
        build_model("convnextv2_atto", 2, init=str(path))
    with pytest.raises(WeightsError, match="images of 3 channels, the model 1"):
        build_model("dognext_test", 2, init=str(path), in_chans=1)


def test_other_options_are_told(store: Path) -> None:
    _, loaded = build_model(
        "dognext_test", 2, init="imagenet50ep", weights_dir=store, options={"kernel_size": 9}
    )
    assert "trained with options {}, built with {'kernel_size': 9}" in str(loaded)


def test_weights_bring_their_options(tmp_path: Path) -> None:
    options = {"kernel_size": 9, "order": "d1"}
    pretrained, _ = build_model("dognext_test", 3, options=options)
    path = tmp_path / "dognext_test.imagenet50ep-scale.safetensors"
    record = dataclasses.replace(RECORD, num_classes=3, options=options)
    save_weights(path, pretrained.state_dict(), record)
    model, loaded = build_model("dognext_test", 3, init="imagenet50ep-scale", weights_dir=tmp_path)
    assert loaded.options == options
    assert "built with kernel_size=9, order=d1" in str(loaded)
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(model.eval()(x), pretrained.eval()(x))


@pytest.mark.parametrize(
    ("init", "parts"),
    [
        (
            "imagenet600ep",
            [
                "(did you mean 'imagenet50ep'?)",
                "dogmed pretrain --recipe imagenet600ep --model dognext_test --data IMAGENET",
                "dogmed weights import FILE --recipe imagenet600ep --model dognext_test",
                "published are those of convnextv2_* only: give --model convnextv2_atto",
            ],
        ),
        (
            "imagnet50ep",
            [
                "(did you mean 'imagenet50ep'?)",
                "(there for this model: imagenet50ep)",
                "dogmed weights list",
            ],
        ),
        ("imagenet50ep-hybird", ["(did you mean 'imagenet50ep-hybrid'?)"]),
        ("scrach", ["(did you mean 'scratch'?)"]),
        ("dognext_test.imagenet50ep", ["(did you mean 'imagenet50ep'?)"]),
    ],
)
def test_named_weights_not_found(store: Path, init: str, parts: list[str]) -> None:
    with pytest.raises(WeightsError) as caught:
        build_model("dognext_test", 2, init=init, weights_dir=store)
    line = str(caught.value)
    assert line.startswith(f"no weights '{init}' for dognext_test")
    assert f"{store / f'dognext_test.{init}.safetensors'} does not exist" in line
    assert "--weights-dir" in line and "\n" not in line
    for part in parts:
        assert part in line


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ("no/such.safetensors", "no weights at no/such.safetensors: no such file"),
        ("weights.pt", "no such file"),
        ("./", "no run folder with weights"),
        ("", "neither a name of weights nor a file"),
        ("two words", "neither a name"),
        ("timm", "timm publishes no weights of dognext_test"),
        ("hf-hub:", "not a hub repository"),
        ("hf-hub:a b", "not a hub repository"),
    ],
)
def test_bad_init(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, init: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match=message) as caught:
        build_model("dognext_test", 2, init=init, weights_dir=tmp_path)
    assert "\n" not in str(caught.value)


# ---- published weights --------------------------------------------------------------------------


def _published(name: str, **options: object) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return timm.create_model(name, **options).state_dict()


def test_imagenet600ep_is_timms_convnextv2(hub: Path, tmp_path: Path) -> None:
    state = _published("convnextv2_atto")
    content = safetensors.torch.save(state)
    _cache(hub, "timm/convnextv2_atto.fcmae_ft_in1k", "model.safetensors", content)
    model, loaded = build_model("convnextv2_atto", 4, init="imagenet600ep", weights_dir=tmp_path)
    _assert_trunk_equal(model, state)
    assert "licence cc-by-nc-4.0 (non-commercial)" in str(loaded)
    assert loaded.source == "hf-hub:timm/convnextv2_atto.fcmae_ft_in1k"
    assert loaded.not_taken == ("head.fc.bias", "head.fc.weight")
    assert loaded.data is not None
    assert (loaded.data.size, loaded.data.interpolation) == (224, "bicubic")


def test_the_store_comes_before_what_is_published(tmp_path: Path) -> None:
    path = tmp_path / "convnextv2_atto.imagenet600ep.safetensors"
    safetensors.torch.save_file(_published("convnextv2_atto"), path)
    _, loaded = build_model("convnextv2_atto", 4, init="imagenet600ep", weights_dir=tmp_path)
    assert loaded.source == str(path)


@pytest.mark.parametrize("init", ["timm", "timm:r160_in1k"])
def test_timm_weights_and_its_adaptation_of_channels(hub: Path, init: str) -> None:
    state = _published("test_convnext")
    content = safetensors.torch.save(state)
    _cache(hub, "timm/test_convnext.r160_in1k", "model.safetensors", content)
    model, loaded = build_model("test_convnext", 4, init=init)
    _assert_trunk_equal(model, state)
    assert loaded.licence == "apache-2.0" and not loaded.notes
    grey, loaded = build_model("test_convnext", 4, init=init, in_chans=1)
    assert loaded.notes == ("timm adapted the first layer from 3 to 1 channels",)
    summed = state["stem.0.weight"].sum(1, keepdim=True)
    torch.testing.assert_close(grey.stem[0].weight.data, summed)


def test_unknown_tag() -> None:
    with pytest.raises(WeightsError, match=r"did you mean 'a1_in1k'\?\); there are: a1_in1k, "):
        build_model("resnet18", 2, init="timm:a1_in1")


def test_hub_repository(hub: Path, tmp_path: Path) -> None:
    trained = timm.create_model("dognext_test", num_classes=7)
    timm.models.save_for_hf(trained, tmp_path / "push", safe_serialization=True)
    for name in ("config.json", "model.safetensors"):
        _cache(hub, "lab/dog", name, (tmp_path / "push" / name).read_bytes())
    model, loaded = build_model("dognext_test", 2, init="hf-hub:lab/dog")
    _assert_trunk_equal(model, trained.state_dict())
    assert loaded.source == "hf-hub:lab/dog"
    with pytest.raises(WeightsError, match="do not fit dognext_atto: they are weights of dognext_"):
        build_model("dognext_atto", 2, init="hf-hub:lab/dog")
    _cache(hub, "lab/other", "config.json", json.dumps({"model_type": "bert"}).encode())
    _cache(hub, "lab/other", "model.safetensors", b"")
    with pytest.raises(WeightsError, match=r"no config\.json in timm's form"):
        build_model("dognext_test", 2, init="hf-hub:lab/other")


def test_recorded_hash_is_that_of_the_tensors(store: Path) -> None:
    _, loaded = build_model("dognext_test", 3, init="imagenet50ep", weights_dir=store)
    state = safetensors.torch.load_file(store / "dognext_test.imagenet50ep.safetensors")
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name]
        digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        digest.update(value.numpy().tobytes())
    assert loaded.sha256 == digest.hexdigest()

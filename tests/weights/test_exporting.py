"""``dogmed weights export``: folders and files that timm opens, with equal tensors."""

from __future__ import annotations

import dataclasses
import json
import resource
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch

from dogmed import cli
from dogmed.models.weights import read_weights, save_weights, verify
from dogmed.weights.records import DataRecord, WeightsRecord, read_record, weights_path

RECORD = WeightsRecord(
    model="dognext_test",
    num_classes=3,
    params=1,
    recipe="mine",
    init="scratch",
    epochs=50,
    score={"val_acc1": 0.7},
    data=DataRecord(
        "pets", 48, None, "bilinear", (0.5,) * 3, (0.25,) * 3, None, classes=("cat", "dog", "eel")
    ),
    licence="cc-by-4.0",
)


def put(store: Path, **changes: object) -> dict[str, torch.Tensor]:
    record = dataclasses.replace(RECORD, **changes)
    torch.manual_seed(2)
    model = timm.create_model(
        record.model, num_classes=3, in_chans=record.in_chans, **record.options
    )
    state = {
        n: v + 0.02 * torch.randn_like(v) if v.is_floating_point() else v
        for n, v in model.state_dict().items()
    }
    save_weights(weights_path(store, record.model, record.recipe), state, record)
    return state


def run(store: Path, *words: str | Path) -> int:
    return cli.main(["weights", "export", *map(str, words), "--weights-dir", str(store)])


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model": "test_vit"},
        {"options": {"kernel_size": 9, "extent": 2.0, "dims": [8, 8, 8, 16]}},
        {
            "in_chans": 1,
            "data": dataclasses.replace(RECORD.data, mean=(0.5,), std=(0.25,)),
        },
    ],
    ids=["plain", "vit", "options", "grey"],
)
def test_a_folder_that_timm_opens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict
) -> None:
    state = put(tmp_path, **changes)
    out = tmp_path / "out"
    assert run(tmp_path, "mine", "--out", out) == 0
    assert f"timm.create_model('local-dir:{out}', pretrained=True)" in capsys.readouterr().out
    opened = timm.create_model(f"local-dir:{out}", pretrained=True)
    assert same(opened.state_dict(), state)
    cfg = opened.pretrained_cfg
    assert cfg["mean"] == list(changes.get("data", RECORD.data).mean)
    assert (cfg["license"], cfg["interpolation"]) == ("cc-by-4.0", "bilinear")
    config = json.loads((out / "config.json").read_text())
    assert config["label_names"] == ["cat", "dog", "eel"]
    assert {p.name for p in out.iterdir()} == {"config.json", "model.safetensors", "model.json"}
    assert verify(out / "model.safetensors").recipe == "mine"


def test_weights_without_a_licence_do_not_get_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path, licence=None)
    out = tmp_path / "out"
    assert run(tmp_path, "mine", "--out", out) == 0
    assert "nobody has said under which licence" in capsys.readouterr().out
    assert json.loads((out / "config.json").read_text())["pretrained_cfg"]["license"] == "other"
    assert "apache" not in (out / "config.json").read_text()
    record = read_record(out / "model.safetensors")
    assert record is not None and record.licence is None


@pytest.mark.parametrize("format", ["safetensors", "pt"])
def test_a_file_with_timms_names(tmp_path: Path, format: str) -> None:
    state = put(tmp_path)
    out = tmp_path / "out"
    assert run(tmp_path, "dognext_test.mine", "--out", out, "--format", format) == 0
    file = out / f"dognext_test.mine.{format}"
    assert {p.name for p in out.iterdir()} == {file.name, "dognext_test.mine.json"}
    assert same(read_weights(file)[0], state)
    opened = timm.create_model(
        "dognext_test", pretrained=True, num_classes=3,
        pretrained_cfg_overlay={"file": str(file), "num_classes": 3},
    )  # fmt: skip
    assert same(opened.state_dict(), state)
    assert json.loads(file.with_suffix(".json").read_text())["licence"] == "cc-by-4.0"


@pytest.mark.parametrize(
    ("init", "told"),
    [
        ("secret/w.safetensors", "w.safetensors"),
        ("secret/a/seed0", "seed0"),
        ("hf-hub:org/name", "hf-hub:org/name"),
        ("imagenet50ep", "imagenet50ep"),
    ],
)
def test_no_folder_of_this_machine_is_given_away(tmp_path: Path, init: str, told: str) -> None:
    put(tmp_path, init=init, training={"init": init, "seed": 1})
    assert run(tmp_path, "dognext_test.mine", "--out", tmp_path / "out") == 0
    for file in (tmp_path / "out").iterdir():
        assert b"secret" not in file.read_bytes(), file
    record = read_record(tmp_path / "out" / "model.safetensors")
    assert record is not None
    assert (record.init, record.training) == (told, {"init": told, "seed": 1})


def test_a_file_of_a_run_is_exported_too(tmp_path: Path) -> None:
    state = put(tmp_path)
    (tmp_path / "seed0" / "checkpoints").mkdir(parents=True)
    best = tmp_path / "seed0" / "checkpoints" / "best.safetensors"
    (tmp_path / "dognext_test.mine.safetensors").rename(best)
    assert run(tmp_path, f"{tmp_path}/seed0", "--out", tmp_path / "out") == 0
    opened = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert same(opened.state_dict(), state)


def test_nothing_is_overwritten_unasked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    (out / "model.safetensors").write_bytes(b"old")
    (out / "mine.txt").write_text("mine")
    assert run(tmp_path, "mine", "--out", out) == 2
    assert "holds model.safetensors already" in capsys.readouterr().err
    assert {p.name for p in out.iterdir()} == {"model.safetensors", "mine.txt"}
    assert run(tmp_path, "mine", "--out", out, "--overwrite") == 0
    assert (out / "mine.txt").read_text() == "mine"


def test_a_dropin_dognext_folds_into_timms_convnextv2(tmp_path: Path) -> None:
    small = {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}
    options = {"downsample": "conv", "kernel_size": 9, "order": "d1", **small}
    put(tmp_path, model="dognext_atto", options=options)
    out = tmp_path / "out"
    assert run(tmp_path, "mine", "--out", out, "--reparameterize") == 0
    record = read_record(out / "model.safetensors")
    assert record is not None
    assert record.model == "convnextv2_atto"
    assert record.options == {**small, "kernel_sizes": 9}
    opened = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    assert type(opened).__module__ == "timm.models.convnext"
    assert opened.stages[0].blocks[0].conv_dw.weight.shape == (8, 1, 9, 9)
    source = timm.create_model("dognext_atto", num_classes=3, **options).eval()
    path = tmp_path / "dognext_atto.mine.safetensors"
    source.load_state_dict(safetensors.torch.load_file(path))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(opened(images), source(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "stride in their depthwise convolutions, with a pool as shortcut"),
        ({"model": "test_convnext"}, "has no DoGConv: leave out --reparameterize"),
        ({"options": {"downsample": "conv"}}, "timm has no convnextv2_test"),
        ({"options": {"downsample": "conv", "double_residual": True}}, "two shortcuts"),
        ({"options": {"downsample": "conv", "dog_bias": "kernel"}}, "has none or all"),
    ],
)
def test_what_timm_cannot_express_is_not_folded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict, said: str
) -> None:
    put(tmp_path, **changes)
    assert run(tmp_path, "mine", "--out", tmp_path / "out", "--reparameterize") == 2
    line = capsys.readouterr().err
    assert said in line and line.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:-9]), "cannot read weights from"),
        (
            lambda p: safetensors.torch.save_file({"a": torch.zeros(1)}, p),
            "--model MODEL --recipe NAME gives it one",
        ),
    ],
)
def test_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], damage, said: str) -> None:
    put(tmp_path)
    damage(tmp_path / "dognext_test.mine.safetensors")
    assert run(tmp_path, "mine", "--out", tmp_path / "out") == 2
    line = capsys.readouterr().err
    assert said in line and line.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_record_that_speaks_of_other_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path, num_classes=5)
    assert run(tmp_path, "mine", "--out", tmp_path / "out") == 2
    assert "is not what its record says" in capsys.readouterr().err


def test_a_full_disk_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        assert run(tmp_path, "mine", "--out", tmp_path / "out") == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "cannot write to" in said
    assert not list((tmp_path / "out").iterdir())

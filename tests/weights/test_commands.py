"""``dogmed weights list|show|verify``: what is printed, and the exit codes."""

from __future__ import annotations

import dataclasses
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch

from dogmed import cli
from dogmed.models.weights import save_weights
from dogmed.weights import commands
from dogmed.weights.records import DataRecord, WeightsRecord, read_record, weights_path

RECORD = WeightsRecord(
    model="dognext_test",
    num_classes=7,
    params=1,
    recipe="imagenet50ep",
    init="scratch",
    epochs=50,
    score={"val_acc1": 0.7059, "val_acc5": 0.8976},
    data=DataRecord("imagenet-1k", 224, None, "bicubic", (0.5,) * 3, (0.2,) * 3, None),
    licence="Apache-2.0",
    training={"optim": {"lr_base": 2e-4, "lr": None}},
)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with two pretrainings of dognext_test."""
    folder = tmp_path / "store"
    folder.mkdir()
    state = timm.create_model("dognext_test", num_classes=7).state_dict()
    for recipe in ("imagenet50ep", "imagenet50classes"):
        record = dataclasses.replace(RECORD, recipe=recipe)
        save_weights(weights_path(folder, "dognext_test", recipe), state, record)
    return folder


def run(store: Path, *words: str) -> int:
    return cli.main(["weights", *words, "--weights-dir", str(store)])


def test_list(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = (store / "dognext_test.imagenet50ep.safetensors").read_bytes()
    (store / "dognext_test.cut.safetensors").write_bytes(whole[:-9])
    (store / "dognext_test.gone.safetensors").symlink_to(tmp_path / "nowhere.safetensors")
    safetensors.torch.save_file({"a": torch.zeros(1)}, store / "resnet18.bare.safetensors")
    assert run(store, "list") == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["name", "model", "recipe", "accuracy", "px", "disk", "licence"]
    assert len(lines) == 5
    (gone,) = [line for line in lines if line.startswith("dognext_test.gone ")]
    assert "DAMAGED: " in gone
    (cut,) = [line for line in lines if line.startswith("dognext_test.cut ")]
    assert "DAMAGED: cannot read weights from" in cut
    (bare,) = [line for line in lines if line.startswith("resnet18.bare ")]
    assert bare.endswith("no record")
    (good,) = [line for line in lines if line.startswith("dognext_test.imagenet50ep ")]
    assert "val_acc1 0.7059  224" in good and good.endswith("Apache-2.0")
    assert run(tmp_path / "nowhere", "list") == 0
    assert f"no weights in {tmp_path / 'nowhere'}" in capsys.readouterr().out


def test_listing_and_showing_need_no_pytorch(store: Path) -> None:
    code = (
        "import sys; from dogmed import cli\n"
        f"for words in (['list'], ['show', 'imagenet50ep']):\n"
        f"    assert cli.main(['weights', *words, '--weights-dir', {str(store)!r}]) == 0\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "name", ["dognext_test.imagenet50ep", "imagenet50ep", "dognext_test.imagenet50ep.safetensors"]
)
def test_show(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.chdir(store)
    assert run(store, "show", name, "--json") == 0
    path = store / "dognext_test.imagenet50ep.safetensors"
    content = json.loads(capsys.readouterr().out)
    assert content == json.loads(path.with_suffix(".json").read_text())
    assert run(store, "show", name) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["score.val_acc5"] == "0.8976"
    assert lines["training.optim.lr_base"] == "0.0002"
    assert lines["training.optim.lr"] == "None"  # as the flag takes it: an option is stated
    assert lines["data.mean"] == "0.5 0.5 0.5"
    assert lines["seed"] == lines["data.licence"] == "not stated"
    assert {key.partition(".")[0] for key in lines} == {*content, "file", "disk"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["show", "imagnet50ep"], "(did you mean 'imagenet50ep'?)"),
        (["show", "nowhere.safetensors"], "no such file"),
        (["show", "{store}"], "no run folder with weights"),
        (["show", "{store}/notes.pt"], "dogmed weights import"),
        (["verify", "imagenet50"], "(did you mean 'imagenet50ep'?)"),
        (["export", "imagnet50ep", "--out", "x"], "(did you mean 'imagenet50ep'?)"),
    ],
)
def test_wrong_names(
    store: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    (store / "notes.pt").write_bytes(b"notes")
    assert run(store, *(word.format(store=store) for word in words)) == 2
    line = capsys.readouterr().err
    assert said in line and line.count("\n") == 1


def test_a_recipe_of_several_models_is_ambiguous(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = timm.create_model("test_convnext", num_classes=7).state_dict()
    record = dataclasses.replace(RECORD, model="test_convnext")
    save_weights(weights_path(store, "test_convnext", "imagenet50ep"), state, record)
    assert run(store, "show", "imagenet50ep") == 2
    said = capsys.readouterr().err
    assert "say dognext_test.imagenet50ep or test_convnext.imagenet50ep" in said


def test_verify(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = store / "dognext_test.imagenet50ep.safetensors"
    record = read_record(path)
    assert record is not None
    assert run(store, "verify") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert f"ok     dognext_test.imagenet50ep  {record.sha256}" in lines
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert run(store, "verify") == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("WRONG") and "sha256" in line]
    assert run(store, "verify", "imagenet50classes") == 0
    assert run(store, "verify", "imagenet50classes", "imagenet50ep") == 1
    capsys.readouterr()
    beside = store / "dognext_test.imagenet50classes.json"
    beside.write_text(beside.read_text().replace("0.7059", "0.9059"))
    assert run(store, "verify", "imagenet50classes") == 1
    assert "differs from the record inside" in capsys.readouterr().out


def test_verify_finds_a_file_under_another_models_name(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = store / "dognext_test.imagenet50ep.safetensors"
    path.rename(store / "dognext_atto.imagenet50ep.safetensors")
    assert run(store, "verify") == 1
    assert "holds weights of dognext_test, but is named" in capsys.readouterr().out


def test_nothing_to_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "verify") == 0
    assert f"nothing to verify in {tmp_path}" in capsys.readouterr().out


def test_records_of_earlier_versions_are_read(tmp_path: Path) -> None:
    """The fields of the first version of records, as its files have them."""
    content = {
        "model": "dognext_test", "num_classes": 2, "params": 9, "recipe": "finetune",
        "init": "scratch", "epochs": 3, "score": {"val_auc": 0.875},
        "data": {
            "name": "breastmnist", "size": 224, "source_size": 28, "interpolation": "bicubic",
            "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "licence": "CC BY 4.0",
            "source": "official", "kind": "binary", "classes": ["malignant", "normal"],
        },
        "licence": None, "in_chans": 3, "options": {}, "temperature": None, "git_commit": None,
        "versions": {}, "created": "2025-01-01T00:00:00+00:00", "sha256": "0", "format": 1,
    }  # fmt: skip
    path = tmp_path / "best.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(1)}, path, {"dogmed": json.dumps(content)})
    record = read_record(path)
    assert record is not None
    assert (record.origin, record.seed, record.data.images) == (None, None, None)
    assert {name: getattr(record, name) for name in content if name != "data"} == {
        name: value for name, value in content.items() if name != "data"
    }


@pytest.mark.parametrize("command", ["list", "show", "verify", "import", "export"])
def test_config_fields_are_the_functions_arguments(command: str) -> None:
    """The command line passes the fields on as they are; no default is written twice."""
    config = getattr(commands, f"{command.title()}Config")
    fields = {field.name: field for field in dataclasses.fields(config)}
    arguments = inspect.signature(getattr(commands, f"weights_{command}")).parameters
    assert fields.keys() == arguments.keys()
    for argument in arguments.values():
        assert argument.default in (inspect.Parameter.empty, None, ())

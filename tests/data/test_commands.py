"""``dogmed data``: what is printed, and the exit codes."""

from __future__ import annotations

import dataclasses
import inspect

import numpy as np
import pytest

from dogmed.data import commands, official_tasks, prepare
from dogmed.data.progress import Quiet
from dogmed.errors import ConfigError, DataError


def test_list_shows_tasks_and_what_is_prepared(make_npz, cache, capsys):
    assert commands.data_list(cache_dir=cache) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in official_tasks()) and "nothing yet" in out
    assert "89,996" in out and "CC BY-NC 4.0" in out
    prepare(make_npz(), size=16, cache_dir=cache)
    broken = prepare("octmnist", size=16, data="synthetic", samples=64, cache_dir=cache)
    prepare("octmnist", size=24, data="synthetic", samples=64, cache_dir=cache)
    (broken.folder / "val_labels.npy").unlink()
    commands.data_list(cache_dir=cache)
    lines = capsys.readouterr().out.splitlines()
    assert [x for x in lines if x.startswith("mine-16-npz") and " npz " in x]
    assert [x for x in lines if x.startswith("octmnist-24-") and "SYNTHETIC" in x]
    assert [x for x in lines if x.startswith("octmnist-16-") and "not whole" in x]


def test_verify_finds_damage(make_npz, cache, tmp_path, capsys):
    found = prepare(make_npz(), size=16, cache_dir=cache)
    whole = make_npz("whole.npz")
    make_npz("retinamnist.npz")
    make_npz("cut.npz").write_bytes(whole.read_bytes()[:-300])
    options = {"cache_dir": cache, "progress": Quiet()}
    assert commands.data_verify(**options) == 0
    assert commands.data_verify(data_dir=whole.parent, **options) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [x for x in lines if x.startswith("cut.npz") and "DAMAGED" in x and "truncated" in x]
    assert [x for x in lines if x.startswith("whole.npz") and "ok" in x]
    assert [x for x in lines if x.startswith("retinamnist.npz") and "variant, MD5" in x]
    (whole.parent / "pipe.npz").symlink_to("/dev/null")
    assert commands.data_verify(data_dir=whole.parent, **options) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [x for x in lines if x.startswith("pipe.npz") and "not a regular file" in x]
    path = found.folder / "train_images.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert commands.data_verify(**options) == 1
    assert "train_images.npy: its content is not what was written" in capsys.readouterr().out
    with pytest.raises(DataError, match="is not a folder"):
        commands.data_verify(data_dir=tmp_path / "nowhere", **options)


def test_synth_writes_medmnists_format(tmp_path, capsys, cache):
    out = tmp_path / "made"
    code = commands.data_synth(
        task=("chestmnist", "pathmnist"), out=out, size=(28, 64), samples=128, seed=0
    )
    assert code == 0 and "SYNTHETIC" in capsys.readouterr().out
    assert sorted(p.name for p in out.iterdir()) == [
        f"{name}_{size}_synthetic.npz" for name in ("chestmnist", "pathmnist") for size in (28, 64)
    ]
    chest = np.load(out / "chestmnist_64_synthetic.npz")
    assert chest["train_images"].shape == (128, 64, 64) and chest["val_labels"].shape == (32, 14)
    assert prepare(out / "chestmnist_64_synthetic.npz", size=64, cache_dir=cache).task.kind == (
        "multi-label"
    )
    with pytest.raises(ConfigError, match="did you mean 'pathmnist'"):
        commands.data_synth(task=("pathmnits",), out=out, size=(28,), seed=0)


def test_download_command(monkeypatch, tmp_path, cache, capsys):
    asked = []
    monkeypatch.setattr(
        commands,
        "fetch_official",
        lambda file, folder, *_: asked.append(file) or folder / file.name,
    )
    assert (
        commands.data_download(task=("dermamnist",), size=(28, 224), to=tmp_path, cache_dir=cache)
        == 0
    )
    out = capsys.readouterr().out
    assert [f.name for f in asked] == ["dermamnist.npz", "dermamnist_224.npz"]
    assert "licence CC BY-NC 4.0, not for commercial use" in out
    assert str(tmp_path / "dermamnist_224.npz") in out
    asked.clear()
    commands.data_download(task=("all",), size=(64,), cache_dir=cache)
    assert len(asked) == 12
    with pytest.raises(ConfigError, match="28, 64, 128, 224 px, not 65"):
        commands.data_download(task=("pathmnist",), size=(65,), cache_dir=cache)


@pytest.mark.parametrize(
    ("config", "command"),
    [("List", "list"), ("Download", "download"), ("Verify", "verify"), ("Synth", "synth")],
)
def test_config_fields_are_the_functions_arguments(config, command):
    """The command line passes the fields on as they are; no default is written twice."""
    fields = {f.name: f for f in dataclasses.fields(getattr(commands, f"{config}Config"))}
    arguments = dict(inspect.signature(getattr(commands, f"data_{command}")).parameters)
    arguments.pop("progress", None)
    assert fields.keys() == arguments.keys()
    for name, argument in arguments.items():
        assert argument.default in (inspect.Parameter.empty, None)
        if argument.default is None:
            assert fields[name].default is None

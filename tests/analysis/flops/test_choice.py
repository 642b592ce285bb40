"""``dogmed analyze flops --budget``: what a budget buys, and how to go on with it."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import timm
import torch
import torch.nn.functional as F

from dogmed import config, metrics
from dogmed.analysis.evaluation import Points
from dogmed.analysis.flops.choice import check_budget, finetune_command, macs_text
from dogmed.analysis.flops.command import FlopsConfig, _subjects, macs_name, read_budget, request_of
from dogmed.analysis.flops.points import Subject, measure
from dogmed.analysis.flops.report import _point_content
from dogmed.analysis.flops.ways import Configuration, strided_layer
from dogmed.analysis.subject import SubjectConfig
from dogmed.console import Console
from dogmed.data import Prepared
from dogmed.errors import ConfigError
from dogmed.finetune.build import build_network
from dogmed.finetune.config import FinetuneConfig
from dogmed.models.cost import count_macs
from dogmed.models.trained import open_trained
from dogmed.weights.records import read_record

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Bought(NamedTuple):
    weights: Path
    out: Path
    budget: int
    way: str
    printed: str
    found: dict[str, Any]
    saved: Path


@pytest.fixture(scope="module", params=["stride", "resolution"])
def bought(
    request: pytest.FixtureRequest,
    analyzed: Callable[..., Any],
    write_weights: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Bought:
    """The best within a budget that excludes the full model, of one way to spend less."""
    place = tmp_path_factory.mktemp("budget")
    budget = count_macs(timm.create_model("dognext_test", num_classes=2), 28) - 1
    ways = {"stride": ("--strides", 8, "--resolutions", 28)}
    words = ways.get(request.param, ("--resolutions", 16, "--strides", 4))
    weights = write_weights(place, temperature=2.0)
    done = analyzed("flops", place / "out", weights, *words, "--budget", budget)
    (saved,) = done.out.rglob("*.safetensors")
    assert saved.parent == done.folder
    return Bought(weights, done.out, budget, request.param, done.printed, done.found, saved)


def test_a_budget_is_read() -> None:
    read = {
        "300M": 3e8, "0.3G": 3e8, "300000000": 3e8, "12.5k": 12500, "2 GMAC": 2e9, "1T": 1e12,
        "1e6": 1e6, "2.5e+8": 2.5e8,
    }  # fmt: skip
    assert {text: read_budget(text) for text in read} == read
    assert [macs_name(read_budget(text)) for text in read] == [
        "300M", "300M", "300M", "12.5K", "2G", "1T", "1M", "250M"
    ]  # fmt: skip
    for text in ("", "M", "-3M", "300 MFLOPs", "0", "e9", "1e-9", "nan", "300MB", "0.0001"):
        with pytest.raises(ConfigError, match=r"expected multiply-accumulates \(MAC, half as many"):
            read_budget(text)
    assert [macs_text(n) for n in (272_900_000, 93_100)] == ["272.9 MMAC", "0.0931 MMAC"]


def test_a_request_has_a_name() -> None:
    asked = dataclasses.replace(config.build(FlopsConfig, {"latency": 2}), strides=(6, 8))
    assert request_of(config.build(FlopsConfig, {}), None) == ""
    assert request_of(asked, 3 * 10**8) == ("strides_6_8-budget_300M-latency_2")


def test_what_a_budget_buys_is_saved_ready_to_use(bought: Bought, prepared: Prepared) -> None:
    (choice,) = bought.found["choices"]
    tried, saved = bought.found["models"][0]["configurations"], bought.saved
    within = [p for p in tried if p["macs"] <= bought.budget]
    assert choice["chosen"] in within and choice["chosen"] != tried[0]
    best = max(p["scores"]["val"]["auc"]["value"] for p in within)
    chosen = choice["chosen"]
    assert chosen["scores"]["val"]["auc"]["value"] == best
    full, now = (p["scores"]["test"]["auc"]["value"] for p in (tried[0], chosen))
    difference = choice["minus_full"]["auc"]
    assert difference["value"] == pytest.approx(now - full, abs=1e-12)
    assert difference["low"] <= difference["value"] <= difference["high"]
    assert saved.name == choice["file"] and str(saved) in bought.printed

    opened, before = open_trained(str(saved)), read_record(bought.weights)
    record = opened.record
    assert before is not None and record.sha256 == before.sha256, "the same weights"
    assert (before.temperature, record.temperature) == (2.0, None), "it gives other logits"
    assert record.data.size == chosen["px"] and bought.weights.name in str(record.origin)
    assert record.data.trained_size == (28 if bought.way == "resolution" else None)
    layer = strided_layer(opened.model)
    assert layer is not None
    assert (layer.stride, layer.kernel_size) == (chosen["stride"], chosen["kernel_size"])
    pixels = torch.from_numpy(prepared.images("test").copy()).float()[:, None] / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    side = (record.data.size, record.data.size)
    seen = F.interpolate((pixels - mean) / std, side, mode="bilinear", antialias=True)
    with torch.inference_mode():
        probabilities = opened.model(seen).softmax(1).numpy()
    expected = metrics.score("binary", prepared.labels("test"), probabilities)
    for name in ("acc", "auc"):
        assert expected[name] == pytest.approx(chosen["scores"]["test"][name]["value"], abs=1e-3)


def test_the_printed_command_trains_what_was_chosen(bought: Bought) -> None:
    """At its size, with its stride, on the images that it was chosen with."""
    chosen = bought.found["choices"][0]["chosen"]
    (line,) = re.findall(r"^  use: (.*)$", bought.printed, re.M)
    program, command, *words = shlex.split(line)
    assert (program, command) == ("dogmed", "finetune")
    base = config.base_values(words, "finetune/default", choice=False)
    options = config.parse(FinetuneConfig, words, prog="dogmed finetune", base=base)
    assert (options.task, options.data, options.size) == ("breastmnist", "synthetic", chosen["px"])
    network = build_network(options, 2)
    assert network.macs == chosen["macs"]
    before = open_trained(str(bought.weights)).model.state_dict()
    after = network.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.fixture
def settle(cache_dir: Path, tmp_path: Path) -> Callable[..., list[Subject]]:
    """Settle what is tried with models; nothing is evaluated."""

    def of(*models: Path, strides: tuple[int, ...], resolutions: tuple[int, ...]) -> list[Subject]:
        asked = {"models": [*map(str, models)], "cache_dir": cache_dir, "out": tmp_path}
        options = config.build(FlopsConfig, {**asked, "resamples": 40})
        return _subjects(options, strides, resolutions, Console(False), Points())

    return of


def test_both_models_are_there_if_weights_are_analysed_as_they_were_and_as_chosen(
    bought: Bought, settle: Callable[..., list[Subject]]
) -> None:
    first, second = settle(bought.weights, bought.saved, strides=(12,), resolutions=(12,))
    assert first.title == "dognext_test breastmnist (scratch, seed 0)"
    mark = "stem_stride 8" if bought.way == "stride" else "16 px"
    assert second.title.startswith(f"dognext_test breastmnist (scratch, seed 0, {mark}")
    full = _point_content(measure(second, None).full)
    for name in ("macs", "scores", "stride", "kernel_size", "px"):
        assert full[name] == bought.found["choices"][0]["chosen"][name]


def test_the_least_budget_that_is_told_is_enough_and_one_above_all_is_told(
    settle: Callable[..., list[Subject]], make_weights: Callable[..., Path]
) -> None:
    subjects = settle(make_weights(), strides=(4,), resolutions=(20,))
    with pytest.raises(ConfigError, match="--budget 1e3: dognext_test") as caught:
        check_budget(subjects, 1000, "1e3")
    told = re.search(r"needs (\S+) at least \(stride 4, kernel 7, 20 px\)", str(caught.value))
    assert told is not None and check_budget(subjects, read_budget(told[1]), told[1]) == []
    (note,) = check_budget(subjects, read_budget("99T"), "99T")
    assert note.startswith("note: --budget 99T is above all that is tried with dognext_test")


@pytest.mark.parametrize(
    ("side", "options", "tail"),
    [
        (96, {}, "--size 96 --upsample-from 64"),
        (96, {"data_dir": "{there}"}, "--size 96 --upsample-from 28 --data-dir {there}"),
        (64, {}, "--size 64"),
        (64, {"data_dir": "{there}"}, "--size 64 --upsample-from 28 --data-dir {there}"),
        (20, {}, "dogmed analyze flops saved"),
        (20, {"task": "own.npz", "kind": "ordinal"}, "--size 20 --kind ordinal"),
        (20, {"data": "synthetic"}, "--size 20 --data synthetic"),
    ],
)
def test_the_command_has_the_files_that_there_are(
    make_weights: Callable[..., Path],
    tmp_path: Path,
    side: int,
    options: dict[str, str],
    tail: str,
) -> None:
    (tmp_path / "breastmnist.npz").touch()
    given = {name: value.format(there=tmp_path) for name, value in options.items()}
    trained = open_trained(str(make_weights(data={"source": "official"})))
    subject = SimpleNamespace(evaluation=SimpleNamespace(trained=trained))
    choice: Any = SimpleNamespace(
        found=SimpleNamespace(subject=subject),
        chosen=SimpleNamespace(configuration=Configuration("resolution", side, 4, 7)),
        path=Path("saved"),
    )
    line = finetune_command(choice, config.build(SubjectConfig, given))
    assert line.endswith(tail.format(there=tmp_path))

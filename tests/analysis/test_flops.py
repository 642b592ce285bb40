"""``dogmed analyze flops``: what is changed and counted, what is chosen where, saved and refused."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

import dogmed.models  # noqa: F401  (registers the DoGNeXt family)
from dogmed import cli, metrics
from dogmed.analysis import flops_points
from dogmed.analysis.evaluation import Evaluation
from dogmed.analysis.flops import read_budget
from dogmed.analysis.flops_points import Subject
from dogmed.analysis.flops_ways import (
    Configuration,
    Cost,
    change,
    changed_stem,
    configurations,
    count_cost,
    in_proportion,
    pareto,
    strided_layer,
)
from dogmed.analysis.images import TaskImages
from dogmed.console import Console
from dogmed.data import Prepared
from dogmed.errors import ConfigError
from dogmed.models.cost import count_macs
from dogmed.models.trained import dog_layers, open_trained
from dogmed.tracking import default_uri, open_store
from dogmed.weights.records import read_record

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STEMS = [(6, 7), (6, 11), (8, 7), (8, 15)]


@pytest.fixture
def flops(tmp_path: Path, cache_dir: Path) -> Callable[..., int]:
    def run(*words: object) -> int:
        usual = ["--out", tmp_path / "out", "--cache-dir", cache_dir, "--resamples", 40]
        options = ["--tracking", "off"] if "--tracking" not in words else []
        return cli.main(["analyze", "flops", *map(str, [*words, *usual, *options])])

    return run


def content(tmp_path: Path) -> dict[str, Any]:
    (path,) = (tmp_path / "out").rglob("flops.json")
    return json.loads(path.read_text())


def images(prepared: Prepared, split: str, side: int) -> torch.Tensor:
    """A split as the network sees it, made without the package: (N, 3, side, side)."""
    pixels = torch.from_numpy(prepared.images(split).copy()).float()[:, None] / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    normalised = (pixels - mean) / std
    if side == normalised.shape[-1]:
        return normalised
    return F.interpolate(normalised, (side, side), mode="bilinear", antialias=True)


@pytest.mark.parametrize(("stride", "kernel"), STEMS)
def test_a_changed_model_is_the_one_built_with_these_options(stride: int, kernel: int) -> None:
    torch.manual_seed(0)
    model = timm.create_model("dognext_test", num_classes=3).eval()
    built = timm.create_model(
        "dognext_test", num_classes=3, stem_stride=stride, stem_kernel_size=kernel
    ).eval()
    built.load_state_dict(model.state_dict(), strict=True)
    x = torch.randn(2, 3, 50, 50)
    one = Configuration("stride+kernel", 50, stride, kernel)
    with torch.no_grad():
        before = model(x)
        with change(model, one):
            assert torch.equal(model(x), built(x))
        assert torch.equal(model(x), before) and not torch.equal(before, built(x))
    cost = count_cost(model.to("meta"), one, 3)
    sampling = sum(layer.sampling_macs for layer in dog_layers(built).values())
    assert cost == Cost(count_macs(built, 50), sampling)


@pytest.mark.parametrize(("stride", "kernel"), STEMS)
@pytest.mark.parametrize("side", [28, 64])
def test_the_fused_stem_is_exact_at_other_strides(stride: int, kernel: int, side: int) -> None:
    torch.manual_seed(0)
    model = timm.create_model("dognext_test", num_classes=3).double().eval()
    model.stem.fused = True
    x = torch.randn(2, 3, side, side, dtype=torch.float64)
    with torch.no_grad(), changed_stem(model, stride, kernel):
        fused = model(x)
        model.stem.fused = False
        torch.testing.assert_close(fused, model(x), rtol=1e-10, atol=1e-10)


def test_larger_kernels_cost_more_at_the_same_stride() -> None:
    """The thesis's remark on Figure 4.5c; without a change of stride nothing is gained."""
    network = timm.create_model("dognext_test").to("meta")
    costs = {
        (stride, kernel): count_cost(network, Configuration("full", 64, stride, kernel), 3).macs
        for stride, kernel in [(4, 7), *STEMS]
    }
    assert costs[8, 7] < costs[8, 15] < costs[4, 7] and costs[6, 7] < costs[6, 11] < costs[4, 7]


def test_kernels_in_proportion_are_the_nearest_odd_ones() -> None:
    assert [in_proportion(7, 4, stride) for stride in (4, 5, 6, 7, 8)] == [7, 9, 11, 13, 15]
    for kernel in (3, 5, 7, 9, 11):
        for own in range(1, 9):
            for stride in range(own, 20):
                wanted, got = kernel * stride / own, in_proportion(kernel, own, stride)
                assert got % 2 == 1 and abs(got - wanted) == min(
                    abs(odd - wanted) for odd in range(1, 401, 2)
                )


def test_the_pareto_front_is_that_of_brute_force() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        points = [(int(c), int(s)) for c, s in rng.integers(0, 6, (rng.integers(1, 12), 2))]
        beaten = [
            any(c <= cost and s >= score and (c, s) != (cost, score) for c, s in points)
            for cost, score in points
        ]
        assert pareto(points) == [not b for b in beaten]


def test_the_usual_configurations_have_as_many_cells_each_way() -> None:
    model = timm.create_model("dognext_test")
    found = configurations(model, "it", 64, (), ())
    assert found[0] == Configuration("full", 64, 4, 7)
    by_way = {
        way: [(c.stride, c.kernel_size, c.side) for c in found if c.way == way]
        for way in ("stride", "resolution", "stride+kernel")
    }
    assert by_way == {
        "stride": [(s, 7, 64) for s in (5, 6, 7, 8)],
        "resolution": [(4, 7, side) for side in (51, 43, 37, 32)],
        "stride+kernel": [(5, 9, 64), (6, 11, 64), (7, 13, 64), (8, 15, 64)],
    }
    for stride, (_, _, side) in zip((5, 6, 7, 8), by_way["resolution"], strict=True):
        assert -(-side // 4) == -(-64 // stride)
    plain = configurations(timm.create_model("test_convnext"), "it", 64, (), ())
    assert [c.side for c in plain] == [64, 51, 43, 37, 32]
    assert {c.stride for c in plain} == {None}
    asked = configurations(model, "it", 64, (8, 4), (64, 32))
    assert [c.key for c in asked] == [
        "stride4-kernel7-64px", "stride8-kernel7-64px", "stride4-kernel7-32px", "stride8-kernel15-64px"
    ]  # fmt: skip
    assert strided_layer(timm.create_model("dognext_test", downsample="conv")) is None


def test_a_budget_is_read() -> None:
    read = {"300M": 3e8, "0.3G": 3e8, "300000000": 3e8, "12.5k": 12500, "2 GMAC": 2e9, "1T": 1e12}
    assert {text: read_budget(text) for text in read} == read
    for text in ("", "M", "-3M", "300 MFLOPs", "0", "1e9", "nan", "300MB", "0.0001"):
        with pytest.raises(ConfigError, match=r"expected multiply-accumulates \(MAC, half as many"):
            read_budget(text)


def test_the_table_is_what_an_independent_forward_pass_gives(
    flops: Callable[..., int],
    make_weights: Callable[..., Path],
    prepared: Prepared,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = make_weights()
    assert flops(path, "--strides", 6, 8, "--resolutions", 20) == 0
    told = capsys.readouterr().out
    found = content(tmp_path)
    assert (found["chosen_on"], found["told_on"], found["chosen_by"]) == ("val", "test", "auc")
    (model,) = found["models"]
    points = {
        (p["way"], p["stride"], p["kernel_size"], p["px"]): p for p in model["configurations"]
    }
    assert list(points) == [
        ("full", 4, 7, 28), ("stride", 6, 7, 28), ("stride", 8, 7, 28), ("resolution", 4, 7, 20),
        ("stride+kernel", 6, 11, 28), ("stride+kernel", 8, 15, 28),
    ]  # fmt: skip
    for (_, stride, kernel, side), point in points.items():
        options = {"stem_stride": stride, "stem_kernel_size": kernel}
        network = timm.create_model("dognext_test", num_classes=2, **options).eval()
        network.load_state_dict(load_file(path))
        assert point["macs"] == count_macs(network, side)
        for split in ("val", "test"):
            with torch.inference_mode():
                probabilities = network(images(prepared, split, side)).softmax(1).numpy()
            expected = metrics.score("binary", prepared.labels(split), probabilities)
            for name in ("acc", "auc"):
                score = point["scores"][split][name]
                assert score["value"] == pytest.approx(expected[name], abs=1e-3)
                assert score["low"] <= score["value"] <= score["high"]
    marks = pareto([(p["macs"], p["scores"]["val"]["auc"]["value"]) for p in points.values()])
    assert [p["front"] for p in points.values()] == marks
    assert "stride+kernel" in told and "1 MAC = 2 FLOPs" in told
    folder = next((tmp_path / "out").rglob("flops.json")).parent
    assert {file.name for file in folder.iterdir() if file.is_file()} == {
        f"flops.{suffix}" for suffix in ("json", "csv", "md", "png", "svg")
    }
    assert len((folder / "flops.csv").read_text().splitlines()) == 7


@pytest.mark.parametrize("ways", [("--strides", 8), ("--resolutions", 16)])
def test_what_a_budget_buys_is_saved_ready_to_use(
    ways: tuple[str, int],
    flops: Callable[..., int],
    make_weights: Callable[..., Path],
    prepared: Prepared,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = make_weights()
    network = timm.create_model("dognext_test", num_classes=2)
    budget = count_macs(network, 28) - 1
    other = ("--resolutions", 28) if "--strides" in ways else ("--strides", 4)
    assert flops(path, *ways, *other, "--budget", str(budget)) == 0
    told = capsys.readouterr().out
    found = content(tmp_path)
    (choice,) = found["choices"]
    tried = found["models"][0]["configurations"]
    within = [p for p in tried if p["macs"] <= budget]
    assert choice["chosen"] in within and choice["chosen"] != tried[0]
    best = max(p["scores"]["val"]["auc"]["value"] for p in within)
    chosen = choice["chosen"]
    assert chosen["scores"]["val"]["auc"]["value"] == best
    full, now = (p["scores"]["test"]["auc"]["value"] for p in (tried[0], chosen))
    difference = choice["minus_full"]["auc"]
    assert difference["value"] == pytest.approx(now - full, abs=1e-12)
    assert difference["low"] <= difference["value"] <= difference["high"]
    (saved,) = (tmp_path / "out").rglob("*.safetensors")
    assert saved.name == choice["file"] and str(saved) in told

    opened, before = open_trained(str(saved)), read_record(path)
    record = opened.record
    assert record.sha256 == before.sha256, "the same weights"
    assert record.data.size == chosen["px"] and path.name in record.origin
    assert record.data.trained_size == (28 if "--resolutions" in ways else None)
    layer = strided_layer(opened.model)
    assert (layer.stride, layer.kernel_size) == (chosen["stride"], chosen["kernel_size"])
    with torch.inference_mode():
        logits = opened.model(images(prepared, "test", record.data.size))
    expected = metrics.score("binary", prepared.labels("test"), logits.softmax(1).numpy())
    for name in ("acc", "auc"):
        assert expected[name] == pytest.approx(chosen["scores"]["test"][name]["value"], abs=1e-3)

    (tmp_path / "out").rename(tmp_path / "first")
    saved = tmp_path / "first" / saved.relative_to(tmp_path / "out")
    again = ("--strides", 12, "--resolutions", 12)
    assert flops(saved, *again) == 0
    full = content(tmp_path)["models"][0]["configurations"][0]
    for name in ("macs", "scores", "stride", "kernel_size", "px"):
        assert full[name] == chosen[name]


def test_both_models_are_there_if_weights_are_analysed_as_they_were_and_as_chosen(
    flops: Callable[..., int], make_weights: Callable[..., Path], tmp_path: Path
) -> None:
    assert flops(make_weights(), "--strides", 8, "--resolutions", 28, "--budget", "200K") == 0
    (saved,) = (tmp_path / "out").rglob("*.safetensors")
    assert flops(make_weights(), saved, "--strides", 12, "--resolutions", 20) == 0
    together = next(p for p in (tmp_path / "out").rglob("flops.json") if "2-models" in str(p))
    titles = [model["title"] for model in json.loads(together.read_text())["models"]]
    assert titles[0] == "dognext_test breastmnist (scratch, seed 0)"
    assert titles[1].startswith("dognext_test breastmnist (scratch, seed 0, stem_stride 8")


def test_time_is_measured_where_asked_for(
    flops: Callable[..., int],
    make_weights: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(flops_points, "LATENCY_SECONDS", 0.02)
    words = ("--strides", 8, "--resolutions", 28, "--latency", 2, "--budget", "1G")
    assert flops(make_weights(), *words) == 0
    found = content(tmp_path)
    for point in found["models"][0]["configurations"]:
        seconds = point["latency_seconds"]
        assert seconds["median"] > 0 and seconds["batch"] == 2 and seconds["repeats"] >= 1
    assert found["provenance"]["device"] in capsys.readouterr().out


def test_what_is_logged_has_names_that_mlflow_takes(
    flops: Callable[..., int],
    make_weights: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    words = ("--strides", 8, "--resolutions", 20, "--tracking", "mlflow")
    assert flops(make_weights(), *words) == 0
    client = open_store(default_uri(tmp_path / "out"), tmp_path / "out")
    (experiment,) = client.search_experiments(filter_string="name = 'dogmed-analysis'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert len(run.data.metrics) == 4 * 5
    assert "stride-kernel/stride8-kernel15-28px/test_auc" in run.data.metrics
    assert len(client.list_artifacts(run.info.run_id)) == 5


def test_a_network_without_dogconv_has_its_resolution(
    flops: Callable[..., int],
    make_weights: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert flops(make_weights(model="test_resnet"), "--budget", "1G") == 0
    assert {p["way"] for p in content(tmp_path)["models"][0]["configurations"]} <= {
        "full", "resolution"
    }  # fmt: skip
    assert "stride+kernel" not in capsys.readouterr().out


def test_on_imagenets_val_choices_are_told_on_val(
    flops: Callable[..., int],
    make_weights: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    classes = tuple(f"n{number:03d}" for number in range(120))
    rng = np.random.default_rng(0)
    for name in classes[:3]:
        folder = tmp_path / "imagenet" / "val" / name
        folder.mkdir(parents=True)
        for number in range(4):
            pixels = rng.integers(0, 256, (30, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    data = {"name": "imagenet", "kind": "multi-class"}
    path = make_weights(classes=classes, recipe="tiny", data=data)
    words = ("--imagenet", tmp_path / "imagenet", "--workers", 0, "--budget", "1G")
    assert flops(path, *words, "--strides", 8, "--resolutions", 14) == 0
    told = capsys.readouterr().out
    assert "There is val alone" in told and "val_acc5" in told and "auc" not in told
    found = content(tmp_path)
    assert found["chosen_by"] == "acc" and set(found["choices"][0]["minus_full"]) == {"acc", "acc5"}
    (saved,) = (tmp_path / "out").rglob("*.safetensors")
    assert set(read_record(saved).score) == {"val_acc1", "val_acc5"}


@pytest.mark.parametrize(
    ("model", "words", "said"),
    [
        ("dognext_test", ["--budget", "lots"], "--budget lots: expected multiply-accumulates"),
        ("dognext_test", ["--budget", "10K"], "needs 0.1 MMAC at least (stride 4, kernel 7, 14 px)"),
        ("dognext_test", ["--strides", "40"], "--strides 40: images of dognext_test breastmnist"),
        ("dognext_test", ["--strides", "0"], "strides"),
        ("dognext_test", ["--resolutions", "3"], "--resolutions 3: the first stride of"),
        ("test_resnet", ["--strides", "8"], "has no DoGConv, whose stride could be another"),
        ("test_convnext", [], "dogmed: test_convnext breastmnist (scratch, seed 0) cannot take images of 28"),
        ("dognext_test", ["--task", "pathmnist"], "pathmnist"),
        (None, [], "which model?"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line(
    model: str | None,
    words: list[str],
    said: str,
    flops: Callable[..., int],
    make_weights: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    models = [] if model is None else [make_weights(model=model)]
    assert flops(*models, *words) == 2
    notes, line = capsys.readouterr().err.strip().rpartition("\n")[::2]
    assert said in line and line.startswith("dogmed: ") and "dogmed: " not in notes
    assert not (tmp_path / "out").exists()


@pytest.fixture
def settle(
    make_weights: Callable[..., Path], prepared: Prepared, tmp_path: Path
) -> Callable[..., Subject]:
    """Settle what is tried with a model that was trained at a size; nothing is evaluated."""

    def of(size: int, strides: tuple[int, ...] = (), resolutions: tuple[int, ...] = ()) -> Subject:
        trained = open_trained(str(make_weights(data={"size": size})))
        evaluation = Evaluation(
            trained, TaskImages(prepared, trained.record), tmp_path / "kept", Console(False),
            device=torch.device("cpu"), batch_size=1, resamples=1,
        )  # fmt: skip
        return Subject.settle("it", evaluation, strides, resolutions)

    return of


def test_no_image_is_below_the_total_stride(settle: Callable[..., Subject]) -> None:
    for strides, resolutions, said in (
        (
            (200,),
            (),
            "--strides 200: it cannot take images of 224 px (1600 px or more: its total stride)",
        ),
        (
            (),
            (5,),
            "--resolutions 5: it cannot take images of 5 px (32 px or more: its total stride)",
        ),
    ):
        with pytest.raises(ConfigError, match=re.escape(said)):
            settle(224, strides, resolutions)
    assert [one.side for one in settle(64, (8,), (32,)).costs] == [64, 64, 32, 64]
    usual = settle(40)
    assert [(one.way, one.stride, one.side) for one in usual.costs] == [
        ("full", 4, 40), ("stride", 5, 40), ("resolution", 4, 32), ("stride+kernel", 5, 40)
    ]  # fmt: skip
    assert len(usual.notes) == 9
    assert (
        usual.notes[0] == "it: left out stride 6, kernel 7, 40 px: 48 px or more: its total stride"
    )
    below = settle(28, (8,), (20,))
    assert len(below.costs) == 4, "trained below it: bound by the first stride alone"


def test_a_stopped_analysis_goes_on(
    flops: Callable[..., int],
    make_weights: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = (make_weights(), "--strides", 8, "--resolutions", 20)
    tell = Console.line

    def then_interrupt(self: Console, text: str) -> None:
        tell(self, text)
        if " 3 of 8 " in text:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(Console, "line", then_interrupt)
        assert flops(*words) == 130
    stopped = capsys.readouterr().err
    assert stopped.endswith("dogmed: stopped with 3 of 8 points; the same command continues\n")
    (folder,) = (tmp_path / "out").rglob("predictions")
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert len(before) == 3 and not list((tmp_path / "out").rglob("flops.json"))
    assert flops(*words) == 0
    after = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert len(after) == 8 and before.items() <= after.items()


def test_help_loads_no_pytorch() -> None:
    code = (
        "import sys; from dogmed import cli\n"
        "try: cli.main(['analyze', 'flops', '--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--budget" in done.stdout

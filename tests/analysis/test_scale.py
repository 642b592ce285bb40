"""``dogmed analyze scale``: what is measured, what is chosen where, and what is refused."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

from dogmed import cli, metrics, stats
from dogmed.analysis.evaluation import Points, Score
from dogmed.analysis.scale import (
    Protocol,
    ScaleConfig,
    _subjects,
    read_factors,
    read_protocol,
)
from dogmed.analysis.scale_curves import curves
from dogmed.analysis.scale_points import (
    Measured,
    Point,
    Subject,
    _kernels,
    _sides,
    changes,
    choices,
)
from dogmed.analysis.scale_tables import thesis_rows
from dogmed.config import build
from dogmed.console import Console
from dogmed.data import Prepared
from dogmed.errors import ConfigError
from dogmed.references import imagenet_tables
from dogmed.tracking import default_uri, open_store

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture
def scale(tmp_path: Path, cache_dir: Path) -> Callable[..., int]:
    def run(*words: object) -> int:
        usual = ["--out", tmp_path / "out", "--cache-dir", cache_dir]
        options = ["--resamples", 40] if "--resamples" not in words else []
        options += ["--tracking", "off"] if "--tracking" not in words else []
        return cli.main(["analyze", "scale", *map(str, [*words, *usual, *options])])

    return run


def content(tmp_path: Path, name: str = "scale") -> dict[str, Any]:
    (path,) = (tmp_path / "out").rglob(f"{name}.json")
    return json.loads(path.read_text())


def test_the_table_is_what_an_independent_forward_pass_gives(
    scale: Callable[..., int],
    make_weights: Callable[..., Path],
    prepared: Prepared,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A resized kernel is that of a network built with this kernel size and the same extent."""
    path = make_weights()
    assert scale(path, "--resolutions", 28, 40, "--kernel-sizes", 5) == 0
    told = capsys.readouterr().out
    found = content(tmp_path)
    pixels = torch.from_numpy(prepared.images("test").copy()).float()[:, None] / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    images = F.interpolate((pixels - mean) / std, (40, 40), mode="bilinear", antialias=True)
    for kernel in (7, 5):
        options = {} if kernel == 7 else {"kernel_size": 5, "extent": 2.0}
        model = timm.create_model("dognext_test", num_classes=2, **options).eval()
        model.load_state_dict(load_file(path))
        with torch.inference_mode():
            probabilities = model(images).softmax(1).numpy()
            middle = model(images[..., 6:34, 6:34]).softmax(1).numpy()
        for fit, p in (("resize", probabilities), ("pad", middle)):
            expected = metrics.score("binary", prepared.labels("test"), p)
            (point,) = [
                point for point in found["points"]
                if (point["kernel"], point["fit"], point["side"], point["split"])
                == (kernel, fit, 40, "test")
            ]  # fmt: skip
            for name in ("acc", "auc"):
                assert point["scores"][name]["value"] == pytest.approx(expected[name], abs=1e-9)
                assert f"{100 * expected[name]:.2f}" in told
    assert len(found["points"]) == 16  # 2 fits, 2 sides, 2 kernel sizes, val and test
    (kept,) = (tmp_path / "out").rglob("predictions")
    assert len(list(kept.iterdir())) == 12  # at the size of the training the fits are one
    assert found["models"][0]["own_kernel"] == 7 and found["models"][0]["kernels"] == [7, 5]


def test_every_number_of_the_tables_is_in_the_csv_and_json_files(
    scale: Callable[..., int], make_weights: Callable[..., Path], tmp_path: Path
) -> None:
    paths = [make_weights(), make_weights("b", seed=1)]
    words = ("--fit", "resize", "--kernel-sizes", 5, "--resamples", 80)
    assert scale(*paths, "--resolutions", 28, 39, *words) == 0
    (folder,) = (tmp_path / "out" / "analysis" / "scale").glob("2-models-*")
    found = content(tmp_path)
    names = {f"scale.{suffix}" for suffix in ("json", "csv", "md", "html", "png", "svg")}
    assert {file.name for file in folder.iterdir()} == names
    text, page = ((folder / name).read_text() for name in ("scale.md", "scale.html"))
    assert "<svg" in page and "http" not in re.sub(r"<svg.*?</svg>", "", page, flags=re.S)
    rows = list(csv.DictReader((folder / "scale.csv").open()))
    assert len(rows) == 2 * len(found["points"])  # acc and auc
    for point in found["points"]:
        for name, score in point["scores"].items():
            (row,) = [
                row for row in rows
                if row["model"] == point["model"] and row["kernel"] == str(point["kernel"])
                and row["side"] == str(point["side"]) and row["split"] == point["split"]
                and row["metric"] == name
            ]  # fmt: skip
            assert [float(row[key]) for key in ("value", "low", "high")] == list(score.values())
            told = f"{100 * score['value']:.2f}<small>[{100 * score['low']:.2f}, {100 * score['high']:.2f}]"
            assert point["split"] == "val" or (
                f"{100 * score['value']:.2f}" in text and told in page
            )
    assert {row["word"] for row in rows if row["own_kernel"] == "False" and row["split"] == "test"} <= {
        "better", "worse", "noise"
    }  # fmt: skip
    assert "thesis, Table 4.7, vanilla training | DoGNeXt K9 -> 5 | 14.86 | 9.16 |" in text


def test_rescaled_images_and_the_kernels_chosen_on_val(
    scale: Callable[..., int], make_weights: Callable[..., Path], tmp_path: Path
) -> None:
    paths = [make_weights(), make_weights("b", seed=1, options={"kernel_size": 3})]
    assert scale(*paths, "--rescale", "0.71..1.42") == 0
    found = content(tmp_path, "rescale")
    factors = [2 ** (k / 4) for k in range(-2, 3)]
    assert sorted({point["at"] for point in found["points"]}) == pytest.approx(factors)
    assert {point["fit"] for point in found["points"]} == {"pad"}
    assert found["models"][0]["kernels"] == [9, 7, 5]
    names = [
        (curve["model"], curve["name"]) for curve in found["curves"] if curve["metric"] == "auc"
    ]
    first = found["models"][0]["title"]
    assert names[:4] == [
        (first, "kernel 7 (own)"), (first, "chosen on val"), (first, "kernel 9"), (first, "kernel 5")
    ]  # fmt: skip
    values = {
        (p["model"], p["split"], p["at"], p["kernel"]): p["scores"]["auc"]["value"]
        for p in found["points"]
    }
    for choice in found["choices"]:
        if choice["metric"] == "auc":
            same = {
                k: v for k, v in values.items() if (k[0], k[2]) == (choice["model"], choice["at"])
            }
            on_val = {k[3]: v for k, v in same.items() if k[1] == "val"}
            on_test = {k[3]: v for k, v in same.items() if k[1] == "test"}
            assert on_val[choice["kernel"]] == max(on_val.values())
            assert choice["test"]["value"] == on_test[choice["kernel"]]
            assert choice["flattery"] == max(on_test.values()) - on_test[choice["kernel"]]
    own = [values[first, "test", at, 7] for at in sorted({p["at"] for p in found["points"]})]
    (curve,) = [
        c for c in found["curves"]
        if (c["model"], c["name"], c["metric"]) == (first, "kernel 7 (own)", "auc")
    ]  # fmt: skip
    assert curve["mean"]["value"] == pytest.approx(np.mean(own))
    assert curve["worst_over_at_1"]["value"] == pytest.approx(min(own) / own[2])
    assert curve["mean_minus_own"]["value"] == 0 and curve["mean_minus_own"]["p"] == 1


OWN_KERNELS: dict[str, Any] = {"seven": {}, "three": {"kernel_size": 3}}
LABELS = np.arange(200)[:, None] % 2


def by_hand(right: dict[tuple[str, int], float], resamples: int = 200) -> list[Measured]:
    """Points at one side whose accuracy is ``right[split, kernel]``."""
    images = SimpleNamespace(splits=("val", "test"), name="by hand", size=28)
    evaluation: Any = SimpleNamespace(images=images)
    subject = Subject("model", evaluation, 9, (9, 7, 5), {}, False, ())
    found = []
    for (split, kernel), share in right.items():
        answers = np.where(np.arange(200) < share * 200, LABELS[:, 0], 1 - LABELS[:, 0])
        probabilities = np.eye(2)[answers]
        resampled = stats.resample("binary", LABELS, [probabilities], resamples=resamples)
        score = Score(float(resampled.scores["acc"][0]), 0.0, 1.0)
        point = Point(split, "resize", 14, 0.5, kernel)
        found.append(Measured(subject, point, {"acc": score}, resampled))
    return found


def test_kernels_are_chosen_on_val_alone() -> None:
    test = {("test", 9): 0.5, ("test", 7): 0.9, ("test", 5): 0.7}
    (choice,) = choices(by_hand({("val", 9): 0.5, ("val", 7): 0.4, ("val", 5): 0.6, **test}))
    assert choice.test.point.kernel == 5 and choice.best_on_test.point.kernel == 7
    assert choice.flattery == pytest.approx(0.2)
    assert choice.change is not None
    assert choice.change.difference.value == pytest.approx(0.2) and choice.change.word == "better"
    (tied,) = choices(by_hand({("val", 9): 0.4, ("val", 7): 0.6, ("val", 5): 0.6, **test}))
    assert tied.test.point.kernel == 7, "equal ones: nearest to its own"
    (own,) = choices(by_hand({("val", 9): 0.6, ("val", 7): 0.6, ("val", 5): 0.6, **test}))
    assert own.test.point.kernel == 9 and own.change is None


def test_differences_are_paired_and_adjusted_together() -> None:
    measured = by_hand({("test", 9): 0.5, ("test", 7): 0.9, ("test", 5): 0.5})
    seven, five = changes(measured)
    assert (seven.word, five.word) == ("better", "noise")
    expected = stats.differences(measured[1].resampled, measured[0].resampled)["acc"]
    assert seven.difference == expected and seven.family == 2
    assert seven.p_holm == pytest.approx(2 * expected.p)
    assert five.difference.value == 0 and five.p_holm == 1


@pytest.mark.parametrize(("resamples", "words"), [(80, "better noise"), (79, "too few resamples")])
def test_what_no_resamples_could_show_is_not_called_noise(resamples: int, words: str) -> None:
    seven, five = changes(
        by_hand({("test", 9): 0.0, ("test", 7): 1.0, ("test", 5): 0.0}, resamples)
    )
    assert " ".join(dict.fromkeys((seven.word, five.word))) == words


@pytest.mark.parametrize(
    ("given", "used", "said"),
    [
        (None, 1800, "1800 bootstrap resamples in place of 1000: Holm's adjustment over 45 "),
        (1000, 1000, "warning: --resamples 1000: no p-value will be small enough after Holm's "),
        (2000, 2000, ""),
    ],
)
def test_resamples_are_settled_before_anything_is_evaluated(
    make_weights: Callable[..., Path],
    cache_dir: Path,
    capsys: pytest.CaptureFixture[str],
    given: int | None,
    used: int,
    said: str,
) -> None:
    paths = tuple(str(make_weights(name, options=o)) for name, o in OWN_KERNELS.items())
    asked = {"models": paths, "cache_dir": cache_dir, "rescale": "0.5..2", "resamples": given}
    config = build(ScaleConfig, asked)
    subjects = _subjects(config, read_protocol(config), Console(True), Points())
    assert [s.family for s in subjects] == [45, 18]
    assert [s.evaluation.resamples for s in subjects] == [used, used]
    told = capsys.readouterr().out
    assert said in told and (said or "resamples" not in told)


def test_a_curve_without_a_score_at_1_has_no_ratio() -> None:
    measured = by_hand({("test", 9): 0.0, ("test", 7): 0.5, ("test", 5): 0.5})
    moved = [
        Measured(m.subject, m.point._replace(at=at), m.scores, m.resampled)
        for m in measured
        for at in (0.5, 1.0)
    ]
    own, seven, _ = curves([measured[0].subject], moved, [], "acc")
    assert own.kept is None and own.average.value == 0
    assert seven.kept is not None and seven.kept[:2] == (1.0, 1.0)


@pytest.mark.parametrize(
    ("text", "factors"),
    [
        ("0.5..2", [2 ** (k / 4) for k in range(-4, 5)]),
        ("0.71..1", [2**-0.5, 2**-0.25, 1]),
        ("0.5,0.71,1,1.41,2", [0.5, 0.71, 1, 1.41, 2]),
        ("2, 0.5", [0.5, 1, 2]),
    ],
)
def test_factors(text: str, factors: list[float]) -> None:
    assert read_factors(text) == pytest.approx(factors)


@pytest.mark.parametrize(
    "text", ["", "half", "0.5..", "1.5..2", "2..0.5", "1..1", "0..2", "1e9", "nan"]
)
def test_wrong_factors(text: str) -> None:
    with pytest.raises(ConfigError, match="--rescale"):
        read_factors(text)


def test_defaults_are_the_thesis_in_proportion() -> None:
    protocol = read_protocol(build(ScaleConfig, {}))
    assert protocol.fits == ("resize", "pad")
    assert [side for _, side in _sides(protocol, 224)] == [
        64,
        96,
        128,
        156,
        192,
        224,
        312,
        384,
        448,
    ]
    assert [side for _, side in _sides(protocol, 64)] == [18, 27, 37, 45, 55, 64, 89, 110, 128]
    assert _kernels(protocol, 9) == (9, 7, 5)
    assert _kernels(protocol, 3) == (3,)
    rescaled = Protocol("rescale", ("pad",), read_factors("0.5..2"), (), ())
    assert _kernels(rescaled, 7) == (15, 11, 9, 7, 5, 3)  # 14 is as near to 13
    assert min(_kernels(rescaled, 3)) == 3


def test_the_thesis_is_quoted_as_it_is() -> None:
    rows = thesis_rows()
    assert len(rows) == 12  # of 13; kernel 9 of Tables 4.6 and 4.7 is one
    for title, name, values in rows:
        number = title.split()[2].rstrip(",")
        assert tuple(values) == imagenet_tables()[number].rows[name]
    first = thesis_rows(differences=True)[0]
    assert first[1] == "DoGNeXt K9 -> 7" and first[2][0] == pytest.approx(4.99 - 2.48)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{dog}", "--kernel-sizes", "6"], "--kernel-sizes 6: expected odd sizes"),
        (["{conv}", "--kernel-sizes", "5"], "has no DoGConv"),
        (["{dog}", "--resolutions", "20", "28"], "--resolutions 20: dognext_test"),
        (["{dog}", "--resolutions", "20"], "needs 28 px"),
        (["{dog}", "--resolutions", "0"], "resolutions"),
        (["{conv}", "--resolutions", "28"], "cannot take images of this size"),
        (["{conv}", "--fit", "resize"], "trained at 28 px, cannot take images of this size"),
        (["{conv}", "--fit", "pad"], "trained at 28 px, cannot take images of this size"),
        (["{dog}", "--rescale", "2..4"], "expected a range around 1"),
        (["{dog}", "--rescale", "0.5..2", "--resolutions", "28"], "give one"),
        (["{dog}", "--rescale", "0.5..2", "--fit", "both"], "--fit both with --rescale"),
        (["{bare}"], "has no record of what it holds"),
        (["nothing.like.it"], "no weights 'nothing.like.it'"),
        (["{missing}"], "no such file"),
        ([], "which model?"),
        (["{dog}", "--task", "{npz}"], "val_images"),
        (["{dog}", "--task", "retinamnist"], "give the task it was trained on"),
        (["{mine}"], "no official task: give --task"),
        (["{dog}", "{grade}", "--resolutions", "28"], "give models of one task"),
        (["{dog}", "--fit", "stretch"], "--fit"),
        (["{dog}", "--resolution", "28"], "(did you mean '--resolutions'?)"),
    ],
)
def test_wrong_requests_are_one_line(
    scale: Callable[..., int],
    make_weights: Callable[..., Path],
    prepared: Prepared,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
) -> None:
    bare, npz = tmp_path / "bare.safetensors", tmp_path / "cut.npz"
    if "{bare}" in words:
        from safetensors.torch import save_file

        save_file({"a": torch.zeros(1)}, bare)
    if "{npz}" in words:
        pixels, labels = prepared.images("test"), prepared.labels("test")
        np.savez(
            npz, train_images=pixels, train_labels=labels, test_images=pixels, test_labels=labels
        )
    made = {
        "dog": {}, "conv": {"model": "test_convnext"}, "mine": {"data": {"name": "mine"}},
        "grade": {
            "classes": tuple("12345"),
            "data": {"name": "retinamnist", "kind": "ordinal", "classes": ()},
        },
    }  # fmt: skip
    paths = {
        name: make_weights(name, **options)
        for name, options in made.items()
        if f"{{{name}}}" in words
    }
    places = {**paths, "bare": bare, "npz": npz, "missing": tmp_path / "missing.safetensors"}
    assert scale(*(word.format(**places) for word in words)) == 2
    *notes, line = capsys.readouterr().err.splitlines()
    assert said in line and line.startswith("dogmed: ")
    assert not any(note.startswith(("dogmed", "Traceback")) for note in notes)
    assert not list((tmp_path / "out").rglob("*.json"))


def test_a_default_resolution_that_is_too_small_is_left_out_with_a_note(
    scale: Callable[..., int],
    make_weights: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert scale(make_weights(), "--kernel-sizes", 7, "--fit", "resize") == 0
    assert "left out 8, 12, 16, 20, 24 px: it needs 28 px" in capsys.readouterr().out
    found = content(tmp_path)
    assert sorted({point["side"] for point in found["points"]}) == [28, 39, 48, 56]
    assert {point["split"] for point in found["points"]} == {"test"}, "nothing to choose on val"
    assert found["choices"] == found["differences"] == []


def test_a_stopped_analysis_goes_on(
    scale: Callable[..., int],
    make_weights: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = (make_weights(), "--resolutions", 28, 30, "--fit", "resize", "--kernel-sizes", 5)
    tell = Console.line

    def then_interrupt(self: Console, text: str) -> None:
        tell(self, text)
        if " 3 of 8 " in text:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(Console, "line", then_interrupt)
        assert scale(*words) == 130
    *_, stopped = capsys.readouterr().err.splitlines()
    assert stopped == "dogmed: stopped with 3 of 8 points; the same command continues"
    (folder,) = (tmp_path / "out").rglob("predictions")
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert len(before) == 3 and not list((tmp_path / "out").rglob("scale.json"))
    assert scale(*words) == 0
    after = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert len(after) == 8 and before.items() <= after.items()
    assert scale(*words) == 0
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == after


def test_on_imagenets_val_nothing_is_chosen(
    scale: Callable[..., int],
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
            Image.fromarray(rng.integers(0, 256, (30, 30, 3), dtype=np.uint8)).save(
                folder / f"{number}.png"
            )
    path = make_weights(
        classes=classes, recipe="tiny", data={"name": "imagenet", "kind": "multi-class"}
    )
    words = ("--imagenet", tmp_path / "imagenet", "--workers", 0)
    assert scale(path, *words, "--rescale", "0.5,1,2", "--kernel-sizes", 5) == 0
    told = capsys.readouterr().out
    assert "no kernel size is chosen" in told and "accuracy@5" in told and "AUC" not in told
    found = content(tmp_path, "rescale")
    assert found["choices"] == [] and len(found["points"]) == 6
    assert [curve["name"] for curve in found["curves"][:2]] == ["kernel 7 (own)", "kernel 5"]


def test_help_loads_no_pytorch() -> None:
    code = (
        "import sys; from dogmed import cli\n"
        "try: cli.main(['analyze', 'scale', '--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--rescale" in done.stdout


def test_both_protocols_are_runs_of_mlflow_with_their_files(
    scale: Callable[..., int],
    make_weights: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    path = make_weights()
    words = (path, "--fit", "resize", "--kernel-sizes", 5, "--tracking", "mlflow")
    assert scale(*words, "--resolutions", 28) == 0
    assert scale(path, "--rescale", "1", "--kernel-sizes", 5, "--tracking", "mlflow") == 0
    client = open_store(default_uri(tmp_path / "out"), tmp_path / "out")
    (experiment,) = client.search_experiments(filter_string="name = 'dogmed-analysis'")
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    logged = {frozenset(f.path for f in client.list_artifacts(run.info.run_id)) for run in runs}
    kinds = ("json", "csv", "md", "html", "png", "svg")
    assert logged == {frozenset(f"{name}.{k}" for k in kinds) for name in ("scale", "rescale")}
    assert all(run.data.metrics for run in runs)

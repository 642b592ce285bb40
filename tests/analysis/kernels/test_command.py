"""``dogmed analyze kernels`` as a command: tables that add up, a page in a browser, wrong requests in one line."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dogmed import cli
from dogmed.analysis.kernels import study as kernels_study


def analyze(*words: str, out: Path) -> int:
    return cli.main(["analyze", "kernels", *words, "--out", str(out), "--tracking", "off"])


@pytest.fixture(scope="module")
def written(
    write_weights: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """What the command wrote of a small DoGNeXt beside another, and what it said."""
    folder = tmp_path_factory.mktemp("kernels")
    few: dict[str, Any] = {"options": {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)}}
    after = write_weights(folder, "after", seed=1, **few)
    before = write_weights(folder, "before", seed=2, **few)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert analyze(str(after), "--before", str(before), out=folder / "out") == 0
    (found,) = (folder / "out" / "analysis" / "kernels").iterdir()
    return found, said.getvalue()


def read(folder: Path) -> tuple[dict[str, Any], list[dict[str, str]]]:
    with (folder / "channels.csv").open() as file:
        return json.loads((folder / "kernels.json").read_text()), list(csv.DictReader(file))


def test_the_command_writes_tables_that_add_up(written: tuple[Path, str]) -> None:
    folder, said = written
    assert "Kernels of each pattern" in said and "What became of each pattern" in said
    content, channels = read(folder)
    tables = content["tables"]
    total = len(channels)
    assert total == sum(row["kernels"] for row in tables["changes"])
    for row in tables["patterns"]:
        parts = sum(v for k, v in row.items() if k not in ("layer", "when", "kernels"))
        assert parts == pytest.approx(row["kernels"])
    kept = sum(channel["pattern"] == channel["before"] for channel in channels)
    assert kept == sum(row[row["from"]] for row in tables["changes"] if row["from"] in row)
    for layer in content["layers"]:
        of = [channel for channel in channels if channel["layer"] == layer["layer"]]
        for which in ("narrow", "wide"):
            counted, _ = np.histogram(
                [float(c[which]) for c in of], layer["after"]["sigma"]["edges"]
            )
            assert counted.tolist() == layer["after"]["sigma"][which]
        weights = layer["after"]["1 - largest weight"]
        assert sum(sum(v) for k, v in weights.items() if k != "edges") == len(of)
    for row in tables["layers"]:
        radii = [
            float(c["radius"]) for c in channels if c["layer"] == row["module"] and c["radius"]
        ]
        assert row["radius, median"] == pytest.approx(np.median(radii))
    pictures = {path.name for path in folder.glob("*.png")}
    assert len([name for name in pictures if name.startswith("atlas-")]) == len(content["layers"])
    for name in pictures:
        assert (folder / name).with_suffix(".svg").stat().st_size > 500
    page = (folder / "kernels.html").read_text()
    assert re.search("<title>Kernels of dognext_test .*, SYNTHETIC data</title>", page)
    assert re.match("# .*: dognext_test .*, SYNTHETIC data\n", (folder / "layers.md").read_text())
    assert page.count("<img ") == 2 * total and not re.search(r'(?:src|href)="(?!data:|#)', page)


def test_the_page_fits_a_phone_dark_and_a_desktop_light(
    written: tuple[Path, str], look_at: Callable[..., dict[int, dict[str, Any]]]
) -> None:
    text = (written[0] / "kernels.html").read_text()
    looks = look_at(text)
    for width, seen in looks.items():
        assert seen["scroll"] <= width and not seen["outside"] and not seen["broken"], seen
        assert seen["images"] == text.count("<img ") > 50
        assert not [name for name in seen["resources"] if not name.startswith("data:")]
    assert looks[390]["paper"] != looks[1280]["paper"]


def test_a_network_of_learned_kernels_is_fitted(
    tmp_path: Path, make_weights: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels_study, "RANDOM", 100)  # fewer
    options = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}
    path = make_weights(model="convnextv2_atto", options=options)
    assert analyze(str(path), out=tmp_path / "out") == 0
    (folder,) = (tmp_path / "out" / "analysis" / "kernels").iterdir()
    content, channels = read(folder)
    rows = content["tables"]["explained"]
    together, chance = rows[0], rows[-1]
    known = [float(channel["explained"]) for channel in channels]
    assert together["median"] == pytest.approx(np.median(known))
    assert together["single, median"] < together["median"]
    assert (chance["when"], chance["kernels"]) == ("random", 100)  # which initial weights are
    assert together["median"] == pytest.approx(chance["median"], abs=0.05)
    assert (folder / "fits.png").is_file() and "random 7x7" in (folder / "explained.md").read_text()


@pytest.mark.parametrize(
    ("model", "before", "told"),
    [
        ("test_resnet", None, "no layer is a depthwise convolution"),
        ("dognext_test", "convnextv2_atto", "has not the layers of"),
    ],
)
def test_wrong_requests_end_in_one_line(
    model: str, before: str | None, told: str, tmp_path: Path,
    make_weights: Callable[..., Path], capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words = [str(make_weights(model=model))]
    if before:
        words += ["--before", str(make_weights("b", model=before))]
    assert analyze(*words, out=tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_no_model_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert analyze(out=tmp_path) == 2
    assert "which model?" in capsys.readouterr().err

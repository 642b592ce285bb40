"""``dogmed explain`` as a command: pictures, numbers and a page that agree; wrong requests in one line."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from dogmed import cli
from dogmed.inference.classifier import Classifier
from dogmed.inference.explain.pictures import overlay


class Written(NamedTuple):
    images: Path
    out: Path
    code: int
    said: str
    content: dict[str, Any]


def explain(run: Path, *words: object) -> int:
    return cli.main(["explain", str(run), *map(str, words), "--device=cpu"])


@pytest.fixture(scope="module")
def written(run: Path, npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """What the command makes of a folder: four images, one named as HTML, two pages, two that are broken."""
    folder = tmp_path_factory.mktemp("explain")
    images = [Image.fromarray(image) for image in np.load(npz)["test_images"][:3]]
    scans = folder / "scans"
    (scans / "deeper").mkdir(parents=True)
    images[0].save(scans / "a.png")
    images[1].save(scans / "deeper" / "a.png")
    images[2].save(scans / "<b>&.png")
    images[0].resize((300, 50)).save(scans / "wide.png")
    pages = [image.copy() for image in images[:2]]  # Pillow keeps what it saved them as
    pages[0].save(scans / "pages.tif", save_all=True, append_images=pages[1:])
    (scans / "empty.png").write_bytes(b"")
    (scans / "words.jpg").write_bytes(b"these are words")
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = explain(run, scans, "--out", folder / "out")
    content = json.loads((folder / "out" / "explain.json").read_text())
    return Written(scans, folder / "out", code, said.getvalue(), content)


def test_each_image_has_a_picture_a_line_and_its_numbers(
    written: Written, classifier: Classifier
) -> None:
    rows = written.content["explanations"]
    assert written.code == 3 and len(rows) == 6
    expected = classifier.predict(
        [written.images / n for n in ("<b>&.png", "a.png", "pages.tif", "wide.png", "deeper/a.png")]
    )
    assert [row["file"] for row in rows] == list(expected.files)
    assert [(row["class"],) for row in rows] == expected.names and all(r["decided"] for r in rows)
    np.testing.assert_allclose(
        [row["probability"] for row in rows], expected.probabilities.max(1), atol=1e-6
    )
    assert [row["warning"] for row in rows] == list(expected.warnings) and rows[4]["warning"]
    pictures = {path.name for path in written.out.glob("*.png")}
    assert pictures == {row["png"] for row in rows} and len(pictures) == 6
    for row in rows:
        with Image.open(written.out / row["png"]) as picture:
            assert picture.width > 600
        (line,) = [
            line for line in written.said.splitlines() if line.startswith(f"{row['file']}: ")
        ]
        assert f"{row['class']}: probability {row['probability']:.3f}" in line
        assert row["png"] in line
        assert (row["layer"], row["cells"], row["cell_px"]) == ("stages.2", 2, 14.0)
        assert row["kernel_layer"] == "stages.2.blocks.1.conv_dw"
        parts = [channel["part"] for channel in row["channels"]]
        assert parts == sorted(parts, reverse=True) and min(parts) > 0
        for channel in row["channels"]:
            assert channel["part"] == pytest.approx(channel["weight"] * channel["activation"])
            assert channel["pattern"] and 0 <= channel["channel"] < 24
    assert len(written.content["not_read"]) == written.said.count("not read: ") == 2
    assert "later maps have a single cell" in written.said
    assert "stages.2 (2×2 cells of 14 px)" in written.said
    assert (
        "finer maps, of layers that know less of the whole: --layer stages.0 (7×7), stages.1 (4×4)\n"
        in (written.said)
    )
    names = {path.name for path in written.out.iterdir()} - pictures
    assert names == {"explain.html", "explain.json"}


def test_the_page_has_every_image_and_what_must_be_said(written: Written) -> None:
    page = (written.out / "explain.html").read_text()
    rows = written.content["explanations"]
    assert page.count("<img ") == sum(2 + len(row["channels"]) for row in rows)
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    assert "it is no evidence of a lesion" in page and "2×2 cells of 14 px" in page
    assert "&lt;b&gt;&amp;.png" in page and "<b>&" not in page
    assert "warning: " in page and "empty.png is empty" in page


def test_the_page_fits_a_phone_dark_and_a_desktop_light(
    written: Written, look_at: Callable[..., dict[int, dict[str, Any]]]
) -> None:
    text = (written.out / "explain.html").read_text()
    looks = look_at(text, scrolling="head")  # nothing may
    for width, seen in looks.items():
        assert seen["scroll"] <= width and not seen["outside"] and not seen["broken"], seen
        assert seen["images"] == text.count("<img ")
        assert not [name for name in seen["resources"] if not name.startswith("data:")]
    assert looks[390]["paper"] != looks[1280]["paper"]


def test_the_same_request_is_answered_again_and_another_elsewhere(
    written: Written, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, out = written.images / "a.png", tmp_path / "out"
    assert explain(run, image, "--class", "2", "--layer", "stages.1", "--out", out) == 0
    (row,) = json.loads((out / "explain.json").read_text())["explanations"]
    assert (row["class"], row["layer"], row["cells"]) == ("2", "stages.1", 4)
    assert ("not predicted" in capsys.readouterr().out) != row["decided"]
    before = {path: path.read_bytes() for path in out.iterdir()}
    assert explain(run, image, "--class", "2", "--layer", "stages.1", "--out", out) == 0
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    capsys.readouterr()
    for words, other in (
        ([image, "--class", "2"], "other layer"),
        ([image, "--class", "1"], "other class, layer"),
        ([written.images / "wide.png", "--class=2", "--layer=stages.1"], "other files"),
    ):
        assert explain(run, *words, "--out", out) == 2
        error = capsys.readouterr().err
        assert other in error and error.count("\n") == 1
    assert {path: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize(
    "words, told",
    [
        ([], "which model, and which images"),
        (["nowhere.png"], "there is no file or folder nowhere.png"),
        (["a.png", "--layer", "stage.1"], "did you mean 'stages.1'"),
        (["a.png", "--layer", "stages.3"], "gives (1, 32, 1, 1), expected square maps"),
        (["a.png", "--class", "cyst"], "class cyst: hues has no such class; there are 0; 1; 2"),
        (["a.png", "--out", "a.png"], "is not a folder"),
        (["a.png", "--out", "."], "has files that are no explanations"),
        (["empty.png"], "no image could be read"),
    ],
)
def test_a_wrong_command_is_one_line_and_writes_nothing(
    words: list[str], told: str, run: Path, written: Written, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "empty.png"):
        shutil.copy(written.images / name, name)
    assert explain(run, *words) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "empty.png"}


@pytest.mark.filterwarnings("error")
def test_names_without_glyphs_or_like_formulas_and_images_smaller_than_a_cell(
    run: Path, npz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = Image.fromarray(np.load(npz)["test_images"][0])
    image.save(tmp_path / "病人 Ж.png")
    image.resize((1, 1)).save(tmp_path / "one.png")
    image.save(tmp_path / "patient$1^$.png")
    assert explain(run, tmp_path, "--class", "1", "--out", tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "largest at x 0, y 0 of 1×1 px" in said and "病人 Ж.png: 1: " in said
    assert "病人 Ж.png" in (tmp_path / "out" / "explain.html").read_text(encoding="utf-8")


def test_pictures_inside_the_folder_of_images_are_no_inputs_of_the_next_time(
    run: Path, npz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(np.load(npz)["test_images"][0]).save(tmp_path / "a.png")
    out = tmp_path / "results" / "explained"
    assert explain(run, tmp_path, "--out", out) == 0
    assert "passed over" not in capsys.readouterr().out
    before = {path: path.read_bytes() for path in out.iterdir()}
    assert explain(run, tmp_path, "--out", out) == 0
    said = capsys.readouterr().out
    assert f"passed over: 1 image at or below --out {out}" in said
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    assert explain(run, out / "001-a.png", "--out", out) == 2  # named, not found
    assert "another request (other files)" in capsys.readouterr().err
    assert explain(run, tmp_path, "--out", tmp_path) == 2
    assert "has files that are no explanations" in capsys.readouterr().err
    assert explain(run, out, "--out", out) == 2
    assert "another request (other files)" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, "", '{"request": "x"}', '{"request": null}', "[]", "3"])
def test_what_looks_like_an_earlier_answer_and_is_none_is_left_alone(
    run: Path, npz: Path, tmp_path: Path, content: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(np.load(npz)["test_images"][0]).save(tmp_path / "a.png")
    out = tmp_path / "out"
    out.mkdir()
    if content is None:
        os.mkfifo(out / "explain.json")  # reading it would wait for a writer
    else:
        (out / "explain.json").write_text(content)
    assert explain(run, tmp_path / "a.png", "--out", out) == 2
    error = capsys.readouterr().err
    assert "has files that are no explanations" in error and error.count("\n") == 1
    assert [path.name for path in out.iterdir()] == ["explain.json"]


def test_where_the_map_is_0_the_image_shows_as_it_is() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 4, 3)).astype(np.uint8)
    heat = np.zeros((4, 4), np.float32)
    heat[1, 2] = 1
    found = overlay(pixels, heat)
    changed = (found != pixels).any(-1)
    assert changed[1, 2] and changed.sum() == 1


def test_help_names_the_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["explain", "--help"])
    assert stop.value.code == 0
    said: Callable[[str], bool] = capsys.readouterr().out.__contains__
    assert all(map(said, ("MODEL IMAGE", "--class {None}|STR", "--layer", "--out")))

"""``dogmed predict``: a thousand files of all kinds, and everything that can be wrong with a command."""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dogmed import cli
from dogmed.checkpoint import atomic_path
from dogmed.inference.classifier import Classifier
from dogmed.metrics import read_predictions


@pytest.fixture
def predict(run: Path, tmp_path: Path) -> Callable[..., int]:
    """The command with the run's model, into ``out.csv``."""

    def call(*words: object, model: object = run, out: object = tmp_path / "out.csv") -> int:
        return cli.main(
            ["predict", str(model), *map(str, words), "--out", str(out), "--device=cpu"]
        )

    return call


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    box = io.BytesIO()
    image.save(box, kind, **options)
    return box.getvalue()


def kinds_of_files(image: Image.Image) -> list[tuple[str, bytes]]:
    """A suffix and the content of a file, of eleven kinds; the TIFF of two pages is last."""
    sixteen = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    return [
        (".png", encoded(image, "PNG")),
        (".png", encoded(image.convert("L"), "PNG")),
        (".png", encoded(image.convert("P"), "PNG")),
        (".png", encoded(image.convert("RGBA"), "PNG")),
        (".png", encoded(sixteen, "PNG")),
        (".jpg", encoded(image, "JPEG")),
        (".jpg", encoded(image.convert("CMYK"), "JPEG")),
        (".tif", encoded(sixteen, "TIFF")),
        (".bmp", encoded(image, "BMP")),
        (".webp", encoded(image, "WEBP")),
        (".png", encoded(image, "JPEG")),  # renamed
        (".tif", encoded(image, "TIFF", save_all=True, append_images=[image])),
    ]


def break_ten(folder: Path, image: Image.Image) -> set[str]:
    """Write ten files that cannot be classified, and return their names."""
    png = encoded(image, "PNG")
    huge = Image.new("1", (10_001, 10_000))
    frames = [Image.fromarray(np.asarray(image) // k) for k in (1, 2)]
    broken = {
        "empty.png": b"",
        "cut.png": png[: len(png) // 2],
        "cut.jpg": encoded(image, "JPEG")[:700],
        "cut.tif": encoded(image, "TIFF")[:300],
        "words.png": b"these are words",
        "page.jpeg": b"<!doctype html><html></html>",
        "film.gif": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "film.webp": encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
        "huge.png": encoded(huge, "PNG"),
        "floats.tif": encoded(Image.fromarray(np.full((9, 9), 7, np.float32)), "TIFF"),
    }
    for name, content in broken.items():
        (folder / name).write_bytes(content)
    return set(broken)


def test_ten_broken_files_in_a_thousand_stop_none_of_the_others(
    predict: Callable[..., int], npz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "scans"
    for part in range(10):
        (folder / f"part{part}").mkdir(parents=True)
    image = Image.fromarray(np.load(npz)["test_images"][0])
    kinds = kinds_of_files(image)
    good = {}
    for number in range(990):
        suffix, content = kinds[number % len(kinds)]
        path = folder / f"part{number % 10}" / f"{number:03d}{suffix}"
        path.write_bytes(content)
        good[str(path)] = number % len(kinds)
    broken = break_ten(folder, image)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    assert predict(folder) == 3
    said = capsys.readouterr().out
    listed = [line for line in said.splitlines() if line.startswith("not read: ")]
    assert len(listed) == 10 and all(any(name in line for line in listed) for name in broken)
    assert "10 files not read" in said and "1,000 files on cpu" in said

    rows = rows_of(tmp_path / "out.csv")
    paged = {path for path, kind in good.items() if kind == len(kinds) - 1}
    expected = (set(good) - paged) | {f"{path}[{page}]" for path in paged for page in (0, 1)}
    assert {row["file"] for row in rows} == expected and len(rows) == len(expected)
    values = np.array([[float(row[f"p_{name}"]) for name in "012"] for row in rows])
    np.testing.assert_allclose(values.sum(1), 1, atol=2e-6)
    assert [row["predicted"] for row in rows] == [str(k) for k in values.argmax(1)]
    kind = np.array([good.get(row["file"].removesuffix("[0]").removesuffix("[1]")) for row in rows])
    first = [list(kind).index(k) for k in range(len(kinds))]
    np.testing.assert_allclose(values, values[first][kind], rtol=0, atol=2.1e-6)
    assert {k for k, row in zip(kind, rows, strict=True) if "CMYK" in row["warning"]} == {6}
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert after == before
    assert {path.name for path in tmp_path.iterdir()} == {"scans", "out.csv"}


def test_dicom_without_its_extra_stops_none_of_the_others(
    predict: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    folder = tmp_path / "scans"
    folder.mkdir()
    Image.new("L", (30, 30)).save(folder / "a.png")
    (folder / "IM0001").write_bytes(bytes(128) + b"DICM")
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "pydicom" else found(name, *a)
    )
    assert predict(folder) == 3
    assert "IM0001 is DICOM, for which pydicom is missing: pip install" in capsys.readouterr().out
    assert [row["file"] for row in rows_of(tmp_path / "out.csv")] == [str(folder / "a.png")]


def test_the_command_says_what_the_classifier_says(
    predict: Callable[..., int], classifier: Classifier, npz: Path, tmp_path: Path
) -> None:
    images = np.load(npz)["test_images"][:5]
    files = [tmp_path / f"{k}.png" for k in range(5)]
    for file, image in zip(files, images, strict=True):
        Image.fromarray(image[:20] if file.name == "3.png" else image).save(file)
    for raw in (False, True):
        expected = classifier.predict(files, raw=raw)
        assert predict(*files, *["--raw"] * raw, "--batch-size", 2) == 0
        rows = rows_of(tmp_path / "out.csv")
        found = np.array([[float(row[f"p_{name}"]) for name in "012"] for row in rows])
        np.testing.assert_allclose(found, expected.probabilities, rtol=0, atol=1.1e-6)
        assert [row["predicted"] for row in rows] == [names[0] for names in expected.names]
        assert [row["file"] for row in rows] == list(map(str, files)) == list(expected.files)
        assert [row["warning"] for row in rows] == list(expected.warnings)


def test_a_split_in_the_official_format_is_the_file_that_the_run_has_written(
    predict: Callable[..., int], run: Path, npz: Path, tmp_path: Path
) -> None:
    assert predict(npz, "--split", "test", "--raw", "--format", "medmnist") == 0
    found = read_predictions(tmp_path / "out.csv")
    np.testing.assert_allclose(found, read_predictions(run / "predictions_test.csv"), atol=1e-6)
    assert predict(npz, "--split", "val") == 0
    rows = rows_of(tmp_path / "out.csv")
    assert [row["file"] for row in rows] == [f"{npz}[val][{k}]" for k in range(30)]
    alone = tmp_path / "alone.npz"  # no labels, no other split
    np.savez(alone, val_images=np.load(npz)["val_images"])
    assert predict(alone, "--split", "val", out=tmp_path / "alone.csv") == 0
    found = rows_of(tmp_path / "alone.csv")
    assert [row | {"file": ""} for row in found] == [row | {"file": ""} for row in rows]
    assert predict(alone, "--split", "test") == 2


def test_a_runs_own_record_is_not_written_over_and_its_bare_name_is_enough(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(np.zeros((30, 30), dtype=np.uint8)).save(tmp_path / "a.png")
    record = run / "predictions_test.csv"
    before = record.read_bytes()
    monkeypatch.chdir(run.parent)
    words = ["predict", run.name, str(tmp_path / "a.png"), "--out"]
    assert cli.main([*words, str(record)]) == 2
    assert "the run's own record" in capsys.readouterr().err
    assert record.read_bytes() == before
    assert cli.main([*words, str(tmp_path / "out.csv")]) == 0


def test_names_that_a_spreadsheet_or_a_terminal_would_mind(
    predict: Callable[..., int], npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = Image.fromarray(np.load(npz)["test_images"][0])
    monkeypatch.chdir(tmp_path)
    names = [
        "=1+1.png",
        "two\nlines.png",
        "colour\x1b[31m.png",
        'quote".png',
        "ö.png",
        "\udcff.png",
    ]
    for name in names:
        image.save(Path(name))
    assert predict(*[Path(name) for name in names], out="out.csv") == 0
    found = [row["file"] for row in rows_of(Path("out.csv"))]
    assert found == [
        "'=1+1.png", "two\\x0alines.png", "colour\\x1b[31m.png", 'quote".png', "ö.png", "\\xff.png"
    ]  # fmt: skip


def test_two_that_write_the_same_file_at_once_leave_one_of_them_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.csv"
    with contextlib.ExitStack() as open_at_once:
        for process, text in ((1, "long\n" * 1000), (2, "short\n")):
            monkeypatch.setattr(os, "getpid", lambda process=process: process)
            open_at_once.enter_context(atomic_path(out, contended=True)).write_text(text)
    assert out.read_text() == "long\n" * 1000  # the last to end
    assert {path.name for path in tmp_path.iterdir()} == {"out.csv"}


def test_nothing_is_written_when_nothing_can_be_read(
    predict: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    assert predict(tmp_path / "a.png") == 2
    told = capsys.readouterr()
    assert "not read:" in told.out and "a.png is empty" in told.out
    assert told.err == "dogmed: no image could be read\n"
    assert {path.name for path in tmp_path.iterdir()} == {"a.png"}


@pytest.mark.parametrize(
    "words, options, told",
    [
        ([], {}, "which model, and which images"),
        (["nowhere"], {}, "there is no file or folder nowhere"),
        (["empty"], {}, "has no image"),
        (["a.png"], {"out": "out.txt"}, "expected the name of a .csv file"),
        (["a.png"], {"out": "no/out.csv"}, "there is no folder no"),
        (["a.png"], {"out": "folder.csv"}, "is a folder"),
        (["image.csv"], {"out": "image.csv"}, "is one of the images"),
        (["link.png"], {"out": "image.csv"}, "is one of the images"),
        (["a.png"], {"model": "nowhere"}, "no weights 'nowhere'"),
        (["a.png"], {"model": "empty/"}, "is no run folder with weights"),
        (["a.png"], {"model": "task/"}, "(did you mean task/model/seed0?)"),
        (["a.png"], {"model": "n" * 300}, "nnn: file name too long"),
        (["n" * 300], {}, "nnn: file name too long"),
        (["a.png"], {"out": "n" * 300 + ".csv"}, "nnn.csv: file name too long"),
        (["a.png"], {"out": "n" * 250 + ".csv"}, "into . (file name too long)"),
        (["a.png"], {"model": "a.png"}, "the model comes first, then images: a.png is no model"),
        (["m.safetensors"], {"model": "empty"}, "no model, and m.safetensors is one"),
        (
            ["-a.png"],
            {},
            "unknown option -a.png: flags begin with --, a file of this name is ./-a.png",
        ),
        (["a.png", "--split", "test"], {}, "--split is for an .npz"),
        (["x.npz"], {}, "which images of x.npz? --split"),
        (["x.npz", "a.png", "--split", "test"], {}, "give it alone"),
        (["x.npz", "--split", "test"], {}, "is empty"),
        (["a.png", "--format", "json"], {}, "invalid choice"),
        (["a.png", "--batch-size", "0"], {}, "batch"),
    ],
)
def test_a_wrong_command_is_one_line_and_writes_nothing(
    predict: Callable[..., int], words: list[str], options: dict[str, str], told: str,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "folder.csv"):
        Path(name).mkdir()
    Image.new("L", (30, 30)).save("a.png")
    Path("image.csv").write_bytes(Path("a.png").read_bytes())
    Path("link.png").symlink_to("image.csv")
    Path("x.npz").touch()
    best = Path("task/model/seed0/checkpoints/best.safetensors")
    best.parent.mkdir(parents=True)
    best.touch()
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    assert predict(*words, **options) == 2
    error = capsys.readouterr().err
    assert error.startswith("dogmed: ") and told in error and error.count("\n") == 1
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before

"""The table that MLflow asks: as ``dogmed.load(...).predict``, and one row's fault is that row's alone."""

from __future__ import annotations

import base64
import json
import re
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dogmed.inference import mlflow_model
from dogmed.inference.classifier import Classifier
from dogmed.inference.mlflow_model import TableClassifier


@pytest.fixture(scope="module")
def served(run: Path) -> TableClassifier:
    """As MLflow opens it."""
    return mlflow_model._load_pyfunc(str(run / "checkpoints" / "best.safetensors"))


def image_file(seed: int, form: str = "PNG", side: int = 40) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 200, (side, 36, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def text(content: bytes) -> str:
    return base64.b64encode(content).decode()


def ask(served: TableClassifier, *cells: object) -> pd.DataFrame:
    return served.predict(pd.DataFrame({"image": list(cells)}, dtype=object))


def test_bytes_and_base64_give_what_the_classifier_gives(
    served: TableClassifier, classifier: Classifier
) -> None:
    files = [image_file(1), image_file(2, "JPEG", 64), image_file(3, "TIFF")]
    expected = classifier.predict(files)
    table = pd.DataFrame({"image": files, "patient": [7, 8, 9]}, index=["a", "b", "c"])
    told = served.predict(table)
    assert list(told.columns) == ["predicted", "p_0", "p_1", "p_2", "warning", "error"]
    assert list(told.index) == ["a", "b", "c"]
    assert np.array_equal(told[["p_0", "p_1", "p_2"]].to_numpy(float), expected.probabilities)
    assert told["predicted"].tolist() == [name for (name,) in expected.names]
    assert told["warning"].tolist() == list(expected.warnings)
    assert told["error"].tolist() == ["", "", ""]
    assert (told.dtypes[["p_0", "p_1", "p_2"]] == np.float64).all()
    in_lines = [base64.encodebytes(file).decode() for file in files]  # MLflow's own encoder
    assert "\n" in in_lines[0].strip()
    assert ask(served, *in_lines).equals(told.reset_index(drop=True))


def test_rows_that_cannot_be_read_are_told_and_the_others_answered(
    served: TableClassifier, tmp_path: Path
) -> None:
    good = image_file(4)
    pages = BytesIO()
    frames = [Image.fromarray(np.full((30, 30), grey, np.uint8)) for grey in (50, 90)]
    frames[0].save(pages, "TIFF", save_all=True, append_images=frames[1:])
    bomb = BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    there = tmp_path / "abcd.png"
    there.write_bytes(good)
    cells = {
        text(good): "",
        str(there): "not base64",  # a path is text like any other
        "data:image/png;base64," + text(good): "not base64",
        text(good)[:-5]: "not base64",
        "bildÄ": "not base64",
        "": r"is empty \(0 bytes\)",
        text(b"no image at all"): "is no image that is read here",
        text(good[:300]): "is damaged",
        pages.getvalue(): "has several pages: send each as a row of its own",
        bomb.getvalue(): "over 100 million",
        None: "received None",
        3.5: r"received 3.5$",
        (
            text(good),
        ): r"received \('.*: send a DataFrame with a column image, or dataframe_records$",
        good: "",
    }
    told = ask(served, *cells)
    for number, expected in enumerate(cells.values()):
        row = told.iloc[number]
        assert "\n" not in row["error"]
        if expected:
            assert re.search(rf"^row {number}\b.*{expected}", row["error"])
            assert [row["predicted"], row["p_0"], row["p_1"], row["p_2"]] == [None] * 4
        else:
            assert row["error"] == "" and row["p_0"] + row["p_1"] + row["p_2"] == pytest.approx(1)
    (alone,) = ask(served, good)["p_1"]
    assert told.loc[[0, 13], "p_1"].tolist() == pytest.approx([alone] * 2, rel=1e-5)
    assert "NaN" not in json.dumps(told.to_dict(orient="records"), allow_nan=False)


def test_a_table_without_a_single_image_is_answered(served: TableClassifier) -> None:
    told = ask(served, "?", "")
    assert told["error"].str.startswith(("row 0", "row 1")).all()
    assert len(ask(served)) == 0
    assert list(ask(served).columns) == list(told.columns)

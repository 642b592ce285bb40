"""MONAI bundles: run by MONAI on files, against the classifier on the same files."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import monai.bundle
import numpy as np
import pytest
import torch
from PIL import Image

from dogmed import cli
from dogmed.inference.classifier import Classifier, load
from dogmed.inference.export import bundle, card_usage
from dogmed.objective import Objective


def run_bundle(folder: Path, images: Path, output: Path) -> dict[str, list[float]]:
    """As ``python -m monai.bundle run`` does: file -> probabilities."""
    monai.bundle.run(
        config_file=str(folder / "configs" / "inference.json"),
        meta_file=str(folder / "configs" / "metadata.json"),
        bundle_root=str(folder),
        dataset_dir=str(images),
        output_dir=str(output),
        device="$torch.device('cpu')",
    )
    with (output / "predictions.csv").open(newline="") as file:
        return {row[0]: [float(value) for value in row[1:]] for row in csv.reader(file)}


def test_a_bundle_classifies_files_as_the_network_does(run: Path, tmp_path: Path) -> None:
    out, images = tmp_path / "out", tmp_path / "images"
    words = ["--format", "monai-bundle", "--cache-dir", str(tmp_path / "cache")]
    assert cli.main(["export", str(run), *words, "--out", str(out)]) == 0
    (images / "more").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number, name in enumerate(("a.png", "b.PNG", "more/c.png", "turned.jpg")):
        image = Image.fromarray(rng.integers(0, 256, (40 + number, 60, 3), dtype=np.uint8))
        exif = Image.Exif()
        exif[0x0112] = 6  # lies on its side
        image.save(images / name, **({"exif": exif} if name == "turned.jpg" else {}))
    Image.fromarray(rng.integers(0, 256, (30, 30), dtype=np.uint8)).save(images / "grey.png")
    (images / "notes.txt").write_text("not an image")
    found = run_bundle(out, images, tmp_path / "eval")
    files = sorted(str(f) for f in images.rglob("*") if f.suffix.lower() in (".png", ".jpg"))
    assert list(found) == files and len(files) == 5
    expected = load(run, device="cpu").predict(files).probabilities
    np.testing.assert_allclose(list(found.values()), expected, atol=1e-5)
    assert np.ptp(expected, axis=0).max() > 1e-3, "or else any order would pass"
    metadata = json.loads((out / "configs" / "metadata.json").read_text())
    assert metadata["network_data_format"]["outputs"]["pred"]["channel_def"]["2"] == "2"
    assert "dogmed" in metadata["required_packages_version"]
    assert {str(f.relative_to(out)) for f in out.rglob("*") if f.is_file()} == {
        "README.md", "SHA256SUMS", "configs/inference.json", "configs/metadata.json", "models/model.pt",
    }  # fmt: skip


@pytest.mark.parametrize(
    "objective",
    [
        Objective("multi-class", 4),
        Objective("binary", 2),
        Objective("multi-label", 3),
        Objective("ordinal", 4),
        Objective("ordinal", 5, ordinal="continuation-ratio"),
    ],
    ids=str,
)
def test_written_out_probabilities_are_the_objectives(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch, objective: Objective
) -> None:
    monkeypatch.setattr(classifier, "objective", objective)
    monkeypatch.setattr(classifier, "temperature", 1.3)
    logits = 3 * torch.randn(6, objective.num_outputs, generator=torch.Generator().manual_seed(0))
    expected = objective.probabilities(logits / 1.3)
    expression = bundle._probabilities(classifier)
    found = torch.stack([eval(expression, {"torch": torch, "z": z}) for z in logits])
    torch.testing.assert_close(found, expected)
    on_card = card_usage._probabilities(classifier)
    torch.testing.assert_close(
        eval(on_card, {"Objective": Objective, "logits": logits}), expected, atol=1e-6, rtol=1e-5
    )

"""Model cards: every number of ``result.json``, licences as they are, no path of this machine."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from dogmed.inference.classifier import Classifier, load
from dogmed.inference.export import card
from dogmed.inference.export.model import Exported, export_model


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    out = tmp_path_factory.mktemp("exports") / "out"
    return export_model(str(run), "timm", out, cache_dir=out.parent / "cache")


def test_the_hub_reads_the_scores_of_the_run(exported: Exported, run: Path) -> None:
    test = json.loads((run / "result.json").read_text())["test"]
    data = ModelCard.load(exported.folder / card.CARD).data
    found = {result.metric_type: result.metric_value for result in data.eval_results}
    assert found == {kind: test[key] for key, (_, kind) in card.METRICS.items()}
    assert {result.dataset_split for result in data.eval_results} == {"test"}
    assert (data.library_name, data.pipeline_tag) == ("timm", "image-classification")


def test_every_number_of_the_tables_is_the_runs(exported: Exported, run: Path) -> None:
    text = (exported.folder / card.CARD).read_text()
    result = json.loads((run / "result.json").read_text())
    test, calibration = result["test"], result["calibration"]
    rows = dict(re.findall(r"^\| ([^|]+) \| (.+) \|$", text, re.M))
    for key, (name, _) in card.METRICS.items():
        shown = [float(number) for number in re.findall(r"\d\.\d+", rows[name])]
        expected = [test[key], *test["intervals_95"].get(key, [])]
        if name == "expected calibration error":  # its row of the calibration comes last
            expected = [calibration["test"][way]["ece"] for way in ("raw", "calibrated")]
        assert shown == pytest.approx(expected, abs=5.1e-5), name
    assert f"| expected calibration error | {test['ece']:.4f} |" in text
    nll = [calibration["test"][way]["nll"] for way in ("raw", "calibrated")]
    assert [float(cell) for cell in rows["negative log-likelihood"].split(" | ")] == pytest.approx(
        nll, abs=5.1e-5
    )
    assert repr(calibration["temperature"]) in text
    assert f"{result['trivial_test_acc']:.4f}" in text
    assert (rows["training images"], rows["epochs"], rows["seed"]) == ("60", "6", "0")
    assert rows["best epoch"] == f"{result['best_epoch']}, by val_auc"
    assert f"{result['test']['n']} images of the test split" in text


def test_a_run_of_the_first_versions_has_a_card_without_what_they_did_not_say(
    exported: Exported, run: Path, tmp_path: Path
) -> None:
    old = tmp_path / "seed0"
    (old / "checkpoints").mkdir(parents=True)
    weights = run / "checkpoints" / "best.safetensors"
    (old / "checkpoints" / weights.name).symlink_to(weights)
    result = json.loads((run / "result.json").read_text())
    for name in ("batch_size", "peak_lr", "trivial_test_acc", "calibration"):
        del result[name]
    (old / "result.json").write_text(json.dumps(result))
    card.write_card(tmp_path, load(old, device="cpu"), exported)
    text, full = ((f / card.CARD).read_text() for f in (tmp_path, exported.folder))
    for line in ("| batch size |", "| peak learning rate |", "Always giving the most frequent"):
        assert line in full and line not in text
    assert f"On the {result['test']['n']} images of the test split" in text


def test_what_it_must_not_lack_and_must_not_hold(exported: Exported, run: Path) -> None:
    text = (exported.folder / card.CARD).read_text()
    assert card.NO_DEVICE in text and exported.proof in text
    assert "license: other" in text and "license_name: not_stated" in text
    assert str(run.parents[3]) not in text and "/" + str(Path.home().name) + "/" not in text


@pytest.mark.parametrize(
    ("licence", "hub", "bound"),
    [
        ("CC BY-NC 4.0", "cc-by-nc-4.0", True),
        ("cc-by-nc-4.0", "cc-by-nc-4.0", True),
        ("CC BY 4.0", "cc-by-4.0", False),
        ("Apache-2.0", "apache-2.0", False),
        ("licence of Ncorp", "other", False),
        (None, "other", False),
    ],
)
def test_licences(licence: str | None, hub: str, bound: bool, classifier: Classifier) -> None:
    assert card.hub_licence(licence) == hub
    assert card.non_commercial(licence) == bound
    record = classifier.trained.record
    of_weights = dataclasses.replace(record, licence=licence)
    of_data = dataclasses.replace(record, data=dataclasses.replace(record.data, licence=licence))
    assert ("the licence of the weights forbids" in card._licences(of_weights)) == bound
    assert ("the licence of the data forbids" in card._licences(of_data)) == bound


def test_weights_without_a_run_say_what_their_record_says(
    exported: Exported, tmp_path: Path
) -> None:
    again = export_model(str(exported.folder / "model.safetensors"), "timm", tmp_path / "again")
    text = (again.folder / card.CARD).read_text()
    record = load(again.folder / "model.safetensors", device="cpu").trained.record
    assert "No result.json lies beside these weights" in text
    assert f"val_auc {record.score['val_auc']:.4f}" in text
    assert "model-index" not in text

"""The model card of an export: a README.md in Hugging Face's form, from the record and ``result.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult, ModelCardData

from dogmed import __version__
from dogmed.errors import WeightsError, reason
from dogmed.inference.classifier import Classifier
from dogmed.inference.export.card_usage import usage
from dogmed.inference.export.files import SUMS
from dogmed.markdown import markdown_table
from dogmed.models.trained import Trained
from dogmed.runs import slug
from dogmed.weights.records import WeightsRecord, looks_like_file

if TYPE_CHECKING:
    from dogmed.inference.export.model import Exported

CARD = "README.md"
NO_DEVICE = (
    "It is no medical device: it has not been cleared by any authority, and must not be used for diagnosis, "
    "triage or treatment."
)
METRICS = {
    "auc": ("AUC", "roc_auc"),
    "acc": ("accuracy", "accuracy"),
    "balanced_accuracy": ("balanced accuracy", "balanced_accuracy"),
    "macro_f1": ("macro F1", "f1"),
    "brier": ("Brier score", "brier_score"),
    "ece": ("expected calibration error", "expected_calibration_error"),
}
"""Of ``result.json``: what the card and the hub call them."""
# The hub's identifiers that weights or data here may have; others are "other", with their name.
_LICENCES = (
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0",
    "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0",
)  # fmt: skip
_LIBRARIES = {
    "timm": "timm", "onnx": "onnx", "torch-export": "pytorch", "monai-bundle": "monai",
}  # fmt: skip


def write_card(folder: Path, classifier: Classifier, done: Exported) -> None:
    """Write ``README.md``.

    Args:
        folder: of the export.
        classifier: what was exported.
        done: how it compares with its export.

    Raises:
        WeightsError: the run's ``result.json`` is damaged.
    """
    trained = classifier.trained
    result = read_result(trained)
    record = trained.record
    title = f"{record.model} for {record.data.name}"
    sections = [
        f"---\n{_front_matter(record, result, done, title)}\n---",
        f"# {title}",
        _summary(record),
        "## Intended use",
        _intended(record),
        "## Use",
        usage(classifier, done),
        "## Data",
        _data(record),
        "## Training",
        _training(record, result),
        "## Scores",
        _scores(record, result),
        "## Calibration",
        _calibration(record, result),
        "## Licences",
        _licences(record),
        "## Export",
        f"Written by dogmed {__version__} as {done.format}; it opens as {done.opens_as}. Compared with the "
        f"network it was made from: {done.proof}. `sha256sum -c {SUMS}` tells whether the files are whole.",
    ]
    text = "\n\n".join(section for section in sections if section)
    (folder / CARD).write_text(text + "\n", encoding="utf-8")


def read_result(trained: Trained) -> dict[str, Any] | None:
    """What the run of these weights says of its scores; None where they lie in no run's folder.

    Raises:
        WeightsError: it cannot be read.
    """
    path = trained.path.absolute().parent.parent / "result.json"
    if trained.path.parent.name != "checkpoints" or not path.is_file():
        return None
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        result["test"]["n"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{path} cannot be read: {reason(error)}") from error
    return result


def _front_matter(
    record: WeightsRecord, result: Mapping[str, Any] | None, done: Exported, title: str
) -> str:
    name = hub_licence(record.licence)
    licence: dict[str, Any] = {"license": name}
    if name == "other":
        licence["license_name"] = slug(record.licence or "not stated").lower()
    results = None
    if result is not None:
        results = [
            EvalResult(
                task_type="image-classification",
                dataset_type=record.data.name,
                dataset_name=f"{record.data.name}, {record.data.size} px",
                dataset_split="test",
                metric_type=kind,
                metric_name=name,
                metric_value=result["test"][key],
            )
            for key, (name, kind) in METRICS.items()
            if result["test"].get(key) is not None
        ]
    data = ModelCardData(
        **licence,
        library_name=_LIBRARIES[done.format],
        pipeline_tag="image-classification",
        tags=["medical", "image-classification", "medmnist", "dogmed"],
        model_name=title,
        eval_results=results,
    )
    return data.to_yaml().strip()


def hub_licence(licence: str | None) -> str:
    """The hub's identifier of a licence, "other" where it has none."""
    name = (licence or "").lower().replace(" ", "-")
    return name if name in _LICENCES else "other"


def non_commercial(licence: str | None) -> bool:
    """Whether a licence forbids commercial use, by its letters NC."""
    return "nc" in (licence or "").lower().replace("-", " ").split()


def _summary(record: WeightsRecord) -> str:
    data, synthetic = record.data, ""
    if data.source == "synthetic":
        synthetic = (
            "\n\n**Trained and scored on SYNTHETIC images: it says nothing about medical ones.**"
        )
    classes = "; ".join(f"{number} {name}" for number, name in enumerate(data.classes))
    return (
        f"A {record.model} ({record.params:,} parameters) that classifies images of {data.size}×{data.size} "
        f"pixels; task {data.name} ({data.kind}). Classes: {classes}.{synthetic}"
    )


def _intended(record: WeightsRecord) -> str:
    return (
        f"Research and teaching, on images like those of {record.data.name}. {NO_DEVICE} Other devices, "
        "hospitals, patients or preparations of the images may give much worse results than the scores below, "
        "and an image of anything else gets a class all the same."
    )


def _data(record: WeightsRecord) -> str:
    data = record.data
    source = {
        "official": "the official files of MedMNIST (Yang et al., Scientific Data 2023)",
        "variant": "files that differ from the official ones of MedMNIST",
        "synthetic": "generated images",
    }.get(data.source or "", "the user's own files")
    size = f"{data.trained_size or data.size} px"
    if data.source_size not in (None, data.trained_size or data.size):
        size += f", resized from {data.source_size} px"
    rows = [
        ("task", data.name),
        ("source", source),
        ("licence", data.licence or "not stated"),
        ("images", size),
        ("normalised by", f"mean {_listed(data.mean)}, standard deviation {_listed(data.std)}"),
    ]
    return markdown_table(("", ""), rows)


def _training(record: WeightsRecord, result: Mapping[str, Any] | None) -> str:
    init = (
        slug(record.init) if looks_like_file(record.init) else record.init
    )  # no path of a machine
    rows = [("initial weights", init)]
    if record.seed is not None:
        rows.append(("seed", str(record.seed)))
    if result is not None:
        rows += [
            ("training images", f"{result['data']['train_images']}"),
            ("epochs", f"{result['epochs']}"),
            ("best epoch", f"{result['best_epoch']}, by {result['selected_on']}"),
        ]
        if "batch_size" in result:  # not of the first versions
            rows += [("batch size", f"{result['batch_size']}")]
            rows += [("peak learning rate", f"{result['peak_lr']:g}")]
    elif record.epochs is not None:
        rows.append(("epochs up to these weights", str(record.epochs)))
    optim = record.training.get("optim", {})
    for option, name in (("name", "optimizer"), ("weight_decay", "weight decay")):
        rows += [(name, str(optim[option]))] if option in optim else []
    rows += [(option, str(value)) for option, value in record.options.items()]
    if record.git_commit:
        rows.append(("code", f"dogmed at commit {record.git_commit}"))
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    rows += [("versions", versions)] if versions else []
    return markdown_table(("", ""), rows)


def _scores(record: WeightsRecord, result: Mapping[str, Any] | None) -> str:
    if result is None:
        found = ", ".join(f"{name} {value:.4f}" for name, value in record.score.items())
        return f"No result.json lies beside these weights; their record says {found or 'nothing'}, on val."
    test = result["test"]
    intervals = test.get("intervals_95", {})
    rows = []
    for key, (name, _) in METRICS.items():
        if test.get(key) is not None:
            low_high = intervals.get(key)
            shown = f"{low_high[0]:.4f} to {low_high[1]:.4f}" if low_high else ""
            rows.append((name, f"{test[key]:.4f}", shown))
    resamples = f", {test['resamples']:,} resamples" if "resamples" in test else ""
    table = markdown_table(("", "test", "95% interval"), rows, numbers=True)
    trivial = ""
    if "trivial_test_acc" in result:  # not of the first versions
        trivial = f" Always giving the most frequent answer has accuracy {result['trivial_test_acc']:.4f}."
    return (
        f"On the {test['n']} images of the test split, at temperature 1; intervals by bootstrap over "
        f"images{resamples}, for this one training.{trivial}\n\n{table}"
    )


def _calibration(record: WeightsRecord, result: Mapping[str, Any] | None) -> str:
    if record.temperature is None:
        return "No temperature was fitted: probabilities are as trained, and may be too sure."
    said = f"Logits are divided by the temperature {record.temperature!r}, fitted on val."
    if result is None or "calibration" not in result:
        return said
    test = result["calibration"]["test"]
    rows = [
        (name, f"{test['raw'][key]:.4f}", f"{test['calibrated'][key]:.4f}")
        for key, name in (
            ("nll", "negative log-likelihood"),
            ("ece", "expected calibration error"),
        )
    ]
    return f"{said}\n\n{markdown_table(('test', 'raw', 'calibrated'), rows, numbers=True)}"


def _licences(record: WeightsRecord) -> str:
    weights = record.licence or "not stated"
    data = record.data.licence or "not stated"
    lines = [f"Weights: {weights}. Data that they were fine-tuned on: {data}."]
    if record.licence is None:
        lines.append("Nobody has said under which licence these weights may be used.")
    bound = [
        what
        for what, licence in (("weights", record.licence), ("data", record.data.licence))
        if non_commercial(licence)
    ]
    if bound:
        lines.append(
            f"**Not for commercial use**: the licence of the {' and the '.join(bound)} forbids it."
        )
    return " ".join(lines)


def _listed(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)

"""A trained network as a MONAI bundle: image files in, calibrated probabilities as CSV out.

The network is made by timm and MONAI alone where timm has a class that can hold it (a DoGNeXt that
downsamples by convolutions, folded, or any other network of timm's), else by dogmed too. Files are read
as at training: RGB or grey, 8 bits, stretched to a square by Pillow's bilinear filter.
"""

from __future__ import annotations

import csv
import importlib.metadata
import json
import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dogmed import __version__
from dogmed.data.folder import SUFFIXES
from dogmed.inference.classifier import Classifier
from dogmed.inference.likeness import channels
from dogmed.models.folding import reparameterize
from dogmed.models.trained import dog_layers
from dogmed.weights.exporting import fold, why_not_plain

CONFIG, METADATA, WEIGHTS = "configs/inference.json", "configs/metadata.json", "models/model.pt"
PREDICTIONS = "predictions.csv"
_MUTED = logging.getLogger("monai.data.nvimgcodec_pydicom_plugin")  # warns that it is not installed


def write_bundle(classifier: Classifier, folder: Path, licence: str) -> None:
    """Write a bundle whose ``python -m monai.bundle run`` classifies a folder of images.

    Args:
        classifier: the network and how its images are prepared.
        folder: to write into.
        licence: of the weights.
    """
    definition, state = _definition(classifier)
    for name in (CONFIG, WEIGHTS):
        (folder / name).parent.mkdir()
    torch.save(
        {name: value.contiguous() for name, value in state.items()},
        folder / WEIGHTS,
    )
    for name, content in (
        (CONFIG, _inference(classifier, definition)),
        (METADATA, _metadata(classifier, licence)),
    ):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def run_bundle(folder: Path, pixels: np.ndarray) -> Tensor:
    """Let a bundle classify pictures (N, S, S, 3) uint8, from files of them: (N, classes)."""
    from monai.bundle import ConfigParser

    _MUTED.setLevel(logging.ERROR)
    parser = ConfigParser()
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MONAI's, that a bundle is code: this one is our own
        for number, picture in enumerate(pixels):
            Image.fromarray(picture).save(Path(scratch) / f"{number:06}.png")
        parser.read_config(folder / CONFIG)
        parser.read_meta(folder / METADATA)
        parser["bundle_root"], parser["dataset_dir"] = str(folder), scratch
        parser["output_dir"], parser["device"] = scratch, "$torch.device('cpu')"
        parser.get_parsed_content("evaluator").run()
        with (Path(scratch) / PREDICTIONS).open(newline="") as file:
            rows = [[float(value) for value in row[1:]] for row in csv.reader(file)]
    return torch.tensor(rows)


def needs_dogmed(classifier: Classifier) -> str:
    """Why a bundle of this network needs dogmed where it runs, or nothing."""
    record = classifier.trained.record
    if dog_layers(classifier.model):
        return why_not_plain(record)
    ours = type(classifier.model).__module__.startswith("dogmed.")
    return f"{record.model} is a network of dogmed's" if ours else ""


def _definition(classifier: Classifier) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """How MONAI makes the network, and the weights that fit it."""
    trained, network = classifier.trained, classifier.model
    record, folded = trained.record, bool(dog_layers(network))
    plain = folded and not why_not_plain(record)
    if plain:
        network, record = fold(network, record, trained.path)
    elif folded:
        network = reparameterize(network)
    made = {
        "_target_": "timm.create_model",
        "model_name": record.model,
        "num_classes": record.num_classes,
        "in_chans": record.in_chans,
        **record.options,
    }
    if folded and not plain:
        made = {"_target_": "dogmed.models.reparameterize", "model": made}
    return made, network.state_dict()


def _inference(classifier: Classifier, definition: dict[str, Any]) -> dict[str, Any]:
    imports = ["import pathlib", "from PIL import ImageOps", "import torch", "import timm"]
    imports += ["import dogmed.models"] if needs_dogmed(classifier) else []
    return {
        "imports": [f"${line}" for line in imports],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/eval'",
        "batch_size": 16,
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "files": (
            "$sorted(str(f) for f in pathlib.Path(@dataset_dir).rglob('*') "
            f"if f.suffix.lower() in {(*SUFFIXES, '.webp')})"
        ),
        "network_def": definition,
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": _preprocessing(classifier)},
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': f} for f in @files]",
            "transform": "@preprocessing",
        },
        "dataloader": {
            "_target_": "DataLoader",
            "dataset": "@dataset",
            "batch_size": "@batch_size",
            "shuffle": False,
            "num_workers": 0,
        },
        "inferer": {"_target_": "SimpleInferer"},
        "postprocessing": {
            "_target_": "Lambdad",
            "keys": "pred",
            "func": f"$lambda z: {_probabilities(classifier)}",
        },
        "handlers": [
            {
                "_target_": "CheckpointLoader",
                "load_path": f"$@bundle_root + '/{WEIGHTS}'",
                "load_dict": {"model": "@network"},
            },
            {
                "_target_": "ClassificationSaver",
                "output_dir": "@output_dir",
                "filename": PREDICTIONS,
                "batch_transform": "$lambda batch: [one['image'].meta for one in batch]",
                "output_transform": "$lambda output: [one['pred'] for one in output]",
            },
        ],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
        },
        "run": ["$@evaluator.run()"],
    }


def _preprocessing(classifier: Classifier) -> list[dict[str, Any]]:
    """From files to the network's input; the same steps as ``dogmed.inference.reading.pictures``.

    MONAI passes over a reader that raises, without a word, and takes one that lays images out otherwise.
    """
    seen = classifier.seen
    side = seen.trained_size or seen.size
    grey = ".convert('L')" if channels(seen) == 1 else ""
    steps: list[dict[str, Any]] = [
        {
            "_target_": "LoadImaged",
            "keys": "image",
            "reader": {
                "_target_": "PILReader",
                "converter": (
                    f"$lambda image: ImageOps.exif_transpose(image){grey}.convert('RGB')"
                    f".resize(({side}, {side}), 2)"  # 2: bilinear
                ),
                "reverse_indexing": False,
            },
        },
        {"_target_": "EnsureChannelFirstd", "keys": "image", "channel_dim": -1},
        {
            "_target_": "NormalizeIntensityd",
            "keys": "image",
            "subtrahend": [255 * value for value in seen.mean],
            "divisor": [255 * value for value in seen.std],
            "channel_wise": True,
        },
    ]
    if side != seen.size:  # chosen after the training
        size = (seen.size, seen.size)
        resized = f"x[None], {size}, mode='bilinear', antialias=True"
        steps.append(
            {
                "_target_": "Lambdad",
                "keys": "image",
                "func": f"$lambda x: torch.nn.functional.interpolate({resized})[0]",
            }
        )
    return steps


def _probabilities(classifier: Classifier) -> str:
    """An expression that turns the logits ``z`` (outputs,) of one image into calibrated probabilities.

    ``Objective.probabilities`` written out, because the bundle may run where dogmed is not.
    """
    objective, scaled = classifier.objective, f"(z / {classifier.temperature!r})"
    if objective.kind == "multi-label":
        return f"torch.sigmoid({scaled})"
    if objective.ordinal == "cross-entropy":
        return f"torch.softmax({scaled}, 0)"
    passed = f"torch.nn.functional.logsigmoid({scaled}).cumsum(0)"
    stays = f"torch.nn.functional.logsigmoid(-{scaled})"
    return f"torch.exp(torch.cat([z[:1] * 0, {passed}]) + torch.cat([{stays}, z[:1] * 0]))"


def _metadata(classifier: Classifier, licence: str) -> dict[str, Any]:
    import monai

    record, seen = classifier.trained.record, classifier.seen
    side = seen.trained_size or seen.size
    image: dict[str, Any] = {"type": "image", "format": "image", "modality": "see data_source"}
    packages = {name: importlib.metadata.version(name) for name in ("timm", "pytorch-ignite")}
    if needs_dogmed(classifier):
        packages["dogmed"] = __version__
    return {
        "version": "1.0.0",
        "changelog": {"1.0.0": f"exported by dogmed {__version__}"},
        "monai_version": monai.__version__,
        "pytorch_version": str(torch.__version__),
        "numpy_version": np.__version__,
        "required_packages_version": packages,
        "name": f"{record.model} {seen.name}",
        "task": f"classification, {seen.kind}",
        "description": f"{record.model} fine-tuned on {seen.name}; README.md is its model card",
        "authors": "see README.md",
        "copyright": f"weights: {licence}",
        "data_source": f"{seen.name} ({seen.source}), licence {seen.licence or 'not stated'}",
        "data_type": "image files",
        "intended_use": "research and teaching; no medical device",
        "network_data_format": {
            "inputs": {
                "image": {
                    **image,
                    "num_channels": record.in_chans,
                    "spatial_shape": [side, side],
                    "dtype": "float32",
                    "value_range": [],
                    "is_patch_data": False,
                    "channel_def": {"0": "red", "1": "green", "2": "blue"},
                }
            },
            "outputs": {
                "pred": {
                    "type": "probabilities",
                    "format": "classes",
                    "num_channels": len(seen.classes),
                    "spatial_shape": [],
                    "dtype": "float32",
                    "value_range": [0, 1],
                    "is_patch_data": False,
                    "channel_def": {str(i): name for i, name in enumerate(seen.classes)},
                }
            },
        },
    }

"""The code on a model card: from an image file to calibrated probabilities, without this package."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dogmed.inference.classifier import Classifier
from dogmed.inference.export.bundle import needs_dogmed
from dogmed.inference.likeness import channels

if TYPE_CHECKING:
    from dogmed.inference.export.model import Exported

IMAGE = "../image.png"
"""Outside the export: what is in there is given away."""
_WHERE = (
    "Run it in this folder. Images, and what is computed of them, lie outside, so that the folder can be "
    "passed on."
)


def usage(classifier: Classifier, done: Exported) -> str:
    """Say how an export is used, with code that runs in its folder on an image beside that."""
    if done.format == "monai-bundle":
        return (
            "```bash\npython -m monai.bundle run --config_file configs/inference.json \\\n"
            "  --meta_file configs/metadata.json --bundle_root . --dataset_dir ../images --output_dir ..\n```\n\n"
            "It writes `../predictions.csv`: a file and its calibrated probabilities, in the order of the "
            f"classes, a line. (A bundle is code: run only those you trust.) {_WHERE}"
        )
    return f"```python\n{_code(classifier, done)}\n```\n\n{_WHERE}"


def _code(classifier: Classifier, done: Exported) -> str:
    seen = classifier.seen
    side = seen.trained_size or seen.size
    grey = '.convert("L")' if channels(seen) == 1 else ""
    whole = done.output == "probabilities"
    model = classifier.trained.record.model
    libraries = ["numpy as np", "torch"]
    libraries += {"timm": ["timm"], "onnx": ["onnxruntime"], "torch-export": []}[done.format]
    lines = [f"import {library}" for library in libraries]
    if done.format == "timm" and needs_dogmed(classifier):
        lines.append(f"import dogmed.models  # registers {model} in timm")
    lines.append("from PIL import Image")
    if not whole and classifier.objective.ordinal != "cross-entropy":
        lines.append("from dogmed.objective import Objective")
    lines += [
        "",
        f'image = Image.open("{IMAGE}"){grey}.convert("RGB").resize(({side}, {side}), Image.Resampling.BILINEAR)',
        "x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].contiguous()  # (1, 3, H, W) uint8",
    ]
    if not whole:
        lines += [
            f"mean, std = torch.tensor({seen.mean}), torch.tensor({seen.std})",
            "x = (x / 255 - mean[:, None, None]) / std[:, None, None]",
        ]
        if side != seen.size:
            lines.append(
                f"x = torch.nn.functional.interpolate(x, ({seen.size}, {seen.size}), mode='bilinear', "
                "antialias=True)"
            )
    lines += _opening(done)
    if not whole:
        lines.append(f"probabilities = {_probabilities(classifier)}")
    return "\n".join([*lines, "print(probabilities)"])


def _opening(done: Exported) -> list[str]:
    if done.format == "timm":
        return [
            'model = timm.create_model("local-dir:.", pretrained=True).eval()',
            "with torch.inference_mode():",
            "    logits = model(x)",
        ]
    if done.format == "onnx":
        return [
            'session = onnxruntime.InferenceSession("model.onnx")',
            f'{done.output} = torch.from_numpy(session.run(None, {{"image": x.numpy()}})[0])',
        ]
    return [
        'model = torch.export.load("model.pt2").module()',
        "with torch.inference_mode():",
        f"    {done.output} = model(x)",
    ]


def _probabilities(classifier: Classifier) -> str:
    """The expression that turns logits into calibrated probabilities."""
    objective, temperature = classifier.objective, classifier.temperature
    scaled = "logits" if temperature == 1 else f"(logits / {temperature!r})"
    if objective.kind == "multi-label":
        return f"{scaled}.sigmoid()"
    if objective.ordinal == "cross-entropy":
        return f"{scaled}.softmax(1)"
    return (
        f'Objective("ordinal", {objective.num_classes}, ordinal="continuation-ratio")'
        f".probabilities({scaled})"
    )

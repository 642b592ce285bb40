"""``dogmed export`` and ``dogmed push``: options, and what is printed."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from dogmed.config import configclass
from dogmed.console import count
from dogmed.errors import printable

Format = Literal["timm", "onnx", "torch-export", "monai-bundle"]

SHOWN = 20
"""Files named of those that are left out of an upload."""


@configclass
class ExportConfig:
    """Write a fine-tuned network in a form that others open, with a model card."""

    model: str
    """Folder of a finished run or of an export to timm, .safetensors file, name of the store or MLflow run's id;
    comes first, bare."""
    format: Format
    """timm and monai-bundle: a folder that these open; onnx and torch-export: a graph with its weights."""
    out: Path | None = None
    """Folder to be made; None is MODEL-TASK-FORMAT here."""
    with_preprocessing: bool = False
    """onnx and torch-export: uint8 images in, calibrated probabilities out; else normalised ones and logits."""
    images: tuple[Path, ...] = ()
    """Images, or folders of them, on which the export is compared; by default the task's test split."""
    data_dir: Path | None = None
    """Folder with the task's official npz files."""
    cache_dir: Path | None = None
    """Where prepared arrays are; None is the user's cache folder."""
    weights_dir: Path | None = None
    """The store of weights; None is the user's data folder."""


@configclass
class PushConfig:
    """Upload what an export wrote to the Hugging Face hub; without --yes only say what would be done."""

    folder: Path
    """That dogmed export has written; may come first, without --folder."""
    repo: str
    """ORGANISATION/NAME of the repository; it is made, private, if there is none."""
    public: bool = False
    """Make a new repository public."""
    yes: bool = False
    """Upload."""


def export(
    *,
    model: str,
    format: Format,
    out: Path | None = None,
    with_preprocessing: bool,
    images: tuple[Path, ...] = (),
    data_dir: Path | None = None,
    cache_dir: Path | None = None,
    weights_dir: Path | None = None,
) -> None:
    """Export a network; print what was written, and the proof that it computes the same."""
    from dogmed.inference.export.model import export_model

    done = export_model(
        model,
        format,
        out,
        with_preprocessing=with_preprocessing,
        images=images,
        data_dir=data_dir,
        cache_dir=cache_dir,
        weights_dir=weights_dir,
    )
    for note in done.notes:
        print(f"note    {note}")
    print(f"proof   {done.proof}")
    if done.seconds:
        torch, runtime = (1e3 * done.seconds[name] for name in ("torch", "onnxruntime"))
        print(
            f"speed   one image: onnxruntime {runtime:.1f} ms, torch {torch:.1f} ms, ratio "
            f"{runtime / torch:.2f} (medians, {done.threads})"
        )
    for file in sorted(done.folder.rglob("*")):
        if file.is_file():
            print(f"file    {file.relative_to(done.folder)}  {_size(file)}")
    print(f"{done.folder}  opens as {done.opens_as}; README.md in it is the model card")


def push(*, folder: Path, repo: str, public: bool, yes: bool) -> None:
    """Upload an export, or print what would be uploaded."""
    from dogmed.inference.export.push import plan_push, upload

    planned = plan_push(folder, repo)
    for name in planned.files:
        print(f"file    {name}  {_size(folder / name)}")
    for name in planned.changed:
        print(f"changed {name} is not as the export wrote it")
    for name in planned.left_out[:SHOWN]:
        print(f"left    {printable(name)} stays here: not written by the export")
    if (more := len(planned.left_out) - SHOWN) > 0:
        print(f"left    {count(more, 'more file')}, not written by the export either")
    print(f"licence {planned.licence}")
    if yes:
        print(f"pushed  {upload(planned, public=public)}")
        return
    kind = "public" if public else "private"
    token = "a token is configured" if planned.token else "no token is configured: hf auth login"
    print(f"would go to {planned.address} ({kind} if it is new; {token}); --yes uploads")


def _size(file: Path) -> str:
    size = file.stat().st_size
    if size < 1000:
        return f"{size} B"
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:,.1f} kB"

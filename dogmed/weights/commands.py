"""``dogmed weights list|show|verify|import|export``: functions that print and return an exit code."""

from __future__ import annotations

import dataclasses
from json import dumps
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le

from dogmed.config import configclass, flatten
from dogmed.console import table
from dogmed.errors import WeightsError
from dogmed.weights.records import (
    SUFFIX,
    WeightsRecord,
    default_weights_dir,
    find_weights,
    list_weights,
    read_record,
)

Share = Annotated[float, Ge(0), Le(1)]
Take = Literal["plain", "average"]
Format = Literal["timm", "safetensors", "pt"]


@configclass
class ListConfig:
    """Show the named weights on this machine."""

    weights_dir: Path | None = None
    """The store; by default a folder of the user."""


@configclass
class ShowConfig:
    """Show all that a weights file says of itself."""

    name: str
    """MODEL.RECIPE or RECIPE of the store, a file, or a run's folder; may come first, without --name."""
    json: bool = False
    """As JSON."""
    weights_dir: Path | None = None
    """The store; by default a folder of the user."""


@configclass
class VerifyConfig:
    """Hash the tensors again and compare them, and the JSON beside them, with their record."""

    name: tuple[str, ...] = ()
    """As for weights show, one or more; by default everything in the store."""
    weights_dir: Path | None = None
    """The store; by default a folder of the user."""


@configclass
class ImportConfig:
    """Take a foreign checkpoint into the store under a name, checked against timm's own loading."""

    file: Path
    """May come first, without --file: a timm .safetensors or .pth, a training's checkpoint, a ConvNeXt V2 .pt."""
    model: str
    """timm name of the architecture."""
    recipe: str
    """The name that --init finds the weights by, for example imagenet600ep."""
    licence: str | None = None
    """Of the weights; asked for unless the file says it or it is known."""
    take: Take | None = None
    """The weights or their average, for a checkpoint that holds both."""
    data: str | None = None
    """Name of the data they were trained on."""
    data_licence: str | None = None
    """Of that data."""
    size: Annotated[int, Gt(0)] | None = None
    """Side of the images in pixels; by default timm's for the model, as the next three."""
    mean: tuple[float, ...] | None = None
    """Subtracted from pixels in [0, 1], per channel."""
    std: tuple[Annotated[float, Gt(0)], ...] | None = None
    """What they were then divided by."""
    interpolation: str | None = None
    """How images were resized."""
    epochs: Annotated[int, Gt(0)] | None = None
    """Epochs trained, where known."""
    accuracy: Share | None = None
    """Top-1 accuracy on val, as a share (0.767)."""
    accuracy5: Share | None = None
    """Top-5 accuracy on val, as a share."""
    weights_dir: Path | None = None
    """The store; by default a folder of the user."""
    overwrite: bool = False
    """Replace weights of this name."""


@configclass
class ExportConfig:
    """Write weights as a folder that timm opens, or as a plain file with timm's names."""

    name: str
    """As for weights show."""
    out: Path
    """Folder to write into."""
    format: Format = "timm"
    """timm: config.json and model.safetensors; else one file with its record beside it."""
    reparameterize: bool = False
    """Fold sampled kernels into ordinary convolutions and write timm's ConvNeXt V2."""
    weights_dir: Path | None = None
    """The store; by default a folder of the user."""
    overwrite: bool = False
    """Replace files of the same names in the folder."""


def weights_list(*, weights_dir: Path | None = None) -> int:
    """Print a line for each file of the store; one that cannot be read says why."""
    store = weights_dir or default_weights_dir()
    rows = [("name", "model", "recipe", "accuracy", "px", "disk", "licence")]
    for path, found in list_weights(store).items():
        disk = f"{path.stat().st_size / 1e6:,.1f} MB" if path.exists() else "gone"
        if isinstance(found, WeightsRecord):
            rows.append((path.stem, found.model, found.recipe, _accuracy(found),
                         str(found.data.size), disk, found.licence or "not stated"))  # fmt: skip
        else:
            model, _, recipe = path.stem.partition(".")
            state = "no record" if found is None else f"DAMAGED: {found}"
            rows.append((path.stem, model, recipe, "", "", disk, state))
    if len(rows) > 1:
        table(rows)
        return 0
    print(f"no weights in {store}")
    print("dogmed pretrain makes them, dogmed weights import takes them from timm and others")
    return 0


def weights_show(*, name: str, json: bool, weights_dir: Path | None = None) -> int:
    """Print a record, every field on its line."""
    path, record = _recorded(name, weights_dir)
    content = dataclasses.asdict(record)
    if json:
        print(dumps(content, indent=2))
        return 0
    rows = [("file", str(path)), ("disk", f"{path.stat().st_size / 1e6:,.1f} MB")]
    empty = [key for key, value in content.items() if value == {}]
    for key, value in flatten(content).items():
        option = value is None and key.startswith(("training.", "options."))
        rows.append((key, "None" if option else _readable(value)))
    table(rows + [(key, "none") for key in empty])
    return 0


def weights_verify(*, name: tuple[str, ...] = (), weights_dir: Path | None = None) -> int:
    """Print the state of each file; 1 when one is not what its record says, or has none."""
    from dogmed.models.weights import verify

    store = weights_dir or default_weights_dir()
    paths = [find_weights(one, store) for one in name] or list(list_weights(store))
    if not paths:
        print(f"nothing to verify in {store}")
    wrong = 0
    for path in paths:
        try:
            record = verify(path)
            if path.parent == store and not path.name.startswith(f"{record.model}."):
                raise WeightsError(
                    f"{path} holds weights of {record.model}, but is named as another model's"
                )
            print(f"ok     {path.stem}  {record.sha256}", flush=True)
        except WeightsError as error:
            wrong += 1
            print(f"WRONG  {path.stem}  {error}", flush=True)
    return 1 if wrong else 0


def weights_import(
    *,
    file: Path,
    model: str,
    recipe: str,
    take: Take | None = None,
    licence: str | None = None,
    epochs: int | None = None,
    accuracy: float | None = None,
    accuracy5: float | None = None,
    data: str | None = None,
    data_licence: str | None = None,
    size: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    interpolation: str | None = None,
    weights_dir: Path | None = None,
    overwrite: bool,
) -> None:
    """Import a file; print what was made of it and the proof that it is what timm loads."""
    from dogmed.weights.importing import import_weights

    score = _given(val_acc1=accuracy, val_acc5=accuracy5)
    done = import_weights(
        file,
        model,
        recipe,
        stated=_given(licence=licence, epochs=epochs, score=score or None),
        stated_data=_given(
            name=data,
            licence=data_licence,
            size=size,
            mean=mean,
            std=std,
            interpolation=interpolation,
        ),
        average=None if take is None else take == "average",
        weights_dir=weights_dir or default_weights_dir(),
        overwrite=overwrite,
    )
    for note in done.notes:
        print(note)
    print(
        f"proof: --init {recipe} gives {model} what timm itself loads from {file}: "
        f"{done.difference}"
    )
    print(f"{done.path}  licence {done.record.licence}, sha256 {done.record.sha256[:12]}")


def weights_export(
    *,
    name: str,
    out: Path,
    format: Format,
    reparameterize: bool,
    weights_dir: Path | None = None,
    overwrite: bool,
) -> None:
    """Export weights; print where they are, and the proof that timm opens them."""
    path, record = _recorded(name, weights_dir)
    from dogmed.weights.exporting import export_weights

    done = export_weights(
        path, record, out, format=format, folded=reparameterize, overwrite=overwrite
    )
    print(f"proof: timm opens it as {done.record.model}, tensors equal: {done.difference}")
    print(f"{done.path}  licence {done.record.licence or 'not stated'}")
    if done.record.licence is None:
        written = ", and config.json says other" * done.path.is_dir()
        print(
            f"nobody has said under which licence these weights may be used{written}; "
            f"dogmed weights import {path} --licence LICENCE, with --model and --recipe, states one"
        )
    if done.path.is_dir():
        ours = "import dogmed.models; " if done.record.model.startswith("dognext_") else ""
        print(f"open it with: {ours}timm.create_model('local-dir:{done.path}', pretrained=True)")


def _given(**values: Any) -> dict[str, Any]:
    """Those that the user gave."""
    return {name: value for name, value in values.items() if value is not None}


def _recorded(name: str, weights_dir: Path | None) -> tuple[Path, WeightsRecord]:
    """Find weights that say what they are."""
    path = find_weights(name, weights_dir or default_weights_dir())
    record = read_record(path) if path.suffix == SUFFIX else None
    if record is None:
        raise WeightsError(
            f"{path} has no record of what it holds: dogmed weights import {path} --model MODEL "
            f"--recipe NAME gives it one"
        )
    return path, record


def _accuracy(record: WeightsRecord) -> str:
    """The figure that a list has room for, by its name."""
    for name in ("val_acc1", "val_acc", "val_auc"):
        if name in record.score:
            return f"{name} {record.score[name]:.4f}"
    return "not stated"


def _readable(value: Any) -> str:
    if value in (None, "", (), []):
        return "not stated"
    if isinstance(value, list | tuple):
        between = " | " if isinstance(value[0], str) else " "  # names may hold commas
        shown = between.join(map(str, value[:10]))
        return shown if len(value) <= 10 else f"{shown} ... ({len(value)} in all)"
    return str(value)

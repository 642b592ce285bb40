"""Weights files: round trips, records, strict loading, and every kind of file to refuse."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import pickle
import subprocess
import sys
import warnings
from collections import OrderedDict
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from dogmed import checkpoint
from dogmed.errors import WeightsError
from dogmed.models.loading import Loaded, load_into
from dogmed.models.weights import (
    data_mismatch,
    hash_tensors,
    read_weights,
    save_weights,
    verify,
)
from dogmed.weights.records import (
    DataRecord,
    WeightsRecord,
    list_weights,
    read_record,
    weights_path,
)

DATA = DataRecord(
    name="breastmnist",
    size=224,
    source_size=28,
    interpolation="bicubic",
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
    licence="CC BY 4.0",
    source="official",
    kind="binary",
    classes=("malignant", "normal"),
)
RECORD = WeightsRecord(
    model="test_convnext",
    num_classes=2,
    params=271_000,
    recipe="finetune",
    init="scratch",
    epochs=3,
    score={"val_auc": 0.875},
    data=DATA,
    licence="Apache-2.0",
    options={"depths": [1, 2, 4, 2]},
    git_commit="abc123",
    versions={"torch": "2.11"},
)

SAVE_WITH_NO_SPACE = """
import resource, sys, torch
from dogmed.errors import WeightsError
from dogmed.models.weights import save_weights
from dogmed.weights.records import read_record
record = read_record(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    save_weights(sys.argv[1], {"weight": torch.zeros(1_000_000)}, record)
except WeightsError as error:
    sys.exit(str(error))
"""


def _model(num_classes: int = 2, **options: object) -> nn.Module:
    return timm.create_model("test_convnext", num_classes=num_classes, **options)


def _same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "best.safetensors"
    save_weights(path, _model().state_dict(), RECORD)
    return path


# ---- files and records --------------------------------------------------------------------------


def test_round_trip(tmp_path: Path) -> None:
    state = _model().to(memory_format=torch.channels_last).state_dict()
    state["half"] = torch.randn(3).bfloat16()
    state["tied"] = state["half"]
    state["count"] = torch.tensor(7)
    path = tmp_path / "best.safetensors"
    written = save_weights(path, state, RECORD)
    tensors, record, sha256 = read_weights(path)
    assert _same(tensors, state)
    assert record == written == dataclasses.replace(RECORD, sha256=sha256)
    assert {p.name for p in tmp_path.iterdir()} == {"best.safetensors", "best.json"}


def test_safetensors_reads_the_file_and_people_the_record(saved: Path) -> None:
    tensors, record, _ = read_weights(saved)
    assert _same(safetensors.torch.load_file(saved), tensors)
    beside = json.loads(saved.with_suffix(".json").read_text())
    assert record is not None
    assert beside["sha256"] == record.sha256
    assert beside["data"]["classes"] == ["malignant", "normal"]


def test_hash_is_of_names_types_shapes_and_bytes() -> None:
    tensors = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor(1, dtype=torch.int64)}
    expected = hashlib.sha256()
    for name in ("a", "b"):
        value = tensors[name].numpy()
        expected.update(f"{name}\0torch.{value.dtype}\0{value.shape}\0".encode() + value.tobytes())
    assert hash_tensors(tensors) == expected.hexdigest()
    assert hash_tensors(dict(reversed(tensors.items()))) == hash_tensors(tensors)
    transposed = {**tensors, "b": tensors["b"].t().contiguous().t()}
    assert hash_tensors(transposed) == hash_tensors(tensors)
    reshaped = {**tensors, "b": tensors["b"].reshape(3, 2)}
    assert hash_tensors(reshaped) != hash_tensors(tensors)


def test_store(tmp_path: Path) -> None:
    path = weights_path(tmp_path, "test_convnext", "imagenet50ep")
    assert path == tmp_path / "test_convnext.imagenet50ep.safetensors"
    written = save_weights(path, _model().state_dict(), RECORD)
    (tmp_path / "damaged.safetensors").write_bytes(b"x")
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "bare.safetensors")
    found = list_weights(tmp_path)
    assert isinstance(found.pop(tmp_path / "damaged.safetensors"), WeightsError)
    assert found == {tmp_path / "bare.safetensors": None, path: written}
    assert list_weights(tmp_path / "absent") == {}


def test_verify(saved: Path) -> None:
    assert verify(saved) == read_record(saved)
    beside = saved.with_suffix(".json")
    beside.write_text(beside.read_text().replace("0.875", "0.975"))
    with pytest.raises(WeightsError, match="differs from the record inside"):
        verify(saved)
    beside.unlink()
    verify(saved)
    safetensors.torch.save_file({"a": torch.zeros(1)}, saved)
    with pytest.raises(WeightsError, match="has no record"):
        verify(saved)


def test_no_space_leaves_the_old_files(saved: Path) -> None:
    before = read_weights(saved)[0]
    run = subprocess.run(
        [sys.executable, "-c", SAVE_WITH_NO_SPACE, str(saved)], capture_output=True, text=True
    )
    assert run.returncode == 1
    assert run.stderr.startswith(f"cannot write weights to {saved}: file too large")
    assert run.stderr.count("\n") == 1
    assert _same(read_weights(saved)[0], before)
    assert {p.name for p in saved.parent.iterdir()} == {"best.safetensors", "best.json"}


def test_newer_and_wrong_records_are_refused(tmp_path: Path) -> None:
    content = dataclasses.asdict(RECORD)
    for change, message in (
        ({"format": 2}, "record format 2 is newer"),
        ({"epochs": "many"}, "its record is wrong: epochs: "),
    ):
        metadata = {"dogmed": json.dumps({**content, **change})}
        path = tmp_path / "best.safetensors"
        safetensors.torch.save_file({"a": torch.zeros(1)}, path, metadata=metadata)
        with pytest.raises(WeightsError, match=message):
            read_record(path)


# ---- damaged and foreign files ------------------------------------------------------------------


def test_every_flipped_byte_is_noticed_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    record = save_weights(path, {"weight": torch.randn(5)}, RECORD)
    whole = path.read_bytes()
    noticed = 0
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :])
        try:
            _, _, sha256 = read_weights(path)
            assert sha256 == record.sha256  # a letter of the record's text, or of a key unread
        except WeightsError as error:
            assert "\n" not in str(error)
            noticed += 1
    assert noticed > 50
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(WeightsError):
            read_weights(path)


def test_every_damaged_torch_file_is_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"weight": torch.randn(5)}, path)
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :])
        try:
            read_weights(path)  # torch has no checksum of its own
        except WeightsError as error:
            assert "\n" not in str(error)
    for length in range(0, len(whole) - 22, 7):
        path.write_bytes(whole[:length])
        with pytest.raises(WeightsError, match="cannot be read as weights"):
            read_weights(path)


@pytest.mark.parametrize("key", [None, "model", "state_dict", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
def test_layouts_of_training_scripts(tmp_path: Path, key: str | None, prefix: str) -> None:
    state = _model().state_dict()
    content: object = OrderedDict((prefix + name, value) for name, value in state.items())
    if key is not None:
        content = {"epoch": 3, "optimizer": {"state": {}}, key: content}
    torch.save(content, tmp_path / "weights.pth")
    assert _same(read_weights(tmp_path / "weights.pth")[0], state)


def test_our_own_checkpoint(tmp_path: Path) -> None:
    state = _model().state_dict()
    checkpoint.save(tmp_path / "last.pt", {"progress": {"epoch": 1}, "model": state})
    assert _same(read_weights(tmp_path / "last.pt")[0], state)


def test_a_pickle_that_needs_code_is_refused(tmp_path: Path) -> None:
    content = {"args": argparse.Namespace(lr=0.1), "model": _model()}
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(WeightsError, match=r"needs code to be read \(timm.*which is refused"):
        read_weights(tmp_path / "model.pt")


@pytest.mark.parametrize("content", [{}, {"epoch": 1}, [torch.zeros(1)], {"model": {"a": 1}}, 3])
def test_files_without_weights(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match="holds no weights"):
        read_weights(tmp_path / "other.pt")


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        (torch.eye(3).to_sparse(), "weight: torch.float32, torch.sparse_coo"),
        (torch.empty(3, device="meta"), "weight: torch.float32, meta"),
        (torch.zeros(3, dtype=torch.complex64), "weight: torch.complex64"),
        (torch.zeros(3).to(torch.float8_e4m3fn), "weight: torch.float8_e4m3fn"),
    ],
)
def test_tensors_that_are_not_plain_numbers(
    tmp_path: Path, tensor: torch.Tensor, kind: str
) -> None:
    torch.save({"bias": torch.zeros(1), "weight": tensor}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match="not plain numbers") as caught:
        read_weights(tmp_path / "w.pt")
    assert kind in str(caught.value) and "\n" not in str(caught.value)


def test_nesting_without_end(tmp_path: Path) -> None:
    content: dict = {"epoch": 1}
    content["model"] = content
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match="holds no weights"):
        read_weights(tmp_path / "w.pt")
    metadata = {"dogmed": "[" * 100_000}
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "w.safetensors", metadata)
    with pytest.raises(WeightsError, match="its record cannot be read") as caught:
        read_weights(tmp_path / "w.safetensors")
    assert "\n" not in str(caught.value)


def test_a_raw_pickle_is_refused_without_a_warning(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(pickle.dumps({"weight": [1.0]}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(WeightsError, match="cannot be read as weights"):
            read_weights(tmp_path / "w.pt")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such file"):
        read_weights(tmp_path / "absent.safetensors")


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    state = _model().state_dict()
    state["stem.0.weight"][0] = float("nan")
    save_weights(tmp_path / "best.safetensors", state, RECORD)
    with pytest.raises(WeightsError, match=r"NaN or infinite values in stem\.0\.weight"):
        read_weights(tmp_path / "best.safetensors")


# ---- strict loading -----------------------------------------------------------------------------

HEADS = ["test_convnext", "test_vit", "test_efficientnet", "resnet18", "convnextv2_atto"]


@pytest.mark.parametrize("name", HEADS)
def test_another_number_of_classes_replaces_only_the_classifier(name: str) -> None:
    trained, model = (timm.create_model(name, num_classes=n) for n in (7, 3))
    before = {n: v.clone() for n, v in model.state_dict().items()}
    not_taken = load_into(model, trained.state_dict(), source="x")
    classifier = model.pretrained_cfg["classifier"]
    assert set(not_taken) == {f"{classifier}.weight", f"{classifier}.bias"}
    for n, value in model.state_dict().items():
        assert torch.equal(value, (before if n in not_taken else trained.state_dict())[n]), n


@pytest.mark.parametrize("name", HEADS)
def test_the_same_classes_take_all(name: str) -> None:
    trained, model = (timm.create_model(name, num_classes=4) for _ in range(2))
    assert load_into(model, trained.state_dict(), source="x") == ()
    assert _same(model.state_dict(), trained.state_dict())


def test_one_side_without_classifier() -> None:
    expected = ("head.fc.bias", "head.fc.weight")
    assert load_into(_model(0), _model(3).state_dict(), source="x") == expected
    assert load_into(_model(3), _model(0).state_dict(), source="x") == expected


def test_half_a_classifier_is_not_taken() -> None:
    state = _model(3).state_dict()
    del state["head.fc.bias"]
    assert load_into(_model(3), state, source="x") == ("head.fc.bias", "head.fc.weight")


def _without(state: dict, name: str) -> dict:
    return {n: v for n, v in state.items() if n != name}


@pytest.mark.parametrize(
    ("state", "trained", "message"),
    [
        (
            lambda: timm.create_model("test_convnext2", num_classes=2).state_dict(),
            "test_convnext2",
            r"do not fit test_convnext: they are weights of test_convnext2; tensors: ",
        ),
        (
            lambda: timm.create_model("test_resnet", num_classes=2).state_dict(),
            None,
            r"no name is the same.*\d+ missing \(stem.*, \.\.\.\), \d+ unknown \(",
        ),
        (
            lambda: _model(in_chans=1).state_dict(),
            None,
            r"images of 1 channels, the model 3; tensors: 1 of another shape "
            r"\(stem\.0\.weight is \(24, 1, 4, 4\), expected \(24, 3, 4, 4\)\)",
        ),
        (
            lambda: _without(_model().state_dict(), "stem.1.bias"),
            None,
            r"another version of it; tensors: 1 missing \(stem\.1\.bias\)$",
        ),
        (
            lambda: {**_model().state_dict(), "extra": torch.zeros(1)},
            None,
            r"1 unknown \(extra\)$",
        ),
        (
            lambda: _model(dims=(32, 48, 64, 96)).state_dict(),
            "test_convnext",
            r"another size of this architecture; .* of another shape",
        ),
    ],
)
def test_anything_else_is_refused(state, trained: str | None, message: str) -> None:
    model = _model()
    before = {n: v.clone() for n, v in model.state_dict().items()}
    with pytest.raises(WeightsError, match=message) as caught:
        load_into(model, state(), source="weights.pt", trained=trained)
    assert "\n" not in str(caught.value)
    assert _same(model.state_dict(), before)


@pytest.mark.parametrize("name", ["conv1.weight", "fc.weight", "bn1.num_batches_tracked"])
def test_integers_are_no_floating_point_numbers(name: str) -> None:
    trained, model = (timm.create_model("resnet18", num_classes=2) for _ in range(2))
    before = {n: v.clone() for n, v in model.state_dict().items()}
    state = trained.state_dict()
    state[name] = state[name].int() if state[name].is_floating_point() else state[name].float()
    with pytest.raises(WeightsError, match=f"{name} holds torch.*, expected torch"):
        load_into(model, state, source="weights.pt")
    assert _same(model.state_dict(), before)


def test_other_widths_of_the_same_kind_are_taken() -> None:
    model = timm.create_model("resnet18", num_classes=2)
    state = {n: v.clone() for n, v in model.state_dict().items()}
    narrow = {n: v.half() if v.is_floating_point() else v.int() for n, v in state.items()}
    assert load_into(model, narrow, source="x") == ()
    for n, value in model.state_dict().items():
        assert value.dtype == state[n].dtype and torch.equal(value, narrow[n].to(value.dtype))


def test_loaded_in_one_line() -> None:
    loaded = Loaded(
        "imagenet600ep",
        source="hf-hub:timm/convnextv2_atto.fcmae_ft_in1k",
        licence="cc-by-nc-4.0",
        sha256="0123456789abcdef",
        not_taken=("head.fc.bias", "head.fc.weight"),
        notes=("a note",),
    )
    assert str(loaded) == (
        "imagenet600ep from hf-hub:timm/convnextv2_atto.fcmae_ft_in1k, licence cc-by-nc-4.0 "
        "(non-commercial), sha256 0123456789ab; new classifier, not taken: head.fc.bias, "
        "head.fc.weight; a note"
    )
    assert str(Loaded("scratch")) == "from scratch"
    assert str(Loaded("a/best.pt", source="a/best.pt")) == (
        "a/best.pt, licence not stated; classifier taken too"
    )


# ---- the data behind weights --------------------------------------------------------------------


def test_data_mismatch() -> None:
    same = {
        "size": 224,
        "source_size": 28,
        "interpolation": "bicubic",
        "mean": DATA.mean,
        "std": DATA.std,
    }
    assert data_mismatch(DATA, **same) is None
    line = data_mismatch(DATA, **{**same, "source_size": 224, "interpolation": None})
    assert line == (
        "these images are not like those of breastmnist in training: source size 224 "
        "(trained with 28), interpolation None (trained with bicubic)"
    )
    assert "mean" in (data_mismatch(DATA, **{**same, "mean": (0.0, 0.0, 0.0)}) or "")

"""Weights files: round trips, records, and every kind of file to refuse."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import pickle
import warnings
from collections import OrderedDict
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from dogmed import checkpoint
from dogmed.errors import WeightsError
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

Same = Callable[[dict[str, torch.Tensor], dict[str, torch.Tensor]], bool]
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
import resource, torch
from dogmed.errors import WeightsError
from dogmed.models.weights import save_weights
from dogmed.weights.records import read_record
record = read_record(path)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    save_weights(path, {"weight": torch.zeros(1_000_000)}, record)
except WeightsError as error:
    said.write_text(str(error))
"""


@pytest.fixture
def network() -> nn.Module:
    return timm.create_model("test_convnext", num_classes=2)


@pytest.fixture
def saved(tmp_path: Path, network: nn.Module) -> Path:
    path = tmp_path / "best.safetensors"
    save_weights(path, network.state_dict(), RECORD)
    return path


def test_round_trip(tmp_path: Path, same: Same, network: nn.Module) -> None:
    state = network.to(memory_format=torch.channels_last).state_dict()
    state["half"] = torch.randn(3).bfloat16()
    state["tied"] = state["half"]
    state["count"] = torch.tensor(7)
    path = tmp_path / "best.safetensors"
    written = save_weights(path, state, RECORD)
    tensors, record, sha256 = read_weights(path)
    assert same(tensors, state)
    assert record == written == dataclasses.replace(RECORD, sha256=sha256)
    assert {p.name for p in tmp_path.iterdir()} == {"best.safetensors", "best.json"}


def test_safetensors_reads_the_file_and_people_the_record(saved: Path, same: Same) -> None:
    tensors, record, _ = read_weights(saved)
    assert same(safetensors.torch.load_file(saved), tensors)
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


def test_store(tmp_path: Path, network: nn.Module) -> None:
    path = weights_path(tmp_path, "test_convnext", "imagenet50ep")
    assert path == tmp_path / "test_convnext.imagenet50ep.safetensors"
    written = save_weights(path, network.state_dict(), RECORD)
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


def test_no_space_leaves_the_old_files(
    saved: Path, same: Same, warm: ForkServerContext, tmp_path_factory: pytest.TempPathFactory
) -> None:
    before = read_weights(saved)[0]
    said = tmp_path_factory.mktemp("said") / "error"
    names = {"path": saved, "said": said}
    process = warm.Process(target=exec, args=(SAVE_WITH_NO_SPACE, names))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert said.read_text().startswith(f"cannot write weights to {saved}: file too large")
    assert "\n" not in said.read_text()
    assert same(read_weights(saved)[0], before)
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
def test_layouts_of_training_scripts(
    tmp_path: Path, key: str | None, prefix: str, same: Same, network: nn.Module
) -> None:
    state = network.state_dict()
    content: object = OrderedDict((prefix + name, value) for name, value in state.items())
    if key is not None:
        content = {"epoch": 3, "optimizer": {"state": {}}, key: content}
    torch.save(content, tmp_path / "weights.pth")
    assert same(read_weights(tmp_path / "weights.pth")[0], state)


def test_our_own_checkpoint(tmp_path: Path, same: Same, network: nn.Module) -> None:
    state = network.state_dict()
    checkpoint.save(tmp_path / "last.pt", {"progress": {"epoch": 1}, "model": state})
    assert same(read_weights(tmp_path / "last.pt")[0], state)


def test_a_pickle_that_needs_code_is_refused(tmp_path: Path, network: nn.Module) -> None:
    content = {"args": argparse.Namespace(lr=0.1), "model": network}
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


def test_values_that_are_not_finite(tmp_path: Path, network: nn.Module) -> None:
    state = network.state_dict()
    state["stem.0.weight"][0] = float("nan")
    save_weights(tmp_path / "best.safetensors", state, RECORD)
    with pytest.raises(WeightsError, match=r"NaN or infinite values in stem\.0\.weight"):
        read_weights(tmp_path / "best.safetensors")


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

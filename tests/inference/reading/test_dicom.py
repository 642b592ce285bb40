"""DICOM files, against what their standard says of the values in them."""

from __future__ import annotations

import importlib.util
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dogmed.errors import DataError
from dogmed.inference.reading import dicom
from dogmed.inference.reading.pictures import Picture, read

SIZE = 16


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    pydicom = pytest.importorskip("pydicom", reason="the extra dogmed[dicom] is missing")
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    def make(values: np.ndarray, **facts: Any) -> Path:
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = (
            CTImageStorage,
            generate_uid(),
        )
        path = tmp_path / "IM0001"
        dataset = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
        dataset.Rows, dataset.Columns = values.shape[-2:]
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated = dataset.BitsStored = 16
        dataset.HighBit, dataset.PixelRepresentation = 15, int(values.dtype.kind == "i")
        dataset.PixelData = values.tobytes()
        for name, value in facts.items():
            setattr(dataset, name, value)
        pydicom.dcmwrite(path, dataset)
        return path

    return make


def read_one(path: Path) -> Picture:
    (picture,) = read(path, path.name, size=SIZE, grey=True)
    (of_bytes,) = read(path.read_bytes(), path.name, size=SIZE, grey=True)
    np.testing.assert_array_equal(picture.pixels, of_bytes.pixels)
    assert picture.notes == of_bytes.notes
    return picture


def test_values_are_rescaled_and_windowed(write: Callable[..., Path]) -> None:
    """A CT's window of lungs, PS3.3 C.11.2.1.2 with an output from 0 to 255."""
    stored = np.linspace(0, 2000, SIZE * SIZE).astype(np.int16).reshape(SIZE, SIZE)
    window = {
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
        "WindowCenter": -600,
        "WindowWidth": 1500,
    }
    picture = read_one(write(stored, **window))
    units = stored.astype(float) - 1024
    expected = ((units - (-600 - 0.5)) / (1500 - 1) + 0.5) * 255
    expected = np.rint(np.clip(expected, 0, 255))
    np.testing.assert_array_equal(picture.pixels[..., 0], expected)
    assert picture.notes == () and 0 < expected.min() < expected.max() == 255


@pytest.mark.filterwarnings("ignore:PydicomReader")
def test_values_are_those_of_monais_reader(write: Callable[..., Path]) -> None:
    """Which takes no file in memory, and more of it than there may be."""
    pytest.importorskip("pydicom", reason="the extra dogmed[dicom] is missing")
    from monai.data import PydicomReader

    stored = np.linspace(-300, 900, SIZE * SIZE).astype(np.int16).reshape(SIZE, SIZE)
    facts = {"RescaleSlope": 1.5, "RescaleIntercept": -24, "WindowCenter": 400, "WindowWidth": 900}
    path = write(stored, **facts)
    reader = PydicomReader(swap_ij=False)
    values, _ = reader.get_data(reader.read(path))
    share = np.clip((np.asarray(values, float) - (400 - 0.5)) / (900 - 1) + 0.5, 0, 1)
    np.testing.assert_array_equal(read_one(path).pixels[..., 0], np.rint(share * 255))


def test_without_a_window_the_lowest_value_is_black_and_that_is_told(write) -> None:
    stored = np.linspace(100, 1100, SIZE * SIZE).astype(np.uint16).reshape(SIZE, SIZE)
    picture = read_one(write(stored))
    expected = np.rint((stored - 100.0) / 1000 * 255)
    np.testing.assert_array_equal(picture.pixels[..., 0], expected)
    assert "without a window: its values from 100 to 1100" in picture.notes[0]
    inverted = read_one(write(stored, PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_allclose(inverted.pixels[..., 0], 255 - expected, atol=1)


@pytest.mark.parametrize(
    "facts, words",
    [
        ({"NumberOfFrames": 3}, "has 3 frames"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "with a palette"),
        ({"Rows": 20_000, "Columns": 20_000}, "over 100"),
        ({"PixelData": bytes(10)}, "cannot be decoded"),
        ({"Rows": None}, "cannot be decoded"),
    ],
)
def test_what_is_not_one_picture_is_told_in_one_line(write, facts, words) -> None:
    path = write(np.zeros((SIZE, SIZE), np.uint16), **facts)
    with pytest.raises(DataError, match=words) as error:
        read_one(path)
    assert "\n" not in str(error.value)


def test_dicom_without_an_image_is_told_in_one_line(write: Callable[..., Path]) -> None:
    import pydicom

    path = write(np.zeros((SIZE, SIZE), np.uint16))
    dataset = pydicom.dcmread(path)
    for name in ("Rows", "Columns", "PixelData"):
        delattr(dataset, name)
    dataset.save_as(path)
    with pytest.raises(DataError, match="is DICOM without an image"):
        read_one(path)


def test_a_cut_file_is_told_in_one_line(write: Callable[..., Path]) -> None:
    path = write(np.zeros((SIZE, SIZE), np.uint16))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="cannot be decoded"):
        read_one(path)


def test_what_is_inflated_to_any_size_is_refused(write: Callable[..., Path]) -> None:
    import pydicom
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    dataset = pydicom.dcmread(write(np.zeros((SIZE, SIZE), np.uint16)))
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.add_new(0x00420011, "OB", bytes(50_000_000))
    path = Path(dataset.filename).with_name("deflated")
    dataset.save_as(path)
    assert path.stat().st_size < 100_000
    tracemalloc.start()
    with pytest.raises(DataError, match="transfer syntax is deflated: save it in one that is not"):
        read_one(path)
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


def test_a_file_of_nothing_but_items_is_given_up(write: Callable[..., Path]) -> None:
    """Items of eight bytes that become objects of a kilobyte."""
    content = write(np.zeros((SIZE, SIZE), np.uint16)).read_bytes()
    for items, read_too in ((1000, True), (100_000, False)):
        sequence = struct.pack("<HH2sHI", 0x8, 0x1140, b"SQ", 0, 0xFFFFFFFF)
        sequence += struct.pack("<HHI", 0xFFFE, 0xE000, 0) * items
        sequence += struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
        start = content.index(struct.pack("<HH2s", 0x28, 2, b"US"))
        file = content[:start] + sequence + content[start:]
        if read_too:
            (picture,) = read(file, "x", size=SIZE, grey=True)
            assert not picture.pixels.any()
        else:
            with pytest.raises(DataError, match="sequences take more than 100,000 reads"):
                list(read(file, "x", size=SIZE, grey=True))


def test_private_elements_and_what_comes_before_pixels_are_not_kept(write) -> None:
    path = write(np.zeros((SIZE, SIZE), np.uint16), Rows=20_000, Columns=20_000)
    import pydicom

    dataset = pydicom.dcmread(path)
    dataset.add_new(0x00420011, "OB", bytes(50_000_000))
    dataset.PixelData = bytes(50_000_000)
    dataset.save_as(path)
    tracemalloc.start()
    with pytest.raises(DataError, match="over 100"):
        list(read(path, path.name, size=SIZE, grey=True))
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("window", [{}, {"WindowCenter": 40, "WindowWidth": 400}])
def test_large_images_are_windowed_in_parts_and_as_one(
    photometric: str, window: dict[str, int], write, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = np.random.default_rng(0).integers(-900, 1500, (SIZE, SIZE)).astype(np.int16)
    facts = {"RescaleSlope": "1.37", "RescaleIntercept": "-24.5", **window}
    path = write(stored, PhotometricInterpretation=photometric, **facts)
    whole = read_one(path)
    monkeypatch.setattr(dicom, "_BLOCK", 3 * SIZE)
    parts = read_one(path)
    np.testing.assert_array_equal(parts.pixels, whole.pixels)
    assert parts.notes == whole.notes and len(parts.notes) == (not window)


def test_an_image_of_many_pixels_takes_little_more_than_they_are(write) -> None:
    stored = np.zeros((3000, 3000), np.uint16)
    path = write(stored, RescaleSlope=1, RescaleIntercept=-1024)
    list(read(path, path.name, size=SIZE, grey=True))  # imports
    tracemalloc.start()
    list(read(path, path.name, size=SIZE, grey=True))
    assert tracemalloc.get_traced_memory()[1] < 4 * stored.nbytes
    tracemalloc.stop()


def test_without_pydicom_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(bytes(128) + b"DICM")
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "pydicom" else found(name, *a)
    )
    with pytest.raises(DataError, match=r"pip install 'dogmed\[dicom\]'"):
        read_one(tmp_path / "a")

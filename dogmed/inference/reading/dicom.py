"""DICOM files through pydicom, as 8-bit images: an extra, ``pip install 'dogmed[dicom]'``."""

from __future__ import annotations

import importlib.util
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from dogmed.errors import DataError, reason

_MOST_READS = 100_000
"""Of a file: each item of a sequence takes three, and kilobytes where it took eight bytes."""
_BLOCK = 1_000_000  # pixels that are windowed at once


class _Sparing:
    """A file that is read piece by piece, and in so many pieces.

    Args:
        file: opened.
    """

    def __init__(self, file: BinaryIO):
        self._file, self._reads = file, 0
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        self._reads += 1
        if size < 0:  # pydicom asks so for what it then inflates, to any size
            raise ValueError(
                "its transfer syntax is deflated: save it in one that is not, as with dcmconv +te"
            )
        if self._reads > _MOST_READS:
            raise ValueError(f"its sequences take more than {_MOST_READS:,} reads")
        return self._file.read(size)


def read_dicom(
    file: Path | BytesIO, name: str, max_pixels: int
) -> tuple[Image.Image, tuple[str, ...]]:
    """Decode a file of one frame, and say what was done to its values.

    They are rescaled as the file says and then windowed: black and white are the ends of its first window
    (PS3.3 C.11.2.1.2, linear), or its lowest and highest value where it names none. MONOCHROME1 is inverted.
    Nothing is read but what that takes, and pixels only when the rest is known to be right.

    Args:
        file: its path, or what it holds.
        name: that it goes by.
        max_pixels: of a frame.

    Raises:
        DataError: pydicom is not installed; the file cannot be decoded, is deflated, too large, or holds no
            image, several, or a palette's.
    """
    if importlib.util.find_spec("pydicom") is None:
        raise DataError(
            f"{name} is DICOM, for which pydicom is missing: pip install 'dogmed[dicom]'"
        )
    try:
        with file.open("rb") if isinstance(file, Path) else file as opened:
            return _decode(_Sparing(opened), name, max_pixels)
    except DataError:
        raise
    except Exception as error:  # pydicom and its decoders raise errors of every kind
        raise DataError(
            f"{name} is a DICOM file that cannot be decoded ({reason(error)})"
        ) from error


def _decode(opened: Any, name: str, max_pixels: int) -> tuple[Image.Image, tuple[str, ...]]:
    from pydicom import dcmread
    from pydicom.pixels import pixel_array

    dataset = dcmread(
        opened,
        stop_before_pixels=True,
        specific_tags=[
            "Rows", "Columns", "NumberOfFrames", "PhotometricInterpretation",
            "RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth",
        ],
    )  # fmt: skip
    if "Rows" not in dataset or "Columns" not in dataset:
        raise DataError(f"{name} is DICOM without an image")
    frames = int(dataset.get("NumberOfFrames") or 1)
    height, width = int(dataset.Rows), int(dataset.Columns)
    if frames > 1:
        raise DataError(f"{name} has {frames} frames: save the one to classify")
    if dataset.get("PhotometricInterpretation") == "PALETTE COLOR":
        raise DataError(
            f"{name} is DICOM with a palette, whose numbers are no shades: save it as RGB"
        )
    if height * width > max_pixels:
        raise DataError(f"{name}: an image of {width}×{height} pixels, over {max_pixels:,}")
    return _eight_bits(pixel_array(opened, index=0), dataset)


def _eight_bits(values: np.ndarray, dataset: Any) -> tuple[Image.Image, tuple[str, ...]]:
    rescaled = "RescaleSlope" in dataset or "RescaleIntercept" in dataset
    if values.ndim == 3 and values.dtype == np.uint8 and not rescaled:
        return Image.fromarray(values), ()
    if values.ndim != 2:
        raise ValueError(
            f"expected grey, or colours of 8 bits and no rescaling; it has {values.dtype} {values.shape}"
        )
    slope, intercept = (
        float(dataset.get(f"Rescale{what}", default))
        for what, default in (("Slope", 1), ("Intercept", 0))
    )

    def units(block: slice) -> np.ndarray:
        return values[block].astype(np.float64) * slope + intercept

    rows = max(1, _BLOCK // values.shape[1])  # a whole image of floats would take gigabytes
    blocks = [slice(start, start + rows) for start in range(0, len(values), rows)]
    center, width = (_first(dataset.get(f"Window{what}")) for what in ("Center", "Width"))
    note: tuple[str, ...] = ()
    if center is not None and width is not None and width > 1:
        low, high = center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2
    else:
        ends = [(units(block).min(), units(block).max()) for block in blocks]
        low, high = float(np.min(ends)), float(np.max(ends))
        note = (f"DICOM without a window: its values from {low:g} to {high:g} are black to white",)
    shades = np.empty(values.shape, np.uint8)
    for block in blocks:
        share = np.clip((units(block) - low) / max(high - low, 1e-12), 0, 1)
        if dataset.get("PhotometricInterpretation") == "MONOCHROME1":
            share = 1 - share
        shades[block] = np.rint(share * 255).astype(np.uint8)
    return Image.fromarray(shades), note


def _first(value: Any) -> float | None:
    """A number, or the first of several."""
    if value is None or value == "":
        return None
    return float(value[0] if isinstance(value, list | tuple) or hasattr(value, "append") else value)

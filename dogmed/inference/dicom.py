"""DICOM files through MONAI's reader, as 8-bit images: an extra, ``pip install 'dogmed[dicom]'``."""

from __future__ import annotations

import importlib.util
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dogmed.errors import ConfigError, DataError, reason


def read_dicom(
    file: Path | BytesIO, name: str, max_pixels: int
) -> tuple[Image.Image, tuple[str, ...]]:
    """Decode a file of one frame, and say what was done to its values.

    They are rescaled as the file says and then windowed: black and white are the ends of its first window
    (PS3.3 C.11.2.1.2, linear), or its lowest and highest value where it names none. MONOCHROME1 is inverted.

    Args:
        file: its path, or what it holds.
        name: that it goes by.
        max_pixels: of a frame.

    Raises:
        ConfigError: pydicom is not installed.
        DataError: the file cannot be decoded, is too large, or holds no image, several, or a palette's.
    """
    if importlib.util.find_spec("pydicom") is None:
        raise ConfigError(
            f"{name} is DICOM, for which pydicom is missing: pip install 'dogmed[dicom]'"
        )
    from dogmed.tracking import quiet

    quiet()  # MONAI imports MLflow
    from monai.data import PydicomReader
    from pydicom import dcmread

    class Reader(PydicomReader):  # MONAI's takes nothing but a file's name
        def read(self, data: Any, **kwargs: Any) -> Any:
            self.filenames, self.has_series = [name], False
            return dcmread(data)

    reader = Reader(swap_ij=False)
    try:
        dataset: Any = reader.read(file)
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
        values, _ = reader.get_data(dataset)
        return _eight_bits(np.asarray(values), dataset)
    except DataError:
        raise
    except Exception as error:  # pydicom and its decoders raise errors of every kind
        raise DataError(
            f"{name} is a DICOM file that cannot be decoded ({reason(error)})"
        ) from error


def _eight_bits(values: np.ndarray, dataset: Any) -> tuple[Image.Image, tuple[str, ...]]:
    if values.ndim == 3 and values.dtype == np.uint8:
        return Image.fromarray(values), ()
    if values.ndim != 2:
        raise ValueError(
            f"expected grey, or colours of 8 bits; it has {values.dtype} {values.shape}"
        )
    values = values.astype(np.float64)
    center, width = (_first(dataset.get(f"Window{what}")) for what in ("Center", "Width"))
    note: tuple[str, ...] = ()
    if center is not None and width is not None and width > 1:
        low, high = center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2
    else:
        low, high = float(values.min()), float(values.max())
        note = (f"DICOM without a window: its values from {low:g} to {high:g} are black to white",)
    share = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
    if dataset.get("PhotometricInterpretation") == "MONOCHROME1":
        share = 1 - share
    return Image.fromarray(np.rint(share * 255).astype(np.uint8)), note


def _first(value: Any) -> float | None:
    """A number, or the first of several."""
    if value is None or value == "":
        return None
    return float(value[0] if isinstance(value, list | tuple) or hasattr(value, "append") else value)

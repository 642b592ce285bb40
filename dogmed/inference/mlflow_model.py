"""What MLflow serves: the network of a logged model, asked by a table of images, answering with one.

MLflow calls ``_load_pyfunc``, which the MLmodel file beside the weights names (``dogmed.tracking.servable``).
"""

from __future__ import annotations

import base64
import threading
import warnings
from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd

from dogmed.errors import DataError, DogmedError
from dogmed.inference.classifier import Classifier, load
from dogmed.inference.reading.pictures import Picture
from dogmed.tracking.servable import COLUMN

BATCH = 64
"""Images at once."""


class TableClassifier:
    """A classifier that takes and gives tables.

    Args:
        classifier: the network.
    """

    def __init__(self, classifier: Classifier):
        self.classifier = classifier
        self._alone = threading.Lock()  # MLflow asks in threads, and memory is that of one batch

    def predict(self, table: pd.DataFrame) -> pd.DataFrame:
        """Classify the images of a table, as ``Classifier.predict`` does.

        A row that cannot be read keeps back no other: its ``error`` says why, and its ``predicted`` and
        ``p_CLASS`` are None, as JSON has no NaN.

        Args:
            table: with a column ``image``: what an image file holds, as bytes or as text in base64. Text
                is never a path.

        Returns:
            For each row ``predicted``, ``p_CLASS`` of each class (calibrated), ``warning`` and ``error``,
            which are "" for nothing.
        """
        rows = list[list[Any]]()
        for start in range(0, len(table), BATCH):
            rows += self._answer(list(table[COLUMN])[start : start + BATCH], start)
        columns = [f"p_{name}" for name in self.classifier.classes]
        header = ["predicted", *columns, "warning", "error"]
        told = pd.DataFrame(rows, table.index, header, dtype=object)
        return told if told["error"].any() else told.astype(dict.fromkeys(columns, float))

    def _answer(self, cells: Sequence[Any], start: int) -> list[list[Any]]:
        """The rows of the answer to some cells, of which ``start`` came before."""
        pictures, errors = dict[int, Picture](), dict[int, str]()
        for number, cell in enumerate(cells):
            try:
                pictures[number] = self._read(cell, f"row {start + number}")
            except DogmedError as error:
                errors[number] = str(error)
        classes = len(self.classifier.classes)
        rows: list[list[Any]] = [
            [None, *[None] * classes, "", errors.get(k, "")] for k in range(len(cells))
        ]
        if pictures:
            with self._alone:
                told = self.classifier.classify(list(pictures.values()))
            for number, names, values, warning in zip(
                pictures, told.names, told.probabilities, told.warnings, strict=True
            ):
                rows[number] = ["; ".join(names), *map(float, values), warning, ""]
        return rows

    def _read(self, cell: Any, name: str) -> Picture:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of what is decided in ``read``
            picture, *more = islice(self.classifier.read(_content(cell, name), name), 2)
        if more:
            raise DataError(f"{name} has several pages: send each as a row of its own")
        return picture


def _load_pyfunc(path: str) -> TableClassifier:
    """Open a logged model's weights file; the name is MLflow's."""
    return TableClassifier(load(path))


def _content(cell: Any, name: str) -> bytes:
    """What an image file holds, from a cell of the table."""
    if isinstance(cell, bytes):
        return cell
    if not isinstance(cell, str):
        listed = isinstance(cell, list | tuple | np.ndarray)  # as of predict({"image": [...]})
        mend = f": send a DataFrame with a column {COLUMN}, or dataframe_records" * listed
        raise DataError(
            f"{name}: expected an image file as bytes or as text in base64, received {cell!r:.40}{mend}"
        )
    try:
        return base64.b64decode("".join(cell.split()), validate=True)  # encoders break lines
    except ValueError as error:
        reason = str(error).lower()
        raise DataError(f"{name} is not base64 of an image file ({reason})") from error

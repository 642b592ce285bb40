"""What MLflow serves: the network of a logged model, asked by a table of images, answering with one.

MLflow calls ``_load_pyfunc``, which the MLmodel file beside the weights names (``dogmed.tracking.servable``).
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Mapping
from typing import Any

import pandas as pd

from dogmed.errors import DataError
from dogmed.inference.classifier import Classifier, Predictions, load

COLUMN = "image"
"""Of the table that is asked; ``dogmed.tracking.servable`` declares it to MLflow."""


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
        names = [f"row {number}" for number in range(len(table))]
        found, errors = self._classify(dict(zip(names, table[COLUMN], strict=True)))
        columns = [f"p_{name}" for name in self.classifier.classes]
        rows: dict[str, list[Any]] = {
            name: [None, *[None] * len(columns), "", errors.get(name, _several(name))]
            for name in names
        }
        answered = 0
        for part in found:
            for name, classes, values, warning in zip(
                part.files, part.names, part.probabilities, part.warnings, strict=True
            ):
                if name in rows:  # else a page of many
                    rows[name] = ["; ".join(classes), *map(float, values), warning, ""]
                    answered += 1
        header = ["predicted", *columns, "warning", "error"]
        told = pd.DataFrame(list(rows.values()), table.index, header, dtype=object)
        return told.astype(dict.fromkeys(columns, float)) if answered == len(rows) else told

    def _classify(self, cells: Mapping[str, Any]) -> tuple[list[Predictions], dict[str, str]]:
        """What the network says of the images that can be read, and why others cannot, by name."""
        files, errors = dict[str, bytes](), dict[str, str]()
        for name, cell in cells.items():
            try:
                files[name] = _content(cell, name)
            except DataError as error:
                errors[name] = str(error)

        def note(name: str, error: DataError) -> None:
            errors[name] = str(error)

        try:
            with self._alone:
                return [self.classifier.predict(files.values(), names=files, on_error=note)], errors
        except DataError:
            if len(errors) < len(cells):  # else it says that there was none to be read
                raise
            return [], errors


def _load_pyfunc(path: str) -> TableClassifier:
    """Open a logged model's weights file; the name is MLflow's."""
    return TableClassifier(load(path))


def _content(cell: Any, name: str) -> bytes:
    """What an image file holds, from a cell of the table."""
    if isinstance(cell, bytes):
        return cell
    if not isinstance(cell, str):
        raise DataError(
            f"{name}: expected an image file as bytes or as text in base64, received {cell!r:.40}"
        )
    try:
        return base64.b64decode("".join(cell.split()), validate=True)  # encoders break lines
    except ValueError as error:
        reason = str(error).lower()
        raise DataError(f"{name} is not base64 of an image file ({reason})") from error


def _several(name: str) -> str:
    return f"{name} has several pages: send each as a row of its own"

"""What the server says of images: one network, asked by one request at a time."""

from __future__ import annotations

import base64
import io
import threading
import warnings
from collections.abc import Sequence
from itertools import islice
from pathlib import PurePath
from typing import Any

import numpy as np
from PIL import Image

from dogmed import __version__
from dogmed.errors import ConfigError, DataError, printable
from dogmed.inference.classifier import Classifier, Predictions
from dogmed.inference.explain.maps import Explainer, Explanation
from dogmed.inference.explain.pictures import overlay
from dogmed.inference.export.card import NO_DEVICE
from dogmed.inference.reading.pictures import Picture


class Answers:
    """Answers of a classifier, from any thread.

    Args:
        classifier: the network.
    """

    def __init__(self, classifier: Classifier):
        self.classifier = classifier
        self._lock = threading.Lock()  # Grad-CAM puts hooks on the network
        self._reading = threading.Lock()  # an image may take half a gigabyte
        self.explainer: Explainer | None = None
        """None where there is no Grad-CAM of the network."""
        self.notes = [*classifier.notes]
        """What should be said of the network."""
        try:
            self.explainer = Explainer(classifier)
            blank = np.zeros((classifier.size, classifier.size, 3), np.uint8)
            self.explain(Picture("", blank, 1, 1, ()))  # the first takes seconds
        except ConfigError as error:
            self.notes.append(str(error))

    def read(self, content: bytes, name: str, most: int) -> list[Picture]:
        """Decode an upload.

        Args:
            content: of a file.
            name: of the file; folders are left away.
            most: pages that it may have.

        Raises:
            DataError: it is no image that can be classified, or has more pages.
        """
        shown = printable(PurePath(name).name) or "upload"
        with self._reading, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of what is decided in ``read``
            pictures = list(islice(self.classifier.read(content, shown), most + 1))
        if len(pictures) > most:
            raise DataError(
                f"{shown} is one image too many for a request, in which each page is one"
            )
        return pictures

    def classify(self, pictures: Sequence[Picture], *, raw: bool = False) -> Predictions:
        """As ``Classifier.classify``."""
        with self._lock:
            return self.classifier.classify(pictures, raw=raw)

    def explain(self, picture: Picture, label: int | None = None) -> list[Explanation]:
        """As ``Explainer.explain``; nothing where there is no Grad-CAM."""
        with self._lock:
            return [] if self.explainer is None else self.explainer.explain(picture, label)

    def overlays(self, picture: Picture, label: int | None) -> list[dict[str, Any]]:
        """Explanations of a picture as JSON holds them, with the maps over it as PNG in base64."""
        assert self.explainer is not None
        return [
            {
                "class": one.name,
                "layer": self.explainer.layer.name,
                "peak": None if one.peak is None else {"x": one.peak.x, "y": one.peak.y},
                "png": _png(overlay(picture.pixels, one.heat)),
            }
            for one in self.explain(picture, label)
        ]

    def facts(self) -> dict[str, Any]:
        """The network as JSON holds it."""
        asked, record = self.classifier, self.classifier.trained.record
        return {
            "model": record.model, "task": asked.task, "kind": asked.kind, "classes": list(asked.classes),
            "size": asked.size, "temperature": record.temperature, "sha256": record.sha256,
            "dogmed": __version__, "notes": self.notes, "intended_use": NO_DEVICE,
        }  # fmt: skip


def _png(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()

"""What the server says of an upload: one network, asked by one request at a time."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePath
from typing import Any

from dogmed.errors import ConfigError, DataError, nearest, printable
from dogmed.inference.classifier import Classifier, Predictions
from dogmed.inference.explain_maps import Explainer, Explanation
from dogmed.inference.pictures import Picture


class Answers:
    """Answers of a classifier, from any thread.

    Args:
        classifier: the network.
    """

    def __init__(self, classifier: Classifier):
        self.classifier = classifier
        self._lock = threading.Lock()  # Grad-CAM puts hooks on the network
        self.no_maps = ""
        """Why there is no Grad-CAM of this network; empty if there is."""
        self._explainer: Explainer | None = None
        try:
            self._explainer = Explainer(classifier)
        except ConfigError as error:
            self.no_maps = str(error)

    @property
    def explainer(self) -> Explainer:
        """Makes the maps.

        Raises:
            ConfigError: there is no Grad-CAM of this network.
        """
        if self._explainer is None:
            raise ConfigError(self.no_maps)
        return self._explainer

    @property
    def title(self) -> str:
        """The network in a line."""
        asked = self.classifier
        fitted = asked.trained.record.temperature
        sure = "raw probabilities" if fitted is None else f"temperature {fitted:.3f}"
        return (
            f"{asked.trained.record.model} for {asked.task}: {asked.kind}, {len(asked.classes)} classes, "
            f"{asked.size} px, {sure}"
        )

    @property
    def notes(self) -> list[str]:
        """What should be said of the network."""
        notes = [*self.classifier.notes, *([self.no_maps] if self.no_maps else [])]
        if self.classifier.seen.source == "synthetic":
            notes.append("it was trained on SYNTHETIC images, and says nothing about real ones")
        return notes

    def read(self, content: bytes, name: str) -> Iterator[Picture]:
        """Decode an upload, as ``Classifier.read``.

        Raises:
            DataError: it is no image that can be classified.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of what is decided in ``read``
            yield from self.classifier.read(content, shown(name))

    def predict(
        self,
        uploads: Sequence[tuple[str, bytes]],
        *,
        raw: bool = False,
        on_error: Callable[[str, DataError], object] | None = None,
    ) -> Predictions:
        """Classify uploads (name, content), as ``Classifier.predict``.

        Raises:
            DataError: none could be read; without ``on_error``, one could not.
        """
        contents, names = [content for _, content in uploads], [shown(name) for name, _ in uploads]
        with self._lock:
            return self.classifier.predict(contents, names=names, raw=raw, on_error=on_error)

    def classify(self, picture: Picture) -> Predictions:
        """Classify one picture."""
        with self._lock:
            return self.classifier.classify([picture])

    def explain(self, picture: Picture, label: int | None = None) -> list[Explanation]:
        """As ``Explainer.explain``.

        Raises:
            ConfigError: there is no Grad-CAM of this network.
        """
        with self._lock:
            return self.explainer.explain(picture, label)

    def label(self, name: str) -> int:
        """The number of a class.

        Raises:
            DataError: there is no such class.
        """
        classes = self.classifier.classes
        if name not in classes:
            raise DataError(
                f"no class {name}{nearest(name, classes)}: it has {', '.join(classes[:20])}"
            )
        return classes.index(name)


def shown(name: str) -> str:
    """The name of an upload, without folders and control characters."""
    return printable(PurePath(name).name) or "upload"


def rows(predicted: Predictions) -> list[dict[str, Any]]:
    """Predictions as JSON holds them, one mapping an image."""
    return [
        {
            "file": file,
            "predicted": list(names),
            "probabilities": dict(zip(predicted.classes, map(float, values), strict=True)),
            "warning": warning,
        }
        for file, names, values, warning in zip(
            predicted.files,
            predicted.names,
            predicted.probabilities,
            predicted.warnings,
            strict=True,
        )
    ]

"""What MLflow is to hold of a run, kept beside the run's own files: from it a store can be mended.

Every ``Run`` writes it before it talks to the store, so it is whole when the store was down. The
curves are not in it: they are those of ``metrics.jsonl``.
"""

from __future__ import annotations

import dataclasses
import json
import os
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dogmed.errors import DogmedError

NAME = "mlflow.json"
CURVES = "metrics.jsonl"


@dataclass
class Ledger:
    """The record of one run, in a file ``mlflow.json`` of the run's folder."""

    path: Path
    key: str
    """Names the run in every store, by a tag."""
    replaces: list[str] = field(default_factory=list)
    """Keys of runs that were begun here with other settings and never finished."""
    run_ids: list[str] = field(default_factory=list)
    """Ids that stores have given the run."""
    experiment: str = ""
    name: str = ""
    status: str = ""
    """RUNNING, FINISHED, FAILED or KILLED; empty before the run has begun."""
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    datasets: list[list[str]] = field(default_factory=list)
    """Name, source, digest, context."""
    artifacts: list[list[str]] = field(default_factory=list)
    """File, relative to the run's folder, and the folder of the store that it goes to."""
    scores: dict[str, float] = field(default_factory=dict)
    """Figures of the whole run."""
    weights: list[str] = field(default_factory=list)
    """File, relative to the run's folder, and its name as a logged model; empty for none."""
    candidate: dict[str, Any] = field(default_factory=dict)
    """What the weights would be in the registry: ``model``, ``score``, ``tags``; empty for nothing."""

    @classmethod
    def open(cls, path: Path) -> Ledger:
        """Read the ledger, or begin one that is written when it first has something to say.

        Raises:
            DogmedError: the file is damaged.
        """
        if not path.is_file():
            return cls(path, uuid.uuid4().hex)
        import pydantic

        try:
            values = {**json.loads(path.read_text()), "path": path}
            return pydantic.TypeAdapter(cls).validate_python(values)
        except (ValueError, TypeError, RecursionError):
            raise DogmedError(
                f"{path} is damaged; delete it, and the run is logged to MLflow as another one"
            ) from None

    def save(self) -> None:
        """Write the file whole or not at all."""
        from dogmed.checkpoint import atomic_path  # with it comes torch, which readers need not

        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del values["path"]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.path) as temporary:
            temporary.write_text(json.dumps(values, indent=2) + "\n")

    def renew(self) -> None:
        """Begin another run in the same folder; the store is told that the earlier one is over."""
        fresh = Ledger(self.path, uuid.uuid4().hex, [*self.replaces, self.key])
        self.__dict__.update(fresh.__dict__)
        self.save()

    def relative(self, path: Path) -> str:
        """Name a file of the run as it is named here; it may lie beside the ledger's folder."""
        return Path(os.path.relpath(path.resolve(), self.path.parent.resolve())).as_posix()

    def file(self, name: str) -> Path:
        """The file that is named so here."""
        return self.path.parent / name

    def curves(self) -> dict[str, dict[int, float]]:
        """The run's curves: values by epoch, by metric.

        Raises:
            DogmedError: ``metrics.jsonl`` is damaged.
        """
        found: dict[str, dict[int, float]] = {}
        path = self.file(CURVES)
        lines = path.read_text().splitlines() if path.is_file() else []
        try:
            for row in map(json.loads, lines):
                for metric, value in row.items():
                    if metric != "epoch" and value is not None:
                        found.setdefault(metric, {})[int(row["epoch"])] = float(value)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DogmedError(
                f"{path} is damaged; continue the run, or move its folder away"
            ) from None
        return found

"""From what the user calls a model to the network: a folder, a weights file, a name, an MLflow run."""

from __future__ import annotations

import re
from pathlib import Path

from dogmed.config import recipe
from dogmed.models.trained import Trained, open_trained


def open_model(
    name: str, weights_dir: str | Path | None = None, out: str | Path | None = None
) -> Trained:
    """Open what ``open_trained`` opens, or the weights of the MLflow run that has this id.

    Args:
        name: of the model.
        weights_dir: the store of weights; None is the user's.
        out: folder with the MLflow store, unless MLFLOW_TRACKING_URI names it; None is ``dogmed-runs``.

    Raises:
        WeightsError: there is no such model, or no such run, or one without weights.
    """
    if not re.fullmatch(r"[0-9a-f]{32}", name) or Path(name).exists():
        return open_trained(name, weights_dir)
    from dogmed.tracking import weights_of_run

    folder = Path(recipe("finetune/default")["out"] if out is None else out).expanduser()
    with weights_of_run(name, folder) as path:
        return open_trained(str(path.absolute()), weights_dir)

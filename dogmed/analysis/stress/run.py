"""What ``dogmed stress`` found of a run, summed up in the ``result.json`` of its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dogmed.analysis.evaluation import Score
from dogmed.analysis.stress.corruptions import VERSION
from dogmed.analysis.stress.errors import Reference, Row, Told
from dogmed.analysis.stress.points import METRICS, SPLIT, Measured
from dogmed.errors import ConfigError, reason
from dogmed.runs import RunFolder, write_atomic

SECTION = "stress"


def keep_in_run(told: Told, reference: Reference | None, *, whole: bool) -> str | None:
    """Write the section ``stress`` of a run's ``result.json``, in place of an earlier one.

    The rest of the file stays as it is, and nothing that decides whether a run is done, or the same as
    another, is in the section. It is written of the run's own test images and the task's whole set alone.

    Args:
        told: of the model.
        reference: whose errors were divided by.
        whole: whether the task's own set of corruptions was tried.

    Returns:
        What is to be said of it; None if the model is no run's.
    """
    root = _run_of(told.subject.evaluation.trained.path)
    if root is None:
        return None
    folder = RunFolder(root)
    try:
        with folder.lock():
            result = json.loads(folder.result.read_text(), parse_constant=_refuse)
            why = _foreign(told, result, whole)
            if why is not None:
                return f"note: {folder.result} is left as it is: {why}"
            result[SECTION] = _section(told, reference)
            text = json.dumps(result, indent=2, allow_nan=False)
            write_atomic(folder.result, text + "\n")
    except json.JSONDecodeError as error:
        return f"note: {folder.result} is damaged ({error}) and left as it is, without the summary"
    except (OSError, ValueError, ConfigError) as error:
        return f"note: {folder.result} could not be given the summary ({reason(error)})"
    return f"summary in {folder.result}, under {SECTION}"


def _refuse(constant: str) -> None:
    raise ValueError(f"it holds {constant}, which is no JSON")


def _run_of(weights: Path) -> Path | None:
    """The folder of the finished run that weights belong to."""
    root = weights.parent.parent
    is_run = weights.parent.name == "checkpoints" and (root / "result.json").is_file()
    return root if is_run else None


def _foreign(told: Told, result: Any, whole: bool) -> str | None:
    """Why the section is not for this result; None if it is."""
    files = told.subject.images.prepared.manifest["files"]
    hashes = result.get("data", {}).get("sha256") if isinstance(result, dict) else None
    names = [f"{SPLIT}_{what}.npy" for what in ("images", "labels")]
    if hashes is None or any(hashes.get(name) != files[name]["sha256"] for name in names):
        return "these are not the test images that the run was scored on"
    return None if whole else "a set that was named with --corruptions is no summary of the run"


def _section(told: Told, reference: Reference | None) -> dict[str, Any]:
    subject = told.subject
    corruptions = [row for row in told.rows if row.stress is not None and row.stress.corrupts]
    lowered = [row for row in told.rows if row.stress is not None and not row.stress.corrupts]
    return {
        "split": SPLIT,
        "n": len(subject.images.labels(SPLIT)),
        "seed": subject.config.seed,
        "generator": VERSION,
        "resamples": subject.evaluation.resamples,
        "reference": None if reference is None else reference.title,
        "clean": _scores(told.clean),
        "mean": _mean(told.overall),
        "corruptions": {row.stress.name: _mean(row) for row in corruptions if row.stress},
        "resolution": {row.stress.name: _scores(row) for row in lowered if row.stress},
    }


def _mean(row: Row) -> dict[str, Any]:
    return {**_scores(row), "be": _listed(row.ratio), "rbe": _listed(row.relative)}


def _scores(one: Row | Measured) -> dict[str, Any]:
    return {metric: _listed(one.score(metric)) for metric in METRICS}


def _listed(score: Score | None) -> list[float] | None:
    """Value and 95% interval."""
    return None if score is None else list(score)
